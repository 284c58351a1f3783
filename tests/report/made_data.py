"""Prepared data of three sources as a build leaves it, but for the tokens: made in milliseconds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bessemer.data.format import FORMAT
from bessemer.data.tokens.sidecar import write_sidecar

HOSTILE = "<script>alert('text')</script> & <img src=http://evil.example/x.png onerror=alert(1)>"


_PAGE_LENGTHS = (40, 260, 800, 1500, 1900, 1500, 800, 300, 110, 30)


def split_counts(documents: int, tokens: int, size: int) -> dict[str, int]:
    return {"documents": documents, "tokens": tokens, "bytes": size}


def made_sources() -> list[dict[str, Any]]:
    pages = {
        "name": "web pages",
        "kind": "warc",
        "licence": None,
        "rows_in": 20_000,
        "kept": 7_240,
        "refused": {
            "contaminated": 12,
            "dedup.exact": 1_400,
            "dedup.minhash": 2_310,
            "empty": 120,
            "fineweb.short_lines": 700,
            "gopher.min_words": 6_900,
            "gopher.stop_words": 640,
            "gopher.top_2_gram": 88,
            "language": 190,
        },
        "errors": {"truncated": 310, "undecodable": 90},
        "bytes_in": 910_000_000,
        "kept_bytes": 43_000_000,
        "refused_bytes": {
            "contaminated": 90_000,
            "dedup.exact": 7_000_000,
            "dedup.minhash": 12_000_000,
            "empty": 0,
            "fineweb.short_lines": 2_000_000,
            "gopher.min_words": 1_300_000,
            "gopher.stop_words": 900_000,
            "gopher.top_2_gram": 350_000,
            "language": 800_000,
        },
        "languages": {"en": 6_900, "de": 240, "fr": 100},
        "pii": {"email": 812, "phone": 90, "ip": 44},
        "lengths": {str(1 << power + 8): count for power, count in enumerate(_PAGE_LENGTHS)},
        "splits": {
            "train": split_counts(7_140, 10_600_000, 42_400_000),
            "validation": split_counts(100, 150_000, 600_000),
        },
    }
    books = {
        "name": "books",
        "kind": "books",
        "licence": "CC0-1.0",
        "rows_in": 312,
        "kept": 301,
        "refused": {"dedup.exact": 11},
        "errors": {},
        "bytes_in": 130_000_000,
        "kept_bytes": 92_000_000,
        "refused_bytes": {"dedup.exact": 2_600_000},
        "languages": {"en": 290, "de": 11},
        "pii": {"email": 3, "phone": 0, "ip": 0},
        "lengths": {str(1 << 17): 60, str(1 << 18): 190, str(1 << 19): 51},
        "splits": {
            "train": split_counts(298, 22_400_000, 91_000_000),
            "validation": split_counts(3, 240_000, 1_000_000),
        },
    }
    code = {
        "name": "<b>code</b>",
        "kind": "code",
        "licence": "PSF-2.0",
        "rows_in": 1_800,
        "kept": 1_790,
        "refused": {"empty": 8},
        "errors": {"binary": 2},
        "bytes_in": 24_000_000,
        "kept_bytes": 23_900_000,
        "refused_bytes": {"empty": 0},
        "languages": {},
        "pii": {"email": 40, "phone": 1, "ip": 7},
        "lengths": {str(1 << power): 358 for power in range(10, 15)},
        "splits": {
            "train": split_counts(1_770, 7_000_000, 23_600_000),
            "validation": split_counts(20, 80_000, 300_000),
        },
    }
    sources = [pages, books, code]
    for number, source in enumerate(sources):
        source["documents"] = sum(split["documents"] for split in source["splits"].values())
        source["tokens"] = sum(split["tokens"] for split in source["splits"].values())
        source["shards"] = {"train": [f"tokens/{number:02d}/train-00000"], "validation": []}
    return sources


def make_data(folder: Path) -> Path:
    sources = made_sources()
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text("{}")
    for number, source in enumerate(sources):
        stem = folder / source["shards"]["train"][0]
        stem.parent.mkdir(parents=True)
        spoken = pa.array(["en", "en", "de", None] if source["languages"] else [None] * 4, pa.string())
        rows = pa.table(
            {
                "language": spoken,
                "bytes": pa.array([400, 400, 300, 100 + number], pa.int64()),
                "words": pa.array([70, 70, 60, 20], pa.int64()),
            }
        )
        write_sidecar(
            stem,
            rows,
            {"source": source["name"], "licence": source["licence"]},
            np.array([100, 100, 100, 30]),
        )
    samples = [row for source in sources for row in _samples(source)]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    counts = ("documents", "tokens", "bytes")
    manifest = {
        "format": FORMAT,
        "kind": "pretrain",
        "hash": folder.name,
        "tokenizer": {"file": "tokenizer.json", "vocab": 8192, "bos_id": 0, "eos_id": 1, "pad_id": 2},
        "splits": {
            name: {key: sum(source["splits"][name][key] for source in sources) for key in counts}
            for name in ("train", "validation")
        },
        "sources": sources,
        "timings_s": {"documents_s": 212.4, "decide_s": 3.1, "tokenizer_s": 18.9, "encode_s": 41.0},
        "files": files,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def _samples(source: dict[str, Any]) -> list[dict[str, Any]]:
    def sample(fate: str, number: int, *, is_error: bool = False) -> dict[str, Any]:
        return {
            "source": source["name"],
            "fate": fate,
            "is_error": is_error,
            "id": f"{source['name']}/{fate}/{number}",
            "origin": "https://example.org/a?b=1&c=2" if number else None,
            "same_as": f"{source['name']}/train/0" if fate.startswith("dedup") else None,
            "text": None if is_error else f"{fate} {number}: the beginning of a text. " * 9 + HOSTILE,
        }

    rows = [
        sample(fate, number) for fate in ("train", "validation", *source["refused"]) for number in range(2)
    ]
    return [*rows, *(sample(reason, 0, is_error=True) for reason in source["errors"])]
