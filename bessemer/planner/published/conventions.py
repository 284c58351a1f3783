"""What published tables mean and do not say: stacks, sharding, FLOP conventions, layouts left out.

Read from a row's source, notes and sharding text. The conventions, as far as they change a figure:
- SC21 (arXiv:2104.04473) counts hardware FLOPs, 96 B s l h² (1 + s/6h + V/16lh): the recomputed forward is
  in it. So do BLOOM's chronicles, as 8 N tokens. Neither shards anything (BLOOM: optimizer states).
- Megatron-Bridge and NeMo count model FLOPs with causal attention halved and with the layers that predict
  later tokens (MTP): ours. llm-foundry, torchtitan, PaLM, MaxText and older Megatron (the H100 weak scaling
  of r0.8.0) count attention in full: 6 N + 12 L H Q T.
- Megatron of today shards optimizer states over the data ranks (its distributed optimizer, ZeRO-1);
  Megatron-FSDP, torchtitan, llm-foundry's FULL_SHARD and DeepSpeed ZeRO-3 shard the weights too.
- The name of a TPU slice (v4-128, v5p-256) counts cores, two to a chip; v5e-256 counts chips. A row's
  devices are chips. Slices are joined by the data-centre network, across which MaxText only reduces
  gradients; within one it shards. Its layouts and batches are those of its own scripts
  (MaxText/configs/v4, v5e, v5p of AI-Hypercomputer/maxtext), which its README names for these rows.
- BLOOM's nodes of 8 GPUs (Jean Zay) share 4 OmniPath links of 100 Gb/s: 6.25 GB/s for each.
"""

import re
from dataclasses import dataclass, replace

from bessemer.formulas.flops import attention_flops_per_token, train_flops_per_token
from bessemer.formulas.parameters import matmul_params, total_params
from bessemer.formulas.shape import ModelShape
from bessemer.hardware import Device, find
from bessemer.planner.cost.candidates import PRECISIONS, RECOMPUTE

# Names of cost/profiles.toml; the first whose words are in source, sharding or notes.
_STACKS = (
    ("deepspeed", r"deepspeed zero-3|superoffload"),
    ("maxtext", r"maxtext|levanter|/xla"),
    ("megatron-deepspeed", r"bigscience|neox|megatron-deepspeed"),
    ("megatron-2021", r"sc21|2104\.04473|2205\.05198|mt-nlg|2201\.11990"),
    ("megatron-plain", r"no comm(unication)? overlap|simumax"),
    ("megatron", r"megatron|nemo\b|nemo container|megascale|deepseek"),
    ("llm-foundry", r"llm-foundry|composer"),
    ("fsdp", r"torchtitan|olmo|litgpt|nanogpt|fsdp|zero-?3|metaseq|2302\.13971"),
)
_MEMORY_STACK = {"megatron-plain": "megatron", "megatron-graphs": "megatron", "megatron-capacity": "megatron",
                 "megatron-2022": "megatron", "megatron-2021": "megatron-deepspeed",
                 "llm-foundry": "fsdp", "deepspeed": "fsdp"}  # fmt: skip
# Profiles of one software: its rows are one group.
SOFTWARE = {"megatron-graphs": "megatron", "megatron-capacity": "megatron", "megatron-2022": "megatron-2021"}
GRAPHS_SINCE = "26.06"  # NeMo containers: expert layers in captured graphs, grouped kernels of Blackwell
_OLD = r"2104\.04473|2204\.06745|2205\.05198|2201\.11990|neox"  # before flash attention: all recomputed

# What a note says of another software, or of what was kept from happening, is not said of its row.
_COMPARED = (
    r"\b(than|compared (to|with)|versus|vs\.?|unlike|like|inspired by|instead of)\s+[\w./-]+"
    r"|[\w.]+-(style|like)\b"
)
_NO_OOM = (
    r"\b(no|not|never|zero|without|avoid\w*|prevent\w*)\s+((any|an|the|a|run\w*|going|goes|go)\s+)*"
    r"(oom\w*|out[- ]of[- ]memory)|\boom[- ]free"
)
_NOT_USED = (
    r"(none|no|false|off|0|n|never|disabled?|(no|not|without)\b.*(us|enabl|recomput|checkpoint|\bac\b).*)"
)

