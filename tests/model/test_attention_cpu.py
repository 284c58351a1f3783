"""The CPU attention kernel against an fp32 reference with an explicit mask.

The tests run on the instructions that this CPU has, all of them. The AMX path is also run with its tile
instructions emulated (amx_emulation.h), so a mistake in packing or tiling shows on machines without AMX too.
"""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bessemer.model import attention_cpu
from bessemer.model.attention_cpu import attention

_EMULATION = Path(__file__).with_name("amx_emulation.h")
_why_not = attention_cpu.available()
pytestmark = pytest.mark.skipif(_why_not is not None, reason=str(_why_not))

Inputs = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(params=["native", "pairs", "avx512", "emulated amx"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Everything that uses this fixture runs once with this CPU's own choice and with each path."""
    if request.param in ("pairs", "avx512"):
        library = attention_cpu._open(attention_cpu.build(request.param))
        monkeypatch.setattr(attention_cpu, "load", lambda: library)
    if request.param == "emulated amx":
        version = hashlib.sha256(_EMULATION.read_bytes()).hexdigest()  # the cache does not look into includes
        flags = ["-include", str(_EMULATION), f"-DEMULATION_{version}"]
        library = attention_cpu._open(attention_cpu.build("amx", flags))
        monkeypatch.setattr(attention_cpu, "load", lambda: library)
    return request.param


def make_inputs(rows: int, tokens: int, heads: int, groups: int, head_dim: int, seed: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(rows, tokens, num, head_dim, generator=generator).bfloat16().requires_grad_()
        for num in (heads, groups, groups)
    )
    return q, k, v


def make_starts(rows: int, tokens: int, mean_length: float, seed: int = 0) -> Tensor:
    """Random documents of about `mean_length` tokens, other ones in every row."""
    generator = torch.Generator().manual_seed(seed)
    begins = torch.rand(rows, tokens, generator=generator) < 1.0 / mean_length
    begins[:, 0] = True
    return torch.where(begins, torch.arange(tokens), 0).cummax(dim=1).values.int()


def allowed(starts: Tensor) -> Tensor:
    tokens = torch.arange(starts.shape[1])
    return ((tokens <= tokens[:, None]) & (tokens >= starts[:, :, None]))[:, None]


def reference(q: Tensor, k: Tensor, v: Tensor, starts: Tensor) -> Tensor:
    share = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(share, dim=2), v.repeat_interleave(share, dim=2)
    scores = torch.einsum("bthk,bshk->bhts", q, k) / q.shape[-1] ** 0.5
    shares = scores.masked_fill(~allowed(starts), -torch.inf).softmax(dim=-1)
    return torch.einsum("bhts,bshk->bthk", shares, v)


def sdpa(q: Tensor, k: Tensor, v: Tensor, starts: Tensor) -> Tensor:
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    mask = allowed(starts)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True).transpose(1, 2)


def with_gradients(run: Callable[..., Tensor], inputs: Inputs, starts: Tensor) -> list[Tensor]:
    """[out, dq, dk, dv] for one fixed gradient of the output."""
    out = run(*inputs, starts)
    dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, inputs, dout)]


def in_fp32(inputs: Inputs) -> Inputs:
    q, k, v = (tensor.detach().float().requires_grad_() for tensor in inputs)
    return q, k, v


def assert_as_exact_as_torch(inputs: Inputs, starts: Tensor) -> None:
    exact = with_gradients(reference, in_fp32(inputs), starts)
    ours, torchs = (with_gradients(run, inputs, starts) for run in (attention, sdpa))
    for name, want, got, peer in zip(("out", "dq", "dk", "dv"), exact, ours, torchs, strict=True):
        error, peer_error = ((x.float() - want).norm().item() for x in (got, peer))
        # The floor is for gradients that are zero but for rounding, as those of one-token documents.
        assert error <= 1.5 * peer_error + 1e-6 * want.numel() ** 0.5, (name, error, peer_error)


