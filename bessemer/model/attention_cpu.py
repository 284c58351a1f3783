"""Causal attention inside documents on CPUs: builds, loads and registers `attention_cpu.cpp`.

torch's own `scaled_dot_product_attention` spends a large part of a small model's training step on the CPU,
its backward above all. The kernel keeps its blocks in the caches and skips key blocks of other documents.
The algorithm is told at the head of the .cpp file, which has three instruction sets: "amx" (bf16 tiles) where
the CPU has them, "pairs" (vdpbf16ps) on AMD, else "avx512" (fp32 multiply-adds; AVX512_BF16 to convert).

The kernel is compiled at first use by the system's C++ compiler (about 2 s) into the user's cache
folder, under a name made of all that decides its content. `available()` says why it cannot be used.
To `torch.compile` it is one opaque operator, `torch.ops.bessemer.attention_forward`, with its gradient.

Threads: it is linked to the very OpenMP library that torch has loaded, so that one pool of threads
serves both; two pools would spin against each other for the same cores.
Dims: B rows, T tokens, H query heads, G key-value heads, K head_dim.
"""

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from bessemer.hardware import cache_folder

Instructions = Literal["amx", "pairs", "avx512"]

_HEAD_DIMS = (32, 64, 96, 128)
_SOURCE = Path(__file__).with_suffix(".cpp")
_CPU_FLAGS = {
    "avx512": ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16"),
    "amx": ("amx_tile", "amx_bf16"),  # in addition
}
_COMPILE = ["-std=c++17", "-O3", "-fPIC", "-fopenmp", "-fvisibility=hidden"]
_COMPILE += ["-mfma", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16"]
_COMPILE_FOR: dict[Instructions, list[str]] = {
    "amx": ["-DBESSEMER_AMX", "-mamx-tile", "-mamx-bf16"],
    "pairs": ["-DBESSEMER_PAIRS"],
    "avx512": [],
}


class Unusable(Exception):
    """Why this machine cannot build or run the kernel. Not an error of the user: there is another way."""


def supported(head_dim: int) -> bool:
    return head_dim in _HEAD_DIMS


@torch.compiler.assume_constant_result
def available() -> str | None:
    """None if the kernel runs here, or the reason why not. The first call may build it."""
    try:
        load()
    except Unusable as reason:
        return str(reason)
    return None


def attention(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, starts_BT: Tensor) -> Tensor:
    """softmax(q kᵀ / sqrt(K)) v over the keys starts[t] ≤ j ≤ t -> [B, T, H, K], contiguous.

    All bf16, with any strides as long as K is contiguous; H a multiple of G; starts int32, in each row
    non-decreasing: the index of the first token of each token's document. Accumulates in fp32. The
    result is the same bit for bit in every run and with any number of threads. At most B * G threads
    have work.
    """
    return torch.ops.bessemer.attention_forward(q_BTHK, k_BTGK, v_BTGK, starts_BT)[0]


# The operators. Declared at import, which costs nothing; the library is loaded when one first runs.

_operators = torch.library.Library("bessemer", "FRAGMENT")
_operators.define("attention_forward(Tensor q, Tensor k, Tensor v, Tensor starts) -> (Tensor, Tensor)")
_operators.define(
    "attention_backward(Tensor q, Tensor k, Tensor v, Tensor starts, Tensor out, Tensor lse, Tensor dout)"
    " -> (Tensor, Tensor, Tensor)"
)


def _forward(q: Tensor, k: Tensor, v: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    out, lse = _forward_shapes(q, k, v, starts)
    starts = starts.contiguous()
    load().bessemer_attention_forward(_call(starts, lse, (q, k, v, out)))
    return out, lse


def _backward(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, out: Tensor, lse: Tensor, dout: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = _backward_shapes(q, k, v, starts, out, lse, dout)
    starts = starts.contiguous()
    dout = dout if dout.stride(-1) == 1 else dout.contiguous()
    load().bessemer_attention_backward(_call(starts, lse, (q, k, v, out, dout, dq, dk, dv)))
    return dq, dk, dv


def _forward_shapes(q: Tensor, k: Tensor, v: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    rows, tokens, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((rows, heads, tokens), dtype=torch.float32)


def _backward_shapes(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, out: Tensor, lse: Tensor, dout: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, dout: Tensor | None, _dlse: Tensor | None) -> tuple[Tensor | None, ...]:
    if dout is None:
        return None, None, None, None
    return *torch.ops.bessemer.attention_backward(*ctx.saved_tensors, dout), None


_operators.impl("attention_forward", _forward, "CPU")
_operators.impl("attention_backward", _backward, "CPU")
torch.library.register_fake("bessemer::attention_forward", _forward_shapes, lib=_operators)
torch.library.register_fake("bessemer::attention_backward", _backward_shapes, lib=_operators)
torch.library.register_autograd("bessemer::attention_forward", _gradient, setup_context=_save, lib=_operators)


# The C interface.


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("row_stride", ctypes.c_int64),
        ("token_stride", ctypes.c_int64),
        ("head_stride", ctypes.c_int64),
    )


_TENSORS = ("q", "k", "v", "out", "dout", "dq", "dk", "dv")
_COUNTS = ("num_rows", "num_tokens", "num_heads", "num_groups", "head_dim")


class _Call(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in _COUNTS),
        ("starts_BT", ctypes.c_void_p),
        ("lse_BHT", ctypes.c_void_p),
        *((name, _Tensor) for name in _TENSORS),
    )


def _call(starts: Tensor, lse: Tensor, tensors: tuple[Tensor, ...]) -> Any:
    """Pointers and strides for C. The caller keeps all tensors alive until the call is over."""
    q, k, v = tensors[:3]
    rows, tokens, heads, head_dim = q.shape
    groups = k.shape[2]
    # The kernel trusts these with raw pointers, so nothing wrong may get past here.
    assert supported(head_dim), f"head_dim {head_dim} is not in {_HEAD_DIMS}"
    assert k.shape == v.shape == (rows, tokens, groups, head_dim), (q.shape, k.shape, v.shape)
    assert groups > 0 and heads % groups == 0, f"{heads} query heads do not share {groups} key-value heads"
    assert starts.shape == (rows, tokens) and starts.dtype == torch.int32, (starts.shape, starts.dtype)
    for tensor in tensors:
        assert tensor.dtype == torch.bfloat16, tensor.dtype
        assert tensor.stride(-1) == 1, f"head_dim must be contiguous, strides are {tensor.stride()}"
    views = (_Tensor(tensor.data_ptr(), *tensor.stride()[:3]) for tensor in tensors)
    return ctypes.byref(
        _Call(rows, tokens, heads, groups, head_dim, starts.data_ptr(), lse.data_ptr(), *views)
    )


# Building and loading.


@cache
def load() -> ctypes.CDLL:
    """The library, built if its file is not in the cache folder. Raises Unusable."""
    library = _open(build(_instructions()))
    error = library.bessemer_attention_prepare()
    if error:
        raise Unusable(f"the operating system refuses AMX tiles: {os.strerror(error)}")
    return library


def build(instructions: Instructions, extra_flags: Sequence[str] = ()) -> Path:
    """Path of the shared library; compiled unless the cache folder has it."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise Unusable("there is no C++ compiler: neither $CXX nor g++ is on PATH")
    openmp = _openmp_library()
    flags = [*_COMPILE, *_COMPILE_FOR[instructions], *extra_flags]
    version = _run([compiler, "--version"])
    key = "\n".join([_SOURCE.read_text(encoding="utf-8"), *flags, version, str(openmp)])
    folder = cache_folder() / hashlib.sha256(key.encode()).hexdigest()[:16]
    library = folder / f"attention_{instructions}.so"
    if not library.exists():
        _compile(compiler, flags, openmp, library)
    return library


def _compile(compiler: str, flags: Sequence[str], openmp: Path, library: Path) -> None:
    """Compile beside `library`, then rename: whoever builds at the same time sees a whole file or none."""
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as building:
            compiled, linked = Path(building) / "kernel.o", Path(building) / "kernel.so"
            _run([compiler, *flags, "-c", str(_SOURCE), "-o", str(compiled)])
            # Without -fopenmp, which would add the compiler's own OpenMP library beside torch's.
            # All symbols must be found now (clang calls another OpenMP library's), not at the first call.
            link = ["-shared", "-Wl,--no-undefined", str(compiled), str(openmp), "-lm", "-o", str(linked)]
            _run([compiler, *link])
            os.replace(linked, library)
    except OSError as error:
        raise Unusable(f"cannot write {library}: {error.strerror}") from error


def _open(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise Unusable(f"cannot load {path}: {error}") from error
    for function in (library.bessemer_attention_forward, library.bessemer_attention_backward):
        function.argtypes, function.restype = (ctypes.POINTER(_Call),), None
    return library


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unusable(f"`{' '.join(command)}` failed:\n{done.stderr[-2000:]}")
    return done.stdout


def _instructions() -> Instructions:
    try:
        found = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text(encoding="utf-8")))
    except OSError as error:
        raise Unusable("there is no /proc/cpuinfo to read the CPU's instructions from") from error
    missing = [flag for flag in _CPU_FLAGS["avx512"] if flag not in found]
    if missing:
        raise Unusable(f"the CPU has no {', '.join(missing)}")
    if found.issuperset(_CPU_FLAGS["amx"]):
        return "amx"
    return "pairs" if "AuthenticAMD" in found else "avx512"


def _openmp_library() -> Path:
    """The OpenMP library that torch has loaded into this process (GNU's, Intel's or LLVM's)."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    found = re.findall(r"(/.*/lib(?:gomp|iomp5|omp)[-.\w]*\.so\S*)$", maps, re.MULTILINE)
    if not found:
        raise Unusable("torch has loaded no OpenMP library that the kernel could share")
    return Path(found[0])