_ZERO = (
    (2, r"shard_grad_op|zero-?2|reshard_after_forward ?= ?(false|no)"),
    (3, r"full_shard|zero-?3|fsdp"),
    (1, r"zero-?1|dist(ributed)?[-_ ]opt"),
    (0, r"\bddp\b|^none$|nanogpt|sc21"),
    (3, r"torchtitan|llm-foundry|olmo|maxtext|metaseq|2302\.13971"),
)
_PRECISION = (
    ("nvfp4", r"fp4"),
    ("mxfp8", r"mxfp8"),
    ("fp8", r"fp8|float8|e4m3|e5m2|^8[- ]?bit"),
    ("fp16", r"(?<!b)fp16|^float16|amp_fp16"),
    ("fp32", r"^(fp32|float32)$"),
    ("bf16", r""),
)


@dataclass(frozen=True)
class ScriptedLayout:
    """What MaxText's own script of a size says: degrees, rows of a chip, recomputation."""

    tensor: int
    rows_per_chip: float
    recompute: str


# (chip, size): the last versions of the scripts before the README's table moved out of it.
MAXTEXT = {
    ("v5e", "16b"): ScriptedLayout(1, 6, "full"),
    ("v5e", "32b"): ScriptedLayout(1, 4, "full"),
    ("v5e", "64b"): ScriptedLayout(1, 2, "full"),
    ("v5e", "128b"): ScriptedLayout(16, 1, "selective"),
    ("v5p", "32b"): ScriptedLayout(4, 7, "selective"),
    ("v5p", "64b"): ScriptedLayout(4, 3, "selective"),
    ("v5p", "128b"): ScriptedLayout(8, 1, "selective"),
    ("v5p", "256b"): ScriptedLayout(8, 1, "selective"),
    ("v5p", "512b"): ScriptedLayout(8, 2, "full"),
    ("v5p", "1024b"): ScriptedLayout(8, 2, "full"),
    ("v4", "22b"): ScriptedLayout(1, 13, "full"),
    ("v4", "52b"): ScriptedLayout(1, 7, "full"),
}
MAXTEXT_CONTEXT = 2048


def scripted_layout(source: str, model: str, device: Device) -> ScriptedLayout | None:
    """The layout of a MaxText row, which its table leaves to the scripts."""
    if "maxtext" not in source.lower():
        return None
    size, chip = model.lower().split()[-1:], re.search(r"v\d+[ep]?", device.name.lower())
    return MAXTEXT.get((chip.group(), size[0])) if chip and size else None


def slice_chips(notes: str) -> int | None:
    """Chips of one TPU slice: "2 x v4-128" is two slices of 64."""
    match = re.search(r"\bv(\d+)([ep]?)-(\d{1,9})\b", notes)
    if match is None:
        return None
    return int(match.group(3)) // (1 if match.group(2) == "e" else 2) or None


def device_of(text: str, hints: str) -> Device | None:
    """The device of a spelling, where the catalogue has it; `hints` (source, notes) tell what it omits."""
    if re.search(r"h100", text, re.I) and re.search(r"\b500 ?W\b|96 ?GB", f"{text} {hints}"):
        return find("H100-96GB-500W")
    plain = re.sub(r"\(.*?\)|\bHBM\d\w*|\b\d+ ?x ?|NVIDIA|Google|Cloud|\b[DH]GX\b", "", text, flags=re.I)
    plain = re.sub(r"(\d)G\b", r"\1GB", plain, flags=re.I)
    for spelling in (text, plain, re.sub(r"SXM\d*|NVLink", "", plain, flags=re.I)):
        if spelling.strip() and (device := find(spelling)) is not None:
            return device
    return None if text.strip() else _device_in(hints)


