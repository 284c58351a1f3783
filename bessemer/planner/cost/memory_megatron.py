"""Memory of a rank under Megatron-Core: weights whole on data ranks, which share out the optimizer.

Static: bf16 weights 2 bytes, fp32 gradients 4, master and moments 12 over the data and context ranks
(Megatron's theoretical_memory_usage.py); experts 12 over the ranks that hold the same ones, with an expert
tensor degree of 1. Activations are those that TransformerEngine keeps with flash attention and sequence
parallelism. The peak is at one of two moments: in the head, or in the first layer that is taken back.

Terms that no published formula has, from the code and checked against measured stages:
- TransformerEngine keeps a dummy weight gradient for each distinct shape of a weight whose gradient is added
  up in place (experts share one), and the head has one while it is taken back.
- The fused cross-entropy writes the gradient over the logits: 2 bytes each, not 4.
- With context ranks the attention's output is kept twice, before and after its exchange (TE 2.8 and later).
- In the head: the final norm's input and output, its whole input where sequence parallelism gathers it, and
  the gradient of that. In a layer: the gradients of the SwiGLU product's inputs.

`deepspeed_parts` is Megatron-DeepSpeed as BLOOM was trained with: GELU, no sequence parallelism, attention
scores kept, gradients in fp16 (or bf16 and fp32), ZeRO-1 with buckets (arXiv:2211.05100; stages and readings:
bigscience-workshop/bigscience, train/tr11-176B-ml/chronicles-prequel.md).
Error: tests/planner/cost/test_megatron_memory.py. Not counted: what a router's imbalance adds.
"""

from functools import partial

import numpy as np

from bessemer.formulas.parameters import attention_params, ffn_matrices
from bessemer.formulas.shape import ModelShape
from bessemer.hardware import GIB
from bessemer.planner.cost.candidates import PRECISIONS, RECOMPUTE, Candidates, Floats, Ints
from bessemer.planner.cost.memory_layers import layer_weights
from bessemer.planner.cost.memory_parts import Parts, RankLayers, even_layers, fullest, over_ranks

_VOCAB_MULTIPLE = 128  # rows of the embedding on a tensor rank, to which Megatron pads
_WORKSPACES = 0.06 * GIB  # cuBLAS, losses, norms of gradients; what is left of the dense stages below
_DEEPSPEED_BUCKETS = 2 * 5e8 * 2.0  # of reduction and of gathering, 5e8 elements each: its defaults
_FULL, _SELECTIVE = RECOMPUTE.index("full"), RECOMPUTE.index("selective")


def megatron_parts(shape: ModelShape, context: int, candidates: Candidates, stage: int | None) -> Parts:
    sizes = _Sizes(shape, context, candidates)
    return over_ranks(shape, candidates, stage, sizes.rank)


def deepspeed_parts(shape: ModelShape, context: int, candidates: Candidates, stage: int | None) -> Parts:
    sizes = _DeepSpeed(shape, context, candidates)
    return over_ranks(shape, candidates, stage, sizes.rank, partial(_deepspeed_layers, shape))


