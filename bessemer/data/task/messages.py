"""Chat messages as data sets write them, brought into one form and checked.

    [{"role": "user", "content": …}, …]       the usual form; other keys (tool_calls …) go to the template
    [{"from": "human", "value": …}, …]        ShareGPT's; LLaMA-Factory's `function_call` is a call of a tool
    {"role": […], "content": […]}             how `datasets` stores a sequence of objects
    any of them as a text of JSON             in CSV files and databases
Order: a system message first if any, then the user; an answer follows what a user or a tool said. Two users
in a row are left to the template. What follows the last answer teaches nothing and is left out, nor is an
answer learnt whose `weight` is 0, as OpenAI's files have it.
A content may be a list of parts: those of text are joined with nothing between them, as the templates write
them that know parts; most know none, and transformers hands them the list, which they cannot write.
"""

import json
from collections.abc import Sequence
from typing import Any

from bessemer.data.sources.values import MISSING, usable_text
from bessemer.data.task.samples import Message, Tool, has_weight
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
_CALL = "function_call"  # a role whose content is the call, as a text of JSON
_THOUGHTS = ("reasoning_content", "thinking", "reasoning")  # one thing, as transformers takes them
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
    said = [number for number, message in enumerate(messages, 1) if message["role"] == "assistant"]
    answers = [number for number in said if has_weight(messages[number - 1])]
    if not answers:
        raise Unusable("masked", "no assistant turn, or none with weight: there is nothing to learn")
    return list(messages[: answers[-1]])


def with_system(messages: Sequence[Message], system: str | None) -> list[Message]:
    if system is None or (messages and messages[0]["role"] == "system"):
        return list(messages)
    return [{"role": "system", "content": system}, *messages]


def tools_of(value: Any) -> tuple[Tool, ...]:
    """Definitions of functions, or a text of JSON with them; none where there is nothing."""
    if isinstance(value, str):
        value = _json(value, "not_tools") if value.strip() else None
    if value is MISSING or not value:
        return ()
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise Unusable("not_tools", f"{str(value)[:60]!r}", is_error=True)
    return tuple(value)


def without_nulls(value: Any) -> Any:
    """Tables write every key that any row has, with nulls where this one has none."""
    if isinstance(value, dict):
        return {key: without_nulls(one) for key, one in value.items() if one is not None}
    return [without_nulls(one) for one in value] if isinstance(value, list) else value


def _json(text: str, reason: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Unusable(reason, f"the text {text[:60]!r}", is_error=True) from None


def _listed(value: Any) -> list[Any]:
    if isinstance(value, str):
        value = _json(value, "not_messages")
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
    if isinstance(role, str) and role.lower() == _CALL:
        name, message = "assistant", {**message, "content": "", "tool_calls": message.get("content")}
    if name is None:
        raise Unusable("role.unknown", f"message {number}: {str(role)[:40]!r}", is_error=True)
    called = message.pop("tool_calls", None) or message.pop(_CALL, None)  # the key was once named as the role
    if "content" not in message and not called:
        raise Unusable("missing", f"message {number}: no content", is_error=True)
    calls = _calls(called, number)
    content, error = usable_text(_joined(message.get("content", ""), number))
    if content is None:
        raise Unusable(error or "not_text", f"message {number}: its content", is_error=True)
    if not content.strip() and not calls:
        raise Unusable("empty", f"message {number}: {name} says nothing")
    thought = next((message[key] for key in _THOUGHTS if key in message), None)
    more = {} if thought is None else {"thinking": thought, **message, "reasoning_content": thought}
    return {**message, **more, "role": name, "content": content, **({"tool_calls": calls} if calls else {})}


def _joined(content: Any, number: int) -> Any:
    """The text of a list of parts; anything else as it is."""
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        return content
    others = [part.get("type") for part in content if part.get("type") != "text"]
    if others:
        raise Unusable("not_text_part", f"message {number}: a part is {str(others[0])[:40]!r}", is_error=True)
    texts = [part.get("text") for part in content]
    return "".join(texts) if all(isinstance(text, str) for text in texts) else texts


def _calls(value: Any, number: int) -> list[dict[str, Any]]:
    """Calls of tools, in the form that templates know."""
    if isinstance(value, str):
        value = _json(value, "not_messages")
    found = [value] if isinstance(value, dict) else value or []
    found = [_wrapped(call) for call in found] if isinstance(found, list) else [None]
    if not all(found):
        raise Unusable("not_messages", f"message {number}: its calls of tools", is_error=True)
    return [_call(call) for call in found]


def _wrapped(call: Any) -> dict[str, Any] | None:
    """None where it names no function: templates would write an empty name."""
    if isinstance(call, dict) and "function" not in call:
        call = {"type": "function", "function": call}
    function = call["function"] if isinstance(call, dict) else None
    return call if isinstance(function, dict) and isinstance(function.get("name"), str) else None


def _call(call: dict[str, Any]) -> dict[str, Any]:
    """Arguments as an object: templates would quote once more the text that OpenAI's interface gives.

    Source: transformers' documentation of tool use, which asks for an object.
    """
    function = call["function"]
    if isinstance(text := function.get("arguments"), str):
        try:
            arguments = json.loads(text)
        except (ValueError, RecursionError):
            return call
        if isinstance(arguments, dict):
            return {**call, "function": {**function, "arguments": arguments}}
    return call
