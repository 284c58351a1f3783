"""How many rows a forward pass gets, where the recipe leaves it to us."""

from dataclasses import replace

from bessemer.formulas.layout import Layout
from bessemer.formulas.shape import ModelShape
from bessemer.planner.machine.facts import Facts
from bessemer.planner.plan import StagePlan
from bessemer.planner.recompute import fits
from bessemer.planner.rules.layout import allows
from bessemer.recipe.schema import Optimization

CPU_MICRO_BATCH_TOKENS = 4096  # larger ones no longer gain on a CPU and fall out of its caches
_ACCELERATOR_MICRO_BATCH_TOKENS = 65536
_MEMORY_SHARE = 0.85  # of a device


def choose_micro_batch(
    section: Optimization, shape: ModelShape, batch: StagePlan, facts: Facts
) -> tuple[int, str]:
    """(rows, the rule). batch: the stage's plan but for what is decided here."""
    layout, context = batch.layout, batch.context
    tokens = CPU_MICRO_BATCH_TOKENS if facts.kind == "cpu" else _ACCELERATOR_MICRO_BATCH_TOKENS
    rule = f"{tokens} tokens or down to half of them, with the fewest empty rows"
    share = -(-batch.batch_rows // (layout.data if layout.world > 1 else facts.devices))
    limit = max(1, tokens // context)
    filled = max(1, share // (2 * layout.num_stages))
    if layout.pipeline > 1 and filled < limit:
        limit = filled
        rule = f"two micro-batches or more for each of {layout.num_stages} stages, where the rows allow it"
    best = _evenest(share, limit, layout)
    known = facts.devices == 1 or layout.world > 1
    fitting = f"what fits in {_MEMORY_SHARE:.0%} of memory, with the fewest empty rows"
    while (
        known
        and best > 1
        and not fits(section, shape, replace(batch, micro_batch=best), facts, _MEMORY_SHARE)
    ):
        smaller = _evenest(share, best - 1, layout)
        if smaller >= best:  # of the smaller sizes the schedule takes none
            break
        best = smaller
        rule = fitting
    if rule == fitting and not fits(section, shape, replace(batch, micro_batch=best), facts, _MEMORY_SHARE):
        rule = f"the least there is; it does not fit in {_MEMORY_SHARE:.0%} of memory"
    return best, rule


def _evenest(rows: int, limit: int, layout: Layout) -> int:
    """The size from half the limit on that cuts `rows` with the fewest empty ones; the largest of them.

    The loader fills the last micro-batch up with empty rows, which cost as much as others. Smaller than
    half the limit is worse: a batch of 17 rows in one-row micro-batches. Only sizes that the pipeline's
    schedule takes, which all rows at once always is.
    """
    most = min(rows, limit)

    def runs(size: int) -> bool:
        return allows(layout, -(-rows // size))

    usual = [size for size in range(most, (most + 1) // 2 - 1, -1) if runs(size)]
    others = [size for size in (*range(most, 0, -1), *range(most, rows + 1)) if runs(size)]
    return min(usual or others[:1], key=lambda size: -rows % size)