class _Sizes:
    """Per rank and token sizes of each candidate: columns that all pipeline ranks share."""

    def __init__(self, shape: ModelShape, context: int, candidates: Candidates) -> None:
        self.shape, self.candidates = shape, candidates
        self.tensor = candidates.tensor.astype(float)
        self.tokens = candidates.micro_batch * context / candidates.context  # of a micro-batch
        self.full = candidates.recompute == _FULL
        names = np.array(PRECISIONS)[candidates.precision]
        self.is_fp8 = np.isin(names, ("fp8", "mxfp8", "nvfp4"))
        self.is_fp32 = names == "fp32"
        self.size = np.where(self.is_fp32, 4.0, 2.0)
        # Experts are whole on the expert axis: it may take in the tensor axis too.
        self.experts_on = np.maximum(candidates.expert, 1)
        self.weights = {
            routed: layer_weights(shape, candidates.tensor, self.experts_on, routed=routed)
            for routed in (False, True)
        }

    def rank(self, layers: RankLayers) -> Parts:
        held = self._static(layers)
        in_layer = Parts(
            *held, self._kept(layers) + self._working(layers), 0.0 * self.tokens, self._dummies(layers)
        )
        in_head = Parts(
            *held,
            self._kept(layers) + self._head_hidden(layers),
            self._logits() * layers.has_last,
            self._dummies(layers) + self.size * self._table() * layers.has_last,
        )
        return fullest(in_layer, in_head)

    def _static(self, layers: RankLayers) -> tuple[Floats, Floats, Floats]:
        plain, experts = self._params(layers)
        zero, candidates = self.candidates.zero, self.candidates
        shards = (candidates.shard * candidates.context).astype(float)
        alike = candidates.data * candidates.context * candidates.tensor / self.experts_on
        of_experts = np.maximum(1.0, np.minimum(alike, shards * candidates.tensor))
        total = [0.0 * plain, 0.0 * plain, 0.0 * plain]
        for params, ranks in ((plain, shards), (experts, of_experts)):
            bytes_each = (self._weight_bytes(), self._gradient_bytes(), self._optimizer_bytes())
            for place, (each, level) in enumerate(zip(bytes_each, (3, 2, 1), strict=True)):
                total[place] = total[place] + each * params / np.where(zero >= level, ranks, 1.0)
        return total[0], total[1], total[2]

    def _params(self, layers: RankLayers) -> tuple[Floats, Floats]:
        """(all but experts, experts) on the rank; a multi-token head's layers are the last rank's."""
        dense, routed = self.weights[False], self.weights[True]
        ends = (layers.has_first | (layers.has_last & self.shape.tie_embeddings)) * self._table()
        ends = ends + layers.has_first * self.shape.positions * self.shape.hidden
        ends = ends + layers.has_last * (self._table() * (not self.shape.tie_embeddings) + self.shape.hidden)
        plain = layers.dense * (dense.split + dense.repeated) + ends
        routed_count, deeper = layers.routed * 1.0, layers.has_last * self.shape.mtp_layers
        if self.shape.experts:
            routed_count = routed_count + deeper
            plain = plain + routed_count * (routed.split + routed.repeated)
        else:
            plain = plain + deeper * (dense.split + dense.repeated)
        joins = 2 * self.shape.hidden * self.shape.hidden / self.tensor
        embedding = self._table() * ((layers.has_last & ~layers.has_first) * (self.shape.mtp_layers > 0))
        return plain + deeper * joins + embedding, routed_count * routed.experts

    def _table(self) -> Floats:
        """Elements of the embedding or the head on a rank."""
        multiple = _VOCAB_MULTIPLE * self.tensor
        return np.ceil(self.shape.vocab / multiple) * _VOCAB_MULTIPLE * self.shape.hidden

    def _weight_bytes(self) -> Floats:
        """fp8 weights are held twice, the second time transposed for the backward pass."""
        return self.size

    def _gradient_bytes(self) -> Floats:
        """Recipes that train in fp8 sum gradients in bf16 (Megatron-Bridge: grad_reduce_in_fp32 = False)."""
        return np.where(self.is_fp8, 2.0, 4.0)

    def _optimizer_bytes(self) -> Floats:
        return np.where(self.is_fp32, 8.0, 12.0)

    def _kept(self, layers: RankLayers) -> Floats:
        """Activations from forward to backward. Recomputed layers keep their input."""
        shape, kept = self.shape, 0.0 * self.tokens
        deeper = layers.has_last * shape.mtp_layers * layers.last_held
        for routed, held in ((False, layers.dense_held), (True, layers.routed_held)):
            if not routed or shape.experts:
                extra = deeper if routed == bool(shape.experts) else 0.0
                each = np.where(self.full, self._input_bytes(), self.layer_bytes(routed=routed))
                kept = kept + (held + extra) * each
        return kept * self.tokens

    def _input_bytes(self) -> Floats:
        return self.size * self.shape.hidden / self.tensor

    def layer_bytes(self, *, routed: bool) -> Floats:
        """Of one layer and token of the context rank. Linear layers keep their inputs in fp8, one byte."""
        size, kept = self.size, np.where(self.is_fp8, 1.0, self.size)
        norms = 2 * (size + kept) * self.shape.hidden
        return (
            norms + self._attention_bytes(size, kept) + self._inner_bytes(size, kept, routed)
        ) / self.tensor

    def _attention_bytes(self, size: Floats, kept: Floats) -> Floats:
        """Queries, keys, values, output and its sums' logarithms; the output again where a linear layer
        keeps it in another type, or where context ranks exchange it."""
        shape = self.shape
        logarithms = np.where(self.candidates.recompute == _SELECTIVE, 0.0, 4.0) * shape.heads
        if shape.mla_kv_rank:
            keys = shape.mla_nope_dim + shape.mla_rope_dim
            inner, output = shape.heads * (2 * keys + shape.mla_v_dim), shape.heads * shape.mla_v_dim
            low = 2 * (shape.mla_q_rank + shape.mla_kv_rank) + shape.mla_rope_dim
        else:
            inner, output = (shape.heads + 2 * shape.kv_heads) * shape.head_dim, shape.heads * shape.head_dim
            low = 0
        again = np.where(self.candidates.context > 1, size, 0.0) + np.where(self.is_fp8, kept, 0.0)
        # Low-rank projections are whole on every tensor rank, over its part of the tokens.
        return size * (inner + output + low) + again * output + logarithms

    def _inner_bytes(self, size: Floats, kept: Floats, routed: bool) -> Floats:
        shape = self.shape
        per_width = size * (ffn_matrices(shape) - 1) + kept
        if not routed:
            return per_width * shape.ffn
        chosen = shape.experts_per_token * (kept * shape.hidden + per_width * shape.expert_ffn)
        return chosen + per_width * shape.shared_ffn + 8.0 * shape.experts

    def _working(self, layers: RankLayers) -> Floats:
        """In the layer that is taken back first: gradients of the SwiGLU product's inputs less the product
        itself, and of the layer's output. A recomputed layer is there whole, too."""
        shape, has_routed = self.shape, layers.routed > 0
        width = np.where(has_routed, shape.experts_per_token * shape.expert_ffn, shape.ffn)
        rows = np.where(has_routed, shape.experts_per_token / self.tensor, 1.0)
        gradients = self.size * ((ffn_matrices(shape) - 1) * width / self.tensor + rows * shape.hidden)
        whole = np.where(has_routed, self.layer_bytes(routed=bool(shape.experts)), 0.0)
        whole = np.maximum(whole, np.where(layers.dense > 0, self.layer_bytes(routed=False), 0.0))
        return self.tokens * (gradients + np.where(self.full, whole, 0.0))

    def _head_hidden(self, layers: RankLayers) -> Floats:
        several, piped = self.tensor > 1, self.candidates.pipeline > 1
        whole = 1.0 + several + piped * ~several  # gathered input, its gradient, and what came from before
        parts = 2.0 + several
        return self.size * self.shape.hidden * self.tokens * (whole + parts / self.tensor) * layers.has_last

    def _logits(self) -> Floats:
        rows = self._table() / self.shape.hidden
        return self.size * rows * self.tokens * (1 + self.shape.mtp_layers)

    def _dummies(self, layers: RankLayers) -> Floats:
        """Dummy weight gradients of the distinct shapes that the rank has, and workspaces."""
        dense, routed = self.weights[False].distinct, self.weights[True].distinct
        attention = attention_params(self.shape) / self.tensor
        both = np.where(layers.dense > 0, dense, 0.0) + np.where(layers.routed > 0, routed, 0.0)
        both = both - np.where((layers.dense > 0) & (layers.routed > 0), attention, 0.0)
        return self.size * both + _WORKSPACES


