"""A model and a loss of your own, trained by Bessemer's loop:  python own_model.py TEXTS RUN

TEXTS is a folder of text files, RUN the folder of the run. Killed at any moment, the same command goes on;
on a CPU it then ends with the same bits as if nothing had happened.
"""

import sys
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor, nn

from bessemer.data.loader import Batches, MicroBatch
from bessemer.data.rows import NO_LOSS
from bessemer.data.store import prepare
from bessemer.log import Console
from bessemer.planner.plan import StagePlan
from bessemer.recipe.load import parse
from bessemer.rundir import lock
from bessemer.train.build import assemble
from bessemer.train.loop import train
from bessemer.train.stop import Stop

RECIPE = 'name = "own-model"\ntokenizer.vocab = 512\n[[data.source]]\nname = "texts"\nkind = "text"\n'
PLAN = StagePlan(steps=40, context=64, batch_rows=8, micro_batch=4, lr=3e-3, save_every=10)


class OwnModel(nn.Module):
    def __init__(self, vocab: int, hidden: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, hidden)
        self.memory = nn.GRU(hidden, hidden, batch_first=True)
        self.head = nn.Linear(hidden, vocab)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        memory_BTD, _ = self.memory(self.embedding(tokens_BT))
        return self.head(memory_BTD)


def own_loss(model: nn.Module, part: MicroBatch) -> Tensor:
    """Label smoothing, summed over the targets: the loop divides by their number in the whole step."""
    logits, targets = model(part.tokens_BT).flatten(0, 1), part.targets_BT.flatten()
    return nn.functional.cross_entropy(
        logits, targets, ignore_index=NO_LOSS, reduction="sum", label_smoothing=0.1
    )


def main(texts: Path, run: Path) -> None:
    console = Console()
    recipe = parse(RECIPE, "own_model.py", [f"data.source.0.path={texts.resolve()}"])
    data = prepare(recipe, Path.cwd(), run / "data", console)
    rows, held_out = (data.rows(split, PLAN.context) for split in ("train", "validation"))
    torch.manual_seed(0)  # the first values of the weights must be the same in every attempt
    model = OwnModel(data.vocab)
    with lock(run), Stop() as stop:
        job, state = assemble(
            folder=run / "pretrain",
            plan=PLAN,
            model=model,
            loss=own_loss,
            batches=Batches(rows, 0, PLAN.batch_rows, PLAN.micro_batch),
            validation=held_out,
            console=console,
            stop=stop,
        )
        with closing(job):
            train(job, state)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
