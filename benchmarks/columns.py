"""Text for people: tables (the first column to the left, figures to the right) and short messages."""


def columns(headings: list[str], body: list[list[str]]) -> list[str]:
    """Lines, with a rule under the headings."""
    widths = [max(len(row[place]) for row in [headings, *body]) for place in range(len(headings))]
    lines = []
    for first, *others in [headings, *body]:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def shown(value: float | None, form: str) -> str:
    """None is what nobody measured: a dash, never 0."""
    return "–" if value is None else format(value, form)


def brief(why: str) -> str:
    """The first and the last line of a failure: the whole was told when it happened, and is in the JSON."""
    lines = why.splitlines()
    return lines[0] if len(lines) == 1 else f"{lines[0]} … {lines[-1].strip(' |')}"
