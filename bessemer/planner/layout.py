"""The words of a layout, and how a text becomes a `Layout`.

    replicate shard tensor pipeline context expert   degrees; omitted ones are 1
    schedule=1f1b|interleaved|zbv|dualpipev  interleave=2  split=5+6+5   of a pipeline
    reshard=yes|no   of shards                context_kind=gather|ulysses   of the context axis

`parse_layout` knows the grammar and the number of processes, `check_layout` the model; which layouts a
model and a batch allow is planner/rules/layout.py. What an error proposes fills the processes that were
started, or the devices that are planned for. A word that would change nothing is an error, as is
one that stands twice. "auto" is one process, or under torchrun every process with its shard, until
planner/searched.py knows better.
"""

import difflib
from dataclasses import replace
from typing import Any

from bessemer.errors import RecipeError
from bessemer.formulas.layout import AXES, CONTEXT_KINDS, ONE_PROCESS, SCHEDULES, Layout
from bessemer.formulas.shape import ModelShape
from bessemer.planner.machine.facts import Facts
from bessemer.planner.rules.layout import filling_layout, first_complaint, nearest_layout
from bessemer.recipe.schema import Recipe

WHERE = "parallel.layout"
_CHOICES = {"schedule": SCHEDULES, "reshard": ("yes", "no"), "context_kind": CONTEXT_KINDS}
_WORDS = (*AXES, "schedule", "interleave", "reshard", "context_kind", "split")
# How others call them.
_ELSEWHERE = {
    "tp": "tensor", "pp": "pipeline", "cp": "context", "ep": "expert", "dp": "replicate", "ddp": "replicate",
    "dp_replicate": "replicate", "fsdp": "shard", "dp_shard": "shard", "data": "shard", "vpp": "interleave",
}  # fmt: skip


def resolve_layout(
    text: str, shape: ModelShape | None = None, where: str = WHERE, world: int | None = None
) -> Layout:
    """Parsed, and checked against the model where that is known. `where` is what an error calls the setting.

    world: processes that were started (torchrun); None: as many are started as the layout has ranks.
    """
    layout = parse_layout(text, where, world)
    if shape is not None:
        check_layout(layout, shape, where, world=world)
    return layout


def stage_layout(
    recipe: Recipe,
    shape: ModelShape,
    *,
    context: int | None = None,
    world: int | None = None,
    kept: Layout | None = None,
    where: str = WHERE,
    devices: int = 1,
) -> Layout:
    """The layout of a stage, checked. context: tokens in its rows, where not those of the model. devices: as
    in `check_layout`.

    kept: that of a run that exists; "auto" leaves it as it is unless another number of processes came.
    """
    text = recipe.parallel.layout
    if text == "auto" and kept is not None and world in (None, kept.world):
        layout = kept
    else:
        layout = parse_layout(text, where, world, devices)
    check_layout(layout, shape, where, context=context, world=world, devices=devices)
    return layout


def parse_layout(text: str, where: str = WHERE, world: int | None = None, devices: int = 1) -> Layout:
    """Grammar, number of processes, words without effect; needs no model. devices: as in `check_layout`."""
    words = {} if text == "auto" else _words(text, where)
    layout = fill_world(_layout_of(words, text, where), text, world, where)
    _refuse_without_effect(words, layout, text, where, world or (devices if devices > 1 else None))
    return layout


