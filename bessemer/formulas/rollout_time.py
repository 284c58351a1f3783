"""Work of a chunk of sampled answers on the rank that samples it (finetune/rollouts.py).

    read     a forward pass over the prompts, which gives the first words
    drawn    a step for each further token of the longest answer. It reads all weights once and the keys and
             values of every row, multiplies every row with the weights, goes over the logits, and starts its
             operators. Weights are read while they are multiplied with: the longer counts
    judged   forward passes over prompts and answers: of GRPO's model and its reference, or of a teacher

A chunk is drawn until its last answer ends, with fewer rows once half of them have ended.
Left out: putting the model together under a layout, rewards, files; that the last chunk may be a smaller one.
Source: arXiv:2211.05102 section 2 (bytes and FLOPs of a decoding step); bytes of a word: model/generate.py.
Measured: docs/log.md.
"""

from dataclasses import dataclass

from bessemer.formulas.flops import adapter_matrices, attention_flops_per_token
from bessemer.formulas.memory.parts import weight_bytes
from bessemer.formulas.objective import CHUNK_ANSWERS, Objective
from bessemer.formulas.parameters import head_rows, matmul_params, total_params
from bessemer.formulas.quantized import packed_model
from bessemer.formulas.shape import ModelShape

# Of a word's logit, read and written: to fp32, over the temperature, softmax, and its sums in fp64.
_DRAWN_BYTES = 48
# Of the operators of a layer, from Python, one after the other: nothing is compiled.
LAYER_START_S = 0.5e-3
_ADAPTED_START = 2.4  # of a layer with adapters, over one without


@dataclass(frozen=True)
class ChunkWork:
    forward_flops: float  # of what is read and judged
    steps: int
    weight_bytes: float  # of a step, which reads them while it multiplies
    other_bytes: float  # of its keys, values and logits: kernels of their own
    step_flops: float
    start_s: float  # of a step

    def seconds(self, flops_per_s: float, bytes_per_s: float) -> float:
        step_s = max(self.weight_bytes / bytes_per_s, self.step_flops / flops_per_s)
        step_s += self.other_bytes / bytes_per_s + self.start_s
        return self.forward_flops / flops_per_s + self.steps * step_s


def chunks(objective: Objective) -> int:
    """Of a round: ranks share them."""
    rollouts = objective.rollouts
    assert rollouts is not None, objective
    return -(-rollouts.prompts // max(1, CHUNK_ANSWERS // rollouts.group_size))


def chunk_work(shape: ModelShape, objective: Objective, dtype: str, answer_share: float = 1.0) -> ChunkWork:
    """answer_share: length of the answers over the longest that they may be."""
    rollouts, size = objective.rollouts, 2 if dtype == "bf16" else 4
    assert rollouts is not None, objective
    rows = rollouts.answers / chunks(objective)
    prompt, answer = rollouts.prompt_tokens, max(1, round(answer_share * rollouts.answer_tokens))
    keys = prompt + answer / 2
    cache = 2 * shape.layers * shape.kv_heads * shape.head_dim * size
    read = _pass_flops(shape, prompt, words=1)
    judged = sum(_pass_flops(judge, prompt + answer, words=answer) for judge in _judges(shape, objective))
    return ChunkWork(
        forward_flops=rows * (read + judged),
        steps=answer - 1,
        weight_bytes=_read_bytes(shape, size),
        other_bytes=rows * (keys * cache + _DRAWN_BYTES * shape.vocab),
        step_flops=rows * _flops_per_token(shape, keys),
        start_s=LAYER_START_S * shape.layers * (1.0 if shape.adapter is None else _ADAPTED_START),
    )


def _pass_flops(shape: ModelShape, tokens: int, words: int) -> float:
    """Forward over tokens of one document; the head is asked about so many of them."""
    head = 2.0 * head_rows(shape) * shape.hidden
    return tokens * (_flops_per_token(shape, tokens / 2) - head) + words * head


def _flops_per_token(shape: ModelShape, keys: float) -> float:
    matrices = matmul_params(shape) + adapter_matrices(shape)
    return 2.0 * matrices + attention_flops_per_token(shape, keys)


def _judges(shape: ModelShape, objective: Objective) -> list[ModelShape]:
    """The models that are asked about the answers."""
    own = [shape] if objective.kind == "grpo" else []
    return own if objective.asked is None else [*own, objective.asked]


def _read_bytes(shape: ModelShape, size: int) -> float:
    """Of all weights but the embedding, of which a few rows are looked up. Those in few bits are written to
    the compute type and read again."""
    table = 0 if shape.tie_embeddings else size * shape.vocab * shape.hidden
    if shape.adapter is None:
        return size * total_params(shape) - table
    return weight_bytes(shape, size) - table + 2 * size * packed_model(shape).elements
