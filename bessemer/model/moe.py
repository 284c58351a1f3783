"""Mixture of experts: every token goes to the k experts that its router chooses; none is dropped.

The (token, expert) pairs are sorted by expert, so that each expert works on consecutive rows; `compute`
is the seam at which expert parallelism exchanges them between ranks. What returns is put back by the
inverse permutation and added over k in the order of the choice, never scattered, so that sums do not
depend on who runs first.
Routers, each in fp32 as transformers computes it:
    softmax       probabilities over all experts, the k largest renormalised (Qwen3-MoE, Mixtral)
    sigmoid_bias  k largest of sigmoid + bias, weights from the sigmoids alone (DeepSeek-V3, GLM-4.5)
Balance: softmax routers get the auxiliary loss of each row in their gradient (arXiv:2101.03961,
arXiv:2412.19437 section 2.1.2), biases are moved after a step (arXiv:2408.15664). Not done: z-loss,
groups of experts, capacity limits.
Dims: B rows, T tokens, N = B T, k experts of a token, S = N k pairs, D hidden, E experts, F expert ffn.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bessemer.formulas.shape import ModelShape
from bessemer.model.layers import FeedForward

Compute = Callable[[Tensor, Tensor], Tensor]  # (sorted_SD, counts_E) -> out_SD
_BLOCK_ROWS = 32  # rows whose products AMX adds at once, when a weight's gradient is made


@dataclass(frozen=True)
class Routing:
    """What a router decided for N tokens."""

    chosen_NK: Tensor  # int64, numbers of experts, the best first
    weights_NK: Tensor  # fp32, of their outputs
    scores_NE: Tensor  # fp32, of all experts


class MoE(nn.Module):
    """Router, experts, and a shared feed-forward layer where the shape has one."""

    chosen_E: Tensor

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.gate = Router(shape)
        names = ("w1", "w3", "w2") if shape.family == "mixtral" else ("gate_proj", "up_proj", "down_proj")
        self.experts = Experts(shape.experts, shape.hidden, shape.expert_ffn, names)
        self.shared_experts = FeedForward(shape.hidden, shape.shared_ffn) if shape.shared_ffn else None
        self.compute: Compute = self._compute_here
        # Sums over the ranks that hold parts of the same rows. Its backward pass is the identity, as each of
        # those ranks computes one and the same loss.
        self.over_row: Callable[[Tensor], Tensor] = _identity
        self.share = 1.0  # of the balance gradient that this rank adds; 1/t where t ranks add the same
        self.recomputing = False  # this forward pass repeats one that was counted
        # Pairs that each expert got since the last update of the bias, in training.
        self.register_buffer("chosen_E", torch.zeros(shape.experts, dtype=torch.int64), persistent=False)

    def forward(self, x_BTD: Tensor, balance_B: Tensor | None = None) -> Tensor:
        """[B, T, D]. balance_B: fp32 weight of each row's balance, 0 for rows that are padding.

        None: the auxiliary loss is left out, and every row counts for the bias.
        """
        rows, _, hidden = x_BTD.shape
        x_ND = x_BTD.reshape(-1, hidden)
        routing = self.gate(x_ND)
        counts_BE = _count(routing.chosen_NK.view(rows, -1), self.gate.num_experts)
        out_BTD = self._routed(x_ND, routing, counts_BE.sum(0)).view_as(x_BTD)
        if self.shared_experts is not None:
            out_BTD = out_BTD + self.shared_experts(x_BTD)
        if not (self.training and torch.is_grad_enabled()):
            return out_BTD
        if self.gate.has_bias:
            self._note(counts_BE, balance_B)
        elif balance_B is not None:
            loss_B = self._row_balance(counts_BE, routing.scores_NE)
            out_BTD = _WithLoss.apply(out_BTD, (loss_B * balance_B).sum(), self.share)
        return out_BTD

    def _routed(self, x_ND: Tensor, routing: Routing, counts_E: Tensor) -> Tensor:
        """The experts' outputs, weighed and added: [N, D]."""
        num_tokens, k = routing.chosen_NK.shape
        order_S = routing.chosen_NK.flatten().argsort(stable=True)
        places_S = torch.arange(num_tokens * k, device=order_S.device)
        place_S = torch.empty_like(order_S).scatter_(0, order_S, places_S)
        sorted_SD = permuted(x_ND, order_S, place_S, k)
        out_SD = permuted(self.compute(sorted_SD, counts_E), place_S, order_S)
        out_NKD = out_SD.view(num_tokens, k, -1)
        return (out_NKD * routing.weights_NK[..., None]).sum(1).to(x_ND.dtype)

    def _compute_here(self, sorted_SD: Tensor, counts_E: Tensor) -> Tensor:
        return self.experts(sorted_SD, counts_E)  # type: ignore[no-any-return]

    def _row_balance(self, counts_BE: Tensor, scores_NE: Tensor) -> Tensor:
        """E Σ f P of each row, [B] fp32: 1 when balanced. f: share of the row's pairs; P: mean probability.

        Hugging Face's f counts a token k times, so that its loss is k times this.
        """
        counts_BE = self.over_row(counts_BE.float())
        total_BE = self.over_row(scores_NE.view(counts_BE.shape[0], -1, self.gate.num_experts).sum(1))
        pairs_B1 = counts_BE.sum(-1, keepdim=True)
        mean_BE = total_BE * self.gate.num_chosen / pairs_B1
        return self.gate.num_experts * (counts_BE / pairs_B1 * mean_BE).sum(-1)

    @torch.no_grad()
    def _note(self, counts_BE: Tensor, balance_B: Tensor | None) -> None:
        if self.recomputing:
            return
        if balance_B is not None:
            counts_BE = counts_BE * (balance_B > 0)[:, None]
        self.chosen_E += counts_BE.sum(0)


