"""`check layouts`: a recipe's first steps under many layouts, held against the same steps of one process.

Same data, model, first values, batch and learning rate; what differs is who computes what.
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
from bessemer.check.plans import WHERE, Planned, plan_layouts, plan_one
from bessemer.check.pool import WORKER, run_pools
from bessemer.check.worker import Case, Task
from bessemer.data.store import prepare
from bessemer.errors import RecipeError, RefusedError, UserError
from bessemer.formulas.layout import Layout
from bessemer.log import Console
from bessemer.model.device import this_device
from bessemer.planner.layout import parse_layout
from bessemer.planner.plan import Plan, StagePlan
from bessemer.recipe.load import LoadedRecipe
from bessemer.recipe.schema import Recipe
from bessemer.train.build import Machine
from bessemer.train.pretrain import pretrain_facts
from bessemer.train.stage import Stage, begin

_RANKS = 8


@dataclass(frozen=True)
class Wish:
    """What is to be checked. None: our choice."""

    layouts: str | None = None  # separated by semicolons
    ranks: int | None = None  # most of them in a layout that we choose
    steps: int = 5
    timeout_s: float = 120.0  # for a layout


def check_layouts(
    loaded: LoadedRecipe, wish: Wish, store: Path, console: Console, worker: Sequence[str] = WORKER
) -> dict[str, Any]:
    """The document of the command.

    A layout that was asked for by name and cannot be is a RecipeError, or a RefusedError for want of memory;
    one of our own choice becomes a row that says why.
    """
    named = None if wish.layouts is None else _parsed(wish.layouts)
    data = prepare(loaded.recipe, loaded.base, store, console)
    facts = pretrain_facts(loaded, data)
    one = plan_one(loaded.recipe, facts)
    layouts = _chosen(loaded.recipe, one, wish.ranks) if named is None else named
    planned = plan_layouts(loaded.recipe, one, layouts, facts, named=named is not None)
    plans = {each.layout: each.plan for each in planned if each.plan is not None}
    console.line(f"{len(plans)} layouts, each {wish.steps} steps of {one.pretrain.batch_rows} rows")
    stage = Stage(Path(), "pretrain", one.shape, one.pretrain, one.seed, data, data.tokenizer_path)
    machine = Machine(facts.kind, facts.cores, peak_flops=None)  # nobody reads an MFU here
    reference, *traces = _trained(stage, list(plans.values()), machine, wish, console, worker)
    assert isinstance(reference, Trace), reference  # else it was raised
    found = dict(zip(plans, traces, strict=True))
    tolerance = TOLERANCES[one.pretrain.dtype]
    return _document(one, wish, reference, [_row(each, found, reference, tolerance) for each in planned])


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
            begin(replace(stage, folder=cases[-1].folder, plan=plan))
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


def _document(one: Plan, wish: Wish, reference: Trace, rows: list[Row]) -> dict[str, Any]:
    return {
        "name": one.name,
        "dtype": one.pretrain.dtype,
        "steps": wish.steps,
        "batch_rows": one.pretrain.batch_rows,
        "context": one.pretrain.context,
        "device": one.device,
        "torch": torch.__version__,
        "tolerance": asdict(TOLERANCES[one.pretrain.dtype]),
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


def _chosen(recipe: Recipe, one: Plan, ranks: int | None) -> list[Layout]:
    """The recipe's own layout, and ours."""
    most = _RANKS if ranks is None else ranks
    if this_device().type != "cpu":  # a rank has a device of its own
        most = min(most, torch.accelerator.device_count())
    own = parse_layout(recipe.parallel.layout)
    first = [own] if 1 < own.world <= most else []
    layouts = list(dict.fromkeys([*first, *default_layouts(one.shape, most)]))
    if not layouts:
        raise RefusedError(
            "there is no layout to check",
            found=f"at most {most} rank(s), on {one.device}",
            wanted="2 ranks or more",
            fix="take a machine with several accelerators",
        )
    return layouts
