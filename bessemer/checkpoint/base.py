"""What a stage of adapters stands on: the weights that it began with, which its checkpoints do not hold.

A base is a checkpoint of another stage, or a Hugging Face folder. Its hash is taken once, when the stage
begins, kept in stage.json and compared before each use: adapters on other weights than their own would give
nonsense, silently. So is a model that is asked about answers: GRPO's reference, a teacher.
Of a checkpoint the manifest is hashed, which holds the hashes of its files; of a Hugging Face folder config
and files with weights, read at the speed of the disk (xxh3 is faster) and in memory then, when they are
loaded. A base may be a stage of adapters itself: then they are merged while it is read.
Memory of a merge: one tensor.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from bessemer.checkpoint.folder import MANIFEST, verify
from bessemer.checkpoint.grown import GROWN, grown
from bessemer.checkpoint.huggingface import load_into, read_shape, weight_files, weight_reader
from bessemer.checkpoint.tensors import CheckpointTensors
from bessemer.checkpoint.weights import load_weights
from bessemer.errors import CheckpointError, DataError
from bessemer.formulas.adapters import MAGNITUDE, is_adapted
from bessemer.formulas.huggingface.keys import config_path
from bessemer.formulas.shape import CLASS_HEAD, Adapter, ModelShape
from bessemer.formulas.tensors import tensor_table
from bessemer.model.frozen import FrozenPart, row_norms
from bessemer.model.packed import places
from bessemer.model.pieces import Pieces
from bessemer.rundir import read_object

_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True)
class Base:
    """`stage`: whose base it is. The rest as in its origin, in stage.json."""

    stage: Path
    kind: str  # "checkpoint" or "huggingface"
    folder: Path  # of a stage, or of the Hugging Face model
    checkpoint: Path | None = None
    hash: str | None = None  # None: it has not begun yet
    use: str = "has adapters for"  # what the stage does with it, as errors say it: "asks"

    @staticmethod
    def of(stage: Path, origin: Mapping[str, Any] | None, use: str = "has adapters for") -> "Base":
        assert origin is not None, f"{stage} {use} random weights"
        checkpoint = origin.get("checkpoint")
        return Base(
            stage,
            origin["kind"],
            Path(origin["folder"]),
            None if checkpoint is None else Path(checkpoint),
            origin.get("hash"),
            use,
        )

    @property
    def path(self) -> Path:
        return self.folder if self.checkpoint is None else self.checkpoint

    @property
    def info(self) -> dict[str, Any]:
        """stage.json of a checkpoint's stage."""
        return read_object(self.folder / "stage.json") or {}

    def shape(self) -> ModelShape:
        if self.kind == "huggingface":
            return read_shape(self.folder)
        return ModelShape.from_json(self.info["shape"])


def base_hash(base: Base) -> str:
    """Of its content. CheckpointError where it is not there any more, or damaged."""
    digest = xxhash.xxh3_128()
    try:
        for path in _hashed_files(base):
            digest.update(path.name.encode())
            with open(path, "rb") as file:
                while block := file.read(_BLOCK_BYTES):
                    digest.update(block)
        if base.checkpoint is not None:
            verify(base.checkpoint)
    except (OSError, DataError) as error:
        raise CheckpointError(
            f"the model that {base.stage} {base.use} cannot be read",
            found=f"{base.path}: {getattr(error, 'strerror', None) or error}",
            wanted="the weights that this stage began with: its own checkpoints do not hold them",
            fix="put them back where they were",
        ) from error
    return digest.hexdigest()


def check_base(base: Base) -> None:
    """CheckpointError unless it is what the stage began with, and so on down to what that one began with."""
    found = base_hash(base)
    if base.hash is not None and found != base.hash:
        raise CheckpointError(
            f"{base.stage} {base.use} another model",
            found=f"{base.path} with hash {found}",
            wanted=f"{base.hash}, which this stage began with",
            fix="put the weights back as they were, or begin a new run with --run DIR",
        )
    if base.checkpoint is not None and base.shape().adapter is not None:
        check_base(Base.of(base.folder, base.info.get("origin")))


def load_base(
    model: nn.Module, base: Base, shape: ModelShape, pieces: Pieces, new_tokens: Sequence[int] = ()
) -> None:
    """Copy the base, which was checked, into a model whose memory is there: what this process holds of it.

    Where a head of classes is among the pieces, it keeps its values unless the base has the same.
    new_tokens: numbers of those that the model has beside the base's (checkpoint/grown.py).
    """
    if base.checkpoint is None:
        load_into(model, base.folder, replace(shape, adapter=None), pieces, new_tokens)
    elif base.shape().adapter is None:
        other_head = shape.labels > 0
        load_weights(model, base.checkpoint, pieces, other_head=other_head, new_tokens=new_tokens)
    else:
        merged = merged_weights(base.folder, base.checkpoint)
        if new_tokens:
            merged = (
                (name, grown(each, shape.vocab, new_tokens) if name in GROWN else each)
                for name, each in merged
            )
        _place(model, pieces, merged)


def merged_weights(stage: Path, checkpoint: Path) -> Iterator[tuple[str, Tensor]]:
    """Every weight of a stage's checkpoint, whole, with its adapters merged into them.

    In fp32 where something was merged, in the order of the tensor table.
    """
    shape = Base(stage, "checkpoint", stage).shape()
    with merged_reader(stage, checkpoint) as read:
        for spec in tensor_table(replace(shape, adapter=None)):
            yield spec.name, read(spec.name)


@contextmanager
def merged_reader(stage: Path, checkpoint: Path) -> Iterator[Callable[[str], Tensor]]:
    """The same, each by its name."""
    info = read_object(stage / "stage.json") or {}
    adapter = ModelShape.from_json(info["shape"]).adapter
    with CheckpointTensors(checkpoint, "model") as own, ExitStack() as stack:
        if adapter is None:
            yield own.read
            return
        base, names = Base.of(stage, info.get("origin")), set(own.names)
        of_base = (
            weight_reader(base.folder, base.shape())
            if base.checkpoint is None
            else stack.enter_context(merged_reader(base.folder, base.checkpoint))
        )

        def read(name: str) -> Tensor:
            if name in names:  # such as a head of classes
                return own.read(name)
            weight = of_base(name)
            return merged(name, weight, own, adapter) if is_adapted(name, adapter) else weight

        yield read


@torch.no_grad()
def merged(name: str, weight: Tensor, own: CheckpointTensors, adapter: Adapter) -> Tensor:
    """fp32: W + scale B A; with magnitudes, its rows scaled to them."""
    room, weight = name.removesuffix("weight"), weight.float()
    down, up = (own.read(f"{room}lora_{letter}.weight").float() for letter in "AB")
    whole = weight + adapter.scale * (up @ down)
    if not adapter.dora:
        return whole
    magnitude = own.read(room + MAGNITUDE).float()
    part = FrozenPart(weight, None, down, up, adapter.scale, magnitude, _alone)
    return whole * (magnitude / row_norms(part, torch.float32)).unsqueeze(1)


def _place(model: nn.Module, pieces: Pieces, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Cut what is held here out of whole tensors. A head of other classes is not taken over."""
    here = places(model, pieces)
    with torch.no_grad():
        for name, tensor in weights:
            for place in here.get(name, []):
                if name != CLASS_HEAD or place.piece.shape == tuple(tensor.shape):
                    place.take_from(tensor)


def _hashed_files(base: Base) -> list[Path]:
    if base.checkpoint is not None:
        return [base.checkpoint / MANIFEST]
    return [config_path(base.folder), *weight_files(base.folder)]


def _alone(values: Tensor) -> Tensor:
    return values
