"""Makes datatrove_decisions.json.gz: documents, and what datatrove's stock filters decide on them.

Run where datatrove[processing] and spacy are installed: `python make_datatrove_decisions.py`.
Documents are excerpts of the documentation and sources of Python's standard library (PSF-2.0), as they are
and spoilt in the ways that the filters look for, so that each filter keeps some and refuses others.
"""

import ast
import gzip
import inspect
import json
import random
import re
import sysconfig
from importlib.metadata import version
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)

NUM_DOCUMENTS = 420
RANDOM = random.Random(20)


def docstrings(tree: ast.AST) -> list[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
    return [inspect.cleandoc(text) for text in found if text and len(text) > 200]


def excerpts() -> tuple[list[str], list[str]]:
    """Paragraphs of prose, and pieces of code."""
    prose, code = [], []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        source = path.read_text()
        start = RANDOM.randrange(max(1, len(source) - 1500))
        code.append(source[start : start + RANDOM.randint(400, 1300)])
        for text in docstrings(ast.parse(source)):
            paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
            prose += [part for part in paragraphs if len(part) > 80 and re.match(r"[A-Z].*[.:]$", part)]
    return prose, code


def spoil(text: str) -> str:
    """One of the faults that filters look for, more or less of it."""
    lines = text.split("\n")
    much = RANDOM.choice([0.05, 0.15, 0.35, 0.7, 1.0])

    def some(change, given=lines):
        return "\n".join(change(line) if RANDOM.random() < much else line for line in given)

    words = text.split(" ")
    phrase = " ".join(words[: RANDOM.randint(1, 12)])
    sentences = re.split(r"(?<=\.) ", text)
    return RANDOM.choice([
        lambda: some(lambda line: RANDOM.choice("-•") + " " + line),
        lambda: some(lambda line: line + "..."),
        lambda: some(lambda line: line + " …"),
        lambda: some(lambda line: line + "\n" + line),
        lambda: some(lambda line: line.rstrip(".")),
        lambda: some(lambda line: line.replace(" ", "\n")),
        lambda: some(lambda line: line[: RANDOM.randint(5, 60)]),
        lambda: some(lambda line: line + " {x: 1}."),
        lambda: some(lambda line: line + " Lorem ipsum dolor sit amet."),
        lambda: some(lambda line: line + " Enable JavaScript to read on."),
        lambda: some(lambda line: line + " This site uses cookies, see our Privacy Policy."),
        lambda: some(lambda line: re.sub(r"\. ", "[1]. ", line) + "[23]"),
        lambda: some(lambda line: line.replace("'", "’").replace('"', "“") + " Don't we’ve 10km 5GB?"),
        lambda: some(lambda line: "See https://docs.example.org/a-b/c?d=e or a.b@ex-ample.com. " + line),
        lambda: "\n".join(sentence + (" #" * RANDOM.randint(0, 4)) for sentence in sentences),
        lambda: " ".join(word + " 1.5" * (RANDOM.random() < much) for word in words),
        lambda: text + "\n" + "\n".join([phrase + "."] * RANDOM.randint(1, 12)),
        lambda: text + " " + (phrase + " ") * RANDOM.randint(1, 12),
        lambda: "".join(words) if much > 0.5 else " ".join(word[:2] for word in words),
        lambda: text.replace("\n", "\r\n") + "\r\n",
        lambda: "\n\n".join(sentences) + "\n\n" + RANDOM.choice(sentences) * 2,
        lambda: re.sub(r"\b(the|of|and|to|that|with|be|have)\b", "der", text),
        lambda: text[: RANDOM.randint(0, 400)],
        lambda: "\n".join(sentences),
    ])()  # fmt: skip


def documents() -> list[str]:
    prose, code = excerpts()
    made = ["", " \n", "word", "...", "👍 🎉 ok!"]
    while len(made) < NUM_DOCUMENTS:
        parts = RANDOM.sample(prose, RANDOM.randint(2, 5))
        text = RANDOM.choice(["\n", "\n\n", " "]).join(parts)
        if RANDOM.random() < 0.12:
            text = RANDOM.choice(code)
        for _ in range(RANDOM.choice([0, 1, 1, 2])):
            text = spoil(text)
        made.append(text[:2000])
    return made


def main() -> None:
    texts = documents()
    filters = {
        "gopher_repetition": GopherRepetitionFilter(),
        "gopher_quality": GopherQualityFilter(),
        "c4": C4QualityFilter(),
        "fineweb": FineWebQualityFilter(),
    }
    decisions: dict[str, list[str]] = {name: [] for name in filters}
    c4_texts: list[str | None] = []
    for text in texts:
        for name, stock in filters.items():
            document = Document(text=text, id="0")
            kept = stock.filter(document)
            decisions[name].append("" if kept is True else kept[1])
            if name == "c4":
                c4_texts.append(document.text if kept is True else None)
    content = {"made_with": f"datatrove {version('datatrove')}, spacy {version('spacy')}", "texts": texts}
    content |= {"decisions": decisions, "c4_texts": c4_texts}
    path = Path(__file__).with_name("datatrove_decisions.json.gz")
    path.write_bytes(gzip.compress(json.dumps(content, ensure_ascii=False).encode(), mtime=0))


if __name__ == "__main__":
    main()
