"""A place in a document, and which kind of personal data stands there."""

from typing import Literal, NamedTuple, get_args

Kind = Literal["email", "phone", "ip", "iban", "card", "secret"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Span(NamedTuple):
    row: int
    start: int  # bytes from the row's first
    end: int
    kind: Kind