class Router(nn.Module):
    """Chooses the experts of a token."""

    e_score_correction_bias: Tensor | None

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.num_experts, self.num_chosen = shape.experts, shape.experts_per_token
        self.has_bias = shape.router == "sigmoid_bias"
        self.weight = nn.Parameter(torch.empty(shape.experts, shape.hidden))
        bias_E = torch.zeros(shape.experts) if self.has_bias else None
        self.register_buffer("e_score_correction_bias", bias_E)

    def forward(self, x_ND: Tensor) -> Routing:
        # fp32 in every compute type: a rounded logit would change choices, not only weights.
        logits_NE = functional.linear(x_ND.float(), self.weight)
        if self.e_score_correction_bias is None:
            scores_NE = logits_NE.softmax(-1)
            weights_NK, chosen_NK = scores_NE.topk(self.num_chosen, dim=-1)
            return Routing(chosen_NK, weights_NK / weights_NK.sum(-1, keepdim=True), scores_NE)
        scores_NE = logits_NE.sigmoid()
        chosen_NK = (scores_NE.detach() + self.e_score_correction_bias).topk(self.num_chosen, dim=-1).indices
        weights_NK = scores_NE.gather(1, chosen_NK)
        return Routing(chosen_NK, weights_NK / (weights_NK.sum(-1, keepdim=True) + 1e-20), scores_NE)


