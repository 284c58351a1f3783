"""Rows for tokens that the origin has not: the mean of those that it has, the same under every layout."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from making_layouts import CONTEXT, SHAPES, as_rank, layout_of
from safetensors.torch import save_file

from bessemer.checkpoint.grown import GROWN, grown
from bessemer.checkpoint.huggingface import load_into
from bessemer.checkpoint.weights import load_weights
from bessemer.durable import write_json
from bessemer.formulas.huggingface.config import config_from_shape
from bessemer.formulas.shape import ModelShape
from bessemer.model.decoder import Decoder
from bessemer.model.init import initialise
from bessemer.model.pieces import local, stored
from bessemer.parallel.apply import build_parts, joined, materialise
from bessemer.parallel.pieces import held_pieces

WORDS, NEW = 61, (61, 62, 63, 64, 65)  # the last three rows of 64 are padding: two tokens need more rows


def made(shape: ModelShape) -> Decoder:
    with torch.device("meta"):
        model = Decoder(shape, torch.float32)
    initialise(model, shape, 3, "cpu")
    return model


@pytest.fixture(params=["dense", "tied"])
def origin(request, tmp_path: Path) -> tuple[ModelShape, dict[str, torch.Tensor], Path]:
    shape = replace(SHAPES[request.param], qk_norm=False)
    model = made(shape)
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    write_json(tmp_path / "config.json", config_from_shape(shape, torch_dtype="float32"))
    save_file(weights, tmp_path / "model.safetensors")
    return shape, weights, tmp_path


def test_new_rows_are_the_mean_and_old_ones_stay(origin) -> None:
    shape, weights, folder = origin
    model = made(replace(shape, vocab=128))
    load_into(model, folder, new_tokens=NEW)
    loaded = dict(model.named_parameters())
    for name, weight in weights.items():
        if name not in GROWN:
            assert torch.equal(loaded[name], weight)
            continue
        assert torch.equal(loaded[name][:WORDS], weight[:WORDS])
        torch.testing.assert_close(loaded[name][list(NEW)], weight[:WORDS].mean(0).expand(5, -1))


def test_new_tokens_move_what_is_predicted_by_their_share_at_most(origin) -> None:
    shape, _, folder = origin
    model, old = made(replace(shape, vocab=64)), made(shape)
    load_into(old, folder)
    load_into(model, folder, new_tokens=(61, 62))
    tokens = torch.arange(CONTEXT)[None]
    before = old.logits(old(tokens))[..., :WORDS].log_softmax(-1)
    after = model.logits(model(tokens))[..., : WORDS + 2].log_softmax(-1)[..., :WORDS]
    divergence = (before.exp() * (before - after)).sum(-1)
    assert divergence.max() <= torch.log1p(torch.tensor(2 / WORDS)) + 1e-6


@pytest.mark.parametrize("layout", ["tensor=2", "shard=3", "tensor=2,pipeline=2", "replicate=2,shard=2"])
def test_each_rank_has_its_rows_of_the_grown_table(origin, layout: str) -> None:
    shape, weights, folder = origin
    shape, parallel = replace(shape, vocab=128), layout_of(layout)
    wanted = {name: grown(each, 128, NEW) if name in GROWN else each for name, each in weights.items()}
    seen = set()
    for rank in range(parallel.world):
        with as_rank(parallel, rank) as mesh:
            model = joined(build_parts(shape, torch.float32, mesh, context=CONTEXT))
            materialise(model, shape, mesh, None)
            pieces = held_pieces(model, shape, mesh)
            load_into(model, folder, shape, pieces, NEW)
            tensors = dict(stored(model))
            for name, held in pieces.items():
                for piece in held:
                    ranges = [slice(o, o + n) for o, n in zip(piece.offset, piece.size, strict=True)]
                    assert torch.equal(piece.of(local(tensors[name])), wanted[piece.name][tuple(ranges)])
                    seen.add(piece.name)
    assert seen == wanted.keys()


def test_checkpoint_of_our_own_grows_as_a_hugging_face_folder_does(origin, tmp_path: Path) -> None:
    shape, weights, folder = origin
    step = tmp_path / "step"
    step.mkdir()
    save_file(weights, step / "model-00000.safetensors", {"slices": "{}"})
    files = {"model-00000.safetensors": {"bytes": 0, "xxh3_128": ""}}
    write_json(step / "manifest.json", {"step": 1, "layout": {}, "files": files})
    ours, theirs = made(replace(shape, vocab=128)), made(replace(shape, vocab=128))
    load_weights(ours, step, new_tokens=NEW)
    load_into(theirs, folder, new_tokens=NEW)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)
