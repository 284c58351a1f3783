"""Tokens that somebody spells: marked on their way through a template, so that they stay letters.

A template writes `<|im_end|>` and means the token; a user who writes it means eight letters. Each spelling of
a message or a tool goes through the template between two characters of Unicode's private use that occur
nowhere else in the conversation; pieces.py encodes what is between them as letters.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bessemer.data.task.samples import Message, Tool

_PRIVATE = range(0xE000, 0xF8FF)
MOST_NESTED = 100  # levels around a spelling: Python goes through them by calls, and gives up below 500
_ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Marked:
    marks: str  # two characters that occur nowhere else; empty: nothing was spelt
    messages: Sequence[Message]
    tools: Sequence[Tool]


class Spellings:
    """Which words are tokens where a template writes them: patterns, of one tokenizer and template."""

    def __init__(self, definition: dict[str, Any], named: Mapping[str, str], source: str) -> None:
        """definition: tokenizer.json; named: bos_token …; source: of the template."""
        added = definition.get("added_tokens") or []
        words = [token["content"] for token in added]
        special = [token["content"] for token in added if token.get("special")]
        own = [*special, *(word for word in named.values() if word in words)]
        written = [*own, *(word for word in words if _writes(source, word))]
        # `<think>` and `</think>` are how an assistant marks its words up, where they are no special tokens.
        markup = {word for word in words if {word, f"</{word[1:]}"} <= {*words}}
        markup |= {f"</{word[1:]}" for word in markup}
        self._spelt = _any_of(written)
        self.closer = _any_of([word for word in written if word in own or word not in markup])
        self.special = _any_of(special)
        self.closing = re.compile(rf"(?:\s|{_any_of(words).pattern})*")
        self.all_special = {*written} <= {*special}

    def marked(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> Marked:
        strings = list(_strings([*messages, *tools]))
        if not any(self._spelt.search(one) for one in strings):
            return Marked("", messages, tools)
        used = {letter for one in strings for letter in one}
        unused = (chr(code) for code in _PRIVATE if chr(code) not in used)
        marks = next(unused) + next(unused)
        said = [
            {
                key: value if key == "role" else self._mark(value, marks, message["role"])
                for key, value in message.items()
            }
            for message in messages
        ]
        return Marked(marks, said, [self._mark(tool, marks, "system") for tool in tools])

    def is_too_deep(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> bool:
        """Whether something is spelt in what is nested deeper than it can be marked."""
        values = [*messages, *tools]
        return _is_deep(values) and any(self._spelt.search(one) for one in _strings(values))

    def _mark(self, value: Any, marks: str, role: str) -> Any:
        if isinstance(value, str):
            tokens = self.closer if role == "assistant" else self._spelt
            return tokens.sub(lambda found: marks[0] + found[0] + marks[1], value)
        if isinstance(value, dict):
            return {self._mark(key, marks, role): self._mark(one, marks, role) for key, one in value.items()}
        return [self._mark(one, marks, role) for one in value] if isinstance(value, list) else value


def _is_deep(level: list[Any]) -> bool:
    for _ in range(MOST_NESTED):
        inner = [
            one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)
        ]
        level = [one for some in inner for one in some]
        if not level:
            return False
    return True


def _strings(value: Any) -> Iterator[str]:
    """Every string inside, keys too, in no order."""
    rest = [value]
    while rest:
        one = rest.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict):
            rest += [*one, *one.values()]
        elif isinstance(one, list):
            rest += one


def _writes(source: str, word: str) -> bool:
    """Does a template write this token: as it is, or put together of a role and what is around it?"""
    if word.isspace():  # Gemma's line ends: everybody writes them
        return False
    parts = [word.split(role, 1) for role in _ROLES if role in word]
    return word in source or any(all(part and part in source for part in pair) for pair in parts)


def _any_of(words: Sequence[str]) -> re.Pattern[str]:
    longest_first = sorted(words, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