class Experts(nn.Module):
    """SwiGLU experts of one size, stacked: [E, F, D] twice, and [E, D, F]. `names`: gate, up, down.

    On a CPU oneDNN makes each matmul in bf16 anew for every number of rows, 1 to 2 ms, and how many an expert
    gets differs every time. So there they get whole blocks of rows, of which there are few numbers: 4 experts
    of 256 x 256 and about 512 rows each, forward and backward on one busy core, 12 ms instead of 25 at first
    and of 13 after 40 passes. Results are bitwise the same (torch 2.13, AMX). In fp32 nothing is made (MKL).
    """

    def __init__(self, num_experts: int, hidden: int, ffn: int, names: tuple[str, str, str]) -> None:
        super().__init__()
        self.names = names
        for name, outputs, inputs in zip(names, (ffn, ffn, hidden), (hidden, hidden, ffn), strict=True):
            self.register_parameter(name, nn.Parameter(torch.empty(num_experts, outputs, inputs)))

    def forward(self, sorted_SD: Tensor, counts_E: Tensor) -> Tensor:
        """[S, D]. sorted_SD: the rows of each expert one after the other; counts_E: how many, S together."""
        if sorted_SD.device.type != "cpu" or sorted_SD.dtype == torch.float32:
            return self._swiglu(sorted_SD, counts_E)
        padded_E, place_S, row_P = in_blocks(counts_E, sorted_SD.shape[0])
        # Padding repeats the first row: it is made by the gather itself, and its gradient is zero.
        out_PD = self._swiglu(permuted(sorted_SD, row_P, place_S), padded_E)
        return _Picked.apply(out_PD, place_S)  # type: ignore[no-any-return]

    def _swiglu(self, sorted_SD: Tensor, counts_E: Tensor) -> Tensor:
        gate, up, down = (getattr(self, name) for name in self.names)
        gate_SF = grouped_linear(sorted_SD, gate, counts_E)
        up_SF = grouped_linear(sorted_SD, up, counts_E)
        return grouped_linear(functional.silu(gate_SF) * up_SF, down, counts_E)


def update_bias(moe: MoE, chosen_E: Tensor, rate: float) -> None:
    """Make experts that were chosen less than the mean a little likelier, others less, and count anew.

    chosen_E: pairs that each expert got in the step, over all ranks. rate: of the bias, per step.
    """
    bias_E = moe.gate.e_score_correction_bias
    assert bias_E is not None, "a softmax router is balanced by its loss"
    counts_E = chosen_E.double()  # exact up to 2**53 pairs
    with torch.no_grad():
        bias_E += rate * (counts_E.mean() - counts_E).sign().to(bias_E.dtype)
        moe.chosen_E.zero_()


