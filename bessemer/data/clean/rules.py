"""Quality rules: named thresholds on the columns of signals.py, with the published values as defaults.

A rule set is a list of rules in the order in which datatrove's filter of that name applies them, so that the
first rule that refuses a document is the one that filter names. Choosing another threshold computes nothing
again but `first_refused`.
Values are compared as float32, as columns hold them: a share of exactly three tenths is not above 0.3.
Sources: Gopher arXiv:2112.11446 section A.1.1 and table A1; C4 arXiv:1910.10683 section 2.2; FineWeb
arXiv:2406.17557 section 3.6; order and what the papers leave open from datatrove (Apache-2.0).
"""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bessemer.errors import RecipeError


@dataclass(frozen=True)
class Rule:
    """Refuses a document whose signal is below, or above, the threshold."""

    name: str
    signal: str
    refuses: Literal["below", "above"]
    threshold: float
    source: str

    def __str__(self) -> str:
        """For reports: what refuses, as in "words below 50"."""
        return f"{self.signal} {self.refuses} {self.threshold:g}"


_GOPHER, _GOPHER_TABLE = "arXiv:2112.11446 section A.1.1", "arXiv:2112.11446 table A1"
_C4, _FINEWEB = "arXiv:1910.10683 section 2.2", "arXiv:2406.17557 section 3.6"

# Gopher's repetitions come before its quality, as in FineWeb's pipeline.
_GOPHER_RULES = [
    Rule("gopher.empty", "characters", "below", 1, _GOPHER_TABLE),
    Rule("gopher.duplicate_paragraphs", "duplicate_paragraphs", "above", 0.3, _GOPHER_TABLE),
    Rule(
        "gopher.duplicate_paragraph_characters", "duplicate_paragraph_characters", "above", 0.2, _GOPHER_TABLE
    ),
    Rule("gopher.duplicate_lines", "duplicate_lines", "above", 0.3, _GOPHER_TABLE),
    Rule("gopher.duplicate_line_characters", "duplicate_line_characters", "above", 0.2, _GOPHER_TABLE),
    *(
        Rule(f"gopher.top_{length}_gram", f"top_{length}_gram", "above", share, _GOPHER_TABLE)
        for length, share in ((2, 0.2), (3, 0.18), (4, 0.16))
    ),
    *(
        Rule(f"gopher.duplicate_{length}_grams", f"duplicate_{length}_grams", "above", share, _GOPHER_TABLE)
        for length, share in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
    ),
    Rule("gopher.min_words", "words", "below", 50, _GOPHER),
    Rule("gopher.max_words", "words", "above", 100_000, _GOPHER),
    Rule("gopher.min_mean_word_length", "mean_word_length", "below", 3, _GOPHER),
    Rule("gopher.max_mean_word_length", "mean_word_length", "above", 10, _GOPHER),
    Rule("gopher.hashes", "hashes_per_word", "above", 0.1, _GOPHER),
    Rule("gopher.ellipses", "ellipses_per_word", "above", 0.1, _GOPHER),
    Rule("gopher.bullet_lines", "bullet_lines", "above", 0.9, _GOPHER),
    Rule("gopher.ellipsis_lines", "ellipsis_lines", "above", 0.3, _GOPHER),
    Rule("gopher.alphabetic_words", "alphabetic_words", "below", 0.8, _GOPHER),
    Rule("gopher.stop_words", "stop_words", "below", 2, _GOPHER),
]
_C4_RULES = [
    Rule("c4.lorem_ipsum", "c4_lorem_ipsum", "above", 0, _C4),
    Rule("c4.curly_bracket", "c4_curly_bracket", "above", 0, _C4),
    Rule("c4.sentences", "c4_sentences", "below", 5, _C4),
]
_FINEWEB_RULES = [
    Rule("fineweb.empty", "written_lines", "below", 1, _FINEWEB),
    Rule("fineweb.punctuated_lines", "punctuated_lines", "below", 0.12, _FINEWEB),
    Rule("fineweb.short_lines", "short_lines", "above", 0.67, _FINEWEB),
    Rule("fineweb.duplicate_characters", "duplicate_written_characters", "above", 0.01, _FINEWEB),
    Rule("fineweb.newlines", "newlines_per_word", "above", 0.3, _FINEWEB),
]
# C4 takes such lines out (c4.py) and keeps the document; these refuse the document. In no set: by name only.
_SINGLE_RULES = [
    Rule("c4.javascript", "c4_javascript", "above", 0, _C4),
    Rule("c4.policy", "c4_policy", "above", 0, _C4),
]
SETS: dict[str, list[Rule]] = {"gopher": _GOPHER_RULES, "c4": _C4_RULES, "fineweb": _FINEWEB_RULES}
RULES: dict[str, Rule] = {rule.name: rule for rules in (*SETS.values(), _SINGLE_RULES) for rule in rules}


def chosen_rules(rules: str | Iterable[str], thresholds: Mapping[str, float]) -> list[Rule]:
    """The rules of a recipe, in the order named; each once. RecipeError on unknown names.

    rules: "off", a set, or a list of sets and single rules. thresholds: by name, for chosen rules.
    """
    names = [] if rules == "off" else [rules] if isinstance(rules, str) else list(rules)
    chosen: dict[str, Rule] = {}
    for name in names:
        if name not in SETS and name not in RULES:
            raise _unknown("no such rule", name, [*SETS, *RULES], "data.clean.rules")
        chosen |= {rule.name: rule for rule in SETS.get(name, [])} or {name: RULES[name]}
    for name, value in thresholds.items():
        if name not in chosen:
            problem = (
                "a threshold for a rule that is not on"
                if name in RULES
                else "no such rule to have a threshold"
            )
            raise _unknown(problem, name, list(chosen) or list(RULES), "data.clean.thresholds")
        if not math.isfinite(value):
            raise RecipeError(
                "a threshold is no number", found=f"{name} = {value}", wanted="a finite number",
                fix=f"set {name}, or leave it out for {RULES[name].threshold:g}",
            )  # fmt: skip
        chosen[name] = replace(chosen[name], threshold=value)
    return list(chosen.values())


def first_refused(columns: pa.RecordBatch, rules: Sequence[Rule]) -> NDArray[np.int64]:
    """Per row the index of the first rule that refuses it, -1 for rows that none does."""
    refused = np.full(columns.num_rows, -1, dtype=np.int64)
    for index in reversed(range(len(rules))):
        refused[refuses(rules[index], columns)] = index
    return refused


def refuses(rule: Rule, columns: pa.RecordBatch) -> NDArray[np.bool_]:
    values = columns.column(rule.signal).to_numpy(zero_copy_only=False)
    # The threshold is rounded as the column is: 0.3 as float32 is not below 0.3.
    threshold = np.float32(rule.threshold) if values.dtype == np.float32 else rule.threshold
    return np.asarray(values < threshold if rule.refuses == "below" else values > threshold)


def _unknown(problem: str, name: str, known: list[str], key: str) -> RecipeError:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[:3]
    return RecipeError(
        problem, found=f'{key}: "{name}"', wanted="one of " + ", ".join(known),
        fix="did you mean " + " or ".join(near) + "?",
    )  # fmt: skip