def check_layout(
    layout: Layout,
    shape: ModelShape,
    where: str = WHERE,
    *,
    context: int | None = None,
    world: int | None = None,
    devices: int = 1,
) -> None:
    """RecipeError with the nearest layout that works, when the model cannot be split so.

    devices: of the cluster that is planned for, which it fills; 1: as many are taken as it has ranks.
    """
    tokens = context or shape.context
    complaint = first_complaint(layout, shape, tokens)
    if complaint is None:
        return
    near = nearest_layout(layout, shape, tokens)
    rest = near.world // near.shard
    if world is not None and world % rest == 0:
        near = nearest_layout(replace(near, shard=world // rest), shape, tokens)
    elif world is None and devices > 1:
        near = filling_layout(near, devices, shape, tokens)
    raise RecipeError(
        f"{where}: {complaint.problem}",
        found=f'"{layout}": {complaint.found}',
        wanted=complaint.wanted,
        fix=_fix(where, near) + _start(near, world),
    )


def check_cluster(
    layout: Layout, facts: Facts, where: str = WHERE, shape: ModelShape | None = None, tokens: int = 0
) -> None:
    """RecipeError when a layout is planned for a cluster of another size, with the nearest that fills it.

    shape, tokens: the model and the tokens in its rows, where they are known: what it does not allow is not
    told as a fix.
    """
    if facts.devices == 1 or layout.world == facts.devices:
        return
    fill = _fix(where, filling_layout(layout, facts.devices, shape, tokens))
    raise RecipeError(
        f"{where} does not fill the cluster",
        found=f'"{layout}": {layout.world} rank(s), on {facts.devices} x {facts.device}',
        wanted=f"a product of {facts.devices}",
        fix=f"{fill}, or plan {layout.world} devices",
    )


def fill_world(layout: Layout, text: str, world: int | None, where: str = WHERE) -> Layout:
    """The layout on `world` processes: a missing shard fills them up, anything else is refused."""
    if world is None or world == layout.world:
        return layout
    rest = layout.world // layout.shard
    full = replace(layout, shard=world // rest) if world % rest == 0 else None
    if full is not None and (text == "auto" or "shard" not in _words(text, where)):
        return full
    start = _start(layout, world).removeprefix(" and ")
    raise RecipeError(
        f"{where} does not fill the processes that were started",
        found=f'"{layout}": {layout.world} ranks, on {world} processes',
        wanted=f"a product of {world}" if full else f"degrees that divide {world}",
        fix=f"{_fix(where, full)}, or {start}" if full else start,
    )


def _words(text: str, where: str) -> dict[str, str]:
    """Word and value of each part, spelt right."""
    words: dict[str, str] = {}
    for part in text.split(","):
        word, _, value = (piece.strip() for piece in part.partition("="))
        if word not in _WORDS or not _readable(word, value):
            raise _unreadable(where, text, word, value)
        if word in words:
            raise RecipeError(
                f"{where}: {word} stands twice",
                found=f'"{text}"',
                wanted=f"{word} once",
                fix=f"remove {word}={words[word]} or {word}={value}",
            )
        words[word] = value
    return words


def _readable(word: str, value: str) -> bool:
    if word in _CHOICES:
        return value in _CHOICES[word]
    numbers = value.replace("/", "+").split("+") if word == "split" else [value]
    return all(number.isascii() and number.isdecimal() and int(number) > 0 for number in numbers)


def _unreadable(where: str, text: str, word: str, value: str) -> RecipeError:
    known = word in _WORDS
    near = [] if known else difflib.get_close_matches(word, _WORDS, n=1, cutoff=0.5)
    near = [_ELSEWHERE[word.lower()]] if word.lower() in _ELSEWHERE else near
    if word in _CHOICES:
        wanted, example = f"{word} = one of {', '.join(_CHOICES[word])}", f"{word}={_CHOICES[word][0]}"
    elif word == "split":
        wanted, example = "layers of each stage, joined by +", "split=5+6+5"
    else:
        wanted, example = "a positive whole number", f"{word}=2"
    return RecipeError(
        f"{where}: {word} = {value!r}" if known else f"{where}: cannot read {word!r}",
        found=f'"{text}"',
        wanted=wanted if known else "words of a layout: " + ", ".join(_WORDS),
        fix=f"write it like {example}" if known else _meant(word, near, value),
    )


def _meant(word: str, near: list[str], value: str) -> str:
    if word.lower() in ("micro_batch", "mbs"):
        return f"it is a key of its own: --set pretrain.micro_batch={value or '…'}"
    if word.lower() in ("zero", "zero_stage"):
        return "ZeRO-3 is shard=… (reshard=yes), ZeRO-2 shard=…,reshard=no"
    return f"did you mean {near[0]}={value or '…'}?" if near else 'write it like "shard=2,tensor=2"'


def _layout_of(words: dict[str, str], text: str, where: str) -> Layout:
    schedule = words.get("schedule", "interleaved" if "interleave" in words else "1f1b")
    interleave = int(words.get("interleave", 2 if schedule == "interleaved" else 1))
    if schedule == "interleaved" and interleave == 1:
        raise RecipeError(
            f"{where}: an interleaved pipeline has several stages on a rank",
            found=f'"{text}"',
            wanted="interleave of 2 or more, or schedule=1f1b",
            fix="set interleave=2, or remove interleave and schedule",
        )
    split = words.get("split")
    return Layout(
        **{axis: int(words.get(axis, 1)) for axis in AXES},
        schedule=schedule,
        interleave=interleave,
        reshard=words.get("reshard", "yes") == "yes",
        context_kind=words.get("context_kind", ONE_PROCESS.context_kind),
        split=tuple(map(int, split.replace("/", "+").split("+"))) if split else None,
    )


def _refuse_without_effect(
    words: dict[str, str], layout: Layout, text: str, where: str, ranks: int | None
) -> None:
    """ranks: as many as a fix must have; None: any."""
    stages = max(2, len(layout.split or ()))
    held_apart = layout.replicate * layout.shard * layout.context > 1
    needs: list[tuple[str, bool, str, str]] = [
        *(
            (word, layout.pipeline > 1, "pipeline", f"pipeline={stages}")
            for word in ("schedule", "interleave", "split")
        ),
        ("interleave", layout.schedule == "interleaved", "schedule=interleaved", "schedule=interleaved"),
        ("reshard", held_apart, "replicate, shard or context", "shard=2"),
        ("context_kind", layout.context > 1, "context", "context=2"),
    ]
    for word, has_effect, partner, example in needs:
        if word in words and not has_effect:
            more = "" if "=" in partner else " above 1"
            remedy = f"set {example}" if ranks is None else _with_effect(layout, example, ranks, where)
            raise RecipeError(
                f"{where}: {word} has no effect without {partner}{more}",
                found=f'"{text}"',
                wanted=f"{word} only with {partner}{more}",
                fix=f"remove {word}={words[word]}" + (remedy and f", or {remedy}"),
            )


def _with_effect(layout: Layout, example: str, ranks: int, where: str) -> str:
    """The whole layout with what the example sets; nothing where so many ranks do not allow it."""
    word, _, value = example.partition("=")
    changes: dict[str, Any] = {word: int(value) if value.isdecimal() else value}
    near = filling_layout(replace(layout, **changes), ranks)
    axis = word if value.isdecimal() else "pipeline"
    return _fix(where, near) if getattr(near, axis) > 1 else ""


def _start(layout: Layout, world: int | None) -> str:
    """What must change beside the layout where it has another number of ranks than were started."""
    if world in (None, layout.world):
        return ""
    return f" and start {layout.world} process{'es' * (layout.world > 1)}"


def _fix(where: str, layout: Layout) -> str:
    """--layout "…" for an option of the command line, set parallel.layout="…" for a key."""
    return f'{where} "{layout}"' if where.startswith("--") else f'set {where}="{layout}"'
