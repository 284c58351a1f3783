"""What is known of whole training jobs whose device-hours were published, beside what their rows say.

A row of device-hours rarely has a layout, often no batch and no number of devices. What a planner would
have been told is here, each with where it is from; `assumed` names what nobody published. None was chosen
by the hours that it leads to. For a model that is not here: the row's own figures, and two rules.
- Batch: 4 Mi tokens, Llama 1 and 2's; 16 Mi from 100 G parameters on, Llama 3 405B's.
- Devices: as many nodes, doubled from one, as would train it in two months at 40 % of the peak.
"""

import re
from dataclasses import dataclass, replace

from bessemer.formulas.flops import train_flops_per_token
from bessemer.formulas.parameters import total_params
from bessemer.formulas.shape import ModelShape
from bessemer.hardware import Device
from bessemer.planner.cost.candidates import Candidates
from bessemer.planner.cost.profile import peak_tflops
from bessemer.planner.published.conventions import zero_said
from bessemer.planner.published.models import find_model
from bessemer.planner.published.runs import PublishedRun

MI = 2**20
_USUAL_HOURS, _USUAL_MFU = 60 * 24.0, 0.4
_LARGE = 1e11  # parameters

# "tokens 15T+", "tokens up to 9T", "tokens ~40T", "5.93T tokens", "300B tokens"
_TOKENS = re.compile(
    r"tokens[ :]+(?:up to )?~?(\d{1,9}(?:\.\d+)?) ?([BT])\b(\+?)|(\d{1,9}(?:\.\d+)?) ?([BT])(\+?) tokens"
)
_UNSAID_CONTEXT = 2048  # what runs.py reads where a row says nothing
_UNITS = {"B": 1e9, "T": 1e12}


@dataclass(frozen=True)
class Stage:
    """Longer rows at the end of pre-training."""

    context: int  # tokens in a row
    tokens: float


@dataclass(frozen=True)
class Job:
    """Of one model. None: as the row says."""

    context: int  # tokens in a row
    batch_tokens: int  # of a step
    devices: int | None = None
    tokens: float | None = None  # where a row has none, or only the least
    precision: str | None = None
    stack: str | None = None
    longer: tuple[Stage, ...] = ()
    assumed: str = ""  # what is not published, beside the layout
    note: str = ""  # why published hours may be other than those of the training that is predicted


@dataclass(frozen=True)
class Asked:
    """What the layout is searched for. devices of one kind; rows of `context` tokens."""

    shape: ModelShape
    context: int
    batch_rows: int
    tokens: float
    device: Device
    devices: int
    stack: str
    precision: str
    layout: Candidates | None  # the row's own, of its batch
    zero: int | None  # what its data ranks are known to share (candidates.py)
    longer: tuple[Stage, ...]
    assumed: str
    note: str


_LLAMA_3 = "batch of 16 Mi tokens, the 405B's at its largest"
_LLAMA_3_NOTE = (
    "published hours are 14 to 16 % of the peak for the 8B and 26 to 28 % for the 70B by 6 N D, where the "
    "report has 38 to 43 % for the 405B: more than one run of pre-training, or speeds that no layout explains"
)
_LLAMA_32_NOTE = "pruned and distilled: teachers' forward passes (8B, 70B) and pruning are not predicted"
_LLAMA_4 = "8,192 devices, rows of 8,192 tokens, batch of 16 Mi tokens"
_LLAMA_4_NOTE = (
    "image encoder and teacher of the co-distillation are not predicted, and the number of devices decides: "
    "1,024 have half of the published hours, 16,384 have 1.3 (Maverick) and 1.6 (Scout) of them"
)
_OLMO_NOTE = "published hours include restarts, checkpoints and network trouble"
_WITH_NODES = "2,048 devices, the 65B's"

_LLAMA_3_JOB = Job(context=8192, batch_tokens=16 * MI, stack="megatron", assumed=_LLAMA_3, note=_LLAMA_3_NOTE)
_DISTILLED = replace(
    _LLAMA_3_JOB, devices=512, assumed=f"{_LLAMA_3}, 512 devices, 9 T tokens", note=_LLAMA_32_NOTE
)
_LLAMA_4_JOB = replace(_LLAMA_3_JOB, devices=8192, precision="fp8", assumed=_LLAMA_4, note=_LLAMA_4_NOTE)
_LLAMA_1_JOB = Job(context=2048, batch_tokens=4 * MI, devices=2048, tokens=1.4e12, assumed=_WITH_NODES)

