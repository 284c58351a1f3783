"""The words of a layout, and what is refused with which fix."""

from dataclasses import replace
from typing import Any

import pytest

from bessemer.errors import RecipeError
from bessemer.formulas.layout import ONE_PROCESS, Layout
from bessemer.formulas.schedule import pipeline_order
from bessemer.formulas.shape import ModelShape
from bessemer.planner.layout import check_cluster, parse_layout, resolve_layout, stage_layout
from bessemer.planner.machine.facts import cluster_facts
from bessemer.planner.rules.layout import allows, check_micro_batches
from bessemer.recipe.load import parse

SHAPE = ModelShape("llama", 4, 32, 4, 2, 8, 80, 256, 64, tie_embeddings=True, qk_norm=False)
ROUTED = replace(
    SHAPE, family="qwen3-moe", experts=6, experts_per_token=2, expert_ffn=16, shared_ffn=0, dense_layers=0
)


def refusal(text: str, shape: ModelShape | None = SHAPE, **more: Any) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        resolve_layout(text, shape, **more)
    return caught.value


@pytest.mark.parametrize(
    ("text", "layout"),
    [
        ("auto", ONE_PROCESS),
        ("shard=1, tensor=1", ONE_PROCESS),
        ("replicate=2,shard=3,tensor=2", Layout(replicate=2, shard=3, tensor=2)),
        ("pipeline=2,schedule=zbv", Layout(pipeline=2, schedule="zbv")),
        ("pipeline=2,interleave=2", Layout(pipeline=2, schedule="interleaved", interleave=2)),
        ("pipeline=2,schedule=interleaved", Layout(pipeline=2, schedule="interleaved", interleave=2)),
        ("pipeline=2,split=1+3", Layout(pipeline=2, split=(1, 3))),
        ("pipeline=2,split=1/3", Layout(pipeline=2, split=(1, 3))),
        ("shard=2,reshard=no", Layout(shard=2, reshard=False)),
        ("replicate=2,reshard=yes", Layout(replicate=2)),
        ("context=2,context_kind=ulysses", Layout(context=2, context_kind="ulysses")),
    ],
)
def test_words_make_a_layout_and_a_layout_writes_them_again(text: str, layout: Layout) -> None:
    assert resolve_layout(text, SHAPE) == layout
    assert resolve_layout(str(layout), SHAPE) == layout


@pytest.mark.parametrize(
    ("text", "problem", "wanted", "fix"),
    [
        ("tensr=2", "cannot read 'tensr'", "words of a layout: replicate", "did you mean tensor=2?"),
        ("", "cannot read ''", "words of a layout", "write it like"),
        ("shard=2,,tensor=2", "cannot read ''", "words of a layout", "write it like"),
        ("shard=two", "shard = 'two'", "a positive whole number", "shard=2"),
        ("shard=0", "shard = '0'", "a positive whole number", "shard=2"),
        ("shard", "shard = ''", "a positive whole number", "shard=2"),
        ("pipeline=2,schedule=gpipe", "schedule = 'gpipe'", "one of 1f1b", "schedule=1f1b"),
        ("pipeline=2,split=2-2", "split = '2-2'", "joined by +", "split=5+6+5"),
        ("pipeline=2,split=0+4", "split = '0+4'", "joined by +", "split=5+6+5"),
        ("shard=2,reshard=maybe", "reshard = 'maybe'", "yes, no", "reshard=yes"),
        ("shard=2,shard=4", "shard stands twice", "shard once", "remove shard=2 or shard=4"),
        ("schedule=zbv", "schedule has no effect", "pipeline above 1", "remove schedule=zbv"),
        ("tensor=2,schedule=1f1b", "schedule has no effect", "pipeline above 1", "remove schedule=1f1b"),
        ("split=2+2", "split has no effect", "pipeline above 1", "remove split=2+2"),
        ("interleave=2", "interleave has no effect", "pipeline above 1", "remove interleave=2"),
        (
            "pipeline=2,schedule=zbv,interleave=2",
            "interleave has no effect",
            "schedule=interleaved",
            "remove inter",
        ),
        ("pipeline=2,schedule=interleaved,interleave=1", "several stages", "2 or more", "set interleave=2"),
        ("tensor=2,reshard=no", "reshard has no effect", "replicate, shard or context", "remove reshard=no"),
        (
            "shard=2,context_kind=gather",
            "context_kind has no effect",
            "context above 1",
            "remove context_kind",
        ),
    ],
)
def test_text_that_is_no_layout_is_refused(text: str, problem: str, wanted: str, fix: str) -> None:
    error = refusal(text, None)
    assert problem in error.problem and error.problem.startswith("parallel.layout")
    assert f'"{text}"' in error.found and wanted in error.wanted and fix in error.fix


