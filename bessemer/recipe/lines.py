"""Where in a TOML text each key stands, so that an error can name the line.

`tomllib` parses but forgets the positions; this scanner keeps the positions and forgets the values.
It reads text that `tomllib` has accepted, so it only has to find where keys begin and values end.
A path is a tuple of keys and of indices into arrays: ("data", "source", 0, "path").
"""

import re

Path = tuple[str | int, ...]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SPACE = re.compile(r"[ \t]*")
_FILLER = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SCALAR = re.compile(r"[^,\]}\r\n#]*")
_BASIC = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_LITERAL = re.compile(r"'[^'\n]*'")
# A multi-line string may end in up to two quotation marks of its own before the closing three.
_LONG_BASIC = re.compile(r'"""(?:[^\\]|\\.)*?"""(?!")', re.DOTALL)
_LONG_LITERAL = re.compile(r"'''.*?'''(?!')", re.DOTALL)


def key_lines(text: str) -> dict[Path, int]:
    """1-based line of every table, key and array element of a valid TOML text."""
    return _Scanner(text).scan()


def line_of(path: Path, lines: dict[Path, int]) -> int:
    """Line of the key, or of the nearest table around it; 1 where nothing is written of it."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return 1


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._lines: dict[Path, int] = {}
        self._lengths: dict[Path, int] = {}  # elements so far of every [[array of tables]]

    def scan(self) -> dict[Path, int]:
        table: Path = ()
        self._skip(_FILLER)
        while self._at < len(self._text):
            if self._text[self._at] == "[":
                table = self._header()
            else:
                self._pair(table)
            self._skip(_FILLER)
        return self._lines

    def _header(self) -> Path:
        is_array = self._text.startswith("[[", self._at)
        self._at += 2 if is_array else 1
        first = self._at
        path: Path = ()
        for part in self._key():
            path = (*self._into_last(path), part)
            self._note(path, first)
        if is_array:
            self._lengths[path] = self._lengths.get(path, 0) + 1
        table = self._into_last(path)
        self._note(table, first)
        self._at += 2 if is_array else 1
        return table

    def _into_last(self, path: Path) -> Path:
        """A header below an array of tables speaks of the array's last element."""
        return (*path, self._lengths[path] - 1) if path in self._lengths else path

    def _pair(self, table: Path) -> None:
        first = self._at
        path = (*table, *self._key())
        for length in range(len(table) + 1, len(path) + 1):
            self._note(path[:length], first)
        self._at += 1  # the sign =
        self._skip(_SPACE)
        self._value(path)

    def _key(self) -> list[str]:
        parts = []
        while True:
            self._skip(_SPACE)
            if self._text[self._at] in "\"'":
                quoted = self._skip(_BASIC if self._text[self._at] == '"' else _LITERAL)
                parts.append(quoted[1:-1])
            else:
                parts.append(self._skip(_BARE_KEY))
            self._skip(_SPACE)
            if self._text[self._at] != ".":
                return parts
            self._at += 1

    def _value(self, path: Path) -> None:
        text, at = self._text, self._at
        if text.startswith('"""', at):
            self._skip(_LONG_BASIC)
        elif text.startswith("'''", at):
            self._skip(_LONG_LITERAL)
        elif text[at] == '"':
            self._skip(_BASIC)
        elif text[at] == "'":
            self._skip(_LITERAL)
        elif text[at] == "[":
            self._array(path)
        elif text[at] == "{":
            self._inline_table(path)
        else:
            self._skip(_SCALAR)

    def _array(self, path: Path) -> None:
        index = 0
        while self._next_element("]"):
            self._note((*path, index), self._at)
            self._value((*path, index))
            index += 1

    def _inline_table(self, path: Path) -> None:
        while self._next_element("}"):
            self._pair(path)

    def _next_element(self, closing: str) -> bool:
        """Step over an opening bracket or a comma; False, behind the closing bracket, at the end."""
        self._skip(_FILLER)
        if self._text[self._at] in "[{," and not self._text.startswith(closing, self._at):
            self._at += 1
            self._skip(_FILLER)
        if self._text.startswith(closing, self._at):
            self._at += 1
            return False
        return True

    def _note(self, path: Path, position: int) -> None:
        self._lines.setdefault(path, self._text.count("\n", 0, position) + 1)

    def _skip(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        assert match is not None, (pattern.pattern, self._at)
        self._at = match.end()
        return match[0]
