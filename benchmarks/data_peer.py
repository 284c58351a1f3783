"""datatrove's stock stages on a sample of the corpus: run in its environment (peers/requirements-data.txt).

    python data_peer.py SAMPLE TOKENIZER OUT

SAMPLE holds man, html and code as JSON lines ("id", "text"; of html the page). As a user would chain them:

    man, html   (html: Trafilatura), C4, GopherRepetition, GopherQuality, FineWebQuality, PII
    code        PII only, as Bessemer asks no rules of prose of code either
    all         MinHash signatures, buckets, clusters, filter; tokenizers, shuffled shards

C4 comes first, as it does in Bessemer's path: what it cuts off is work for neither. Left out on this side,
in datatrove's favour: the language filter, whose model is a download, and decontamination, which wants
lighteval. CPU seconds count from behind the imports. Everything in one process: no pool to start.
"""

import json
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import (
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.formatters import PIIFormatter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.logging import logger

_BUCKETS = 14


def main() -> None:
    sample, tokenizer, out = map(Path, sys.argv[1:4])
    logger.remove()
    spent: dict[str, float] = {}
    for kind in ("man", "html", "code"):
        steps: list[Any] = [JsonlReader(str(sample / kind))]
        steps += [Trafilatura()] if kind == "html" else []
        if kind != "code":
            steps += [
                C4QualityFilter(),
                GopherRepetitionFilter(),
                GopherQualityFilter(),
                FineWebQualityFilter(),
            ]
        steps += [PIIFormatter(), JsonlWriter(str(out / "kept"), output_filename=kind + "-${rank}.jsonl.gz")]
        spent[f"filters: {kind}"] = _run(steps)
    kept = [out / "kept"]
    _minhash(out / "kept", out / "whole", spent, "minhash")
    steps = [JsonlReader(str(kept[0])), MinhashDedupFilter(str(out / "whole" / "remove"))]
    steps.append(DocumentTokenizer(str(out / "tokens"), str(tokenizer), eos_token="<|eos|>", seed=0))
    spent["tokenize and write"] = _run(steps)
    # The MinHash path on all texts of the sample, whatever the rules refuse.
    alone: dict[str, float] = {}
    _minhash(sample / "texts", out / "alone", alone, "minhash")
    print(json.dumps({"whole": spent, "minhash": alone, "kept": _count(out / "kept")}))


def _minhash(texts: Path, out: Path, spent: dict[str, float], name: str) -> None:
    config = MinhashConfig(n_grams=5, num_buckets=_BUCKETS, hashes_per_bucket=8)
    signatures, buckets, remove = (str(out / part) for part in ("signatures", "buckets", "remove"))
    reader = JsonlReader(str(texts))
    spent[f"{name}: signatures"] = _run(
        [reader, MinhashDedupSignature(output_folder=signatures, config=config)], 1
    )
    step: Any = MinhashDedupBuckets(input_folder=signatures, output_folder=buckets, config=config)
    spent[f"{name}: buckets"] = _run([step], _BUCKETS)
    step = MinhashDedupCluster(input_folder=buckets, output_folder=remove, config=config)
    spent[f"{name}: clusters"] = _run([step], 1)


def _run(steps: Sequence[Any], tasks: int = 1) -> float:
    """CPU seconds, those of extractor processes included."""
    before = _cpu_s()
    executor = LocalPipelineExecutor(
        pipeline=list(steps), tasks=tasks, workers=1, skip_completed=False, logging_dir=None
    )
    executor.run()
    return _cpu_s() - before


def _cpu_s() -> float:
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def _count(folder: Path) -> int:
    import gzip

    return sum(len(gzip.open(path).readlines()) for path in folder.glob("*.gz"))


if __name__ == "__main__":
    main()
