"""`check layouts`: a stage's first steps under many layouts, held against the same steps of one process.

Same data, model, first values, batch and learning rate; what differs is who computes what. A fine-tuning is
checked like a pre-training: what trains it is the same code (finetune/checked.py makes its stage).
"""

import shutil
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from bessemer.check.candidates import default_layouts
from bessemer.check.compare import TOLERANCES, Row, Tolerance, Trace, compared, not_compared
from bessemer.check.plans import WHERE, Planned, Subject, plan_layouts, plan_one, under
from bessemer.check.pool import WORKER, run_pools
from bessemer.check.worker import Case, Task
from bessemer.data.store import prepare
from bessemer.errors import RecipeError, RefusedError, UserError
from bessemer.formulas.layout import ONE_PROCESS, Layout
from bessemer.log import Console
from bessemer.model.device import this_device
from bessemer.planner.layout import parse_layout
from bessemer.planner.plan import StagePlan
from bessemer.planner.resolve import resolve
from bessemer.recipe.load import LoadedRecipe
from bessemer.train.machine import Machine
from bessemer.train.pretrain import pretrain_facts
from bessemer.train.stage import Stage, write_files

_RANKS = 8


@dataclass(frozen=True)
class Wish:
    """What is to be checked. None: our choice."""

    layouts: str | None = None  # separated by semicolons
    ranks: int | None = None  # most of them in a layout that we choose
    steps: int = 5
    timeout_s: float = 120.0  # for a layout

    def __post_init__(self) -> None:
        self.named()  # a mistake is told before any data is prepared

    def named(self) -> list[Layout] | None:
        return None if self.layouts is None else _parsed(self.layouts)


def check_layouts(
    loaded: LoadedRecipe, wish: Wish, store: Path, console: Console, worker: Sequence[str] = WORKER
) -> dict[str, Any]:
    """The document of the command.

    A layout that was asked for by name and cannot be is a RecipeError, or a RefusedError for want of memory;
    one of our own choice becomes a row that says why.
    """
    return check_subject(pretraining(loaded, store, console), wish, console, worker)


def pretraining(loaded: LoadedRecipe, store: Path, console: Console) -> Subject:
    recipe, data = loaded.recipe, prepare(loaded.recipe, loaded.base, store, console)
    facts = pretrain_facts(loaded, data)
    plan = resolve(under(recipe, ONE_PROCESS), facts, layout_from=WHERE)
    stage = Stage(Path(), "pretrain", plan.shape, plan.pretrain, plan.seed, data, data.tokenizer_path)
    return Subject(recipe, facts, stage, lambda laid: resolve(laid, facts, layout_from=WHERE).pretrain)


def check_subject(
    subject: Subject, wish: Wish, console: Console, worker: Sequence[str] = WORKER
) -> dict[str, Any]:
    """The document of the command, as `check_layouts`."""
    named, one = wish.named(), plan_one(subject)
    layouts = _chosen(subject, one, wish.ranks) if named is None else named
    planned = plan_layouts(subject, one, layouts, named=named is not None)
    plans = {each.layout: each.plan for each in planned if each.plan is not None}
    console.line(f"{len(plans)} layouts, each {wish.steps} steps of {one.batch_rows} rows")
    stage = replace(subject.stage, plan=one)
    facts = subject.facts
    machine = Machine(facts.kind, facts.cores, peak_flops=None)  # nobody reads an MFU here
    reference, *traces = _trained(stage, list(plans.values()), machine, wish, console, worker)
    assert isinstance(reference, Trace), reference  # else it was raised
    found = dict(zip(plans, traces, strict=True))
    rows = [_row(each, found, reference, TOLERANCES[one.dtype]) for each in planned]
    return _document(subject, one, wish, reference, rows)


