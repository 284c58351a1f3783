"""The rows of a stage: what it trains on, what it is validated with, and what its samples begin with."""

from collections.abc import Callable
from functools import partial
from typing import Any

from tokenizers import Tokenizer

from bessemer.data.loader import Batches
from bessemer.data.mixture import Mixture
from bessemer.data.prepared import PreparedTask
from bessemer.data.rows import Rows
from bessemer.evaluate.answers import continuations
from bessemer.log import Console
from bessemer.model.decoder import Decoder
from bessemer.parallel.engine import Engine
from bessemer.train.columns import columns_of
from bessemer.train.ranks import Company
from bessemer.train.stage import Stage

_SAMPLE_TOKENS = 24
_VALIDATION_TOKENS = 65536
_VALIDATION_SHARE = 0.3  # of the tokens trained on since the last validation


def prepared_feed(stage: Stage, engine: Engine, console: Console, company: Company) -> Batches:
    """The rows of the stage's data, which is there before training."""
    mixture = None if stage.mixture is None else Mixture(stage.mixture.kept)
    plan, rank, ranks = stage.plan, engine.data_rank, engine.data_ranks
    rows = rows_of_split(stage, "train")
    return Batches(rows, stage.seed, plan.batch_rows, plan.micro_batch, rank, ranks, mixture)


def rows_of_split(stage: Stage, split: Any) -> Rows:
    if stage.kind == "finetune":
        examples = stage.examples if split == "train" else None
        assert isinstance(stage.data, PreparedTask)
        return stage.data.rows(split, stage.plan.context, examples, columns_of(stage, split))
    return stage.data.rows(split, stage.plan.context)


def num_validation_rows(stage: Stage) -> int:
    """Held-out rows that are measured during training; `evaluate` measures all of them.

    A validation costs a third of a step's FLOPs per token, so in pre-training the share keeps all of them
    under a tenth of the run. A task's are all measured: stages that are compared must see the same ones.
    """
    plan = stage.plan
    most = _VALIDATION_TOKENS // plan.context
    if stage.kind == "pretrain":
        most = min(most, round(_VALIDATION_SHARE * plan.validate_every * plan.batch_rows))
    return max(1, most)


def sampler_of(stage: Stage, model: Decoder, validation: Rows) -> Callable[[], list[dict[str, Any]]] | None:
    """What the model writes after held-out beginnings, at each validation of pre-training."""
    if stage.kind != "pretrain" or not len(validation):
        return None
    tokenizer = Tokenizer.from_file(str(stage.folder / "tokenizer.json"))
    return partial(continuations, model, validation, tokenizer, stage.shape.eos_id, _SAMPLE_TOKENS)