@pytest.mark.parametrize("head_dim", [32, 64, 96, 128])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (3, 1)])
def test_output_and_gradients_are_as_exact_as_torch(
    kernel: str, head_dim: int, heads: int, groups: int
) -> None:
    assert_as_exact_as_torch(make_inputs(2, 130, heads, groups, head_dim), make_starts(2, 130, 50.0))


@pytest.mark.parametrize("tokens", [1, 2, 15, 63, 64, 65, 128, 200])
def test_any_number_of_tokens_is_right(kernel: str, tokens: int) -> None:
    assert_as_exact_as_torch(make_inputs(2, tokens, 2, 1, 64), torch.zeros(2, tokens, dtype=torch.int32))


@pytest.mark.parametrize("mean_length", [1.0, 3.0, 20.0, 100.0, 1e9])
def test_documents_of_any_length_are_right(kernel: str, mean_length: float) -> None:
    assert_as_exact_as_torch(make_inputs(3, 257, 2, 2, 64), make_starts(3, 257, mean_length))


def test_one_query_block_may_span_documents_that_start_in_different_key_blocks(kernel: str) -> None:
    starts = torch.zeros(1, 256, dtype=torch.int32)
    starts[:, 200:] = 200  # the last block's first queries reach back to key 0, its last ones do not
    assert_as_exact_as_torch(make_inputs(1, 256, 2, 2, 64), starts)


def test_scores_of_any_size_are_right(kernel: str) -> None:
    q, k, v = make_inputs(1, 200, 2, 2, 64)
    inputs = ((q.detach() * 30).requires_grad_(), k, v)
    assert_as_exact_as_torch(inputs, make_starts(1, 200, 90.0))


def test_packed_token_never_sees_another_document(kernel: str) -> None:
    starts = torch.zeros(1, 200, dtype=torch.int32)
    starts[:, 90:] = 90
    q, k, v = make_inputs(1, 200, 2, 2, 64)
    alone = (q[:, 90:].detach(), k[:, 90:].detach(), v[:, 90:].detach())
    packed = with_gradients(attention, (q, k, v), starts)
    other = make_inputs(1, 200, 2, 2, 64, seed=5)
    for ours, theirs in zip((q, k, v), other, strict=True):
        with torch.no_grad():
            ours[:, :90] = theirs[:, :90]
    after = with_gradients(attention, (q, k, v), starts)
    for x, y in zip(packed, after, strict=True):
        assert torch.equal(x[:, 90:], y[:, 90:])
    unpacked = attention(*alone, starts[:, 90:] - 90)
    torch.testing.assert_close(packed[0][:, 90:], unpacked, atol=0.01, rtol=0.01)


def test_token_never_sees_a_later_one(kernel: str) -> None:
    starts = torch.zeros(1, 200, dtype=torch.int32)
    q, k, v = (x.detach() for x in make_inputs(1, 200, 2, 2, 64))
    before = attention(q, k, v, starts)
    for x in (q, k, v):
        x[:, 101:] = 7.0
    assert torch.equal(attention(q, k, v, starts)[:, :101], before[:, :101])