def _trained(
    stage: Stage,
    plans: Sequence[StagePlan],
    machine: Machine,
    wish: Wish,
    console: Console,
    worker: Sequence[str],
) -> list[Trace | UserError]:
    """Of the stage as it is, and then of each plan: a stage that has begun in a folder of its own, which is
    gone in the end."""
    with _own_folder() as folder:
        cases = []
        for number, plan in enumerate([stage.plan, *plans]):
            cases.append(Case(number, folder / f"{number:03d}"))
            write_files(replace(stage, folder=cases[-1].folder, plan=plan))
        task = Task(cases, len(cases), folder / "results.jsonl", machine, wish.steps, wish.timeout_s)
        found = run_pools(task, console, worker)
    return [found[case.number] for case in cases]


@contextmanager
def _own_folder() -> Iterator[Path]:
    """Gone in the end, and before a SIGTERM ends this process: that unwinds nothing."""
    with tempfile.TemporaryDirectory(prefix="bessemer-check-") as name:
        before = signal.getsignal(signal.SIGTERM)

        def end(number: int, frame: FrameType | None) -> None:
            signal.signal(signal.SIGTERM, before)
            shutil.rmtree(name, ignore_errors=True)
            signal.raise_signal(signal.SIGTERM)

        with suppress(ValueError):  # not in the main thread: whoever runs us there receives the signals
            signal.signal(signal.SIGTERM, end)
        try:
            yield Path(name)
        finally:
            with suppress(ValueError):
                signal.signal(signal.SIGTERM, before)


def _row(
    planned: Planned, found: dict[Layout, Trace | UserError], reference: Trace, tolerance: Tolerance
) -> Row:
    layout, plan = planned.layout, planned.plan
    row: Row = {"layout": str(layout), "ranks": layout.world, "found": None}
    if plan is None:
        return row | not_compared(refused=planned.refused)
    row["micro_batch"], result = plan.micro_batch, found[layout]
    if isinstance(result, UserError):
        return row | not_compared(error=result.problem) | {"found": result.found}
    return row | compared(result, reference, tolerance)


def _document(
    subject: Subject, one: StagePlan, wish: Wish, reference: Trace, rows: list[Row]
) -> dict[str, Any]:
    return {
        "name": subject.recipe.name,
        "stage": subject.stage.kind,
        "dtype": one.dtype,
        "steps": wish.steps,
        "batch_rows": one.batch_rows,
        "context": one.context,
        "device": subject.facts.device,
        "torch": torch.__version__,
        "tolerance": asdict(TOLERANCES[one.dtype]),
        "reference": reference.to_json(),
        "rows": rows,
        "passed": sum(row["passed"] is True for row in rows),
        "failed": sum(row["passed"] is False for row in rows),
        "refused": sum(row["passed"] is None for row in rows),
    }


def _parsed(layouts: str) -> list[Layout]:
    texts = [text.strip() for text in layouts.split(";") if text.strip()]
    if not texts:
        raise RecipeError(
            f"{WHERE} names no layout",
            found=repr(layouts),
            wanted="layouts, with semicolons between them",
            fix=f'write it like {WHERE} "shard=2;tensor=2,pipeline=2"',
        )
    return list(dict.fromkeys(parse_layout(text, WHERE) for text in texts))


def _chosen(subject: Subject, one: StagePlan, ranks: int | None) -> list[Layout]:
    """The recipe's own layout, and ours."""
    most = _RANKS if ranks is None else ranks
    if this_device().type != "cpu":  # a rank has a device of its own
        most = min(most, torch.accelerator.device_count())
    own = parse_layout(subject.recipe.parallel.layout)
    first = [own] if 1 < own.world <= most else []
    shape = replace(subject.stage.shape, context=one.context)
    layouts = list(dict.fromkeys([*first, *default_layouts(shape, most)]))
    if not layouts:
        raise RefusedError(
            "there is no layout to check",
            found=f"at most {most} rank(s), on {subject.facts.device}",
            wanted="2 ranks or more",
            fix="take a machine with several accelerators",
        )
    return layouts
