"""Weights of a Hugging Face folder, read one tensor at a time, checked before any reaches a model.

Reads `model.safetensors`, or the shards that `model.safetensors.index.json` lists; pickled weights
(`pytorch_model.bin`) are refused, as pickle can run code. Names and shapes come from the files'
headers, so a folder that does not fit is refused after reading kilobytes. fp32, bf16 and fp16 widen
to our fp32 parameters exactly, so loading never changes a weight. Memory: one tensor.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from bessemer.checkpoint.grown import EMBEDDING, GROWN, grown
from bessemer.errors import DataError, RecipeError
from bessemer.formulas.huggingface.config import shape_from_config
from bessemer.formulas.huggingface.keys import check_heads, config_path, read_json
from bessemer.formulas.shape import CLASS_HEAD, HEADS, WORD_HEAD, ModelShape
from bessemer.formulas.stored import stored_table
from bessemer.model.packed import places
from bessemer.model.pieces import Pieces, whole_pieces

if TYPE_CHECKING:  # importing it takes 1.4 s more than torch alone, and `bessemer plan` only reads a shape
    from bessemer.model.decoder import Decoder

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_EXACT_TYPES = {"F32", "BF16", "F16"}  # those that fp32 holds without rounding
_DEFAULT_CONTEXT = 1024  # that of a recipe; Llama 3 allows 131,072 positions, and few can train on such rows


@dataclass(frozen=True)
class _Stored:
    file: Path
    shape: tuple[int, ...]
    dtype: str


def read_shape(folder: Path, *, context: int | None = None) -> ModelShape:
    """The shape of a Hugging Face folder, or of a `config.json` itself.

    context: tokens in a training row; None: 1024, or all positions where the model has fewer.
    """
    shape = shape_from_config(read_json(config_path(folder)), context=context)
    check_heads(shape.heads, shape.kv_heads)
    return shape if context is not None else replace(shape, context=min(_DEFAULT_CONTEXT, shape.context))


def read_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the folder under its own name, in its stored type, file by file."""
    inventory = _inventory(folder)
    for file in dict.fromkeys(entry.file for entry in inventory.values()):
        with safe_open(file, framework="pt") as tensors:
            for name in (name for name, entry in inventory.items() if entry.file == file):
                yield name, tensors.get_tensor(name)


def read_parts(folder: Path, shape: ModelShape) -> Iterator[tuple[str, Tensor]]:
    """The same under the names of our tensor table: what is stored joined is cut."""
    joined = {each.name: each for each in stored_table(shape) if len(each.parts) > 1}
    for name, tensor in read_weights(folder):
        if name not in joined:
            yield name, tensor
            continue
        for part, rows in joined[name].rows():
            yield part.name, tensor[rows]


def weight_reader(folder: Path, shape: ModelShape) -> Callable[[str], Tensor]:
    """Each tensor of our table by its name, in its stored type. All are checked before the first is read."""
    inventory = check_weights(folder, shape)
    stored = {part.name: (each.name, rows) for each in stored_table(shape) for part, rows in each.rows()}

    def read(name: str) -> Tensor:
        whole, rows = stored[name]
        return _read(inventory, whole)[rows]

    return read


def load_into(
    model: nn.Module,
    folder: Path,
    shape: ModelShape | None = None,
    pieces: Pieces | None = None,
    new_tokens: Sequence[int] = (),
) -> None:
    """Copy the folder's weights into a model, or into the parts that a rank holds of it.

    All are checked before the first is copied. shape: None: that of the model, a Decoder.
    pieces: of a rank; None: the whole model. A head of classes that the folder has not keeps its values.
    new_tokens: numbers of those that the model has beside the folder's (checkpoint/grown.py).
    """
    shape = shape or cast("Decoder", model).shape
    words = shape.vocab
    if new_tokens:
        shape = replace(shape, vocab=read_shape(folder).vocab)
    inventory = check_weights(folder, shape)
    here = places(model, whole_pieces(model) if pieces is None else pieces)
    if _has_new_head(inventory, shape):
        here.pop(CLASS_HEAD, None)
    with torch.no_grad():
        for name, stored in read_parts(folder, shape):
            tensor = grown(stored, words, new_tokens) if new_tokens and name in GROWN else stored
            for place in here.get(name, []):
                place.take_from(tensor)


