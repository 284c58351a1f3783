"""How near an answer is to the expected one: exact match, last number and ROUGE-L. No torch.

ROUGE-L is the F1 of the longest common subsequence of words (Lin 2004, aclanthology.org/W04-1013),
as google-research's rouge_score computes `rougeL` without stemming: lower case, everything but a-z
and 0-9 separates words. So it says nothing of a language in another script: such an answer scores 0.
Cost: product of the two word counts.
"""

import re
from decimal import Decimal

_WHOLE = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_NUMBER = re.compile(rf"(?<![\w.])[-+]?(?:{_WHOLE}(?:\.\d+)?|\.\d+)|\d+(?:\.\d+)?", re.ASCII)


def exact_match(answer: str, expected: str) -> bool:
    """Equal but for case, amount of white space, and a full stop at the end."""
    return _plain(answer) == _plain(expected)


def number_match(answer: str, expected: str) -> bool:
    """Whether the last number of each is the same value; False where either has none.

    "1,234.50" is one number, and equal to 1234.5; a sign counts where no word or digit stands before it.
    """
    found, wanted = _last_number(answer), _last_number(expected)
    return found is not None and found == wanted


def rouge_l(answer: str, expected: str) -> float:
    """F1 in 0 to 1; 0 when either has no word."""
    found, wanted = _words(answer), _words(expected)
    common = _longest_common_subsequence(found, wanted)
    if common == 0:
        return 0.0
    precision, recall = common / len(found), common / len(wanted)
    return 2.0 * precision * recall / (precision + recall)


REWARDS = {"exact": exact_match, "number": number_match}  # what finetune.reward_function may say


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold().removesuffix(".").rstrip()


def _last_number(text: str) -> Decimal | None:
    numbers = _NUMBER.findall(text)
    return Decimal(numbers[-1].replace(",", "")) if numbers else None


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _longest_common_subsequence(first: list[str], second: list[str]) -> int:
    """Row by row of the usual table, keeping one row."""
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0  # the table's entry above and to the left
        for column, other in enumerate(second, start=1):
            above = row[column]
            row[column] = diagonal + 1 if word == other else max(above, row[column - 1])
            diagonal = above
    return row[-1]
