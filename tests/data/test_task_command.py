"""`bessemer data build` of a recipe that only teaches a task: what `finetune` then finds, and reads."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from making import QUIET
from making_tasks import chat, chat_tokenizer

from bessemer.cli import data
from bessemer.errors import DataError, RecipeError
from bessemer.finetune.task import prepare_finetune
from bessemer.recipe.load import load
from bessemer.train.pretrain import Place

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 310,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
RECIPE = """name = "alone"
[model]
from = "hf"
[finetune.data]
path = "chats.jsonl"
template = "chatml"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    chat_tokenizer(tmp_path / "hf")
    (tmp_path / "hf" / "config.json").write_text(json.dumps(CONFIG))
    rows = [chat(f"q{n}", f"a{n}") for n in range(40)]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path / "recipe.toml"


def call(*words: str, store: Path, settings: list[str] | None = None) -> tuple[dict[str, Any], str]:
    parser = argparse.ArgumentParser()
    data.arguments(parser)
    args = parser.parse_args(list(words))
    args.set, args.store, args.console = settings or [], store, QUIET
    document = data.run(args)
    json.dumps(document, allow_nan=False)
    return document, data.show(document)


@pytest.mark.parametrize("settings", [[], ["finetune.context=64"]])
def test_task_alone_is_prepared_as_finetune_reads_it(recipe: Path, settings: list[str]) -> None:
    store = recipe.parent / "store"
    built, text = call("build", str(recipe), store=store, settings=settings)
    assert built["kind"] == "finetune" and built["finetune"] is None
    assert built["sources"][0]["kept"] == 40 and built["manifest"] in text
    place = Place(recipe.parent / "run", store, QUIET)
    assert prepare_finetune(load(str(recipe), settings), place, None).data.hash == built["hash"]
    row, _ = call("inspect", str(Path(built["manifest"]).parent), store=store)
    assert row["context"] == (64 if settings else 96)
    assert "".join(token["text"] for token in row["tokens"] if token["loss"]).startswith("a")


def test_unreadable_row_of_a_task_ends_a_strict_build(recipe: Path) -> None:
    with open(recipe.parent / "chats.jsonl", "a", encoding="utf-8") as file:
        file.write('\n{"messages": "none"}\n')
    call("build", str(recipe), store=recipe.parent / "store")
    with pytest.raises(DataError, match="1 rows could not be read") as caught:
        call("build", str(recipe), "--strict", store=recipe.parent / "store")
    assert "chats.jsonl:41: not_messages" in caught.value.found


def test_task_alone_without_a_model_and_options_without_effect_are_refused(recipe: Path) -> None:
    with pytest.raises(RecipeError, match="--timeout has no effect on a recipe without"):
        call("build", str(recipe), "--timeout", "9", store=recipe.parent)
    for settings in (['model.from="nowhere"'], ['model.from="hf/config.json"']):
        with pytest.raises(RecipeError, match="whose tokens its examples are to be"):
            call("build", str(recipe), store=recipe.parent, settings=settings)
