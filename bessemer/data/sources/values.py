"""What a field of a row is good for: a text, an id or a group, or the reason why it is none."""

from typing import Any

MISSING = object()  # the row has no such field


def usable_text(value: Any) -> tuple[str | None, str | None]:
    """(text, None), or (None, the reason why this value is no text)."""
    if value is MISSING or value is None:
        return None, "missing"
    if not isinstance(value, str):
        return None, "not_text"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # lone surrogates: escaped in JSON, or bytes that were not UTF-8
        return None, "undecodable"
    return value.replace("\r\n", "\n"), None


def usable_label(value: Any) -> tuple[str | None, str | None]:
    """An id or a group as text. Whole numbers are common ids; anything else would be a guess."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value), None
    return usable_text(value)
