import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bessemer.errors import DataError, RecipeError
from bessemer.report.build import write_report
from bessemer.report.grades import measured
from bessemer.report.record import read_stage
from bessemer.units import format_seconds


class Balance(HTMLParser):
    """Raises when a tag is closed that is not the innermost open one."""

    VOID = ("meta", "br", "hr", "img", "link", "input", "path")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def report(run: Path) -> str:
    path, _ = write_report(run)
    return path.read_text()


def test_report_stands_alone_and_is_well_formed(made_run):
    html = report(made_run)
    balance = Balance()
    balance.feed(html)
    assert not balance.open
    assert not balance.seen & {"script", "link", "img", "iframe", "object"}
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!#)|url\(|@import|@font-face""", html)


def test_report_tells_result_plan_data_and_history(made_run):
    html = report(made_run)
    for told in [
        "A 30.1M-parameter llama model read 16.4M tokens of 2 sources in 40m",
        "1.020 bits per byte",
        "≥ 16×",
        "0.003 × (30M params / 30M)^-0.25",  # the rule of a derived value
        "8% above the band",  # memory, predicted too low
        "dedup.exact 70",
        "CC-BY-4.0",
        "killed: it left no word",
        "12 step(s) were run again",
        "modelled",
        "3.10e-06",
        "size = &quot;30M&quot;",
    ]:
        assert told in html, told


def test_text_from_a_model_is_escaped(made_run):
    html = report(made_run)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html and "<script" not in html


def test_what_nobody_measured_is_said_and_never_zero(tmp_path, make):
    run = make(tmp_path / "dark", finetune=False, power_w=None)
    html = report(run)
    assert re.search(r'Energy, pretrain</span><b><span class="absent">not measured', html)
    assert re.search(r"<b>Power</b></figcaption><p class=\"absent\">not measured", html)


def test_bare_run_still_has_a_report(tmp_path):
    stage = tmp_path / "bare" / "pretrain"
    stage.mkdir(parents=True)
    (stage / "metrics.jsonl").write_text(
        json.dumps({"step": 1, "loss": 3.0, "tokens": 8, "attempt": 1}) + "\n"
    )
    assert "training loss of 3.000" in report(tmp_path / "bare")
    assert (tmp_path / "bare" / "report.html").is_file()


def test_report_made_from_inside_a_stage_is_the_runs(made_run, monkeypatch):
    monkeypatch.chdir(made_run / "pretrain")
    path, record = write_report(Path())
    assert path.resolve() == made_run / "report.html"
    assert record.name == "made" and record.recipe_text


def test_rows_written_every_ten_steps_give_the_same_time(made_run):
    stage = made_run / "pretrain/metrics.jsonl"
    lines = [line for line in stage.read_text().splitlines() if json.loads(line)["step"] % 10 == 0]
    stage.write_text("\n".join(lines) + "\n")
    record = read_stage(made_run / "pretrain")
    assert measured(record, {})["hours"] == pytest.approx(2400 / 3600, rel=0.01)
    assert f"of 2 sources in {format_seconds(record.time_in_steps_s)}" in report(made_run)


def test_damaged_row_is_the_users_error(made_run):
    path = made_run / "pretrain/events.jsonl"
    path.write_text('{"kind": "st\n' + path.read_text())
    with pytest.raises(DataError, match=r"line 1 of .*events\.jsonl"):
        write_report(made_run)


def test_only_the_last_attempt_that_reached_a_step_counts(made_run):
    stage = read_stage(made_run / "pretrain")
    assert [row["step"] for row in stage.rows] == list(range(1, 1001))
    assert all(row["attempt"] == (1 if row["step"] <= 450 else 2) for row in stage.rows)
    assert len(stage.abandoned) == 12


def test_report_of_nothing_and_of_a_damaged_file_is_the_users_error(tmp_path, made_run):
    with pytest.raises(RecipeError, match="nothing to report"):
        write_report(tmp_path / "nowhere")
    (made_run / "plan.json").write_text("{")
    with pytest.raises(DataError, match=r"plan\.json"):
        write_report(made_run)
    (made_run / "plan.json").write_text("{}")
    report(made_run)


def test_verb_prints_the_path(made_run):
    import argparse

    from bessemer.cli import report as verb

    parser = argparse.ArgumentParser()
    verb.arguments(parser)
    document = verb.run(parser.parse_args([str(made_run)]))
    assert verb.show(document) == str(made_run / "report.html")
    json.dumps(document)


def test_result_is_that_of_all_held_out_rows_where_the_last_step_was_evaluated(made_run):
    assert "a validation loss of 2.620 nat per token (1.020 bits per byte)" in report(made_run)
    path = made_run / "evaluate/results.json"
    path.write_text(path.read_text().replace('"step": 1000', '"step": 900'))  # and then it was trained on
    measured_while_training = read_stage(made_run / "pretrain").final_validation
    assert f"a validation loss of {measured_while_training:.3f} nat per token;" in report(made_run)


def test_conventions_are_called_as_the_rows_that_they_explain(made_run):
    assert "Bits per byte: sum of the loss over ln 2" in report(made_run)


def test_run_without_a_parent_has_none_and_nobody_measured_it(made_run):
    told = json.loads((made_run / "receipt.json").read_text())
    (made_run / "receipt.json").write_text(json.dumps({**told, "parent": None}))
    assert "<td>parent</td><td>none</td>" in report(made_run)
