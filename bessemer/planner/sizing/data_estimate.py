"""What sources will give, before anything is read: text, tokens, disk and hours, from sizes of files.

Every figure has a band, as a size says little of what is inside. Measured on Debian's documentation, its
HTML pages and Python's library, each with a tokenizer learnt from nine tenths of it: the tenth left over has
3.1 bytes a token (2.8 to 3.6) with a vocabulary of 4,096, 3.4 (3.1 to 4.0) with 8,192, 3.9 (3.6 to 4.6) with
32,768; text is 0.34 of those pages. Other scripts have fewer bytes a token, crawled pages less text.
The rest is typical of its kind and assumed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bessemer.data.listing import Listed, Listing
from bessemer.planner.plan import UNKNOWN, Estimate
from bessemer.recipe.schema import Clean, Recipe, Source

Band = tuple[float, float, float]  # value, low, high

# Bytes of text in a byte of file. An archive of books holds pictures, a database indexes.
_TEXT_SHARE: dict[str, Band] = {
    "text": (1.0, 0.95, 1.0),
    "code": (1.0, 0.95, 1.0),
    "html": (0.25, 0.05, 0.5),
    "books": (0.3, 0.01, 2.5),
    "warc": (0.06, 0.02, 0.15),
    "jsonl": (0.9, 0.4, 1.0),
    "csv": (0.9, 0.3, 1.0),
    "parquet": (1.8, 0.5, 4.0),
    "sql": (0.7, 0.2, 1.0),
    "huggingface": (1.0, 0.4, 4.0),
}
_PACKED = (".gz", ".zst", ".bz2", ".xz")
_UNPACKED: Band = (3.5, 1.6, 6.0)  # 1.6 measured on short files
_WET: Band = (0.9, 0.8, 1.0)  # a crawl's text, already taken out of its pages
_ROW_BYTES: Band = (3_000, 100, 100_000)  # where only a number of rows is known
_KEPT: Band = (0.9, 0.4, 1.0)  # without rules: duplicates go
_KEPT_BY_RULES: Band = (0.6, 0.15, 0.95)
_BYTES_PER_TOKEN: Band = (1.0, 0.6, 1.25)  # times the figure for the vocabulary
_TOKEN_DIGITS: Band = (5.0, 2.0, 7.0)  # bytes of a token written as a number
_MOST_FOR_TWO_BYTES = 65_536
# Of text: what the build keeps to go on from, and where each document of 0.5 to 10 kB stands.
_STAGES: Band = (0.7, 0.5, 1.2)
_PLACES: Band = (0.012, 0.006, 0.12)
# Text a second of a core on the whole path, to shards (benchmarks/data.py: 6.5 to 11.5).
_MB_PER_CPU_S: Band = (7.0, 2.0, 18.0)
_START_S: Band = (6.0, 2.0, 20.0)  # workers, and a tokenizer learnt on one core
_UNCOUNTED = 10.0  # a listing that was cut may be of so many times more


@dataclass(frozen=True)
class SourceEstimate:
    name: str
    num_files: int
    file_bytes: float
    text_bytes: Estimate
    tokens: Estimate  # to train on


@dataclass(frozen=True)
class BuildEstimate:
    disk_bytes: Estimate  # of all, while it is built
    final_bytes: Estimate  # of what training reads
    hours: Estimate


def total(parts: Sequence[Estimate]) -> Estimate:
    """All off in the same direction at once; unknown ones are left out; the weakest basis."""
    known = [part for part in parts if part.value is not None]
    if not known:
        return UNKNOWN
    basis = max((part.basis for part in known), key=("measured", "modelled", "assumed").index)
    return Estimate(
        sum(part.value or 0.0 for part in known),
        sum(part.low or 0.0 for part in known),
        sum(part.high or 0.0 for part in known),
        basis,
    )


def source_estimate(recipe: Recipe, source: Source, listing: Listing) -> SourceEstimate:
    size = listing.num_bytes
    if listing.unknown or not listing.files:
        return SourceEstimate(source.name, listing.num_files, size, UNKNOWN, UNKNOWN)
    trained = 1.0 - recipe.data.validation
    if source.kind == "tokens":
        text, tokens = UNKNOWN, total([_ready_tokens(file, recipe) for file in listing.files])
    else:
        text = _limited(source, total([_text_bytes(source, file) for file in listing.files]))
        tokens = text.multiplied(_estimate(_kept(recipe.data.clean))).multiplied(_tokens_per_byte(recipe))
    if not listing.complete:
        text, tokens = _at_least(text), _at_least(tokens)
    return SourceEstimate(source.name, listing.num_files, size, text, tokens.times(trained))


def build_estimate(recipe: Recipe, sources: Sequence[SourceEstimate], cores: int) -> BuildEstimate:
    """Of the sources that something is known of."""
    text = total([one.text_bytes for one in sources])
    tokens = total([one.tokens for one in sources])
    places = text.multiplied(_estimate(_PLACES))
    final = total([tokens.times(token_bytes(recipe)), places])
    hours = text.multiplied(_estimate(_MB_PER_CPU_S).inverse()).times(1e-6 / 3600.0 / cores)
    if hours.value is not None:
        hours = total([hours, _estimate(_START_S).times(1.0 / 3600.0)])
    return BuildEstimate(total([final, text.multiplied(_estimate(_STAGES))]), final, hours)


def token_bytes(recipe: Recipe) -> int:
    """Of a token in a shard. A ready tokenizer is taken for a large one."""
    return 2 if recipe.tokenizer.path is None and recipe.tokenizer.vocab <= _MOST_FOR_TWO_BYTES else 4


def _text_bytes(source: Source, file: Listed) -> Estimate:
    name = file.name.lower()
    share = _WET if source.kind == "warc" and ".wet" in name else _TEXT_SHARE[source.kind]
    text = _estimate(share).times(file.size_bytes)
    return text.multiplied(_estimate(_UNPACKED)) if name.endswith(_PACKED) else text


def _ready_tokens(file: Listed, recipe: Recipe) -> Estimate:
    if file.name.endswith(".idx"):
        return Estimate(0.0, 0.0, 0.0, "modelled")
    if file.name.endswith(".bin"):
        return Estimate(
            file.size_bytes / token_bytes(recipe), file.size_bytes / 4, file.size_bytes / 2, "assumed"
        )
    value, low, high = _TOKEN_DIGITS
    return Estimate(file.size_bytes / value, file.size_bytes / high, file.size_bytes / low, "assumed")


def _limited(source: Source, text: Estimate) -> Estimate:
    """Of a source of rows, of which only the first so many are read. (Files are counted already.)"""
    if source.limit is None or source.kind in ("text", "code", "html"):
        return text
    value, low, high = (min(end or 0.0, source.limit * size) for end, size in
                        zip((text.value, text.low, text.high), _ROW_BYTES, strict=True))  # fmt: skip
    return Estimate(value, low, high, "assumed")


def _kept(clean: Clean) -> Band:
    strict = clean.rules not in ("off", []) or clean.language is not None or clean.quality is not None
    return _KEPT_BY_RULES if strict else _KEPT


def _tokens_per_byte(recipe: Recipe) -> Estimate:
    """From the size of the vocabulary; that of a ready tokenizer is taken for 128K, as most are."""
    vocab = 131_072 if recipe.tokenizer.path is not None else recipe.tokenizer.vocab
    per_token = max(1.2, 3.1 + 0.26 * math.log2(vocab / 4096))
    return _estimate(_BYTES_PER_TOKEN).times(per_token).inverse()


def _estimate(band: Band) -> Estimate:
    return Estimate(*band, "assumed")


def _at_least(estimate: Estimate) -> Estimate:
    return Estimate(
        estimate.value, estimate.low, estimate.high and _UNCOUNTED * estimate.high, estimate.basis
    )
