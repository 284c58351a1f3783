"""`check layouts`: a recipe's first steps under many layouts, held against the same steps of one process.

Same data, model, first values, batch and learning rate; what differs is who computes what. Compiled code is
left out: it differs from eager code in its last bits, and would take minutes a layout. The rate is at its
peak from the first step, so that a wrong gradient moves the weights and shows in the next loss. Micro-batches
are the recipe's where the layout takes them, and else such that a rank has several where its rows allow it.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bessemer.check.candidates import default_layouts
from bessemer.check.compare import TOLERANCES, Row, Trace, compared, not_compared
from bessemer.check.pool import WORKER, run_pools
from bessemer.check.worker import Case, Task
from bessemer.data.store import prepare
from bessemer.errors import RecipeError, RefusedError, UserError
from bessemer.formulas.layout import ONE_PROCESS, Layout
from bessemer.log import Console
from bessemer.model.device import this_device
from bessemer.planner.facts import Facts
from bessemer.planner.layout import parse_layout
from bessemer.planner.layout_rules import allows
from bessemer.planner.limits import check_start, check_trainable
from bessemer.planner.plan import Plan, StagePlan
from bessemer.planner.resolve import resolve
from bessemer.recipe.load import LoadedRecipe
from bessemer.recipe.schema import Parallel, Recipe
from bessemer.train.build import machine_of
from bessemer.train.pretrain import pretrain_facts
from bessemer.train.stage import Stage, begin

_WHERE = "--layouts"
_RANKS = 8


@dataclass(frozen=True)
class Wish:
    """What is to be checked. None: our choice."""

    layouts: str | None = None  # separated by semicolons
    ranks: int | None = None  # most of them in the layouts that we choose
    steps: int = 5
    timeout_s: float = 120.0  # for a layout


def check_layouts(
    loaded: LoadedRecipe, wish: Wish, store: Path, console: Console, worker: Sequence[str] = WORKER
) -> dict[str, Any]:
    """The document of the command. RecipeError or RefusedError for a layout that was asked for by name and
    cannot be; one of our own choice becomes a row that says why."""
    named = _named(wish)
    prepared = prepare(loaded.recipe, loaded.base, store, console)
    facts = pretrain_facts(loaded, prepared)
    one = _plan(_undecided(loaded.recipe), ONE_PROCESS, facts)
    recipe = _decided(loaded.recipe, one.pretrain)
    layouts = named if named is not None else _chosen(loaded.recipe, one, wish.ranks)
    plans: list[StagePlan] = [_plain(one.pretrain)]
    rows: list[Row] = []
    for layout in layouts:
        row: Row = {"layout": str(layout), "ranks": layout.world}
        try:
            plan = _plain(_plan(recipe, layout, facts).pretrain)
            row |= {"micro_batch": plan.micro_batch, "case": len(plans)}
            plans.append(plan)
        except (RecipeError, RefusedError) as error:
            if named is not None:
                raise
            row |= not_compared(None, f"{error.problem}: {error.found}")
        rows.append(row)
    console.line(f"{len(plans) - 1} layouts, each {wish.steps} steps of {one.pretrain.batch_rows} rows")
    with tempfile.TemporaryDirectory(prefix="bessemer-check-") as folder:
        cases = []
        for number, plan in enumerate(plans):
            stage = Stage(
                folder=Path(folder) / f"{number:03d}",
                kind="pretrain",
                shape=one.shape,
                plan=plan,
                seed=one.seed,
                data=prepared,
                tokenizer=prepared.tokenizer_path,
            )
            begin(stage)
            cases.append(Case(number, stage.folder))
        results, machine = Path(folder) / "results.jsonl", machine_of(stage, facts)
        task = Task(cases, len(cases), results, machine, wish.steps, wish.timeout_s)
        found = run_pools(task, console, worker)
    return _document(one, rows, found, wish)


def _document(one: Plan, rows: list[Row], found: dict[int, Trace | UserError], wish: Wish) -> dict[str, Any]:
    reference, tolerance = found[0], TOLERANCES[one.pretrain.dtype]
    assert isinstance(reference, Trace), reference
    for row in (row for row in rows if "case" in row):
        result = found[row.pop("case")]
        if isinstance(result, Trace):
            row |= compared(result, reference, tolerance)
        else:
            row |= not_compared(False, result.problem)
    return {
        "name": one.name,
        "dtype": one.pretrain.dtype,
        "steps": wish.steps,
        "batch_rows": one.pretrain.batch_rows,
        "context": one.pretrain.context,
        "device": one.device,
        "torch": torch.__version__,
        "tolerance": asdict(tolerance),
        "reference": reference.to_json(),
        "rows": rows,
        "passed": sum(row["passed"] is True for row in rows),
        "failed": sum(row["passed"] is False for row in rows),
        "refused": sum(row["passed"] is None for row in rows),
    }


def _named(wish: Wish) -> list[Layout] | None:
    if wish.layouts is None:
        return None
    texts = [text.strip() for text in wish.layouts.split(";") if text.strip()]
    if not texts:
        raise RecipeError(
            f"{_WHERE} names no layout",
            found=repr(wish.layouts),
            wanted="layouts, with semicolons between them",
            fix=f'write it like {_WHERE} "shard=2;tensor=2,pipeline=2"',
        )
    return list(dict.fromkeys(parse_layout(text, _WHERE) for text in texts))


def _chosen(recipe: Recipe, one: Plan, ranks: int | None) -> list[Layout]:
    """The recipe's own layout, and ours."""
    device, most = this_device(), _RANKS if ranks is None else ranks
    if device.type != "cpu":  # a rank has a device of its own
        most = min(most, torch.accelerator.device_count())
    own = parse_layout(recipe.parallel.layout)
    first = [own] if 1 < own.world <= most else []
    layouts = list(dict.fromkeys([*first, *default_layouts(one.shape, most)]))
    if not layouts:
        raise RefusedError(
            "there is no layout to check",
            found=f"at most {most} rank(s), on {one.device}",
            wanted="2 ranks or more",
            fix="raise --ranks; on accelerators, take a machine with several",
        )
    return layouts


