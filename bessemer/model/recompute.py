"""Activations that are made again in the backward pass instead of being kept.

    none       everything is kept
    selective  matmul results and what other ranks sent are kept; attention, norms, rotary and SwiGLU's
               product, which are cheap or large, are made again (arXiv:2205.05198)
    full       only a block's input is kept

`recompute_layers` limits it to the first so many blocks, which is how a memory budget is met.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

_KEPT = (
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._grouped_mm.default,
)
_KEPT_NAMESPACES = ("_c10d_functional",)  # traffic costs more than memory; FSDP's own is not part of it
# Gives what it is given, once that is there: kept already. Where nothing is sent it would be a copy.
_WAIT = torch.ops._c10d_functional.wait_tensor.default


def run_block(block: nn.Module, recompute: str, *args: Any) -> Tensor:
    """The block's output; with gradients, kept as `recompute` says."""
    if recompute == "none" or not torch.is_grad_enabled():
        return block(*args)
    return checkpoint(block, *args, use_reentrant=False, context_fn=_contexts(block, recompute))


Contexts = tuple[AbstractContextManager[Any], AbstractContextManager[Any]]


def _contexts(block: nn.Module, recompute: str) -> Callable[[], Contexts]:
    def contexts() -> Contexts:
        first: AbstractContextManager[Any] = nullcontext()
        if recompute == "full":
            return first, _set(block, "recomputing")
        first, cached = create_selective_checkpoint_contexts(_policy)
        return first, _all(cached, _set(block, "recomputing"), _set(block, "remembered"))

    return contexts


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = operator in _KEPT or (operator.namespace in _KEPT_NAMESPACES and operator is not _WAIT)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


@contextmanager
def _set(block: nn.Module, flag: str) -> Iterator[None]:
    """Tells the modules that have the flag: `recomputing`, what they see was counted before; `remembered`,
    what their matmuls give is kept."""
    told = [module for module in block.modules() if hasattr(module, flag)]
    for module in told:
        setattr(module, flag, True)
    try:
        yield
    finally:
        for module in told:
            setattr(module, flag, False)


@contextmanager
def _all(*contexts: AbstractContextManager[Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield
