"""Recipes and files for the data tests."""

from pathlib import Path

from bessemer.data.prepared import Prepared
from bessemer.data.store import prepare
from bessemer.log import Console
from bessemer.recipe.load import parse
from bessemer.recipe.schema import Recipe

QUIET = Console(quiet=True)
# Enough packages that a fifth of them is some; with C parts, subpackages and inherited methods.
_NAMES = """
abc argparse array ast base64 bisect calendar cmd collections contextlib copy csv dataclasses
decimal difflib email enum fractions functools getopt glob gzip heapq html io _io itertools json
_json logging math numbers operator optparse os pathlib pprint queue random re sched shelve shutil
shlex socket socketserver statistics string struct tempfile textwrap threading timeit tokenize
typing unittest urllib uuid wave weakref zipfile _collections_abc
"""
MODULES = set(_NAMES.split())
WORDS = "iron steel coal slag blast converter ingot rail beam plate rivet forge anvil bellows furnace"
TEXTS = [f"Document {n} speaks of {word} and of nothing else.\n" * 3 for n, word in enumerate(WORDS.split())]


def make(*sources: str, validation: float = 0.2, more: str = "", vocab: int = 300) -> Recipe:
    """A recipe of these [[data.source]] bodies."""
    blocks = "".join(f"[[data.source]]\n{source}\n" for source in sources)
    text = f'name = "made"\n[tokenizer]\nvocab = {vocab}\n[data]\nvalidation = {validation}\n{blocks}{more}'
    return parse(text, "made", [])


def build(recipe: Recipe, base: Path, store: Path | None = None) -> Prepared:
    return prepare(recipe, base, store or base / "store", QUIET)


def text_source(path: str = "texts", kind: str = "text", name: str = "texts", more: str = "") -> str:
    return f'name = "{name}"\nkind = "{kind}"\npath = "{path}"\n{more}'
