"""Tokens that a task adds to a model (`finetune.add_tokens`): their numbers, and the rows that they need."""

from dataclasses import replace
from pathlib import Path

from bessemer.data.prepared import PreparedTask
from bessemer.data.tokens import added
from bessemer.data.tokens.tokenizer import load
from bessemer.errors import RecipeError
from bessemer.formulas.scaling.sizing import pad_vocab
from bessemer.formulas.shape import ModelShape
from bessemer.rundir import read_object


def new_tokens(tokenizer: Path, data: PreparedTask, stage: Path) -> tuple[int, ...]:
    """Numbers of the tokens that the data has and the model's tokenizer has not.

    stage: where it has begun, its own tokenizer has them already, and its stage.json says which they are.
    """
    own = read_object(stage / "stage.json")
    if own is not None:
        return tuple(own.get("new_tokens") or ())
    return added.new_tokens(load(tokenizer), load(data.tokenizer_path))


def with_rows(shape: ModelShape, words: int, new: tuple[int, ...]) -> ModelShape:
    """The shape with rows for them, where its padding is not enough. RecipeError where they cannot learn."""
    if shape.adapter is not None:
        raise RecipeError(
            "finetune.add_tokens would add tokens that never learn",
            found=f"{len(new)} new tokens, and adapters: embedding and head are frozen, so that all of them "
            "would stay alike",
            wanted="tokens that the model has already, or training of all weights",
            fix="remove finetune.add_tokens and choose another finetune.data.template, or set "
            'finetune.adapter = "none"',
        )
    return replace(shape, vocab=max(shape.vocab, pad_vocab(words)))


def told(new: tuple[int, ...], shape: ModelShape) -> str:
    numbers = f"{new[0]}" if len(new) == 1 else f"{new[0]} to {new[-1]}"
    return (
        f"add_tokens: {len(new)} new ({numbers}), their rows the mean of all others; "
        f"{shape.vocab:,} rows in the embedding"
    )