def test_views_of_one_fused_tensor_give_the_same_bits_as_copies(kernel: str) -> None:
    fused = torch.randn(2, 100, 4 + 2 + 2, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    starts = make_starts(2, 100, 30.0)
    views = [x.requires_grad_() for x in fused.split([4, 2, 2], dim=2)]
    copies = [x.detach().contiguous().requires_grad_() for x in views]
    heads_first = [x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in views]
    want = with_gradients(attention, tuple(copies), starts)
    assert want[0].is_contiguous()
    for strided in (views, heads_first):
        assert all(map(torch.equal, with_gradients(attention, tuple(strided), starts), want))


@pytest.mark.parametrize("shape", ["expanded", "transposed"])
def test_gradient_of_any_strides_is_accepted(shape: str) -> None:
    inputs, starts = make_inputs(1, 70, 2, 2, 64), make_starts(1, 70, 30.0)
    out = attention(*inputs, starts)
    dout = torch.ones(()).bfloat16().expand(out.shape)
    if shape == "transposed":
        dout = torch.ones(64, 2, 70, 1).bfloat16().permute(3, 2, 1, 0)
    want = torch.autograd.grad(out, inputs, torch.ones_like(out), retain_graph=True)
    assert all(map(torch.equal, torch.autograd.grad(out, inputs, dout), want))


def test_results_are_the_same_bits_in_every_run_and_with_any_number_of_threads() -> None:
    inputs, starts = make_inputs(3, 300, 4, 2, 64), make_starts(3, 300, 70.0)
    threads = torch.get_num_threads()
    want = with_gradients(attention, inputs, starts)
    try:
        for num_threads in (1, 2, 3, threads, threads):
            torch.set_num_threads(num_threads)
            assert all(map(torch.equal, with_gradients(attention, inputs, starts), want)), num_threads
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_nan_of_the_inputs_reaches_all_that_depends_on_it(kernel: str, which: int) -> None:
    inputs, starts = make_inputs(1, 100, 1, 1, 64), torch.zeros(1, 100, dtype=torch.int32)
    with torch.no_grad():
        inputs[which][0, 50, 0, 3] = torch.nan
    results = with_gradients(attention, inputs, starts)
    dependent = results if which < 2 else results[:3]  # dv = Pᵀ dout does not depend on v
    assert all(result.isnan().any() for result in dependent)


# The warning is torch's own, at its first import of inductor.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_compiled_model_has_the_kernel_inside_one_graph() -> None:
    def layer(fused: Tensor, starts: Tensor) -> Tensor:
        assert attention_cpu.available() is None
        q, k, v = fused.split([4, 2, 2], dim=2)
        return attention(q * 2, k, v, starts).sin()

    fused = torch.randn(2, 100, 8, 64, generator=torch.Generator().manual_seed(1)).bfloat16().requires_grad_()
    starts = make_starts(2, 100, 30.0)
    got, want = torch.compile(layer, fullgraph=True)(fused, starts), layer(fused, starts)
    torch.testing.assert_close(got, want)
    (gradient,) = torch.autograd.grad(got.float().sum(), fused)
    (wanted,) = torch.autograd.grad(want.float().sum(), fused)
    torch.testing.assert_close(gradient, wanted)


def test_operators_keep_the_contract_of_torch_library() -> None:
    inputs, starts = make_inputs(2, 70, 4, 2, 32), make_starts(2, 70, 30.0)
    torch.library.opcheck(torch.ops.bessemer.attention_forward.default, (*inputs, starts))


def test_unsupported_head_dim_is_said_beforehand() -> None:
    assert [d for d in range(1, 200) if attention_cpu.supported(d)] == [32, 64, 96, 128]


def test_importing_the_module_neither_builds_nor_loads(tmp_path: Path) -> None:
    code = (
        "import bessemer.model.attention_cpu as a; maps = open('/proc/self/maps').read();"
        "assert 'attention_' not in maps and not a.load.cache_info().currsize"
    )
    environment = {"XDG_CACHE_HOME": str(tmp_path), "PATH": ""}
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, env=environment)
    assert not list(tmp_path.iterdir())


def test_process_has_one_openmp_library() -> None:
    attention_cpu.load()
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    assert len([path for path in mapped if "libgomp" in path or "libiomp" in path]) == 1, mapped


def test_builders_at_the_same_time_both_get_a_whole_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with ThreadPoolExecutor(2) as pool:
        paths = {future.result() for future in [pool.submit(attention_cpu.build, "avx512") for _ in range(2)]}
    (path,) = paths
    attention_cpu._open(path)
    assert [file.name for file in path.parent.iterdir()] == ["attention_avx512.so"]


def test_missing_or_failing_compiler_is_a_reason_not_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for compiler, reason in (("no-such-compiler", "no C\\+\\+ compiler"), ("false", "failed")):
        monkeypatch.setenv("CXX", compiler)
        with pytest.raises(attention_cpu.Unusable, match=reason):
            attention_cpu.build("avx512")