@pytest.mark.parametrize(
    ("text", "found", "wanted", "nearest"),
    [
        ("tensor=3", "tensor=3, model.heads = 4", "heads = 4 and kv_heads = 2", "tensor=2"),
        ("tensor=4", "tensor=4, model.kv_heads = 2", "heads = 4 and kv_heads = 2", "tensor=2"),
        ("pipeline=5", "5 stages, 4 layers", "a layer or more", "pipeline=4"),
        (
            "pipeline=2,interleave=3",
            "6 stages, 4 layers",
            "a layer",
            "pipeline=2,schedule=interleaved,interleave=2",
        ),
        ("pipeline=4,interleave=2", "8 stages, 4 layers", "a layer", "pipeline=4"),
        ("pipeline=3,schedule=zbv", "6 stages, 4 layers", "a layer", "pipeline=2,schedule=zbv"),
        ("pipeline=2,split=1+2", "2 stages with 3 layers, model of 4", "sum 4", "pipeline=2,split=2+2"),
        ("pipeline=2,split=1+2+1", "3 stages with 4 layers", "2 numbers", "pipeline=2,split=2+2"),
        (
            "pipeline=2,schedule=zbv,split=2+2",
            "2 stages with 4",
            "4 numbers",
            "pipeline=2,schedule=zbv,split=1+1+1+1",
        ),
        ("context=3", "context=3, 64 tokens", "a multiple of 2 x context", "context=2"),
        ("context=2,context_kind=ring", "context_kind=ring", "gather or ulysses", "context=2"),
        (
            "context=4,context_kind=ulysses",
            "kv_heads = 2, 64 tokens",
            "divides heads",
            "context=2,context_kind=ulysses",
        ),
        ("tensor=2,context=2,context_kind=ulysses", "context=2, tensor=2", "tensor x context", "tensor=2"),
        ("shard=2,expert=2", "expert=2, model without experts", "model.experts", "shard=2"),
        ("tensor=3,pipeline=9,context=5", "tensor=3", "heads = 4", "tensor=2,pipeline=4,context=4"),
    ],
)
def test_layout_that_the_model_does_not_allow_names_the_nearest_that_works(
    text: str, found: str, wanted: str, nearest: str
) -> None:
    error = refusal(text)
    assert found in error.found and wanted in error.wanted
    assert error.fix == f'set parallel.layout="{nearest}"'
    resolve_layout(nearest, SHAPE)


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("shard=4,expert=4", "shard=4,expert=2"),
        ("shard=2,expert=3", "shard=2,expert=2"),
        ("tensor=2,expert=2", "tensor=2"),
    ],
)
def test_expert_divides_the_ranks_and_the_experts(text: str, nearest: str) -> None:
    error = refusal(text, ROUTED)
    assert "model.experts = 6" in error.found and "a divisor of both: 1" in error.wanted
    assert error.fix == f'set parallel.layout="{nearest}"'
    assert resolve_layout("replicate=2,shard=3,expert=6", ROUTED).expert == 6


def test_widths_need_not_divide_but_leave_no_rank_empty() -> None:
    wide = replace(SHAPE, heads=16, kv_heads=16, ffn=81, vocab=250)
    assert resolve_layout("tensor=16", wide).tensor == 16
    error = refusal("tensor=16", replace(wide, ffn=12))
    assert "model.ffn = 12" in error.found and error.wanted == "at most 12" and '"tensor=8"' in error.fix


def test_latent_attention_has_no_kv_heads_to_cut() -> None:
    latent = replace(SHAPE, kv_heads=1, mla_kv_rank=8, mla_nope_dim=8, mla_rope_dim=4, mla_v_dim=8)
    assert resolve_layout("tensor=4", latent).tensor == 4


@pytest.mark.parametrize(
    ("text", "world", "layout"),
    [
        ("auto", 4, Layout(shard=4)),
        ("tensor=2", 8, Layout(shard=4, tensor=2)),
        ("shard=2", 2, Layout(shard=2)),
        ("reshard=no", 2, Layout(shard=2, reshard=False)),
        ("auto", 1, ONE_PROCESS),
        ("auto", None, ONE_PROCESS),
    ],
)
def test_missing_shard_fills_the_processes_that_were_started(
    text: str, world: int | None, layout: Layout
) -> None:
    assert parse_layout(text, world=world) == layout


@pytest.mark.parametrize(
    ("text", "world", "found", "wanted", "fix"),
    [
        (
            "shard=2",
            4,
            "2 ranks, on 4 processes",
            "a product of 4",
            'set parallel.layout="shard=4", or start 2 processes',
        ),
        ("tensor=3", 8, "3 ranks, on 8 processes", "degrees that divide 8", "start 3 processes"),
        (
            "shard=1",
            2,
            "1 ranks, on 2",
            "a product of 2",
            'set parallel.layout="shard=2", or start 1 process',
        ),
    ],
)
def test_layout_that_does_not_fill_the_processes_is_refused(
    text: str, world: int, found: str, wanted: str, fix: str
) -> None:
    error = refusal(text, None, world=world)
    assert "does not fill" in error.problem and found in error.found
    assert error.wanted == wanted and error.fix == fix


