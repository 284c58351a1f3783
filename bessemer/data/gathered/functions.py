"""The functions of Python source files as rows: what each is called, does, and looks like inside.

Read with `ast`, so that nothing is imported or run. The source of a row is without its docstring:
telling what a function does must not be a matter of copying. A function that is nothing but a
docstring, or whose docstring does not begin with a sentence, is no row.
"""

import ast
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from bessemer.data.gathered.passages import SHORTEST_BYTES

_LONGEST_SUMMARY = 200
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class FunctionRow:
    name: str  # with its class: "JSONDecoder.decode"
    signature: str
    docstring: str
    summary: str  # first sentence of the docstring
    source: str  # dedented, without the docstring


def functions_in(text: str) -> list[FunctionRow]:
    """Functions and methods of a source file, in its order. Raises SyntaxError or ValueError."""
    lines = text.splitlines()
    rows = (_row(name, node, lines) for name, node in _definitions(ast.parse(text), ""))
    return [row for row in rows if row is not None]


def _definitions(node: ast.AST, prefix: str) -> Iterator[tuple[str, _Function]]:
    """Not those inside functions: they are part of their function's source."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from _definitions(child, f"{prefix}{child.name}.")
        elif isinstance(child, _Function):
            yield prefix + child.name, child
        elif isinstance(child, ast.If | ast.Try | ast.With):
            yield from _definitions(child, prefix)


def _row(name: str, node: _Function, lines: list[str]) -> FunctionRow | None:
    docstring = ast.get_docstring(node)
    if not docstring or len(node.body) < 2:
        return None
    summary = first_sentence(docstring)
    if summary is None:
        return None
    return FunctionRow(name, _signature(node), docstring.strip(), summary, _source(node, lines))


def first_sentence(docstring: str) -> str | None:
    """The first sentence of the first paragraph; None where that does not read like one."""
    paragraph = docstring.strip().split("\n\n")[0]
    lines = paragraph.split("\n")
    joined = " ".join(paragraph.split())
    end = re.search(r"[.!?](?= |$)", joined)
    if end is None and len(lines) > 1:
        return None  # lines without a full stop: a list, a grammar, an example
    sentence = joined[: end.end()] if end else joined
    sensible = len(sentence.encode()) >= SHORTEST_BYTES and len(sentence) <= _LONGEST_SUMMARY
    return sentence if sensible and re.match(r"[A-Za-z][\w'-]*,? ", sentence) else None


def _signature(node: _Function) -> str:
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    word = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    return f"{word} {node.name}({ast.unparse(node.args)}){returns}"


def _source(node: _Function, lines: list[str]) -> str:
    """The lines of the function but those of its docstring, comments kept."""
    docstring, after = node.body[0], node.body[1]
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    assert docstring.end_lineno is not None and node.end_lineno is not None
    shares_a_line = docstring.lineno == node.lineno or after.lineno == docstring.end_lineno
    if shares_a_line or docstring.lineno <= _signature_end(node):
        bare = type(node)(**{**dict(ast.iter_fields(node)), "body": node.body[1:]})
        return ast.unparse(ast.copy_location(bare, node))
    kept = lines[first - 1 : docstring.lineno - 1] + lines[docstring.end_lineno : node.end_lineno]
    return textwrap.dedent("\n".join(kept)).strip("\n")


def _signature_end(node: _Function) -> int:
    """The last line that an argument or the return annotation reaches."""
    parts: list[ast.AST] = [*ast.walk(node.args), *([node.returns] if node.returns else [])]
    return max([node.lineno, *(getattr(part, "end_lineno", None) or 0 for part in parts)])
