"""What a row says, whatever its format: texts that stand as they are, or conversations for a template."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

Message = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """One of `texts` and `chats` holds something."""

    place: str  # file and row
    id: str
    group: str | None = None
    has_own_id: bool = False
    texts: tuple[str, ...] = ()  # prompt and answer; prompt, chosen, rejected; or one text
    chats: tuple[tuple[Message, ...], ...] = ()  # one, or chosen and rejected
    common: int = 0  # of a pair: the messages with which both begin
    label: str | None = None

    @property
    def prompt(self) -> str:
        """What the last answer is given to."""
        if not self.chats:
            return self.texts[0]
        asked = self.chats[0][: self._answer_at(0)]
        if len(asked) == 1:
            return str(asked[0]["content"])
        return "\n".join(f"{message['role']}: {message['content']}" for message in asked)

    def answer(self, number: int = 0) -> str:
        """Of a pair, 1 is the rejected one."""
        if self.chats:
            return str(self.chats[number][self._answer_at(number)]["content"])
        return self.texts[1 + number] if len(self.texts) > 1 else self.label or ""

    def prompt_keys(self, learn: str) -> list[str]:
        """What tells the prompt of each answer that is learnt from all others, the last answer's first."""
        if not self.chats:
            return [self.prompt]
        keys = [_key(self.chats[0][: self._answer_at(0)])]
        keys += [_key(chat[:at]) for n, chat in enumerate(self.chats) for at in self.turns(n, learn)]
        return list(dict.fromkeys(keys))

    def answer_keys(self) -> list[str]:
        """With the prompt, what tells an example from all others; of a pair two."""
        if not self.chats:
            return [self.answer(number) for number in range(1 + self.is_pair)]
        begins = [self._answer_at(0), min(self.common, self._answer_at(0))]
        return [_key(chat[begin:]) for chat, begin in zip(self.chats, begins, strict=False)]

    @property
    def is_pair(self) -> bool:
        return len(self.chats) == 2 or len(self.texts) == 3

    def turns(self, number: int, learn: str) -> list[int]:
        """The assistant's turns that are learnt; of a pair those behind the common beginning."""
        found = [
            place
            for place, message in enumerate(self.chats[number])
            if message["role"] == "assistant" and place >= self.common
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
        return Sample(**{**row, "texts": tuple(row["texts"]), "chats": chats})

    def _answer_at(self, number: int) -> int:
        turns = self.turns(number, "last")
        return turns[0] if turns else len(self.chats[number]) - 1


def _key(messages: Sequence[Message]) -> str:
    """All that is said, with calls of tools and what else a template may write."""
    lines = []
    for message in messages:
        more = {key: value for key, value in message.items() if key not in ("role", "content")}
        told = f" {json.dumps(more, sort_keys=True)}" if more else ""
        lines.append(f"{message['role']}: {message['content']}{told}")
    if len(messages) == 1 and set(messages[0]) == {"role", "content"}:
        return str(messages[0]["content"])
    return "\n".join(lines)


def common_beginning(chosen: Sequence[Message], rejected: Sequence[Message]) -> int:
    """How many messages both begin with."""
    same = 0
    for left, right in zip(chosen, rejected, strict=False):
        if left != right:
            break
        same += 1
    return same
