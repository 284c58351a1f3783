"""Adapters beside every objective: another loss, the same frozen weights."""

from pathlib import Path

import pytest
from making_runs import curve, place, pretrained, tensors_of, write_recipe

from bessemer.checkpoint.load import load_model
from bessemer.cli.main import main
from bessemer.finetune.run import finetune
from bessemer.recipe.load import load

SIZES = {"layers": 2, "hidden": 32, "ffn": 48, "context": 256, "batch_tokens": 512}
SMALL = ("finetune.context=256", "finetune.epochs=2", "finetune.dtype=fp32", "finetune.lr=1e-2")
SMALL += ("finetune.batch_tokens=4096", "finetune.micro_batch=2", "finetune.adapter=lora")
SMALL += ("finetune.lora.rank=4", "finetune.lora.dora=true")
METHODS = ("classify", "dpo", "ipo", "orpo", "simpo", "reward")
FAST = ("classify",)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("objectives")
    write_recipe(folder, sizes=SIZES)
    pretrained(folder, "pretrain.steps=2", run="base")
    for name in ("classify", "dpo"):
        assert main(["recipes", "copy", name, str(folder)]) == 0
    lines = (folder / "dpo.toml").read_text().splitlines()
    # Without what only some of these methods make anything of.
    (folder / "pairs.toml").write_text("\n".join(line for line in lines if not line.startswith("beta")))
    return folder


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in METHODS]
)
def test_every_objective_learns_with_adapters_only(method: str, base: Path) -> None:
    recipe = "classify.toml" if method == "classify" else "pairs.toml"
    loaded = load(str(base / recipe), [*SMALL, f"finetune.method={method}"])
    finetune(loaded, place(base, method), str(base / "base"))
    stage = base / method / "finetune"
    losses = [row[1] for row in curve(stage)]
    assert losses[-1] < losses[0]
    kept = {name for name in tensors_of(stage) if not name.startswith("optimizer.")}
    head = {"score.weight"} if method in ("classify", "reward") else set()
    assert {name for name in kept if "lora_" not in name} == head
    model = load_model(stage, None, print).model
    learning = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert learning == kept
