"""Rules decide as datatrove's stock filters do; a recipe names them, or is told what is near."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bessemer.data.clean.c4 import c4_text
from bessemer.data.clean.rules import RULES, SETS, Rule, chosen_rules, first_refused
from bessemer.data.clean.signals import COLUMNS, signals
from bessemer.errors import RecipeError

QUALITY_AT = [rule.name for rule in SETS["gopher"]].index("gopher.min_words")
FILTERS: dict[str, list[Rule]] = {
    "gopher_repetition": SETS["gopher"][:QUALITY_AT],
    "gopher_quality": SETS["gopher"][QUALITY_AT:],
    "c4": SETS["c4"],
    "fineweb": SETS["fineweb"],
}
REASONS = {
    "empty": "gopher.empty", "dup_para_frac": "gopher.duplicate_paragraphs",
    "dup_para_char_frac": "gopher.duplicate_paragraph_characters", "dup_line_frac": "gopher.duplicate_lines",
    "dup_line_char_frac": "gopher.duplicate_line_characters",
    **{f"top_{n}_gram": f"gopher.top_{n}_gram" for n in (2, 3, 4)},
    **{f"duplicated_{n}_n_grams": f"gopher.duplicate_{n}_grams" for n in range(5, 11)},
    "gopher_short_doc": "gopher.min_words", "gopher_long_doc": "gopher.max_words",
    "gopher_below_avg_threshold": "gopher.min_mean_word_length",
    "gopher_above_avg_threshold": "gopher.max_mean_word_length", "gopher_too_many_hashes": "gopher.hashes",
    "gopher_too_many_ellipsis": "gopher.ellipses", "gopher_too_many_bullets": "gopher.bullet_lines",
    "gopher_too_many_end_ellipsis": "gopher.ellipsis_lines",
    "gopher_below_alpha_threshold": "gopher.alphabetic_words",
        "gopher_enough_stop_words": "gopher.stop_words",
    "lorem_ipsum": "c4.lorem_ipsum", "curly_bracket": "c4.curly_bracket", "too_few_sentences": "c4.sentences",
    "line_punct_ratio": "fineweb.punctuated_lines", "short_line_ratio": "fineweb.short_lines",
    "char_dup_ratio": "fineweb.duplicate_characters", "list_ratio": "fineweb.newlines",
}  # fmt: skip


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    path = Path(__file__).with_name("datatrove_decisions.json.gz")
    content: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    return content


@pytest.fixture(scope="module")
def columns(golden: dict[str, Any]) -> pa.RecordBatch:
    return signals(pa.array(golden["texts"]))


@pytest.mark.parametrize("name", FILTERS)
def test_decisions_are_those_of_the_stock_filter(
    name: str, golden: dict[str, Any], columns: pa.RecordBatch
) -> None:
    refused = first_refused(columns, FILTERS[name])
    stock = golden["decisions"][name]
    assert np.mean((refused < 0) == (np.array(stock) == "")) >= 0.995
    same_reason = [
        FILTERS[name][index].name == REASONS[reason] or reason == "empty"
        for index, reason in zip(refused.tolist(), stock, strict=True)
        if index >= 0 and reason
    ]
    assert np.mean(same_reason) >= 0.98


def test_c4_leaves_the_text_that_the_stock_filter_leaves(golden: dict[str, Any]) -> None:
    pairs = [(text, left) for text, left in zip(golden["texts"], golden["c4_texts"], strict=True) if left]
    assert len(pairs) > 100
    assert [c4_text(text) for text, _ in pairs] == [left for _, left in pairs]


def test_every_rule_of_every_set_refuses_something_that_it_should() -> None:
    sentence = "Here is a sentence that has all of the words to be kept with. "
    refused_by = {
        "gopher.empty": "", "gopher.duplicate_paragraphs": "a b\n\na b\n\na b",
        "gopher.duplicate_lines": "a b\na b\na b", "gopher.top_2_gram": "big news " * 40,
        "gopher.duplicate_10_grams": sentence * 3, "gopher.min_words": "too few words",
        "gopher.hashes": "word # " * 60,
        "gopher.max_words": "word " * 100_001, "gopher.min_mean_word_length": "ab " * 60,
        "gopher.max_mean_word_length": "abcdefghijklm " * 60, "gopher.ellipses": "wait ... " * 60,
        "gopher.bullet_lines": "- one\n- two", "gopher.ellipsis_lines": "wait...",
        "gopher.alphabetic_words": "1 " * 60,
        "gopher.stop_words": "nothing here", "c4.lorem_ipsum": "The lorem ipsum is here.",
        "c4.curly_bracket": "a { b.",
        "c4.sentences": "One. Two.", "fineweb.empty": " \n ", "fineweb.punctuated_lines": "no end of it",
        "fineweb.short_lines": "short.", "fineweb.duplicate_characters": "same line.\nsame line.",
        "fineweb.newlines": "a\n\n\n\nb.", "c4.javascript": "Please enable JavaScript now.",
        "c4.policy": "Read our Privacy Policy now.",
    }  # fmt: skip
    batch = signals(pa.array(list(refused_by.values())))
    for row, name in enumerate(refused_by):
        assert first_refused(batch.slice(row, 1), [RULES[name]]).tolist() == [0], name
    # What is refused with its threshold is kept with a lax one.
    for row, name in enumerate(refused_by):
        lax = chosen_rules([name], {name: -1.0 if RULES[name].refuses == "below" else 1e9})
        assert first_refused(batch.slice(row, 1), lax).tolist() == [-1], name


def test_the_first_rule_in_the_order_chosen_is_the_one_that_refuses() -> None:
    batch = signals(pa.array(["too few", "too few"]))
    rules = chosen_rules(["fineweb.punctuated_lines", "gopher"], {})
    assert [rules[index].name for index in first_refused(batch, rules)] == ["fineweb.punctuated_lines"] * 2
    rules = chosen_rules(["gopher", "fineweb.punctuated_lines"], {})
    assert [rules[index].name for index in first_refused(batch, rules)] == ["gopher.top_2_gram"] * 2
    assert first_refused(batch, []).tolist() == [-1, -1]


def test_a_share_that_is_the_threshold_is_not_beyond_it() -> None:
    ten = "\n".join(["same"] * 4 + list("abcdef"))  # three of ten lines are repetitions
    batch = signals(pa.array([ten]))
    rules = chosen_rules(["gopher.duplicate_lines"], {})
    assert batch["duplicate_lines"][0].as_py() == pytest.approx(0.3)
    assert first_refused(batch, rules).tolist() == [-1]


def test_recipes_choose_sets_single_rules_and_thresholds() -> None:
    assert chosen_rules("off", {}) == []
    assert chosen_rules("c4", {}) == SETS["c4"]
    rules = chosen_rules(["c4", "gopher.min_words", "c4.sentences"], {"c4.sentences": 3})
    assert [rule.name for rule in rules] == [
        "c4.lorem_ipsum",
        "c4.curly_bracket",
        "c4.sentences",
        "gopher.min_words",
    ]
    assert rules[2].threshold == 3
    assert str(rules[2]) == "c4_sentences below 3"
    assert {rule.signal for rule in RULES.values()} <= COLUMNS.keys()


@pytest.mark.parametrize(
    ("rules", "thresholds", "problem", "fix"),
    [
        (["gofer"], {}, "no such rule", "gopher"),
        (["gopher.min_word"], {}, "no such rule", "gopher.min_words"),
        ("c4", {"c4.sentence": 3.0}, "no such rule", "c4.sentences"),
        ("c4", {"gopher.min_words": 3.0}, "not on", "c4."),
        ("off", {"gopher.min_words": 3.0}, "not on", "did you mean"),
        ("c4", {"c4.sentences": float("nan")}, "no number", "leave it out for 5"),
    ],
)
def test_names_that_are_wrong_are_told_what_is_near(
    rules: str | list[str], thresholds: dict[str, float], problem: str, fix: str
) -> None:
    with pytest.raises(RecipeError) as raised:
        chosen_rules(rules, thresholds)
    assert problem in raised.value.problem
    assert fix in raised.value.fix