# Llama 3: arXiv:2407.21783, 3.3.2 and 3.4.1 (405B: 15.6 T tokens, rows of 8,192, 16 Mi tokens a step from
# 2.9 T on, 16,384 devices). Llama 4: its announcement (FP8). Llama 1: arXiv:2302.13971, tables 2 and 15 and
# section 2.4. Olmo 3: OLMo-core, src/scripts/official/OLMo3 (batches). nanoGPT: config/train_gpt2.py (480
# rows, 600,000 steps). DeepSeek-V3: arXiv:2412.19437, table 1 and sections 4.2 and 4.3.
JOBS = {
    "Llama 3 8B": replace(_LLAMA_3_JOB, devices=2048, assumed=f"{_LLAMA_3}, 2,048 devices"),
    "Llama 3 70B": replace(_LLAMA_3_JOB, devices=8192, assumed=f"{_LLAMA_3}, 8,192 devices"),
    "Llama 3 405B": replace(
        _LLAMA_3_JOB, devices=16384, tokens=15.6e12, note="rows grow up to 131,072 tokens at the end"
    ),
    "Llama 3.2 1B": _DISTILLED,
    "Llama 3.2 3B": _DISTILLED,
    "Llama 4 Scout": _LLAMA_4_JOB,
    "Llama 4 Maverick": _LLAMA_4_JOB,
    "Llama 1 7B": replace(_LLAMA_1_JOB, tokens=1.0e12),
    "Llama 1 13B": replace(_LLAMA_1_JOB, tokens=1.0e12),
    "Llama 1 33B": _LLAMA_1_JOB,
    "Llama 1 65B": replace(_LLAMA_1_JOB, assumed=""),
    "Olmo 3 7B": Job(context=8192, batch_tokens=4 * MI, devices=512, note=_OLMO_NOTE),
    "Olmo 3 32B": Job(context=8192, batch_tokens=8 * MI, devices=1024, note=_OLMO_NOTE),
    "GPT 2 124M": Job(
        context=1024, batch_tokens=480 * 1024, devices=8, tokens=600_000 * 480 * 1024.0, note="about 4 days"
    ),
    "DeepSeek V3 671B": Job(
        context=4096,
        batch_tokens=15360 * 4096,
        devices=2048,
        longer=(Stage(32768, 1000 * 1920 * 32768.0), Stage(131072, 1000 * 480 * 131072.0)),
        note="published hours include 5,000 after pre-training",
    ),
}


def asked_of(run: PublishedRun) -> Asked | None:
    """What a planner would have been told of this run; None: its model, device or tokens are not known."""
    device = run.device
    if run.shape is None or device is None or not (device.memory_gb_per_s and peak_tflops(device, "bf16")):
        return None
    job = JOBS.get(find_model(run.model) or "") or _usual(run)
    tokens, is_least = tokens_in(run.notes)
    if job.tokens and (tokens is None or is_least):
        tokens = job.tokens
    if not tokens:
        return None
    given = run.batch_published and run.batch_rows > 0
    context = run.context if given or run.context != _UNSAID_CONTEXT else job.context
    devices = run.devices or job.devices
    return Asked(
        shape=run.shape,
        context=context,
        batch_rows=run.batch_rows if given else max(1, job.batch_tokens // context),
        tokens=tokens,
        device=device,
        devices=devices or _usual_devices(run.shape, context, tokens, device),
        stack=job.stack or run.stack,
        precision=job.precision or run.precision,
        layout=run.candidates if given else None,
        zero=zero_said(run.notes, run.source),
        longer=job.longer,
        assumed="" if given and devices else job.assumed,
        note=job.note,
    )


def tokens_in(notes: str) -> tuple[float | None, bool]:
    """Tokens of the whole training as the notes first say them, and whether that is the least ("15T+")."""
    match = _TOKENS.search(notes)
    if match is None:
        return None, False
    number, unit, more = match.groups()[:3] if match.group(1) else match.groups()[3:]
    return float(number) * _UNITS[unit], more == "+"


def _usual(run: PublishedRun) -> Job:
    """Of a model that is not listed."""
    large = run.shape is not None and total_params(run.shape) >= _LARGE
    return Job(run.context, 16 * MI if large else 4 * MI, assumed="usual batch and number of devices")


def _usual_devices(shape: ModelShape, context: int, tokens: float, device: Device) -> int:
    peak = peak_tflops(device, "bf16")
    assert peak is not None
    hours = tokens * train_flops_per_token(shape, context) / (_USUAL_MFU * peak * 1e12) / 3600.0
    devices = device.devices_per_node or 1
    while hours / devices > _USUAL_HOURS:
        devices *= 2
    return devices
