"""What one rank computes in a step, part by part, and how long the calibration says that it takes.

Forward and backward of a micro-batch on each stage that the rank holds: linear layers, attention, experts,
norms and sums, casts of weights, the ends. Counted as the eager code of model/ and parallel/ runs it.
Beside adapters all else is frozen (model/adapter.py): no gradient of its own, no cast, no update. Left out:
DoRA's norms, and unpacking of a base in 4 or 8 bits.
"""

from dataclasses import dataclass
from functools import cached_property

from bessemer.formulas.adapters import matrices
from bessemer.formulas.layout import Layout, layers_of_stages
from bessemer.formulas.memory.parts import Workload, loss_rows
from bessemer.formulas.memory.rank_weights import adapter_elements, held_weights, ranks_of_experts
from bessemer.formulas.shape import ModelShape
from bessemer.planner.calibrated.tables import Speeds, Table

_FORWARD = 1.0 / 3.0  # of a part that was measured forwards and backwards
_FROZEN = 2.0 / 3.0  # of a linear layer: forwards, and the gradient of its input alone
_ROW_PARALLEL = ("o_proj", "down_proj")  # on the tensor axis: their inputs are split, else their outputs
# Of the eager time, where torch.compile fuses: norms, sums, SwiGLU and the loss; in attention the rotation.
# From one model (4 layers of 512, bf16, two AMX cores), so the band is wide until a run has told.
_COMPILED_VECTOR, _COMPILED_ATTENTION = 0.25, 0.8


@dataclass(frozen=True)
class StageTimes:
    """Of one micro-batch on one stage, or on one layer. parts: forward and backward together, by name."""

    parts: dict[str, float]
    forward_s: float

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    @property
    def backward_s(self) -> float:
        return self.total - self.forward_s

    def times(self, factor: float) -> "StageTimes":
        return StageTimes(
            {name: value * factor for name, value in self.parts.items()}, self.forward_s * factor
        )


@dataclass(frozen=True)
class Rank:
    """A place in the pipeline. work.tokens: of a micro-batch of whole rows, `context` tokens long."""

    shape: ModelShape
    layout: Layout
    work: Workload
    place: int
    context: int

    @property
    def stages(self) -> list[int]:
        return self.layout.stages_of(self.place)

    @property
    def tokens(self) -> int:
        """Of a micro-batch, inside a layer."""
        return self.work.tokens // self.layout.context

    @property
    def rows(self) -> int:
        return self.work.tokens // self.context

    @property
    def sent_bytes(self) -> int:
        """Of one message of a pipeline."""
        return self.tokens // self.layout.tensor * self.shape.hidden * self.work.size

    @cached_property
    def table(self) -> list[range]:
        return layers_of_stages(self.shape, self.layout)

    def routed(self, layer: int) -> bool:
        return self.shape.experts > 0 and layer >= self.shape.dense_layers


def stage_times(rank: Rank, speeds: Speeds) -> dict[int, StageTimes]:
    """By number of the stage."""
    count = _Count(rank, speeds.tables)
    found = {}
    for stage in rank.stages:
        parts = {"matmul_s": 0.0, "attention_s": 0.0, "vector_s": 0.0, "recompute_s": 0.0}
        forward_s = 0.0
        for layer in rank.table[stage]:
            of_layer = count.layer(layer)
            forward_s += of_layer.forward_s
            for name, seconds in of_layer.parts.items():
                parts[name] += seconds
        if stage == 0:
            embedding_s = count.embedding()
            parts["vector_s"] += embedding_s
            forward_s += _FORWARD * embedding_s
        if stage == rank.layout.num_stages - 1:
            matmul_s, vector_s = count.head()
            parts["matmul_s"] += matmul_s
            parts["vector_s"] += vector_s
            forward_s += matmul_s + vector_s  # the loss makes its gradients in the forward pass
        found[stage] = StageTimes(parts, forward_s)
    return found


def update_seconds(rank: Rank, speeds: Speeds) -> float:
    """Norm, clipping and AdamW, once a step."""
    return speeds.tables["update"].at(local_params(rank))


