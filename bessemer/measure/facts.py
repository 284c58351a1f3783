"""The planner's facts of this machine: device, memory, measured ceilings, and the model to begin from."""

from pathlib import Path

import torch

from bessemer.checkpoint.huggingface import read_shape
from bessemer.formulas.shape import ModelShape
from bessemer.hardware import find, machine, process_bytes
from bessemer.measure.ceiling import ceilings, device_name
from bessemer.measure.compiler import compiler
from bessemer.measure.threads import using_threads
from bessemer.planner.calibrated.tables import stored_calibration
from bessemer.planner.calibrated.taught import stored_taught
from bessemer.planner.machine.facts import Facts
from bessemer.planner.sizing.own_runs import law_for
from bessemer.recipe.schema import Recipe


def gather(
    recipe: Recipe,
    base: Path,
    device: torch.device,
    *,
    train_tokens: int | None = None,
    vocab: int | None = None,
    special_ids: tuple[int | None, int | None] = (None, None),
) -> Facts:
    """Facts for one process on `device`. Measures its ceilings where none are stored (2 s).

    train_tokens, vocab, special_ids (BOS, EOS): of the prepared data, once there is any.
    """
    name, here, threads = device_name(device), machine(), recipe.energy.threads
    known = find(name)
    alone = None  # threads of the one process that a CPU has without a layout; too many are refused later
    if threads is not None and device.type == "cpu" and recipe.parallel.layout == "auto":
        alone = min(threads, here.cores)
    with using_threads(alone):
        measured = ceilings(device)
    return Facts(
        device=known.name if known and device.type != "cpu" else name,
        kind="cpu" if device.type == "cpu" else (known.kind if known else "gpu"),
        local_devices=None if device.type == "cpu" else torch.accelerator.device_count(),
        cores=here.cores,
        memory_bytes=memory_available(device),
        ceilings=measured,
        threads=threads,
        train_tokens=train_tokens,
        vocab=vocab,
        bos_id=special_ids[0],
        eos_id=special_ids[1],
        source_shape=source_shape(recipe, base),
        law=law_for(recipe, base),
        calibration=stored_calibration(name),
        taught=stored_taught(name),
        has_compiler=compiler("cpu" if device.type == "cpu" else "gpu") is not None,
    )


def memory_available(device: torch.device) -> int | None:
    """Bytes that a run in this process could take now; None where the device does not tell.

    What an earlier stage has freed stays with the process (launch/environment.py) or in torch's cache,
    and the next stage uses it again: without it the same stage would get another plan here than alone.
    """
    if device.type == "cpu":
        # All that the process has: the prediction includes Python and torch themselves.
        here = machine()
        return min(here.memory_bytes, here.memory_available_bytes + process_bytes())
    ask = getattr(getattr(torch, device.type, None), "mem_get_info", None)
    if ask is None:
        return None
    torch.accelerator.empty_cache()
    return int(ask(device)[0])


def meter_name(device: torch.device) -> str:
    """What NVML calls this accelerator. Its indices count all devices of the machine, torch's only those
    that CUDA_VISIBLE_DEVICES shows and in another order, so a device is named by its UUID; one that has
    none gets a name that NVML does not know, and no other device is read in its place."""
    index = torch.accelerator.current_device_index() if device.index is None else device.index
    if device.type != "cuda":
        return f"{device.type}:{index}"
    return f"GPU-{torch.cuda.get_device_properties(index).uuid}"


def source_shape(recipe: Recipe, base: Path) -> ModelShape | None:
    """The shape that `model.from` names: a Hugging Face directory, or its config.json."""
    if recipe.model.from_ is None:
        return None
    given = "context" in recipe.model.model_fields_set
    return read_shape(base / recipe.model.from_, context=recipe.model.context if given else None)
