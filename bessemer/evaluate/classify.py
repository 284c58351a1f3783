"""How well a classifier tells held-out texts apart, and whether its probabilities can be believed.

    F1 of a label     2 TP / (2 TP + FP + FN); 0 where the label neither is nor is said
    macro F1          the mean over labels, each weighing the same
    calibration       expected calibration error (arXiv:1706.04599): texts in 15 bins by the probability of
                      the label that is said, the mean distance of that to the share that is right

Cost: one forward pass over the held-out rows.
"""

from typing import Any

import torch
from torch import Tensor

from bessemer.data.loader import micro_batch
from bessemer.data.rows import Rows
from bessemer.formulas.objective import Objective
from bessemer.model.decoder import Decoder
from bessemer.parallel.objectives import text_logits

BINS = 15


@torch.inference_mode()
def classify(model: Decoder, rows: Rows, objective: Objective, batch: int) -> dict[str, Any]:
    """batch: rows a forward."""
    found = [
        text_logits(model, micro_batch(rows, range(begin, min(begin + batch, len(rows)))))
        for begin in range(0, len(rows), batch)
    ]
    logits_NL, labels_N = (torch.cat(each).cpu() for each in zip(*found, strict=True))
    probabilities_NL = logits_NL.double().softmax(-1)
    confidence_N, said_N = probabilities_NL.max(-1)
    own_N = probabilities_NL.gather(1, labels_N[:, None])[:, 0].clamp_min(1e-45)
    weights = torch.tensor(objective.class_weights or (1.0,) * len(objective.labels), dtype=torch.float64)
    by_label = scores(said_N, labels_N, objective.labels)
    return {
        "text_loss": float(-(own_N.log() * weights[labels_N]).mean()),
        "accuracy": float((said_N == labels_N).double().mean()),
        "macro_f1": sum(each["f1"] for each in by_label.values()) / len(by_label),
        "calibration_error": calibration_error(confidence_N, said_N == labels_N),
        "by_label": by_label,
        "examples": len(labels_N),
    }


def scores(said_N: Tensor, labels_N: Tensor, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Precision, recall and F1 of each label, and how many texts have it."""
    found = {}
    for number, name in enumerate(names):
        is_said, is_so = said_N == number, labels_N == number
        right = int((is_said & is_so).sum())
        told, there = int(is_said.sum()), int(is_so.sum())
        found[name] = {
            "precision": right / told if told else 0.0,
            "recall": right / there if there else 0.0,
            "f1": 2.0 * right / (told + there) if told + there else 0.0,
            "examples": there,
        }
    return found


def calibration_error(confidence_N: Tensor, right_N: Tensor, bins: int = BINS) -> float:
    """Bins are equally wide, open below and closed above."""
    bin_N = (confidence_N * bins).ceil().long().clamp(1, bins) - 1
    total = torch.zeros(bins, dtype=torch.float64)
    distance = total.index_add(0, bin_N, confidence_N.double() - right_N.double())
    return float(distance.abs().sum() / len(confidence_N))
