"""TRL's own losses of pairs, of given log-probabilities: what its methods return, and the gradients of that.

    python trl_preferences.py TASK.json     {result, pairs: [{chosen, rejected, ...}], cases: [{kind, ...}]}

A pair is given by the log-probabilities of its tokens and the sums of the reference's. The methods of the
installed trainers are called, on an instance without a model: `DPOTrainer._compute_loss` (dpo, ipo),
`CPOTrainer.cpo_loss` (simpo, and smoothing, which the installed DPOTrainer has no more),
`ORPOTrainer.odds_ratio_loss`. The answer: per case loss and gradient of every token's log-probability.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from trl import DPOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

_ACCELERATOR = SimpleNamespace(
    device=torch.device("cpu"), gather_for_metrics=lambda values: values, gather=lambda values: values
)


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    answers = [loss_of(case, task["pairs"]) for case in task["cases"]]
    Path(task["result"]).write_text(json.dumps(answers), encoding="utf-8")


def loss_of(case: dict[str, Any], pairs: list[dict[str, Any]]) -> dict[str, Any]:
    tokens = [
        torch.tensor(pair[side], requires_grad=True) for side in ("chosen", "rejected") for pair in pairs
    ]
    chosen, rejected = tokens[: len(pairs)], tokens[len(pairs) :]
    if case["kind"] in ("dpo", "ipo") and not case["smoothing"]:
        loss = of_dpo(case, pairs, tokens)
    elif case["kind"] in ("dpo", "simpo"):
        loss = of_cpo(case, pairs, chosen, rejected)
    else:
        loss = of_orpo(case, chosen, rejected)
    loss.backward()
    return {"loss": loss.item(), "gradients": [each.grad.tolist() for each in tokens]}


def of_dpo(case: dict[str, Any], pairs: list[dict[str, Any]], tokens: list[Tensor]) -> Tensor:
    """The model that the trainer asks is one that says what was given."""
    size = max(len(each) for each in tokens) + 1
    log_probs = torch.stack([torch.nn.functional.pad(each, (0, size - 1 - len(each))) for each in tokens])
    mask = torch.tensor([[0] + [1] * len(each) + [0] * (size - 1 - len(each)) for each in tokens])
    inputs = {
        "input_ids": torch.ones_like(mask),
        "completion_mask": mask,
        "attention_mask": torch.ones_like(mask),
        "ref_chosen_logps": torch.tensor([pair["reference"][0] for pair in pairs]),
        "ref_rejected_logps": torch.tensor([pair["reference"][1] for pair in pairs]),
    }
    # What beside log-probabilities it logs of a model.
    logged = {name: torch.zeros(log_probs.shape) for name in ("entropy", "mean_logits")}
    said = SimpleNamespace(log_probs=log_probs, is_top1=torch.zeros(log_probs.shape) > 0, **logged)
    trainer = blank(
        DPOTrainer,
        model=SimpleNamespace(training=False),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        use_weighting=False,
        f_divergence_type="reverse_kl",
        loss_types=["sigmoid" if case["kind"] == "dpo" else "ipo"],
        loss_weights=[1.0],
        beta=case["beta"],
        label_smoothing=0.0,
        _metrics={mode: defaultdict(list) for mode in ("train", "eval")},
        _total_train_tokens=0,
    )
    loss: Tensor = trainer._compute_loss(lambda **_: said, inputs, return_outputs=False)
    return loss


def of_cpo(
    case: dict[str, Any], pairs: list[dict[str, Any]], chosen: list[Tensor], rejected: list[Tensor]
) -> Tensor:
    """DPO with smoothing is CPO's sigmoid of log-ratios; SimPO's log-probabilities are means."""
    trainer = blank(
        CPOTrainer,
        alpha=0.0,
        beta=case["beta"],
        loss_type="simpo" if case["kind"] == "simpo" else "sigmoid",
        simpo_gamma=case["margin"],
        label_smoothing=case["smoothing"],
    )
    if case["kind"] == "simpo":
        return trainer.cpo_loss(means(chosen), means(rejected))[0].mean()
    sides = []
    for number, side in enumerate((chosen, rejected)):
        reference = torch.tensor([pair["reference"][number] for pair in pairs])
        sides.append(torch.stack([each.sum() for each in side]) - reference)
    return trainer.cpo_loss(*sides)[0].mean()


def of_orpo(case: dict[str, Any], chosen: list[Tensor], rejected: list[Tensor]) -> Tensor:
    """The first term is over the answers alone, a mean of each pair: model/preference.py says why."""
    losses = blank(ORPOTrainer, beta=case["beta"]).odds_ratio_loss(means(chosen), means(rejected))[0]
    return -means(chosen).mean() - losses.mean()


def means(side: list[Tensor]) -> Tensor:
    return torch.stack([each.mean() for each in side])


def blank(kind: type, **attributes: Any) -> Any:
    trainer = object.__new__(kind)
    trainer.__dict__.update({"accelerator": _ACCELERATOR, **attributes})
    return trainer


if __name__ == "__main__":
    main()