def check_weights(folder: Path, shape: ModelShape) -> dict[str, _Stored]:
    """Raise DataError unless the folder holds exactly the tensors of this shape; what it holds.

    Where the shape has a head of classes, the folder may have another one, or one of words.
    """
    inventory = _inventory(folder)
    expected = {each.name: each.shape for each in stored_table(shape)}
    if _has_new_head(inventory, shape):
        del expected[CLASS_HEAD]
    missing = [name for name in expected if name not in inventory]
    extra = [name for name in inventory if name not in expected and not _redundant(name, inventory, shape)]
    if missing or extra:
        raise _unfit(folder, f"missing: {_names(missing)}; not part of this model: {_names(extra)}")
    for name, size in expected.items():
        if inventory[name].shape != size:
            raise _unfit(folder, f"{name} of shape {list(inventory[name].shape)} instead of {list(size)}")
        if inventory[name].dtype not in _EXACT_TYPES:
            raise _unfit(folder, f"{name} of type {inventory[name].dtype}, which fp32 cannot hold exactly")
    return inventory


def _has_new_head(inventory: dict[str, _Stored], shape: ModelShape) -> bool:
    """Whether the shape's head of classes is none that the folder has."""
    found = inventory.get(CLASS_HEAD)
    return shape.labels > 0 and (found is None or found.shape != (shape.labels, shape.hidden))


def _inventory(folder: Path) -> dict[str, _Stored]:
    """Name -> where it lies and what it is, from the headers alone."""
    found: dict[str, _Stored] = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a dict)
                    piece = tensors.get_slice(name)
                    found[name] = _Stored(file, tuple(piece.get_shape()), piece.get_dtype())
        except (SafetensorError, OSError) as error:
            raise DataError(
                f"cannot read the weights in {file}",
                found=str(error),
                wanted="a whole safetensors file",
                fix="fetch this file again; its size or content is not what its header says",
            ) from error
    return found


def weight_files(folder: Path) -> list[Path]:
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    if (folder / _INDEX).is_file():
        names = sorted(set(read_json(folder / _INDEX)["weight_map"].values()))
        # Only names, never paths: an index must not lead out of its folder.
        return [folder / Path(name).name for name in names]
    pickled = sorted(file.name for file in folder.glob("*.bin"))
    raise RecipeError(
        f"no weights that can be read in {folder}",
        found=f"{', '.join(pickled)}: pickled, and loading a pickle can run any code in it"
        if pickled
        else "neither of the two files" if folder.is_dir() else "no such folder",
        wanted=f"{_SINGLE} or {_INDEX}",
        fix="convert it once with transformers: AutoModelForCausalLM.from_pretrained(…).save_pretrained(…)",
    )  # fmt: skip


def _redundant(name: str, inventory: dict[str, _Stored], shape: ModelShape) -> bool:
    """Tensors beyond the table that change nothing: old rotary tables, a copy of a tied embedding."""
    if name.endswith("rotary_emb.inv_freq") or (shape.labels and name in HEADS):
        return True
    if name != WORD_HEAD or not shape.tie_embeddings or EMBEDDING not in inventory:
        return False
    return torch.equal(_read(inventory, WORD_HEAD), _read(inventory, EMBEDDING))


def _read(inventory: dict[str, _Stored], name: str) -> Tensor:
    with safe_open(inventory[name].file, framework="pt") as tensors:
        return tensors.get_tensor(name)


def _names(names: list[str]) -> str:
    shown = ", ".join(names[:5]) or "none"
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown


def _unfit(folder: Path, found: str) -> DataError:
    return DataError(
        f"the weights in {folder} do not fit its config.json",
        found=found,
        wanted="exactly the tensors that the config describes",
        fix="fetch the folder again, or correct config.json (tie_word_embeddings is often the cause)",
    )
