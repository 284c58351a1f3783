"""The tokenizer's files beside the weights, so that AutoTokenizer gives the tokens we trained on.

`tokenizer.json` is copied byte for byte; `tokenizer_config.json` names its special tokens, and holds the chat
template that the stage was tuned with or that its tokenizer came with. What the tokenizer puts around a text
that is no chat is what tokenizer.json says.
"""

import json
from pathlib import Path
from typing import Any

from bessemer.data.tokens.tokenizer import read_config
from bessemer.durable import write_bytes, write_json
from bessemer.errors import DataError
from bessemer.formulas.shape import ModelShape


def write_tokenizer(source: Path, shape: ModelShape, folder: Path) -> dict[str, Any]:
    """Write both files. Returns {bos, eos, pad, turn_end: {id, content} or None, size}.

    turn_end: what closes the assistant's turns, of a stage that was tuned with a template.
    """
    content = _read(source)
    special = special_tokens(content, shape)
    given = read_config(source.parent)
    turn_end = given.get("turn_end_token")
    added = {token["content"]: token["id"] for token in content.get("added_tokens") or []}
    kept = {key: given[key] for key in ("chat_template", "turn_end_token") if key in given}
    named = {f"{role}_token": token["content"] for role, token in special.items() if token is not None}
    write_bytes(folder / "tokenizer.json", source.read_bytes())
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **named,
            **kept,
            "clean_up_tokenization_spaces": False,
            "model_max_length": shape.max_positions or shape.context,
        },
    )
    closing = {"id": added[turn_end], "content": turn_end} if turn_end in added else None
    return {**special, "turn_end": closing, "size": tokenizer_size(content)}


def special_tokens(content: dict[str, Any], shape: ModelShape) -> dict[str, dict[str, Any] | None]:
    """bos and eos by the ids that training used; pad by its name, or else the end token's."""
    added = {token["id"]: token for token in content.get("added_tokens") or []}

    def token(number: int | None) -> dict[str, Any] | None:
        found = added.get(number) if number is not None else None
        return None if found is None else {"id": found["id"], "content": found["content"]}

    eos = token(shape.eos_id)
    padding = next((number for number, entry in added.items() if "pad" in entry["content"].lower()), None)
    return {"bos": token(shape.bos_id), "eos": eos, "pad": token(padding) or eos}


def tokenizer_size(content: dict[str, Any]) -> int:
    """One more than the largest id."""
    vocab = content["model"]["vocab"]
    ids = vocab.values() if isinstance(vocab, dict) else range(len(vocab))
    added = (token["id"] for token in content.get("added_tokens") or [])
    return 1 + max([*ids, *added])


def _read(source: Path) -> dict[str, Any]:
    try:
        content = json.loads(source.read_text(encoding="utf-8"))
        return dict(content)
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot read the tokenizer {source}",
            found=str(error),
            wanted="the tokenizer.json that the stage was trained with",
            fix="put it back there from the prepared data folder",
        ) from error
