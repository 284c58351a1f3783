"""A row as a person sees it: tokens on end, those that are learnt marked, a line before each document.

On a terminal what is learnt is green and the rest grey; in a pipe, or with NO_COLOR set, [learnt] stands in
brackets and ‹not learnt› in other ones, around every token.
"""

import os
import sys
from typing import Any

_LEARNT, _OTHER, _PLAIN = "\x1b[32m", "\x1b[90m", "\x1b[0m"
_TOLD = {
    "masked": "of tokens masked",
    "truncated": "of examples truncated",
    "empty": "of rows empty",
    "fully_masked": "of rows without anything to learn",
}


def shown_row(document: dict[str, Any]) -> str:
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    tokens = document["tokens"]
    legend = f"{_LEARNT}learnt{_PLAIN}, {_OTHER}not learnt{_PLAIN}" if colour else "[learnt], ‹not learnt›"
    lines = [
        f"{document['split']} row {document['row']} of {document['num_rows']:,}: "
        f"{document['context']} tokens, {document['targets']} targets, {document['padding']} padding. "
        + legend
    ]
    if document["shares"] is not None:
        told = [f"{share:.1f} % {_TOLD[name]}" for name, share in document["shares"].items()]
        lines.append(f"{document['split']} split: {', '.join(told)}")
    for part in document["documents"]:
        group = f", group {part['group']}" if part["group"] is not None else ""
        more = "".join(f", {part[key]}" for key in ("role", "label") if part.get(key) is not None)
        place = f"(tokens {part['begin']} to {part['end'] - 1})"
        lines.append(f"--- {part['source']}: {part['id']}{group}{more} {place}")
        shown = tokens[part["begin"] : part["end"]]
        lines.append(_coloured(shown) if colour else "".join(_bracketed(token) for token in shown))
    return "\n".join(lines)


def _coloured(tokens: list[dict[str, Any]]) -> str:
    """A code only where it changes."""
    text, before = "", None
    for token in tokens:
        if token["loss"] != before:
            text += _LEARNT if token["loss"] else _OTHER
            before = token["loss"]
        text += _escaped(token)
    return text + _PLAIN


def _bracketed(token: dict[str, Any]) -> str:
    text = _escaped(token)
    return f"[{text}]" if token["loss"] else f"‹{text}›"


def _escaped(token: dict[str, Any]) -> str:
    return repr(token["text"])[1:-1]
