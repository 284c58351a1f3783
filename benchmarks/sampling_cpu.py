"""Time of a chunk of sampled answers on one core: formulas/rollout_time.py against the code that samples.

    python benchmarks/sampling_cpu.py [--json FILE] [--tiny]

CPU seconds of `sample` and of GRPO's own log-probabilities (finetune/grpo.py), the least of two, on random
weights: answers never end early. Speed of matmuls is that of a training step of the same model, bandwidth
that of a copy, both measured here. Takes minutes.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bessemer.finetune.answer_rows import Answer
from bessemer.finetune.grpo import _log_probs
from bessemer.formulas.flops import train_flops_per_token
from bessemer.formulas.objective import Objective, Rollouts
from bessemer.formulas.rollout_time import chunk_work
from bessemer.formulas.shape import Adapter, ModelShape
from bessemer.model.decoder import Decoder
from bessemer.model.generate import sample
from bessemer.model.init import initialise
from bessemer.model.loss import next_token_loss

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PROMPT, ANSWER = 32, 32


@dataclass(frozen=True)
class Case:
    name: str
    layers: int
    hidden: int
    vocab: int
    answers: int
    adapter: Adapter | None = None

    @property
    def shape(self) -> ModelShape:
        heads = self.hidden // 32
        return ModelShape(
            "llama", self.layers, self.hidden, heads, heads // 2, 32, self.hidden * 11 // 4, self.vocab,
            PROMPT + ANSWER, tie_embeddings=False, qk_norm=False, adapter=self.adapter,
        )  # fmt: skip


CASES = (
    Case("narrow, 1 answer", 8, 64, 256, 1),
    Case("narrow, 1 answer, LoRA", 8, 64, 256, 1, Adapter(8, 16.0, LINEAR)),
    Case("width 256", 4, 256, 4096, 128),
    Case("width 256, LoRA", 4, 256, 4096, 128, Adapter(8, 16.0, LINEAR)),
    Case("width 512", 4, 512, 4096, 128),
    Case("width 512, 4 answers", 4, 512, 4096, 4),
    Case("width 256, 32,768 words", 2, 256, 32768, 128),
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--tiny", action="store_true", help="the narrow models alone")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    values = torch.zeros(2**25)
    bytes_per_s = 2 * values.nbytes / least(values.clone)
    print(f"copy: {bytes_per_s / 1e9:.1f} GB/s", flush=True)
    rows = [compared(case, bytes_per_s) for case in (CASES[:2] if args.tiny else CASES)]
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


def compared(case: Case, bytes_per_s: float) -> dict[str, Any]:
    flops_per_s, measured_s = measured(case)
    objective = Objective("grpo", rollouts=Rollouts(1, 1, case.answers, ANSWER, PROMPT, 8))
    predicted_s = chunk_work(case.shape, objective, "fp32").seconds(flops_per_s, bytes_per_s)
    print(
        f"{case.name:24} training {flops_per_s / 1e9:5.1f} GFLOP/s, a chunk {measured_s:6.2f} s, "
        f"predicted {predicted_s:6.2f} s, ratio {predicted_s / measured_s:.2f}",
        flush=True,
    )
    return {"case": case.name, "flops_per_s": flops_per_s, "bytes_per_s": bytes_per_s,
            "measured_s": measured_s, "predicted_s": predicted_s}  # fmt: skip


def measured(case: Case) -> tuple[float, float]:
    """(FLOP/s of a training step, seconds of a chunk)."""
    shape = case.shape
    with torch.device("meta"):
        model = Decoder(shape, torch.float32)
    initialise(model, shape, 0, "cpu")
    tokens_BT = torch.randint(case.vocab, (8, PROMPT + ANSWER))

    def step() -> None:
        next_token_loss(model(tokens_BT).flatten(0, 1), model.head_weight, tokens_BT.flatten()).backward()

    flops = train_flops_per_token(shape, PROMPT + ANSWER) * tokens_BT.numel()
    asked = torch.randint(case.vocab, (case.answers, PROMPT)).tolist()
    uniform_BT = torch.rand((case.answers, ANSWER), dtype=torch.float64)

    def chunk() -> None:
        given = sample(model, asked, max_tokens=ANSWER, eos_id=None, temperature=1.0, uniform_BT=uniform_BT)
        answers = [
            Answer(np.array([*prompt, *answer], dtype=np.int32), PROMPT)
            for prompt, answer in zip(asked, given, strict=True)
        ]
        _log_probs(model, answers, PROMPT + ANSWER, 1.0)

    return flops / least(step), least(chunk)


def least(work: Callable[[], object]) -> float:
    """CPU seconds, the first time left out."""
    work()
    found = []
    for _ in range(2):
        begin_s = time.process_time()
        work()
        found.append(time.process_time() - begin_s)
    return min(found)


if __name__ == "__main__":
    raise SystemExit(main())
