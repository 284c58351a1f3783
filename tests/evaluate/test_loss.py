import numpy as np
import pytest
import torch

from bessemer.data.rows import Row
from bessemer.evaluate.loss import validation_loss
from bessemer.formulas.shape import ModelShape
from bessemer.model.decoder import Decoder
from bessemer.model.init import initialise
from bessemer.parallel.engine import Engine, summed_loss

SHAPE = ModelShape(
    family="llama",
    layers=1,
    hidden=32,
    heads=2,
    kv_heads=1,
    head_dim=16,
    ffn=64,
    vocab=64,
    context=16,
    tie_embeddings=True,
    qk_norm=False,
)


class Rows:
    """Rows of two documents each; some targets have no loss."""

    def __init__(self, count: int) -> None:
        random = np.random.default_rng(0)
        self.rows = []
        for _ in range(count):
            tokens = random.integers(0, 64, 17).astype(np.int32)
            targets = np.where(random.random(16) < 0.3, -100, tokens[1:]).astype(np.int32)
            starts = np.where(np.arange(16) < 7, 0, 7).astype(np.int32)
            self.rows.append(Row(tokens[:-1], targets, starts))

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> Row:
        return self.rows[index]


@pytest.fixture(scope="module")
def model() -> Decoder:
    with torch.device("meta"):
        model = Decoder(SHAPE, torch.float32)
    initialise(model, SHAPE, seed=1, device="cpu")
    return model


def by_hand(model: Decoder, rows: Rows) -> tuple[float, int]:
    """Documents one by one, so that nothing can leak between them."""
    total, count = 0.0, 0
    for row in rows.rows:
        for begin, end in ((0, 7), (7, 16)):
            tokens = torch.from_numpy(row.tokens_T[begin:end].astype(np.int64))[None]
            with torch.no_grad():
                log_probabilities = model.logits(model(tokens))[0].log_softmax(-1)
            for place, target in enumerate(row.targets_T[begin:end]):
                if target != -100:
                    total -= float(log_probabilities[place, target])
                    count += 1
    return total / count, count


def test_loss_is_the_mean_over_target_tokens_of_documents_alone(model):
    rows = Rows(7)
    loss, targets = validation_loss(Engine(model, summed_loss), rows, micro_batch=3)
    expected, count = by_hand(model, rows)
    assert targets == count
    assert loss == pytest.approx(expected, abs=1e-6)


def test_loss_does_not_depend_on_the_micro_batch_and_repeats_bit_for_bit(model):
    rows = Rows(8)
    engine = Engine(model, summed_loss)
    losses = [validation_loss(engine, rows, micro_batch=size)[0] for size in (1, 3, 8, 50)]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-6)
    assert validation_loss(engine, rows, micro_batch=3)[0] == losses[1]


def test_max_rows_takes_the_first_ones_and_leaves_no_gradient(model):
    rows, fewer = Rows(8), Rows(2)
    fewer.rows = rows.rows[:2]
    engine = Engine(model, summed_loss)
    assert validation_loss(engine, rows, micro_batch=4, max_rows=2) == validation_loss(
        engine, fewer, micro_batch=2
    )
    assert all(parameter.grad is None for parameter in model.parameters())
