"""Our losses of pairs against TRL's own code: loss, and its gradient to every token's log-probability.

    python benchmarks/finetune_trl.py

TRL's methods run in its environment (peers/trl_preferences.py) on pairs of several lengths, drawn from a
seed; ours on the same numbers. Prints a row a method, and ends with an error where one differs by more than
1e-5. The whole way, through a model, is in finetune_preference.py for DPO, and with the formulas written
out for all of them in tests/parallel/test_objectives.py.
"""

import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from children import plain_environment, run_child
from environments import HERE, python_of
from finetune_work import PEER
from torch import Tensor

from bessemer.formulas.objective import WITH_REFERENCE, Objective
from bessemer.model.preference import Answers, pair_losses

ALLOWED = 1e-5
CASES = [
    Objective("dpo"),
    Objective("dpo", beta=0.5),
    Objective("dpo", beta=0.3, smoothing=0.2),
    Objective("ipo"),
    Objective("ipo", beta=1.0),
    Objective("orpo"),
    Objective("simpo", beta=2.0, margin=1.0),
    Objective("simpo", beta=10.0, margin=3.0),
]


def main() -> int:
    dice = random.Random(0)
    pairs = [drawn_pair(dice) for _ in range(16)]
    worst = 0.0
    for objective, theirs in zip(CASES, of_trl(pairs), strict=True):
        loss, gradients = ours(objective, pairs)
        far = abs(loss / theirs["loss"] - 1.0)
        distances = [
            float((found - torch.tensor(wanted)).abs().max())
            for found, wanted in zip(gradients, theirs["gradients"], strict=True)
        ]
        print(f"{objective.kind:6} beta {objective.beta:<5g} loss {loss:.6f}  TRL {theirs['loss']:.6f}  "
              f"relative {far:.1e}  gradients {max(distances):.1e}")  # fmt: skip
        worst = max(worst, far, *distances)
    print(f"largest difference {worst:.1e}, allowed {ALLOWED:g}")
    return 0 if worst <= ALLOWED else 1


def drawn_pair(dice: random.Random) -> dict[str, Any]:
    chosen, rejected = ([-dice.expovariate(1.0) for _ in range(dice.randint(1, 30))] for _ in range(2))
    reference = [sum(side) + dice.gauss(0.0, 2.0) for side in (chosen, rejected)]
    return {"chosen": chosen, "rejected": rejected, "reference": reference}


def of_trl(pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        task, result = folder / "task.json", folder / "result.json"
        cases = [
            {"kind": each.kind, "beta": each.beta, "margin": each.margin, "smoothing": each.smoothing}
            for each in CASES
        ]
        content = {"pairs": pairs, "cases": cases, "result": str(result)}
        task.write_text(json.dumps(content), encoding="utf-8")
        command = [str(python_of(PEER)), str(HERE / "peers" / "trl_preferences.py"), str(task)]
        environment = {**plain_environment(), "HF_HUB_OFFLINE": "1"}
        run_child(command, folder, environment, folder / "trl.log")
        found: list[dict[str, Any]] = json.loads(result.read_text(encoding="utf-8"))
    return found


def ours(objective: Objective, pairs: list[dict[str, Any]]) -> tuple[float, list[Tensor]]:
    """Mean over the pairs; gradients of all chosen answers, then of all rejected ones."""
    sides = [
        [torch.tensor(pair[side], requires_grad=True) for pair in pairs] for side in ("chosen", "rejected")
    ]
    answers = []
    for number, side in enumerate(sides):
        reference = torch.tensor([pair["reference"][number] for pair in pairs])
        answers.append(
            Answers(
                torch.stack([each.sum() for each in side]),
                torch.tensor([len(each) for each in side]),
                reference if objective.kind in WITH_REFERENCE else None,
            )
        )
    loss = pair_losses(objective, *answers).mean()
    gradients = torch.autograd.grad(loss, [each for side in sides for each in side])
    return loss.item(), list(gradients)


if __name__ == "__main__":
    sys.exit(main())
