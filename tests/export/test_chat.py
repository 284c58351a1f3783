"""Chat stands here because it needs the small stage of the export tests."""

import argparse
import io
import json

import pytest

from bessemer.cli import chat as verb
from bessemer.errors import RecipeError
from bessemer.formulas.shape import ModelShape
from bessemer.log import Console


def call(*words: str) -> dict:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(console=Console())
    verb.arguments(parser)
    return verb.run(parser.parse_args([*words]))


def test_prompt_is_continued_and_the_likeliest_answer_repeats(make):
    run = str(make().parent)
    document = call(run, "--prompt", "the quick", "--max-tokens", "5")
    json.dumps(document)
    assert document["text"] and document["step"] == 30 and document["stage"] == "pretrain"
    assert verb.show(document) == document["text"]
    assert call(run, "--prompt", "the quick", "--max-tokens", "5") == document


def test_lines_are_answered_until_quit_and_only_answers_go_to_stdout(make, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("the quick\n\nbrown fox\n/quit\nnever read\n"))
    document = call(str(make().parent), "--max-tokens", "3")
    assert document["turns"] == 2
    printed = capsys.readouterr()
    assert printed.out.strip() and not printed.err


def test_damaged_newest_checkpoint_is_named_and_the_one_before_answers(damaged, capsys):
    document = call(str(damaged), "--prompt", "the quick", "--max-tokens", "2")
    assert document["step"] == 30
    printed = capsys.readouterr()
    assert "step-00000040" in printed.err and "trying the one before" in printed.err and not printed.out


def test_an_answer_that_the_models_positions_end_is_told(make, monkeypatch, capsys):
    run, words = str(make().parent), ("--prompt", "the quick", "--max-tokens", "30")
    whole = call(run, *words)["text"]
    monkeypatch.setattr(ModelShape, "last_position", 12)
    told = call(run, *words)["text"]
    assert whole.startswith(told) and len(told) < len(whole)
    assert "original context ends" in capsys.readouterr().err


def test_end_of_input_ends_the_conversation(make, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert call(str(make().parent))["turns"] == 0


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--prompt", "  "], "--prompt cannot be used"),
        (["--max-tokens", "0"], "--max-tokens cannot be used"),
        (["--temperature", "-1"], "--temperature cannot be used"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, words, named):
    with pytest.raises(RecipeError, match=named):
        call(str(make().parent), *words)
