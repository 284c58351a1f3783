"""Chat messages as data sets write them, brought into one form and checked.

    [{"role": "user", "content": …}, …]       the usual form; other keys (tool_calls …) go to the template
    [{"from": "human", "value": …}, …]        ShareGPT's
    {"role": […], "content": […]}             how `datasets` stores a sequence of objects
    any of them as a text of JSON             in CSV files and databases
Order: a system message first if any, then the user; an answer follows what a user or a tool said. Two users
in a row are left to the template. What follows the last answer teaches nothing and is left out.
"""

import json
from collections.abc import Sequence
from typing import Any

from bessemer.data.sources.values import MISSING, usable_text
from bessemer.data.task.samples import Message
from bessemer.data.task.unusable import Unusable

_NAMES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
}
_SHAREGPT = {"from": "role", "value": "content"}
_BEFORE = {"user": "user, assistant, tool, system", "assistant": "user, tool", "tool": "assistant, tool"}


def messages_of(value: Any) -> list[Message]:
    """A conversation, or Unusable. Not checked yet: its order."""
    if value is MISSING or value is None:
        raise Unusable("missing", is_error=True)
    rows = _listed(value)
    if not rows:
        raise Unusable("empty", "no message")
    return [_message(row, number) for number, row in enumerate(rows, 1)]


def checked_order(messages: Sequence[Message]) -> list[Message]:
    """Up to the last answer. Unusable where a turn stands where it cannot."""
    before = ""
    for number, message in enumerate(messages, 1):
        role = message["role"]
        fine = before in ("", "system") if role == "system" else before in _BEFORE[role].split(", ")
        if role == "user" and before == "":
            fine = True
        if role == "system" and before == "system":
            fine = False
        if not fine:
            told = f"message {number}: {role} " + (f"after {before}" if before else "begins")
            raise Unusable("role.order", told)
        before = role
    answers = [number for number, message in enumerate(messages, 1) if message["role"] == "assistant"]
    if not answers:
        raise Unusable("masked", "no assistant turn: there is nothing to learn")
    return list(messages[: answers[-1]])


def with_system(messages: Sequence[Message], system: str | None) -> list[Message]:
    if system is None or (messages and messages[0]["role"] == "system"):
        return list(messages)
    return [{"role": "system", "content": system}, *messages]


def _listed(value: Any) -> list[Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise Unusable("not_messages", f"the text {value[:60]!r}", is_error=True) from None
    if isinstance(value, dict):
        columns = [column for column in value.values() if isinstance(column, list)]
        sizes = {len(column) for column in columns}
        if len(columns) != len(value) or len(sizes) != 1:
            raise Unusable("not_messages", "an object", is_error=True)
        value = [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]
    if not isinstance(value, list):
        raise Unusable("not_messages", type(value).__name__, is_error=True)
    return value


def _message(row: Any, number: int) -> Message:
    if not isinstance(row, dict):
        raise Unusable("not_messages", f"message {number}: {type(row).__name__}", is_error=True)
    # Tables fill what other rows have with nulls, and templates would write "None".
    message: Message = {_SHAREGPT.get(key) or key: value for key, value in row.items() if value is not None}
    role = message.get("role")
    if role is None:
        raise Unusable("missing", f"message {number}: no role", is_error=True)
    name = _NAMES.get(role.lower()) if isinstance(role, str) else None
    if name is None:
        raise Unusable("role.unknown", f"message {number}: {str(role)[:40]!r}", is_error=True)
    if "content" not in message and not message.get("tool_calls"):
        raise Unusable("missing", f"message {number}: no content", is_error=True)
    content, error = usable_text(message.get("content", ""))
    if content is None:
        raise Unusable(error or "not_text", f"message {number}: its content", is_error=True)
    if not content.strip() and not message.get("tool_calls"):
        raise Unusable("empty", f"message {number}: {name} says nothing")
    return {**message, "role": name, "content": content}