@torch.compiler.disable  # the size of what it returns differs every time
def in_blocks(counts_E: Tensor, num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """(rows of each expert with padding, P together; each row's place among them; the row at each place)."""
    padded_E = (counts_E + _BLOCK_ROWS - 1) // _BLOCK_ROWS * _BLOCK_ROWS
    added_E = padded_E - counts_E
    row_S = torch.arange(num_rows, device=counts_E.device)
    place_S = row_S + (added_E.cumsum(0) - added_E).repeat_interleave(counts_E, output_size=num_rows)
    row_P = row_S.new_zeros(int(padded_E.sum()))
    row_P[place_S] = row_S
    return padded_E, place_S, row_P


def grouped_linear(x_SI: Tensor, weight_EOI: Tensor, counts_E: Tensor) -> Tensor:
    """Each expert's rows times its own weight, in the type of x: [S, O].

    torch's grouped_mm against a loop over experts, forward and backward on one CPU core, 64 experts of
    256 x 128 and 16,384 rows: fp32 43 ms against 47, bf16 23 against 25; with 64 rows for 8 experts
    1.1 against 2.0. Results and gradients are bitwise the same on a CPU (torch 2.13).
    """
    weight_EOI = weight_EOI.to(x_SI.dtype)
    if _has_grouped_mm(x_SI, weight_EOI):
        ends_E = counts_E.cumsum(0).to(torch.int32)
        # Its backward pass refuses a gradient with strides of zero, as `sum` makes it.
        out_SO = functional.grouped_mm(x_SI, weight_EOI.transpose(1, 2), offs=ends_E)
        return _ContiguousGradient.apply(out_SO)  # type: ignore[no-any-return]
    return _linear_by_expert(x_SI, weight_EOI, counts_E)


@torch.compiler.disable  # compiled, it would be compiled again for every way in which rows can be shared out
def _linear_by_expert(x_SI: Tensor, weight_EOI: Tensor, counts_E: Tensor) -> Tensor:
    parts = zip(x_SI.split(counts_E.tolist()), weight_EOI.unbind(), strict=True)
    return torch.cat([functional.linear(rows, weight) for rows, weight in parts])


def _has_grouped_mm(x_SI: Tensor, weight_EOI: Tensor) -> bool:
    """Whether grouped_mm takes these operands and is right for them.

    It wants rows of a multiple of 16 bytes and fails without any row; compiled code and accelerators take
    bf16 only, and newer ones than Hopper give experts without a token a wrong gradient
    (https://github.com/pytorch/pytorch/issues/172439).
    """
    sizes_fit = all(size * x_SI.element_size() % 16 == 0 for size in weight_EOI.shape[1:])
    if not sizes_fit or x_SI.shape[0] == 0:
        return False
    if x_SI.device.type == "cpu":
        return x_SI.dtype == torch.bfloat16 or not torch.compiler.is_compiling()
    hopper = x_SI.device.type == "cuda" and torch.cuda.get_device_capability(x_SI.device) == (9, 0)
    return hopper and x_SI.dtype == torch.bfloat16


def _count(chosen_BS: Tensor, num_experts: int) -> Tensor:
    """How often each row chose each expert: [B, E] int64."""
    counts_BE = chosen_BS.new_zeros((chosen_BS.shape[0], num_experts))
    return counts_BE.scatter_add_(1, chosen_BS, torch.ones_like(chosen_BS))


def _identity(statistics_BE: Tensor) -> Tensor:
    return statistics_BE


def permuted(x_ND: Tensor, index_S: Tensor, inverse_S: Tensor, copies: int = 1) -> Tensor:
    """Rows of x, each `copies` times, in the order of `index_S`; `inverse_S` is the inverse of that order."""
    return _Permuted.apply(x_ND, index_S, inverse_S, copies)  # type: ignore[no-any-return]


class _Permuted(torch.autograd.Function):
    """autograd's own backward pass of indexing adds rows with atomics, in any order."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, index_S: Tensor, inverse_S: Tensor, copies: int) -> Tensor:
        ctx.save_for_backward(inverse_S)
        ctx.copies = copies
        return x_ND[index_S if copies == 1 else index_S // copies]

    @staticmethod
    def backward(ctx: Any, grad_SD: Tensor) -> tuple[Tensor, None, None, None]:
        (inverse_S,) = ctx.saved_tensors
        back_SD = grad_SD[inverse_S]
        if ctx.copies > 1:
            back_SD = back_SD.view(-1, ctx.copies, grad_SD.shape[1]).sum(1)
        return back_SD, None, None, None


class _Picked(torch.autograd.Function):
    """The rows at `place_S`, each at most once; the gradient of the others is zero."""

    @staticmethod
    def forward(ctx: Any, x_PD: Tensor, place_S: Tensor) -> Tensor:
        ctx.save_for_backward(place_S)
        ctx.rows = x_PD.shape[0]
        return x_PD[place_S]

    @staticmethod
    def backward(ctx: Any, grad_SD: Tensor) -> tuple[Tensor, None]:
        (place_S,) = ctx.saved_tensors
        grad_PD = grad_SD.new_zeros(ctx.rows, grad_SD.shape[1])
        return grad_PD.index_copy_(0, place_S, grad_SD), None


class _WithLoss(torch.autograd.Function):
    """x as it is; the backward pass adds the gradient of `share` times a loss, which nobody has to return.

    So it works in the stages of a pipeline, where only the last has a loss.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor, share: float) -> Tensor:
        ctx.save_for_backward(loss.new_full((), share))
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        return grad, ctx.saved_tensors[0], None


class _ContiguousGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.contiguous()
