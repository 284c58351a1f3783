"""Each kind of attention against a loop over single queries, on packed rows.

"flex" is run as torch's own slow form, not compiled: what is ours is the mask and the call.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from bessemer.model import attention as module
from bessemer.model import attention_cpu
from bessemer.model.attention import Kind, allowed_keys, attention, choose, make_mask

Inputs = tuple[Tensor, Tensor, Tensor]
_why_not = attention_cpu.available()
_if_kernel = pytest.mark.skipif(_why_not is not None, reason=str(_why_not))
# torch warns that flex is slow where it is not compiled.
_flex_is_slow = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
DIFFERENTIABLE = ["sdpa", pytest.param("cpu", marks=_if_kernel)]  # on a CPU, flex is not
KINDS = [*DIFFERENTIABLE, pytest.param("flex", marks=_flex_is_slow)]
ROWS = {
    "one document": [[70]],
    "several": [[30, 1, 39], [64, 6]],
    "single tokens": [[1] * 70, [35, 35]],
}


@pytest.fixture(autouse=True)
def flex_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_flex", flex_attention)


def starts_of(rows: list[list[int]]) -> Tensor:
    """starts_BT of rows with documents of these lengths."""
    return torch.tensor([[sum(row[:i]) for i, n in enumerate(row) for _ in range(n)] for row in rows])


def make_inputs(rows: int, tokens: int, heads: int = 4, groups: int = 2, head_dim: int = 32) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(rows, tokens, num, head_dim, generator=generator).bfloat16()
        for num in (heads, groups, groups)
    )
    return q, k, v


def one_query_at_a_time(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, starts_BT: Tensor) -> Tensor:
    """The definition, with no mask at all: each query is given the keys that it may see."""
    rows, tokens, heads, head_dim = q_BTHK.shape
    share = heads // k_BTGK.shape[2]
    out = []
    for row, starts in enumerate(starts_BT.tolist()):
        for query, start in enumerate(starts):
            keys_SHK = k_BTGK[row, start : query + 1].repeat_interleave(share, dim=1)
            values_SHK = v_BTGK[row, start : query + 1].repeat_interleave(share, dim=1)
            shares_SH = ((keys_SHK * q_BTHK[row, query]).sum(-1) / math.sqrt(head_dim)).softmax(0)
            out.append((shares_SH[..., None] * values_SHK).sum(0))
    return torch.stack(out).view(rows, tokens, heads, head_dim)


def with_gradients(run: Callable[..., Tensor], inputs: Inputs) -> list[Tensor]:
    """[out, dq, dk, dv] for one fixed gradient of the output."""
    inputs = tuple(tensor.detach().requires_grad_() for tensor in inputs)
    out = run(*inputs)
    dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, inputs, dout)]


def in_fp32(inputs: Inputs) -> Inputs:
    q, k, v = (tensor.float() for tensor in inputs)
    return q, k, v


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
@pytest.mark.parametrize(("heads", "groups"), [(4, 2), (3, 1), (2, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_agrees_with_the_definition(
    kind: Kind, rows: list[list[int]], heads: int, groups: int
) -> None:
    starts = starts_of(rows)
    inputs, mask = make_inputs(*starts.shape, heads, groups), make_mask(kind, starts)
    want = one_query_at_a_time(*in_fp32(inputs), starts)
    got = attention(kind, *inputs, mask)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), want, rtol=0.02, atol=0.02)
    if kind != "cpu":
        exact = attention(kind, *in_fp32(inputs), mask)
        torch.testing.assert_close(exact, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
@pytest.mark.parametrize("kind", DIFFERENTIABLE)
def test_gradients_agree_with_the_definition(kind: Kind, rows: list[list[int]]) -> None:
    starts = starts_of(rows)
    inputs = make_inputs(*starts.shape)
    got = with_gradients(lambda *qkv: attention(kind, *qkv, make_mask(kind, starts)), inputs)
    want = with_gradients(lambda *qkv: one_query_at_a_time(*qkv, starts), in_fp32(inputs))
    for ours, theirs in zip(got, want, strict=True):
        # The floor is for gradients that are zero but for rounding, as those of one-token documents.
        assert (ours.float() - theirs).norm() <= 0.01 * theirs.norm() + 1e-6 * theirs.numel() ** 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_packed_token_never_sees_another_document_or_a_later_token(kind: Kind) -> None:
    starts = starts_of([[30, 25, 15]])
    q, k, v = make_inputs(1, 70)
    before = attention(kind, q, k, v, make_mask(kind, starts))
    for tensor in (q, k, v):
        tensor[:, :30] = 7.0
        tensor[:, 45:] = -7.0
    after = attention(kind, q, k, v, make_mask(kind, starts))
    assert torch.equal(before[:, 30:45], after[:, 30:45])
    assert not torch.equal(before, after)


def test_allowed_keys_are_those_of_the_document_so_far() -> None:
    starts = starts_of([[3, 1, 4], [8]])
    allowed = allowed_keys(starts, 8, torch.arange(8))
    assert allowed.shape == (2, 1, 8, 8) and allowed.dtype == torch.bool
    for row in range(2):
        for query in range(8):
            seen = allowed[row, 0, query].nonzero().flatten().tolist()
            assert seen == list(range(int(starts[row, query]), query + 1))


@pytest.mark.parametrize("first", [0, 1, 5, 7])
def test_allowed_keys_of_later_queries_are_the_rows_of_the_whole(first: int) -> None:
    starts = starts_of([[3, 1, 4], [8]])
    whole = allowed_keys(starts, 8, torch.arange(8))
    for last in range(first + 1, 9):
        part = allowed_keys(starts[:, first:last], last, torch.arange(first, last))
        assert torch.equal(part, whole[:, :, first:last, :last])


def test_cpu_takes_its_kernel_only_where_it_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_cpu, "available", lambda: None)
    assert choose("cpu", torch.bfloat16, 64) == "cpu"
    assert choose("cpu", torch.bfloat16, 48) == "sdpa"
    assert choose("cpu", torch.float32, 64) == "sdpa"
    monkeypatch.setattr(attention_cpu, "available", lambda: "there is no C++ compiler")
    assert choose("cpu", torch.bfloat16, 64) == "sdpa"


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16], ids=str)
def test_accelerator_takes_flex_and_never_builds_the_cpu_kernel(
    compute: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build() -> None:
        raise AssertionError("a machine with an accelerator needs no compiler for the CPU")

    monkeypatch.setattr(attention_cpu, "available", build)
    assert choose("cuda", compute, 64) == "flex"
