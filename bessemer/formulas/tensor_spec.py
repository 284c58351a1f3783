"""One line of the table of tensors (formulas/tensors.py)."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class TensorSpec:
    """One weight. `tensor_dim`: the dim that the tensor axis splits, None: replicated."""

    name: str
    shape: tuple[int, ...]
    init_std: float | None  # None: ones (a norm); 0.0: zeros
    decay: bool  # weight decay applies: matrices yes, vectors no
    tensor_dim: int | None = None
    expert: int | None = None  # index of the routed expert that it belongs to
    trained: bool = True  # False: a state that is stored with the weights but has no gradient

    @property
    def numel(self) -> int:
        return math.prod(self.shape)
