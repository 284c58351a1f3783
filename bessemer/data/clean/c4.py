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
_TAKEN_OUT = ("javascript", *POLICIES)  # lines that name one of these
_LEFT_IN_PLACE = ("kept", "lorem_ipsum", "curly_bracket")
_MAY_END = frozenset((*ENDS, "]"))  # behind a citation the line's own end may stand


def c4_text(text: str) -> str:
    """The kept lines, each without white space around it. Empty when none is kept."""
    lower = text.lower()
    names_something = any(map(lower.__contains__, _TAKEN_OUT))
    kept = []
    for line in map(str.strip, text.splitlines()):
        if line[-1:] not in _MAY_END:  # most lines have no end, and are seen no closer
            continue
        if names_something or "[" in line or len(line) > LONGEST_WORD:
            line, verdict = judge(line)
            if verdict in _LEFT_IN_PLACE:
                kept.append(line)
        elif line[-1] != "]" and not line.endswith(ELLIPSIS) and _has_words(line):
            kept.append(line)
    return "\n".join(kept).strip()


def judge(line: str) -> tuple[str, Verdict]:
    """The line without citations, and the first rule that refuses it."""
    line = line.strip()
    if len(line) > LONGEST_WORD and max(map(len, line.split())) > LONGEST_WORD:
        return line, "long_word"
    has_words = _has_words(line)  # counted with citations
    if "[" in line:
        line = CITATION.sub("", line)
    if not line.endswith(ENDS) or line.endswith(ELLIPSIS):
        return line, "no_end"
    if not has_words:
        return line, "few_words"
    return line, _judge_phrases(line)


def _has_words(line: str) -> bool:
    return len(line.split(None, FEWEST_WORDS - 1)) == FEWEST_WORDS


def _judge_phrases(line: str) -> Verdict:
    lower = line.lower()
    if "lorem ipsum" in lower:
        return "lorem_ipsum"
    if "javascript" in lower:
        return "javascript"
    if "{" in line:
        return "curly_bracket"
    return "policy" if any(map(lower.__contains__, POLICIES)) else "kept"
