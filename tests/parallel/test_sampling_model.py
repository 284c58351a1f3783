"""The whole model that a rank samples with, put together from the parts of all, bit for bit."""

import pytest
import torch
from making_layouts import layout_of
from making_ranks import Pool, Result
from making_steps import Step, make_engine

from bessemer.finetune.models import sampling_model
from bessemer.formulas.layout import Layout
from bessemer.model.pieces import stored
from bessemer.parallel.mesh import Mesh


def whole(rank: int, step: dict[str, str]) -> Result:
    chosen = Step(**step)  # type: ignore[arg-type]
    layout = layout_of(chosen.layout)
    engine, shape = make_engine(chosen, layout, Mesh(layout, torch.device("cpu")))
    return {name: tensor.detach().clone() for name, tensor in stored(sampling_model(engine, shape))}


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ("dense", "shard=2"),
        ("tied", "tensor=2"),
        ("dense", "pipeline=2"),
        ("glm", "shard=2,expert=2"),
        ("lora", "tensor=2"),
    ],
)
def test_every_rank_has_the_weights_of_one_process(shape: str, layout: str, ranks: Pool) -> None:
    wanted = whole(0, {"shape": shape})
    for found in ranks.run(whole, layout_of(layout).world, step={"shape": shape, "layout": layout}):
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_in_bf16_matrices_are_cast_once_and_give_the_same_logits() -> None:
    step = Step("moe", dtype="bfloat16")
    engine, shape = make_engine(step, Layout(), Mesh(Layout(), torch.device("cpu")))
    model, tokens_BT = sampling_model(engine, shape), torch.arange(12).view(1, 12)
    assert model is not engine.model and model.head_weight.dtype == torch.bfloat16
    with torch.no_grad():
        assert torch.equal(model(tokens_BT), engine.model(tokens_BT))
