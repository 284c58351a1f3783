"""Data that a model makes while it learns: rounds of answers by the weights of the moment.

The loop asks for the rows at a position, as ever; a round whose answers are not on disk is made then and
there, by all ranks, with the weights as they are at that step, and written before the first step on it:

    finetune/rollouts-00002/   manifest.json   answers.jsonl (to read)   chunk-00000.npz … (to train on)

So it is one stage: one curve, one schedule, one optimizer, checkpoints at any step, and the loop knows
no more than that rows may have to be made.
A run that was killed goes on at its newest checkpoint; steps since then are made again on the same
answers, which are on disk, and a round that was being made goes on behind its last chunk. Nothing is
drawn twice: what is drawn for a prompt depends on seed, position of the prompt and number of the answer,
not on batch, chunk, rank or attempt.
The roads not taken: a stage a round needs an origin with optimizer state, a schedule over stages and a
curve in pieces; training stopped between rounds loads model and optimizer anew each time.
Cost: a step with a round in it is as long as sampling takes; its energy is told apart, as "sampling".
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from bessemer.data.loader import Batch, micro_batch
from bessemer.data.order import samples
from bessemer.data.prepared import PreparedTask
from bessemer.data.rows import pad_id_of
from bessemer.finetune.answer_rows import Answer, AnswerRows, Array
from bessemer.finetune.models import sampling_model
from bessemer.finetune.rounds import Columns, Prompt, Rewards, RoundFolder
from bessemer.formulas.layout import split_evenly
from bessemer.formulas.objective import CHUNK_ANSWERS, Rollouts
from bessemer.log import Console
from bessemer.model.decoder import Decoder
from bessemer.model.generate import sample
from bessemer.parallel.engine import Engine
from bessemer.train.ranks import Company
from bessemer.train.stage import Stage


@dataclass(frozen=True)
class Judge:
    """What a method says of answers."""

    # Of a chunk, on the rank that has sampled it; the model is the one that gave them.
    columns: Callable[[Decoder, Sequence[Answer]], Columns]
    # Of a round, on the first rank: further columns, each answer's reward where there is one, and figures.
    rewards: Rewards
    # On the first rank before the first round of an attempt that is made: whoever is asked is the same still.
    check: Callable[[], object]


class RolloutFeed:
    """Batches of a stage whose answers are made round by round."""

    def __init__(
        self, stage: Stage, engine: Engine, console: Console, company: Company, judge: Judge
    ) -> None:
        assert isinstance(stage.data, PreparedTask) and stage.plan.objective.rollouts is not None
        self._stage, self._engine, self._console = stage, engine, console
        self._company, self._judge = company, judge
        self._rollouts: Rollouts = stage.plan.objective.rollouts
        self._pad_id = pad_id_of(stage.data.manifest["tokenizer"])
        self._end_id = stage.data.stop_id(stage.shape.eos_id)
        self._prompts = prompts_of(stage.data, self._rollouts.prompt_tokens)
        self._steps: tuple[int, list[AnswerRows]] | None = None  # of the round that was read last
        self._checked = False

    def is_made(self, position: int) -> bool:
        """Read already; to look on disk takes all ranks."""
        return self._steps is not None and self._steps[0] == self._place(position)[0]

    def make(self, position: int) -> None:
        """Sample the round, or what is missing of it, and read it."""
        self._rows(self._place(position)[0])

    def batch(self, position: int) -> Batch:
        plan = self._stage.plan
        round_, step = self._place(position)
        rows = self._rows(round_)[step]
        share = split_evenly(len(rows), self._engine.data_ranks)[self._engine.data_rank]
        turns = -(-len(rows) // (self._engine.data_ranks * plan.micro_batch))
        if plan.layout.pipeline > 1:  # whose schedule was checked for this number
            turns = plan.micro_batches
        cuts = range(0, turns * plan.micro_batch, plan.micro_batch)
        parts = [micro_batch(rows, share[cut : cut + plan.micro_batch], plan.micro_batch) for cut in cuts]
        # Every rank has read the same round, so that all know how many rows there are.
        return Batch(parts, sum(int(part.units_B.sum()) for part in parts), len(rows))

    def _place(self, position: int) -> tuple[int, int]:
        """(round, step in it)."""
        return divmod(position // self._stage.plan.batch_rows, self._rollouts.steps)

    def _rows(self, round_: int) -> list[AnswerRows]:
        """Of each step of a round."""
        if self._steps is None or self._steps[0] != round_:
            folder = RoundFolder(self._stage.folder, round_)
            look = partial(folder.missing, self._num_chunks)
            found = self._company.first_does(f"{folder.name}: look", look)
            if not found["done"]:
                self._make(folder, found["chunks"])
            self._steps = (round_, self._cut(*folder.read()))
        return self._steps[1]

    def _cut(self, answers: Sequence[Answer], columns: Mapping[str, Array]) -> list[AnswerRows]:
        first = np.cumsum([0, *(answer.trained for answer in answers)])
        size, steps = self._rollouts.answers_per_step, []
        for begin in range(0, len(answers), size):
            some = answers[begin : begin + size]
            trained = slice(first[begin], first[begin + len(some)])
            own = {name: values[trained] for name, values in columns.items()}
            steps.append(AnswerRows(some, own, self._stage.plan.context, self._pad_id))
        return steps

    @property
    def _chunk_prompts(self) -> int:
        return max(1, CHUNK_ANSWERS // self._rollouts.group_size)

    @property
    def _num_chunks(self) -> int:
        return -(-self._rollouts.prompts // self._chunk_prompts)

    def _make(self, folder: RoundFolder, missing: Sequence[int]) -> None:
        """Each rank takes every n-th of the chunks that are missing."""
        engine, begin_s = self._engine, time.monotonic()
        self._check(folder)
        model = sampling_model(engine, self._stage.shape)

        def sample_own() -> None:
            for chunk in missing[engine.rank :: engine.world]:
                answers = self._sampled(model, self._places(folder.round, chunk))
                folder.write_chunk(chunk, answers, self._judge.columns(model, answers))

        def left() -> int:
            return len(folder.missing(self._num_chunks)["chunks"])

        self._company.each_does(f"{folder.name}: sample", sample_own, left)
        finish = partial(self._finish, folder)
        figures = self._company.first_does(f"{folder.name}: finish", finish)
        told = ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
        round_s = time.monotonic() - begin_s
        self._console.line(f"round {folder.round + 1} of {self._rollouts.rounds}: {told} ({round_s:.1f} s)")

    def _check(self, folder: RoundFolder) -> None:
        def check() -> dict[str, Any]:
            self._judge.check()
            return {}

        if not self._checked:
            self._company.first_does(f"{folder.name}: check", check)
        self._checked = True

    def _finish(self, folder: RoundFolder) -> dict[str, Any]:
        places = [self._places(folder.round, chunk) for chunk in range(self._num_chunks)]
        tokenizer = self._stage.folder / "tokenizer.json"
        asked = self._asked(np.concatenate(places))
        return folder.publish(self._num_chunks, asked, self._judge.rewards, tokenizer, self._end_id)

    def _places(self, round_: int, chunk: int) -> Array:
        """Of a chunk's prompts in the order of all that the stage asks."""
        first, count = chunk * self._chunk_prompts, self._rollouts.prompts
        return np.arange(first, min(first + self._chunk_prompts, count)) + round_ * count

    def _asked(self, places: Array) -> list[Prompt]:
        """The prompt of each answer."""
        numbers = samples(self._stage.seed, places, len(self._prompts)).tolist()
        return [self._prompts[number] for number in numbers for _ in range(self._rollouts.group_size)]

    def _sampled(self, model: Decoder, places: Array) -> list[Answer]:
        rollouts, seed = self._rollouts, self._stage.seed
        size = (rollouts.group_size, rollouts.answer_tokens)
        uniform = [np.random.default_rng([seed, place]).random(size) for place in places.tolist()]
        asked = [prompt.ids for prompt in self._asked(places)]
        given = sample(
            model,
            asked,
            max_tokens=rollouts.answer_tokens,
            eos_id=self._end_id,
            temperature=rollouts.temperature,
            uniform_BT=torch.from_numpy(np.concatenate(uniform)),
        )
        return [
            Answer(np.array([*prompt, *answer], dtype=np.int32), len(prompt))
            for prompt, answer in zip(asked, given, strict=True)
        ]


def prompts_of(data: PreparedTask, longest: int) -> list[Prompt]:
    """Those of the training examples that are not longer."""
    examples = data.examples("train")
    return [
        Prompt(example.id, example.prompt_ids, example.prompt, example.answer)
        for example in examples
        if len(example.prompt_ids) <= longest
    ]
