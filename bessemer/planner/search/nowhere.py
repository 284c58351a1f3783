"""A model that fits nowhere on a cluster: what would make it fit, each tried before it is said."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from bessemer.errors import RecipeError, RefusedError, UserError
from bessemer.hardware import GIB, Device, catalogue
from bessemer.planner.machine.cluster import catalogue_cluster, with_memory
from bessemer.planner.search.costed import Field
from bessemer.planner.search.question import Question
from bessemer.planner.search.space import Impossible, layout_of, least, structures
from bessemer.units import format_bytes

_MOST_TIMES = 4096  # of the devices
_SHORTEST = 512  # tokens of a row


def fits_nowhere(question: Question, fewest: Field, impossible: Impossible) -> UserError:
    """The error to raise. fewest: every structure in the way that takes least memory."""
    cluster = question.cluster
    if len(fewest) == 0:
        layout, why = next(iter(impossible.examples.values()))
        return RecipeError(
            "the model cannot be split over this cluster",
            found=f"{why} (on {cluster.devices} x {cluster.device.name})",
            wanted="degrees that divide the cluster and that the model allows",
            fix=f"take another number of devices, or more pretrain.batch_tokens than {question.batch_tokens}",
        )
    place = int(np.argmin(fewest.needed_bytes))
    layout = layout_of(question, fewest.candidates, place)
    return RefusedError(
        "the model does not fit on this cluster in any layout",
        found=f"{format_bytes(fewest.needed_bytes[place])} on the fullest rank at the least "
        f'("{layout}", everything recomputed), {format_bytes(fewest.usable_bytes)} on {cluster.device.name}',
        wanted=f"at most {format_bytes(fewest.usable_bytes)}",
        fix="; or ".join(_remedies(question)) or "take a smaller model",
    )


def can_fit(question: Question) -> bool:
    """Whether any layout fits, in the way that takes least."""
    fewest = Field(question, least(question, structures(question)[0]))
    return len(fewest) > 0 and bool(fewest.fit(np.arange(len(fewest))).any())


def _remedies(question: Question) -> Iterator[str]:
    open_question = replace(question, micro_batch=None, recompute=None)
    if question != open_question and can_fit(open_question):
        yield "leave micro_batch and recompute to the planner"
        return
    yield from _shorter_rows(question)
    yield from _more_devices(question)
    yield from _other_device(question)


def _shorter_rows(question: Question) -> Iterator[str]:
    """Fewer tokens in flight: a micro-batch is a row at the least."""
    context = question.context // 2
    while context >= _SHORTEST:
        rows = question.batch_tokens // context
        if can_fit(replace(question, context=context, batch_rows=rows)):
            yield f"fewer tokens in flight: set model.context={context}"
            return
        context //= 2


def _more_devices(question: Question) -> Iterator[str]:
    """The fewest of doublings, and halfway to the last of them."""
    cluster, times = question.cluster, 2
    while times <= _MOST_TIMES and not can_fit(question.on(times * cluster.devices)):
        times *= 2
    if times > _MOST_TIMES:
        return
    between = [times * 5 // 8, times * 3 // 4, times * 7 // 8] if times >= 8 else [3] if times == 4 else []
    enough = next((n for n in between if can_fit(question.on(n * cluster.devices))), times)
    yield f"take {enough * cluster.devices} x {cluster.device.name}"


def _other_device(question: Question) -> Iterator[str]:
    """The one with least memory of those with more, of the same kind, on which as many devices will do."""
    here = question.cluster.device
    rows = [with_memory(row) for row in catalogue().values() if row.kind == here.kind]
    for row in sorted(rows, key=_memory):
        if _memory(row) > _memory(here) and row.bf16_dense_tflops and row.memory_gb_per_s:
            other = replace(question, cluster=catalogue_cluster(row, question.cluster.devices))
            if can_fit(other):
                yield f"{question.cluster.devices} x {row.name} ({_memory(row) / GIB:.1f} GiB)"
                return


def _memory(device: Device) -> float:
    return (device.memory_gib_usable or 0.0) * GIB
