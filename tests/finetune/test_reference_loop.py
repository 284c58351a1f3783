"""Fine-tuning against a plain loop: transformers' model, the same packed rows, torch's AdamW."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from making_runs import QUIET, curve, place, pretrained, write_recipe
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from bessemer.data.order import sample
from bessemer.data.rows import NO_LOSS, Row
from bessemer.export.huggingface import export_huggingface
from bessemer.finetune.run import finetune
from bessemer.finetune.task import prepare_finetune
from bessemer.recipe.load import load
from bessemer.rundir import read_object

STEPS, BATCH_ROWS, RATE = 5, 4, 1e-2


def test_losses_of_five_steps_are_those_of_a_plain_loop_with_transformers_and_adamw(tmp_path: Path) -> None:
    """To 1e-5 of the loss, in fp32, where it falls by a quarter: several updates are in the last one."""
    recipe = str(write_recipe(tmp_path, task=True))
    pretrained(tmp_path, "pretrain.steps=4")
    export_huggingface(tmp_path / "run/pretrain", tmp_path / "hf", step=None, dtype=None, console=QUIET)
    settings = [f"finetune.lr={RATE}", "finetune.schedule=constant", "finetune.warmup=0"]
    settings += [f"finetune.batch_tokens={32 * BATCH_ROWS}"]
    loaded, where = load(recipe, [*settings, "finetune.validate_every=100"]), place(tmp_path, "mine")
    finetune(loaded, where, str(tmp_path / "hf"))
    ours = [row[1] for row in curve(tmp_path / "mine/finetune")[:STEPS]]

    data = prepare_finetune(loaded, where, str(tmp_path / "hf")).data
    rows = data.rows("train", 32)
    order = [sample(0, position, len(rows)) for position in range(STEPS * BATCH_ROWS)]
    assert max(len(rows.documents(index)) for index in order) > 1, "nothing is packed"
    batches = [
        [rows.row(index) for index in order[begin:][:BATCH_ROWS]]
        for begin in range(0, len(order), BATCH_ROWS)
    ]
    info = read_object(tmp_path / "mine/finetune/stage.json")
    assert info is not None and len(ours) == STEPS
    theirs = plain_loop(tmp_path / "hf", batches, info["plan"])
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert theirs[-1] < 0.75 * theirs[0], theirs


def plain_loop(folder: Path, batches: list[list[Row]], plan: dict[str, Any]) -> list[float]:
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    vectors = [weight for weight in model.parameters() if weight.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": plan["weight_decay"]},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=tuple(plan["betas"]), eps=plan["eps"])
    losses = []
    for batch in batches:
        logits, targets = zip(*(forward(model, row) for row in batch), strict=True)
        loss = functional.cross_entropy(torch.cat(logits), torch.cat(targets), ignore_index=NO_LOSS)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), plan["grad_clip"])
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def forward(model: LlamaForCausalLM, row: Row) -> tuple[Tensor, Tensor]:
    """Each document of the row by itself: what it may see needs no mask that could be wrong."""
    tokens, targets, starts = (
        torch.from_numpy(each).long() for each in (row.tokens_T, row.targets_T, row.starts_T)
    )
    begins = [*sorted(set(starts.tolist())), len(tokens)]
    spans = [slice(begin, end) for begin, end in pairwise(begins)]
    logits = [model(input_ids=tokens[None, span], use_cache=False).logits[0] for span in spans]
    return torch.cat(logits), targets
