"""What a rank sends while a piece of code runs, and the memory its tensors take: seen by watching operators.

Both watch every operator that the code calls (TorchDispatchMode), in the backward pass too: autograd runs it
in the calling thread on CPUs, and hands the watchers on to its own threads on accelerators. They cost about
10 µs an operator, work on fake tensors as on real ones, and change nothing of what is computed.

    kind            bytes (logical: what the exchange is about)    really sent by each of n ranks of a ring
    all_gather      the gathered output                            (n - 1) / n of it
    reduce_scatter  the input                                      (n - 1) / n of it
    all_reduce      the tensor                                     2 (n - 1) / n of it
    all_to_all      the input                                      (n - 1) / n of it, were it even
    send            the tensor                                     all of it

Receiving is not counted, as another rank sends. Exchanges in a group of one rank are not counted.
"""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import _resolve_process_group  # type: ignore[attr-defined]
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from bessemer.formulas.traffic.step import Collective, add
from bessemer.model.pieces import local

# By operator: the kind, and which argument has the logical bytes (-1: the result).
_EXCHANGES = {
    "c10d::_allgather_base_": ("all_gather", 0),
    "c10d::_reduce_scatter_base_": ("reduce_scatter", 1),
    "c10d::allreduce_": ("all_reduce", 0),
    "c10d::alltoall_base_": ("all_to_all", 1),
    "c10d::send": ("send", 0),
    "_c10d_functional::all_gather_into_tensor": ("all_gather", -1),
    "_c10d_functional::reduce_scatter_tensor": ("reduce_scatter", 0),
    "_c10d_functional::all_reduce": ("all_reduce", 0),
    "_c10d_functional::all_to_all_single": ("all_to_all", 0),
}
_SILENT = {
    "c10d::recv_",
    "c10d::barrier",
    "c10d::monitored_barrier_",
    "_c10d_functional::wait_tensor",
    "_c10d_functional::_wrap_tensor_autograd",
}


class Traffic(TorchDispatchMode):
    """Counts this rank's exchanges while it is entered: `by_kind`."""

    def __init__(self) -> None:
        super().__init__()
        self.by_kind: dict[str, Collective] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace in ("c10d", "_c10d_functional"):
            self._note(func._schema.name, args, result)
        return result

    def _note(self, name: str, args: Any, result: Any) -> None:
        if name in _SILENT:
            return
        assert name in _EXCHANGES, f"{name} is an exchange that nobody counts yet"
        kind, place = _EXCHANGES[name]
        payload = sum(each.nbytes for each in _tensors(result if place < 0 else args[place]))
        ranks = _group(args).size()
        if ranks > 1:
            add(self.by_kind, kind, Collective.of(kind, payload, ranks))


class TensorMemory(TorchDispatchMode):
    """Bytes of tensor storages alive while it is entered: `peak`, and `now`.

    Counted are storages of what is given (modules, their gradients, optimizers) and all that operators make,
    each once and as long as it lives. Not counted: what a kernel or a collective takes for itself.
    """

    def __init__(self, *owners: nn.Module | torch.optim.Optimizer) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}  # by id of the storage
        self._alive: dict[int, Any] = {}
        for tensor in _owned(owners):
            self._hold(tensor)

    def __enter__(self) -> "TensorMemory":
        resize = self._resize = torch.UntypedStorage.resize_

        def noted(storage: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
            resized = resize(storage, size)
            if id(storage) in self._sizes:
                self._set_size(id(storage), size)
            return resized

        # No operator, and so invisible to a mode: how FSDP frees gathered weights, and takes them anew.
        torch.UntypedStorage.resize_ = noted  # type: ignore[assignment, method-assign]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._hold(tensor)
        return result

    def _hold(self, tensor: Tensor) -> None:
        storage = local(tensor).untyped_storage()
        number = id(storage)
        if number not in self._sizes:
            self._sizes[number] = 0
            self._alive[number] = weakref.ref(storage, lambda _: self._drop(number))
        self._set_size(number, storage.nbytes())

    def _set_size(self, number: int, size: int) -> None:
        self.now += size - self._sizes[number]
        self._sizes[number] = size
        self.peak = max(self.peak, self.now)

    def _drop(self, number: int) -> None:
        self._set_size(number, 0)
        del self._sizes[number], self._alive[number]


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_iter(values) if isinstance(value, Tensor)]


def _group(args: Any) -> dist.ProcessGroup:
    """Of an exchange: an argument as the operator got it, or by its name, the last one."""
    for value in args:
        if isinstance(value, torch.ScriptObject):
            return dist.ProcessGroup.unbox(value)
    last = args[-1]
    return last if isinstance(last, dist.ProcessGroup) else _resolve_process_group(last)


def _owned(owners: Iterable[nn.Module | torch.optim.Optimizer]) -> Iterable[Tensor]:
    for owner in owners:
        if isinstance(owner, nn.Module):
            weights = list(owner.parameters())
            yield from weights
            yield from owner.buffers()
            yield from (weight.grad for weight in weights if weight.grad is not None)
        else:
            yield from _tensors([*owner.state.values()])
