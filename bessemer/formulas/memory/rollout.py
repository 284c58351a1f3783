"""Memory beside the training step: answers that are sampled and judged, and a teacher that is asked.

While a round of answers is made (finetune/rollouts.py) a rank has no gradients and no activations of a step,
but beside its part of weights and optimizer:

    sampling   the whole model, matrices in the compute type (none where one process computes with its weights
               as they are), and keys and values of a chunk of answers
    asked      whole, as it is loaded: GRPO's reference (beta > 0), or the teacher of a distillation on
               policy. It stays from the first round on, so it is there in every step too
    a pass     over the prompts of a chunk; for the next word of each answer; over some rows of answers

All of that is whole on each rank, whatever the layout. Off policy the teacher reads the examples before the
model is there, in one process. DPO's reference is the model itself before its first step: a forward pass
without what a step keeps, so that a step is fuller.
A test compares with the tensors that are alive in real rounds, within 5 %.
Symbols: D hidden, A query and G key-value elements of a token, F feed-forward width.
"""

from dataclasses import replace

from bessemer.formulas.layout import Layout
from bessemer.formulas.memory.parts import Memory, Workload, base_bytes, loss_rows, weight_bytes
from bessemer.formulas.objective import ASKED_ROWS, CHUNK_ANSWERS, Objective, Rollouts
from bessemer.formulas.parameters import num_dense_layers, total_params
from bessemer.formulas.quantized import unpacked_bytes
from bessemer.formulas.shape import ModelShape

# Of one word for each answer: fp32 logits, their softmax, and its sums in fp64 (model/generate.py).
_DRAWN_BYTES = 16
# Of a token's words: fp32 logits, how far they are below the largest, its exponential
# (model/token_log_probs.py); of a teacher's likeliest the logits and their log-softmax, which is less.
_SAID_BYTES = 12


def with_rounds(
    step: Memory, shape: ModelShape, work: Workload, layout: Layout, objective: Objective, context: int
) -> Memory:
    """Of a rank whose steps take `step`: at its fullest moment, rounds of sampled answers included.

    context: tokens of a row. As it is where nothing is sampled.
    """
    if objective.rollouts is None:
        return step
    asked, size = objective.asked, _asked_size(objective, work.dtype)
    step = replace(step, asked=asked_bytes(objective, work.dtype))
    copied = layout.world > 1 or (work.dtype == "bf16" and shape.adapter is None)
    whole = _whole_bytes(shape, work.size) if copied else 0
    still = replace(step, gradients=0, casts=0, activations=0, working=0, loss=0, gathered=0, sampling=whole)
    moments = [step, *_drawn(still, shape, work.size, objective.rollouts)]
    moments += _said(still, shape, work.size, context, cast=False)
    if layout.world > 1:  # the whole model is put together tensor by tensor, in fp32
        moments.append(replace(still, casts=4 * shape.vocab * shape.hidden))
    if asked is not None:
        moments += _said(still, asked, size, context, cast=_is_cast(asked, size))
    return max(moments, key=lambda memory: memory.total)


def asked_bytes(objective: Objective, dtype: str) -> int:
    """Of weights that are there in every step of a stage that samples and computes in `dtype`."""
    if objective.rollouts is None or objective.asked is None:
        return 0
    return weight_bytes(objective.asked, _asked_size(objective, dtype))


def teacher_memory(objective: Objective, work: Workload, context: int) -> Memory | None:
    """Of the process that asks a teacher about all examples, before training. None: nobody is asked then."""
    teacher, size = objective.asked, _asked_size(objective, work.dtype)
    if teacher is None or objective.rollouts is not None:
        return None
    alone = Memory(0, 0, 0, 0, 0, 0, 0, base_bytes(work.kind), asked=weight_bytes(teacher, size))
    moments = _said(alone, teacher, size, context, cast=_is_cast(teacher, size))
    return max(moments, key=lambda memory: memory.total)


def _asked_size(objective: Objective, dtype: str) -> int:
    """Bytes of an activation of whoever is asked."""
    return 2 if (objective.asked_dtype or dtype) == "bf16" else 4


def _drawn(still: Memory, shape: ModelShape, size: int, rollouts: Rollouts) -> list[Memory]:
    """While prompts are read, and while words are drawn."""
    rows = rollouts.group_size * min(rollouts.prompts, max(1, CHUNK_ANSWERS // rollouts.group_size))
    tokens = rollouts.prompt_tokens + rollouts.answer_tokens
    cache = 2 * shape.layers * rows * tokens * shape.kv_heads * shape.head_dim * size
    still = replace(still, sampling=still.sampling + cache)
    words = replace(still, loss=_DRAWN_BYTES * rows * shape.vocab)
    return [*_passes(still, shape, size, rows, rollouts.prompt_tokens, cast=False), words]


def _said(still: Memory, shape: ModelShape, size: int, context: int, *, cast: bool) -> list[Memory]:
    """While a model is asked about rows of answers."""
    tokens = ASKED_ROWS * context
    chunk = min(tokens, loss_rows(shape.vocab)) * shape.vocab * _SAID_BYTES
    words = replace(
        still,
        activations=size * tokens * shape.hidden,
        casts=size * shape.vocab * shape.hidden if cast else 0,
        loss=chunk,
    )
    return [*_passes(still, shape, size, ASKED_ROWS, context, cast=cast), words]


def _passes(
    still: Memory, shape: ModelShape, size: int, rows: int, length: int, *, cast: bool
) -> list[Memory]:
    """Of a forward pass without gradients: in attention, where matrices are copied for the feed-forward
    layer, and in that. cast: the weights are not in the compute type yet."""
    hidden, queries = shape.hidden, shape.heads * shape.head_dim
    keys = shape.kv_heads * shape.head_dim
    # The residual stream before and after, the normed input, what attention gave.
    outer = 4 * hidden
    attended = 2 * hidden + 3 * queries + 3 * keys
    rotated = 2 * hidden + queries + 2 * keys + (16 if size == 2 else 12) * queries // size
    mask = (1 + size) * length
    angles = 8 * shape.head_dim  # cosine and sine, fp32
    tokens = rows * length
    inner, copied = 0, unpacked_bytes(shape, size)
    if num_dense_layers(shape):
        inner = 4 * shape.ffn
        copied = max(copied, _joined_bytes(shape, size, 2 * shape.ffn, cast=cast))
    if num_dense_layers(shape) < shape.layers:
        inner = max(inner, shape.experts_per_token * (hidden + 4 * shape.expert_ffn) + hidden)
        copied = max(copied, size * shape.experts * hidden * shape.expert_ffn if cast else 0)
    copying = 2 * shape.ffn if num_dense_layers(shape) else shape.experts_per_token * hidden
    each = [
        (size * max(attended, rotated) + mask, 0),
        (size * (outer + copying) + length, copied),
        (size * (outer + inner) + length, 0),
    ]
    return [replace(still, activations=tokens * (taken + angles), casts=copies) for taken, copies in each]


def _joined_bytes(shape: ModelShape, size: int, outputs: int, *, cast: bool) -> int:
    """Matrices of one input, joined for one product; before that cast one by one, where they are."""
    return 0 if shape.adapter is not None else (2 if cast else 1) * size * shape.hidden * outputs


def _whole_bytes(shape: ModelShape, size: int) -> int:
    """To compute with: norms and routers stay fp32, which is left out. Adapters as they are."""
    return size * total_params(shape) if shape.adapter is None else weight_bytes(shape, size)


def _is_cast(shape: ModelShape, size: int) -> bool:
    return size == 2 and shape.adapter is None