def _undecided(recipe: Recipe) -> Recipe:
    return _with(recipe, compile=False)


def _decided(recipe: Recipe, plan: StagePlan) -> Recipe:
    """What the recipe leaves to us is the same under every layout."""
    rest = {"batch_tokens": plan.batch_tokens, "lr": plan.lr, "dtype": plan.dtype}
    return _with(recipe, compile=False, steps=plan.steps, tokens=None, warmup=plan.warmup, **rest)


def _with(recipe: Recipe, **pretrain: Any) -> Recipe:
    return recipe.model_copy(update={"pretrain": recipe.pretrain.model_copy(update=pretrain)})


def _plan(recipe: Recipe, layout: Layout, facts: Facts) -> Plan:
    """Of one layout, by the rules of every run; refused as a run would be."""
    laid = recipe.model_copy(update={"parallel": Parallel(layout=str(layout))})
    try:
        plan = resolve(laid, facts, layout_from=_WHERE)
    except RecipeError:
        if recipe.pretrain.micro_batch == "auto":
            raise
        plan = resolve(_with(laid, micro_batch="auto"), facts, layout_from=_WHERE)  # for the pipeline
    if recipe.pretrain.micro_batch == "auto":
        plan = replace(plan, pretrain=_several(plan.pretrain))
    check_trainable(laid, plan.shape)
    check_start(laid, plan.shape, plan.pretrain, facts, hours=None)
    return plan


def _several(plan: StagePlan) -> StagePlan:
    """With two micro-batches at least where the rows allow it, so that gradients are accumulated too."""
    share = -(-plan.batch_rows // plan.layout.data)
    half = replace(plan, micro_batch=min(plan.micro_batch, -(-share // 2)))
    return half if allows(plan.layout, half.micro_batches) else plan


def _plain(plan: StagePlan) -> StagePlan:
    """The rate at its peak from the first step to the last."""
    return replace(plan, schedule="constant", warmup=0, decay_steps=0)
