"""Bessemer's DPO loss of the batch that TRL had: the child of finetune_preference.py.

    python finetune_pairs.py FOLDER TRL.json RESULT.json

The pairs are packed into one row, chosen before rejected, as training packs them; the reference's column is
filled by the reference's own forward. Compared are the loss, and every gradient by the largest difference
over the largest gradient of all, as a gradient that is nearly nothing has no digits of its own.
Dims: T tokens in a row.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from bessemer.checkpoint.huggingface import load_into, read_shape
from bessemer.data.loader import micro_batch
from bessemer.data.rows import NO_LOSS, Row, Rows
from bessemer.formulas.objective import Objective
from bessemer.model.decoder import Decoder
from bessemer.parallel.documents import Neighbours, document_sums, target_log_probs
from bessemer.parallel.objectives import PairLoss


def main() -> None:
    folder, theirs, result = map(Path, sys.argv[1:])
    answer = json.loads(theirs.read_text(encoding="utf-8"))
    reference, policy = load(folder / "hf"), load(folder / "policy")
    row = packed(answer)
    part = micro_batch(_OneRow(row), [0])
    with torch.no_grad():
        sums_BT = document_sums(
            reference, part, target_log_probs(reference, part, Neighbours()), Neighbours()
        )
    part = micro_batch(_OneRow(row, sums_BT[0].numpy()), [0])
    loss = PairLoss(Objective("dpo", beta=answer["beta"]), Neighbours())(policy, part) / part.units_B.sum()
    loss.backward()  # type: ignore[no-untyped-call]
    told_loss = loss.item()
    wanted = load_file(folder / "gradients.safetensors")
    found = {name: each.grad for name, each in policy.named_parameters()}
    assert found.keys() == wanted.keys(), found.keys() ^ wanted.keys()
    largest = max(float(each.abs().max()) for each in wanted.values())
    distance = max(float((found[name] - each).abs().max()) for name, each in wanted.items())  # type: ignore[operator]
    told = {
        "loss": told_loss,
        "trl_loss": answer["loss"],
        "loss_difference": abs(told_loss / answer["loss"] - 1.0),
        "gradient_difference": distance / largest,
    }
    result.write_text(json.dumps(told), encoding="utf-8")


def load(folder: Path) -> Decoder:
    shape = read_shape(folder)
    model = Decoder(shape, torch.float32)
    load_into(model, folder, shape)
    return model


def packed(answer: dict[str, Any]) -> Row:
    """TRL's batch holds all chosen documents, then all rejected ones."""
    documents = [
        (np.array(tokens)[np.array(seen) == 1], np.array(is_answer)[np.array(seen) == 1])
        for tokens, seen, is_answer in zip(
            answer["input_ids"], answer["attention_mask"], answer["completion_mask"], strict=True
        )
    ]
    num_pairs = len(documents) // 2
    size = sum(len(tokens) for tokens, _ in documents)
    tokens_T, targets_T = np.zeros(size, np.int32), np.full(size, NO_LOSS, np.int32)
    starts_T, partner_T = np.zeros(size, np.int32), np.zeros(size, np.int32)
    begin = 0
    for number in range(num_pairs):
        partner_T[begin] = begin + len(documents[number][0])
        for tokens, is_answer in (documents[number], documents[num_pairs + number]):
            end = begin + len(tokens)
            tokens_T[begin:end], starts_T[begin:end] = tokens, begin
            targets_T[begin : end - 1] = np.where(is_answer[1:] == 1, tokens[1:], NO_LOSS)
            begin = end
    return Row(tokens_T, targets_T, starts_T, {"partner": partner_T}, units=num_pairs)


class _OneRow(Rows):
    def __init__(self, row: Row, reference_T: np.ndarray[Any, Any] | None = None) -> None:
        more = {} if reference_T is None else {"reference": reference_T}
        self._row = Row(row.tokens_T, row.targets_T, row.starts_T, {**row.columns, **more}, row.units)

    def __len__(self) -> int:
        return 1

    def row(self, index: int) -> Row:
        return self._row

    def documents(self, index: int) -> list[tuple[int, int, int]]:
        raise AssertionError("nobody asks")


if __name__ == "__main__":
    main()
