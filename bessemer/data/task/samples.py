"""What a row says, whatever its format: texts that stand as they are, or conversations for a template."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

Message = dict[str, Any]
Tool = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """One of `texts` and `chats` holds something."""

    place: str  # file and row
    id: str
    group: str | None = None
    has_own_id: bool = False
    texts: tuple[str, ...] = ()  # prompt and answer; prompt, chosen, rejected; or one text
    chats: tuple[tuple[Message, ...], ...] = ()  # one, or chosen and rejected
    common: int = 0  # messages it begins with that teach nothing: of a pair those of both, else leaks.py
    label: str | None = None
    tools: tuple[Tool, ...] = ()  # functions that a chat may call

    @property
    def prompt(self) -> str:
        """What the last answer is given to."""
        return _said(self.chats[0][: self._answer_at(0)]) if self.chats else self.texts[0]

    def answer(self, number: int = 0) -> str:
        """Of a pair, 1 is the rejected one."""
        if self.chats:
            return str(self.chats[number][self._answer_at(number)]["content"])
        return self.texts[1 + number] if len(self.texts) > 1 else self.label or ""

    def prompt_keys(self, learn: str) -> dict[str, int]:
        """What tells the prompt of each answer that is learnt from all others, the last answer's first.

        With how many messages there are up to the answer's end.
        """
        if not self.chats:
            return {self.prompt: 0}
        places = [(0, self._answer_at(0))]
        places += [(number, at) for number in range(len(self.chats)) for at in self.turns(number, learn)]
        return {_said(self.chats[number][:at]): at + 1 for number, at in places}

    def answer_keys(self) -> list[str]:
        """With the prompt, what tells an example from all others: the answer, of a pair both; the tools."""
        if not self.chats:
            return [self.answer(number) for number in range(1 + self.is_pair)]
        begins = [self._answer_at(0), min(self.common, self._answer_at(0))]
        answers = [chat[begin:] for chat, begin in zip(self.chats, begins, strict=False)]
        keys = [_said(answer) + _thoughts(answer) for answer in answers]
        return [*keys, json.dumps(self.tools, sort_keys=True)] if self.tools else keys

    def ends_in_call(self, number: int) -> bool:
        return bool(self.chats) and bool(self.chats[number][self._answer_at(number)].get("tool_calls"))

    @property
    def is_pair(self) -> bool:
        return len(self.chats) == 2 or len(self.texts) == 3

    def turns(self, number: int, learn: str) -> list[int]:
        """The assistant's turns that are learnt: those behind the common beginning."""
        found = [
            place
            for place, message in enumerate(self.chats[number])
            if message["role"] == "assistant"
            and place >= self.common
            and (learn == "all" or has_weight(message))
        ]
        return found[-1:] if learn == "last" else found

    def without(self, num_messages: int) -> "Sample":
        """Without the oldest messages behind those of the system."""
        first = self.first_turn
        chats = tuple(chat[:first] + chat[first + num_messages :] for chat in self.chats)
        return replace(self, chats=chats, common=max(0, self.common - num_messages) if self.common else 0)

    @property
    def first_turn(self) -> int:
        return int(self.chats[0][0]["role"] == "system")

    def to_text(self) -> str:
        return json.dumps(vars(self))

    @staticmethod
    def from_text(text: str) -> "Sample":
        row = json.loads(text)
        chats = tuple(tuple(chat) for chat in row.pop("chats"))
        return Sample(**{**row, "texts": tuple(row["texts"]), "chats": chats, "tools": tuple(row["tools"])})

    def _answer_at(self, number: int) -> int:
        turns = self.turns(number, "last")
        return turns[0] if turns else len(self.chats[number]) - 1


def has_weight(message: Message) -> bool:
    """Whether what the assistant says is learnt where answers are, as OpenAI's files tell it."""
    return bool(message.get("weight") != 0)


def _said(messages: Sequence[Message]) -> str:
    """All that is said and called, for readers and to tell chats apart.

    Numbers and times of messages do not make two of the same prompt, nor do thoughts, which many templates
    leave out of what was said before.
    """
    lines = []
    for message in messages:
        calls = [call["function"] for call in message.get("tool_calls") or []]
        told = f" {json.dumps(calls, sort_keys=True)}" if calls else ""
        lines.append(f"{message['role']}: {message['content']}{told}")
    if len(messages) == 1 and not messages[0].get("tool_calls"):
        return str(messages[0]["content"])
    return "\n".join(lines)


def _thoughts(messages: Sequence[Message]) -> str:
    found = [message.get("thinking") for message in messages]
    return json.dumps(found, sort_keys=True) if any(found) else ""


def common_beginning(chosen: Sequence[Message], rejected: Sequence[Message]) -> int:
    """How many messages both begin with."""
    same = 0
    for left, right in zip(chosen, rejected, strict=False):
        if left != right:
            break
        same += 1
    return same
