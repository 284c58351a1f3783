import tomllib

from bessemer.recipe.lines import Path, key_lines, line_of
from bessemer.recipe.load import shipped_names, shipped_text

TEXT = '''# a comment with a = and "quotes"
name = "x" # trailing = comment
"quoted key" = 1
a.b.c = { d = 1, "e f" = [1, 2] }

[table]
long = """
key = "inside a string"
""" # after
raw = \'\'\'
[not a table]
\'\'\'
list = [
  1, # one
  { inner = "a]b" },
]
[[array]]
first = 1
[[array]]
second = \'it is "so"\'
[array.below]
deep = 2026-01-01T00:00:00
'''


def paths(value: object, path: Path = ()) -> list[Path]:
    """Of every key and every element of a parsed TOML text."""
    is_table, is_list = isinstance(value, dict), isinstance(value, list)
    pairs = value.items() if is_table else enumerate(value) if is_list else []
    return [found for name, inner in pairs for found in [(*path, name), *paths(inner, (*path, name))]]


def test_every_key_has_its_own_line() -> None:
    tomllib.loads(TEXT)  # the scanner is for valid text only
    lines = key_lines(TEXT)
    expected = {
        ("name",): 2,
        ("quoted key",): 3,
        ("a", "b", "c"): 4,
        ("a", "b", "c", "e f", 1): 4,
        ("table",): 6,
        ("table", "long"): 7,
        ("table", "raw"): 10,
        ("table", "list"): 13,
        ("table", "list", 0): 14,
        ("table", "list", 1, "inner"): 15,
        ("array", 0, "first"): 18,
        ("array", 1, "second"): 20,
        ("array", 1, "below"): 21,
        ("array", 1, "below", "deep"): 22,
    }
    assert {path: lines[path] for path in expected} == expected
    assert ("table", "key") not in lines


def test_absent_key_is_placed_at_the_table_around_it() -> None:
    lines = key_lines(TEXT)
    assert line_of(("array", 1, "missing"), lines) == 19
    assert line_of(("nothing", "here"), lines) == 1


def test_every_key_of_every_shipped_recipe_has_a_line() -> None:
    for name in shipped_names():
        text = shipped_text(name)
        lines = key_lines(text)
        for path in paths(tomllib.loads(text)):
            if path != ("data",):  # opened by [[data.source]] alone
                written = text.splitlines()[lines[path] - 1]
                assert str(path[-1]) in written or isinstance(path[-1], int), (name, path)