def _device_in(hints: str) -> Device | None:
    """The device that a source names, in a table without a column for it."""
    words = re.findall(r"[A-Za-z]+\d+[A-Za-z]*", hints)
    found = [device for word in words if (device := find(word)) is not None and device.kind in ("gpu", "tpu")]
    return found[0] if found else None


def plain_notes(notes: str) -> str:
    """Notes without the software that they only compare with."""
    return re.sub(_COMPARED, " ", notes, flags=re.I)


def stack_of(source: str, sharding: str, notes: str, device: Device | None, model_parallel: bool) -> str:
    """The software that ran it, by its name in cost/profiles.toml: of the source, else sharding, else notes.

    A table of Megatron's may say of a row that DeepSpeed ran it.
    """
    if device is not None and device.kind == "tpu":
        return "maxtext"
    found = [
        next((stack for stack, pattern in _STACKS if re.search(pattern, text, re.I)), None)
        for text in (source, sharding, plain_notes(notes))
    ]
    if (found[0] or "").startswith("megatron") and "deepspeed" in found:
        return "deepspeed"
    for stack in found:
        if stack is not None:
            return stack
    return "megatron" if model_parallel else "fsdp"


def sequence_parallel_of(stack: str, text: str, full: bool) -> str:
    """Megatron of 2022 had sequence parallelism; its paper's baseline, full recomputation, had not."""
    said = re.search(r"sequence[- ]parallel|\bSP\b", text) or ("2205.05198" in text and not full)
    return "megatron-2022" if stack == "megatron-2021" and said else stack


def variant_of(stack: str, model: str, release: str | None, experts: int, year: int) -> str:
    """The profile of a Megatron row with experts: what its release, or dropped tokens, spare the host."""
    if stack != "megatron" or not experts:
        return stack
    if "tokendrop" in model.lower():
        return "megatron-capacity"
    return "megatron-graphs" if (release or "") >= GRAPHS_SINCE and year >= 2024 else stack


def zero_of(source: str, sharding: str, notes: str, stack: str, pipeline: int = 1) -> int:
    """What the data ranks share: nothing, optimizer, gradients too, weights too (candidates.py).

    What the row says comes before what its source usually does. FSDP2 keeps gathered weights where a
    pipeline would gather them anew for each micro-batch.
    """
    if stack == "maxtext":
        return 3
    said = zero_said(sharding, notes, source)
    if said is None:
        return 3 if stack in ("fsdp", "llm-foundry", "deepspeed") else 1
    return 2 if said == 3 and stack == "fsdp" and pipeline > 1 else said


def zero_said(*texts: str) -> int | None:
    """The same as the first of these texts has it that says anything of it."""
    for text in texts:
        for zero, pattern in _ZERO:
            if text and re.search(pattern, text.lower()):
                return zero
    return None


def copies_of(text: str, data: int, ranks_of_node: int) -> int:
    """Replicas of the sharded model (HSDP): "HSDP 4x64" has 4; without numbers a node is a shard group."""
    match = re.search(r"hsdp(?:\D{0,12}(\d{1,9}) ?[x×] ?\d+)?", text.lower())
    if match is None:
        return 1
    copies = int(match.group(1)) if match.group(1) else data // max(1, ranks_of_node)
    return copies if copies > 0 and data % copies == 0 else 1


def memory_stack_of(stack: str, source: str, notes: str) -> str:
    """The name of a stack in cost/memory.py, which tells apart by what is kept, not by speed."""
    if re.search(r"torchtitan", source, re.I) and re.search(r"2410\.06511|\b2024\b", f"{source} {notes}"):
        return "fsdp-eager"  # before its loss was compiled
    if stack == "megatron-2021" and re.search(r"sequence parallel|2205\.05198", f"{source} {notes}", re.I):
        return "megatron"  # its activations are shared by the tensor ranks already
    return _MEMORY_STACK.get(stack, stack)