def _deepspeed_layers(shape: ModelShape, stages: Ints, stage: Ints) -> tuple[Ints, Ints]:
    """(dense, routed) layers of a stage: full ones first, and what is left on the last. Embedding and head
    have places of their own where the number of layers was chosen for that (BLOOM's 70 on 12 stages)."""
    dense, routed = even_layers(shape, stages, stage)
    if shape.experts:
        return dense, routed  # of which nobody published any
    most = -(-shape.layers // stages)
    first_full = np.clip(shape.layers - stage * most, 0, most)
    return np.where((shape.layers + 2) % stages == 0, dense, first_full), routed


class _DeepSpeed(_Sizes):
    """As of 2022."""

    def _gradient_bytes(self) -> Floats:
        names = np.array(PRECISIONS)[self.candidates.precision]
        return np.where(names == "bf16", 6.0, 2.0)  # bf16 ones are added up in fp32

    def _optimizer_bytes(self) -> Floats:
        return np.full_like(self.tokens, 16.0)  # with the part's gradients, in fp32 for the update

    def _kept(self, layers: RankLayers) -> Floats:
        """A stage's output, too, for each micro-batch on its way: the pipeline's buffers hold it."""
        stages = np.maximum(self.candidates.pipeline - layers.rank, 1)
        buffers = np.minimum(stages, self.candidates.micro_batches) * (self.candidates.pipeline > 1)
        return super()._kept(layers) + buffers * self._input_bytes() * self.tokens

    def layer_bytes(self, *, routed: bool) -> Floats:
        """arXiv:2205.05198 without sequence parallelism and dropout: 8 h whole, 24 h and the scores split."""
        shape = self.shape
        context = self.tokens / np.maximum(self.candidates.micro_batch, 1)
        scores = 4.0 * shape.heads * context
        return 8.0 * shape.hidden + (24.0 * shape.hidden + scores) / self.tensor

    def _input_bytes(self) -> Floats:
        return np.full_like(self.tensor, 2.0 * self.shape.hidden)

    def _logits(self) -> Floats:
        """fp32 upcast, exponentials and the gradient beside the logits."""
        return 5.0 * super()._logits()

    def _dummies(self, layers: RankLayers) -> Floats:
        return np.full_like(self.tokens, _DEEPSPEED_BUCKETS + _WORKSPACES)