def test_nearest_layout_fills_the_processes_too_or_says_how_many_to_start() -> None:
    assert refusal("tensor=4", world=8).fix == 'set parallel.layout="shard=4,tensor=2"'
    assert refusal("tensor=3", world=9).fix == 'set parallel.layout="shard=3,tensor=2" and start 6 processes'


def test_fix_is_written_as_the_setting_was() -> None:
    error = refusal("tensor=3", where="--layout")
    assert error.problem.startswith("--layout") and error.fix == '--layout "tensor=2"'


def test_layout_fills_the_cluster_that_is_planned() -> None:
    facts = cluster_facts("H100", 64)
    check_cluster(Layout(shard=8, tensor=8), facts)
    check_cluster(Layout(shard=3), cluster_facts("H100", 1))
    with pytest.raises(RecipeError, match="does not fill the cluster") as caught:
        check_cluster(Layout(shard=3, tensor=8, pipeline=2), facts)
    assert "48 rank" in caught.value.found and caught.value.wanted == "a product of 64"
    assert 'set parallel.layout="shard=4,tensor=8,pipeline=2"' in caught.value.fix


def test_layout_of_a_run_is_kept_where_the_recipe_leaves_it_open() -> None:
    recipe, kept = parse('name = "a"\n', "r", []), Layout(shard=2, tensor=2)
    assert stage_layout(recipe, SHAPE) == ONE_PROCESS
    assert stage_layout(recipe, SHAPE, kept=kept) == kept == stage_layout(recipe, SHAPE, kept=kept, world=4)
    assert stage_layout(recipe, SHAPE, kept=kept, world=2) == Layout(shard=2)
    asked = parse('name = "a"\n[parallel]\nlayout = "pipeline=2"\n', "r", [])
    assert stage_layout(asked, SHAPE, kept=kept) == Layout(pipeline=2)


def test_rows_of_a_stage_decide_about_the_context_axis() -> None:
    recipe = parse('name = "a"\n[parallel]\nlayout = "context=4"\n', "r", [])
    stage_layout(recipe, SHAPE)
    with pytest.raises(RecipeError, match="context does not divide"):
        stage_layout(recipe, SHAPE, context=36)


SCHEDULES = [
    *(Layout(pipeline=p, schedule=name) for p in (2, 3, 5) for name in ("1f1b", "zbv", "dualpipev")),
    *(Layout(pipeline=p, schedule="interleaved", interleave=turns) for p in (2, 3, 4, 5) for turns in (2, 3)),
]


@pytest.mark.parametrize("layout", SCHEDULES, ids=str)
def test_every_number_of_micro_batches_that_is_allowed_runs_to_its_end(layout: Layout) -> None:
    allowed = [count for count in range(1, 25) if allows(layout, count)]
    assert len(allowed) == 24 or layout.schedule == "interleaved"
    assert {1, layout.pipeline, 4 * layout.pipeline} <= set(allowed)
    for count in allowed:
        assert runs(layout, count), f"{layout} waits for itself with {count} micro-batches"


def runs(layout: Layout, micro_batches: int) -> bool:
    """Whether ranks that work strictly in order ever all wait for each other."""
    orders, done, last = pipeline_order(layout, micro_batches), set(), layout.num_stages - 1
    waiting = [list(order) for order in orders]
    while any(waiting):
        before = len(done)
        for order in waiting:
            while order:
                kind, stage, number = order[0].kind, order[0].stage, order[0].micro_batch
                needs = {("F", stage, number)} if kind != "F" else set()
                needs |= {("F", stage - 1, number)} if kind == "F" and stage else set()
                needs |= {("B", stage + 1, number)} if kind == "B" and stage < last else set()
                if not needs <= done:
                    break
                done.add((kind, stage, number))
                order.pop(0)
        if len(done) == before:
            return False
    return True


@pytest.mark.parametrize(
    ("rows", "micro_batch", "count", "fix"), [(14, 2, 7, 4), (40, 8, 5, 10), (12, 2, 6, 1), (5, 1, 5, 2)]
)
def test_interleaved_pipeline_wants_whole_groups(rows: int, micro_batch: int, count: int, fix: int) -> None:
    layout = Layout(pipeline=4, schedule="interleaved", interleave=2)
    with pytest.raises(RecipeError, match=f"cannot run {count} micro-batches") as caught:
        check_micro_batches(layout, rows, micro_batch, "pretrain")
    assert "a multiple of 4" in caught.value.wanted and f"{rows} rows a step" in caught.value.found
    assert caught.value.fix == f"set pretrain.micro_batch={fix}, or schedule=1f1b"
    check_micro_batches(layout, rows, fix, "pretrain")
    check_micro_batches(Layout(pipeline=4), rows, micro_batch, "pretrain")