def memory_kind_of(source: str, notes: str) -> str:
    """What a figure named only "memory" is: allocated, reserved, or device, as nvidia-smi shows it.

    torchtitan logs reserved bytes.
    """
    text = notes.lower().replace("not reserved", "")
    if "nvidia-smi" in text:
        return "device"
    return "reserved" if "reserved" in text or "torchtitan" in source.lower() else "allocated"


def precision_of(text: str) -> int:
    """Index into PRECISIONS of "amp_bf16", "fp8(current-scaling)", "MXFP8" …; bf16 where it is not said."""
    word = next(name for name, pattern in _PRECISION if re.search(pattern, text.lower()))
    return PRECISIONS.index(word)


def recompute_of(text: str, source: str = "") -> int:
    """Index into RECOMPUTE; a list of modules is selective; silence is none, of 2022 and before full."""
    text = text.strip().lower() or ("full" if re.search(_OLD, source.lower()) else "")
    if not text or re.fullmatch(_NOT_USED, text):
        return RECOMPUTE.index("none")
    return RECOMPUTE.index("full" if re.search(r"full|^(yes|true|on|1)$", text) else "selective")


def out_of_memory(notes: str) -> bool:
    """Whether the row says that it did not fit."""
    said = re.sub(_NO_OOM, " ", notes, flags=re.I)
    return re.search(r"\boom\b|out[- ]of[- ]memory", said, re.I) is not None


def job_of(notes: str, model: str) -> str:
    """pretrain, sft or lora (adapters of any kind)."""
    text = f"{notes} {model}".lower()
    if re.search(r"\blora\b|adapter", text):
        return "lora"
    return "sft" if re.search(r"\bsft\b|fine-?tun", text) else "pretrain"


def release_of(notes: str) -> str | None:
    """Version of the software where the row says it: that of the NeMo container."""
    match = re.search(r"(\d\d\.\d\d(?:\.\d\d)?) NeMo", notes)
    return match.group(1) if match else None


def network_gb_per_s(source: str) -> float | None:
    """Of one device, where a source had another network than the catalogue's."""
    return 4 * 12.5 / 8 if "bigscience" in source.lower() else None


def published_flops_per_token(source: str, notes: str, shape: ModelShape, context: int) -> float:
    """FLOPs that the source counts for a token, so that its TFLOP/s become tokens."""
    text = f"{source} {plain_notes(notes)}".lower()
    if re.search(r"counts the recompute forward|hardware flops|sc21|2204\.06745", text):
        return _sc21(shape, context)
    if re.search(r"bigscience|tflops count recompute", text):
        return 8.0 * total_params(shape)
    if re.search(r"megatron-bridge|\bnemo\b|modelzoo", text):
        return train_flops_per_token(shape, context)
    return 6.0 * matmul_params(shape) + 3.0 * attention_flops_per_token(shape, float(context))


def with_mtp(shape: ModelShape, name: str, published: float | None, source: str, notes: str) -> ModelShape:
    """With the layers that predict later tokens: as the name says, else as the published FLOPs fit better.

    published: FLOPs of a token by the source's own count; None: not known.
    """
    said = re.search(r"(w/o|without|no|w/|with|\+)? ?mtp", name.lower())
    if said:
        return replace(shape, mtp_layers=0 if said.group(1) in ("w/o", "without", "no") else 1)
    if published is None or not shape.mla_kv_rank:
        return shape
    tried = [replace(shape, mtp_layers=layers) for layers in (0, 1)]
    counts = [published_flops_per_token(source, notes, each, shape.context) for each in tried]
    return tried[0] if abs(counts[0] - published) <= abs(counts[1] - published) else tried[1]


def _sc21(shape: ModelShape, context: int) -> float:
    """96 s l h² (1 + s/6h + V/16lh) of a sequence, over its tokens."""
    layers, hidden, vocab = shape.layers, shape.hidden, shape.vocab
    relative = 1.0 + context / (6.0 * hidden) + vocab / (16.0 * layers * hidden)
    return 96.0 * layers * hidden**2 * relative