def local_params(rank: Rank) -> float:
    """Parameters that the optimizer of this rank has."""
    if rank.shape.adapter is not None:
        return float(held_weights(rank.shape, rank.layout, rank.place).learned(rank.layout))
    count = _Count(rank, {})
    layers = [layer for stage in rank.stages for layer in rank.table[stage]]
    experts = sum(count.expert_params for layer in layers if rank.routed(layer))
    dense = sum(count.dense_params(layer) for layer in layers)
    dense += count.table * (0 in rank.stages)
    if rank.layout.num_stages - 1 in rank.stages and not rank.shape.tie_embeddings:
        dense += count.head_rows * rank.shape.hidden
    return dense / (rank.layout.shard * rank.layout.context) + experts / ranks_of_experts(rank.layout)


class _Count:
    """Seconds of the parts of a layer and of the ends."""

    def __init__(self, rank: Rank, tables: dict[str, Table]) -> None:
        self.rank, self.shape, self.layout, self.tables = rank, rank.shape, rank.layout, tables
        self.tensor = rank.layout.tensor
        self.fused = _COMPILED_VECTOR if rank.work.compiled else 1.0
        self.kept = 1.0 if rank.shape.adapter is None else _FROZEN  # of a linear layer's time

    @property
    def expert_params(self) -> float:
        """Of one layer's experts on this rank, before they are sharded over equals."""
        shape = self.shape
        return 3 * shape.hidden * shape.expert_ffn * shape.experts / self.layout.expert / self.tensor

    @property
    def table(self) -> float:
        """Of the embedding on this rank."""
        return self.shape.vocab * self.shape.hidden / self.tensor

    @property
    def head_rows(self) -> float:
        """On this rank. A head of classes is whole everywhere."""
        return self.shape.labels or self.shape.vocab / self.tensor

    def dense_params(self, layer: int) -> float:
        """Matrices of a layer but its experts."""
        shape = self.shape
        heads = 2 * (shape.heads + shape.kv_heads) * shape.head_dim
        routed = self.rank.routed(layer)
        ffn = 3 * (shape.shared_ffn if routed else shape.ffn)
        return shape.hidden * (heads + ffn) / self.tensor + (shape.hidden * shape.experts if routed else 0)

    def layer(self, layer: int) -> StageTimes:
        routed = self.rank.routed(layer)
        linear_s = self._attention_matmuls() + (self._experts() if routed else self._ffn(self.shape.ffn))
        if routed and self.shape.shared_ffn:
            linear_s += self._ffn(self.shape.shared_ffn)
        beside_s = self._adapters(layer)
        attention_s = self._attention() * (_COMPILED_ATTENTION if self.rank.work.compiled else 1.0)
        vector_s = self._vector(layer) * self.fused + (self._routing() if routed else 0.0)
        forward_s = _FORWARD * (linear_s + beside_s + attention_s + vector_s)
        again = self.rank.work.recomputed_of(range(layer, layer + 1)) == 1
        recompute_s = forward_s if again else 0.0
        if self.rank.work.recompute == "selective":
            recompute_s = _FORWARD * (attention_s + vector_s)
        weights_s = self._weights(layer)
        parts = {
            "matmul_s": self.kept * linear_s + beside_s,
            "attention_s": attention_s,
            "vector_s": vector_s + weights_s,
            "recompute_s": recompute_s,
        }
        return StageTimes(parts, forward_s + _FORWARD * weights_s)

    def embedding(self) -> float:
        size = self.table
        tokens = self.rank.tokens * self.shape.hidden / 256  # measured 256 wide
        seconds = self._at("embedding", tokens, size)
        return seconds + self._repeated(size) if self.shape.adapter is None else _FORWARD * seconds

    def head(self) -> tuple[float, float]:
        """(matmuls, the rest) of final norm and loss, chunk by chunk."""
        shape, vocab = self.shape, self.head_rows
        tokens = self.rank.tokens
        chunk = min(loss_rows(max(1, int(vocab))), tokens)
        chunks = tokens / chunk
        weight = vocab * shape.hidden
        loss_s = self._at("loss", chunk * vocab) * self.fused
        norm_s = self._at("norm", tokens * shape.hidden)
        matmul_s = chunks * self._linear(chunk, shape.hidden, vocab)
        if shape.adapter is not None and not shape.labels:  # a head of classes learns
            return _FROZEN * matmul_s, chunks * loss_s + norm_s
        # The head's gradient is added to per chunk and scaled once.
        rest = chunks * (loss_s + self._at("accumulate", weight)) + self._at("accumulate", weight)
        rest += self._at("cast", weight) + self._repeated(weight) + norm_s
        return matmul_s, rest

    def _attention_matmuls(self) -> float:
        shape, tokens = self.shape, self.rank.tokens
        own = shape.heads * shape.head_dim / self.tensor
        both = own + 2 * shape.kv_heads * shape.head_dim / self.tensor
        return self._linear(tokens, shape.hidden, both) + self._linear(tokens, own, shape.hidden)

    def _ffn(self, width: int) -> float:
        shape, tokens, own = self.shape, self.rank.tokens, width / self.tensor
        return self._linear(tokens, shape.hidden, 2 * own) + self._linear(tokens, own, shape.hidden)

    def _experts(self) -> float:
        """Each expert with its share of the rows, which is taken to be even."""
        shape, own = self.shape, self.shape.expert_ffn / self.tensor
        here = shape.experts / self.layout.expert
        rows = self.rank.tokens * shape.experts_per_token / here
        one = 2 * self._linear(rows, shape.hidden, own) + self._linear(rows, own, shape.hidden)
        return here * one

    def _adapters(self, layer: int) -> float:
        """Down to the rank and up from it, beside each matrix that has an adapter: both learn."""
        adapter, total = self.shape.adapter, 0.0
        if adapter is None:
            return total
        for name, (outputs, inputs) in matrices(self.shape, routed=self.rank.routed(layer)).items():
            if name in adapter.targets:
                split_in, split_out = (self.tensor, 1) if name in _ROW_PARALLEL else (1, self.tensor)
                total += self._linear(self.rank.tokens, inputs / split_in, adapter.rank)
                total += self._linear(self.rank.tokens, adapter.rank, outputs / split_out)
        return total

    def _attention(self) -> float:
        """Over the keys of whole rows; where keys are gathered, part of the queries, by torch's kernel."""
        gathers = self.layout.context > 1 and self.layout.context_kind == "gather"
        heads = self.rank.rows * self.shape.heads / self.tensor / self.layout.context
        return self._at("masked" if gathers else "attention", heads, self.rank.context, self.shape.head_dim)

    def _vector(self, layer: int) -> float:
        shape, tokens = self.shape, self.rank.tokens
        between = tokens / self.tensor * shape.hidden
        total = 2 * self._at("norm", between) + 2 * self._at("add", between)
        if shape.qk_norm:
            heads = (shape.heads + shape.kv_heads) / self.tensor
            total += self._at("norm", tokens * heads * shape.head_dim)
        if not self.rank.routed(layer):
            return total + self._at("swiglu", tokens * shape.ffn / self.tensor)
        total += self._at("swiglu", tokens * shape.experts_per_token * shape.expert_ffn / self.tensor)
        return total + (
            self._at("swiglu", tokens * shape.shared_ffn / self.tensor) if shape.shared_ffn else 0.0
        )

    def _routing(self) -> float:
        return self._at("routing", self.rank.tokens * self.shape.experts_per_token * self.shape.hidden)

    def _weights(self, layer: int) -> float:
        """Casts and joins of a layer's weights for one micro-batch, and its gradients onto those before."""
        shape = self.shape
        if shape.adapter is not None:
            return self._repeated(adapter_elements(shape, self.tensor, routed=self.rank.routed(layer)))
        held = self.dense_params(layer) + (self.expert_params if self.rank.routed(layer) else 0.0)
        joined = held
        if self.rank.work.dtype == "fp32":  # only those that are joined for use are copied
            keys = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
            gates = 0 if self.rank.routed(layer) else 2 * shape.ffn
            joined = shape.hidden * (keys + gates) / self.tensor
        return self._at("cast", joined) + self._repeated(held)

    def _repeated(self, elements: float) -> float:
        """Gradients are added in all micro-batches but the first."""
        turns = self.rank.work.micro_batches
        return self._at("accumulate", elements) * (turns - 1) / turns

    def _linear(self, tokens: float, inputs: float, outputs: float) -> float:
        return self._at("linear", tokens, inputs, outputs)

    def _at(self, part: str, *sizes: float) -> float:
        return self.tables[part].at(*sizes)
