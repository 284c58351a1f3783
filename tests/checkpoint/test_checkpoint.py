"""What is written is whole and plain safetensors; what is not whole never reaches a model."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from making_checkpoints import FILES, parts, saved, trained
from making_runs import assert_same_tensors, run_job, stage_plan, tensors_of, tiny_model
from safetensors import safe_open
from safetensors.torch import load_file

from bessemer.checkpoint.folder import checkpoint_folder, chosen, listed, newest_good, verify
from bessemer.checkpoint.load import restore
from bessemer.checkpoint.write import prune, save, write_safetensors
from bessemer.errors import CheckpointError, RecipeError
from bessemer.log import Console

Damage = Callable[[Path], Any]

# What is written.


def test_written_file_is_read_back_bit_for_bit_by_safetensors(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "odd": torch.randn(3, 5, generator=generator).bfloat16(),
        "wide": torch.randn(7, 3, generator=generator),
        "turned": torch.randn(4, 6, generator=generator).T,
        "special": torch.tensor([float("nan"), -0.0, float("inf"), 1e-45]),
        "count": torch.tensor([2**62, -1]),
        "small": torch.tensor([-7], dtype=torch.int32),
        "half": torch.tensor([0.1], dtype=torch.float16),
        "double": torch.tensor([0.1], dtype=torch.float64),
        "scalar": torch.tensor(41.0),
        "empty": torch.empty(0, 4),
    }
    told = write_safetensors(tmp_path / "x.safetensors", tensors, {"slices": "{}"})
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        assert found[name].flatten().view(torch.uint8).tolist() == (
            tensor.contiguous().flatten().view(torch.uint8).tolist()
        ), name
    content = (tmp_path / "x.safetensors").read_bytes()
    assert told == {"bytes": len(content), "xxh3_128": xxhash.xxh3_128_hexdigest(content)}
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert file.metadata()["slices"] == "{}"


def test_checkpoint_has_the_files_and_keys_of_the_contract(tmp_path: Path) -> None:
    model, optimizer = trained()
    folder = save(tmp_path, 1000, model, optimizer, {"step": 1000, "note": "kept"}, {"replicate": 1})
    assert folder == tmp_path / "checkpoints" / "step-00001000"
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", *FILES]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {"step", "layout", "files", "state"} <= manifest.keys()
    assert manifest["step"] == 1000 and manifest["layout"] == {"replicate": 1}
    assert manifest["state"] == {"step": 1000, "note": "kept"}
    for name in FILES:
        content = (folder / name).read_bytes()
        wanted = {"bytes": len(content), "xxh3_128": xxhash.xxh3_128_hexdigest(content)}
        assert manifest["files"][name] == wanted
    weights = load_file(folder / FILES[0])
    assert_same_tensors(weights, {name: p.detach() for name, p in model.named_parameters()})
    states = {f"optimizer.{name}.{key}" for name in weights for key in ("exp_avg", "exp_avg_sq", "step")}
    assert load_file(folder / FILES[1]).keys() == states


def test_restored_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    model, optimizer = trained()
    folder = save(tmp_path, 1, model, optimizer, {}, {})
    other, fresh = parts(seed=9)
    restore(other, fresh, folder)
    for one in (model, other):
        for parameter in one.parameters():
            parameter.grad = torch.full_like(parameter, -0.3)
    optimizer.step()
    fresh.step()
    assert_same_tensors(dict(other.named_parameters()), dict(model.named_parameters()))


def test_header_is_what_the_format_says(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors", {"a": torch.zeros(3)}, {"slices": "{}"})
    content = (tmp_path / "x.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0 and header["a"] == {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}


# What is damaged.


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 9)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def flip(bit: int) -> Damage:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[bit // 8 % len(content)] ^= 1 << bit % 8
        path.write_bytes(content)

    return damage


def rewrite(change: Callable[[dict[str, Any]], Any]) -> Damage:
    def damage(path: Path) -> None:
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return damage


def leave_out(manifest: dict[str, Any]) -> dict[str, Any]:
    return {**manifest, "files": {FILES[0]: manifest["files"][FILES[0]]}}


def clear(path: Path) -> None:
    path.write_bytes(b"")


TO_ANY_FILE: list[tuple[str, Damage]] = [
    ("truncated", truncate),
    ("longer", lengthen),
    ("missing", Path.unlink),
    ("empty", clear),
    ("flipped first bit of", flip(0)),
    ("flipped middle bit of", flip(123_456)),
]
TO_MANIFEST: list[tuple[str, Damage]] = [
    ("garbage in", lambda path: path.write_bytes(b"\xff\x00{")),
    ("truncated", truncate),
    ("empty", clear),
    ("list as", lambda path: path.write_text("[1, 2]")),
    ("no files in", rewrite(lambda manifest: {**manifest, "files": {}})),
    ("list of files in", rewrite(lambda manifest: {**manifest, "files": list(manifest["files"])})),
    ("no sizes in", rewrite(lambda manifest: {**manifest, "files": {FILES[0]: {}}})),
    ("file left out of", rewrite(leave_out)),
    ("another step in", rewrite(lambda manifest: {**manifest, "step": 11})),
    ("another state in", rewrite(lambda manifest: {**manifest, "state": {"step": 8}})),
]
DAMAGES = [(what, name, how) for name in FILES for what, how in TO_ANY_FILE]
DAMAGES += [(what, "manifest.json", how) for what, how in TO_MANIFEST]


@pytest.mark.parametrize(
    ("named", "damage"), [row[1:] for row in DAMAGES], ids=[f"{row[0]} {row[1]}" for row in DAMAGES]
)
def test_damage_is_named_before_any_tensor_is_read_and_the_one_before_is_used(
    named: str, damage: Damage, tmp_path: Path
) -> None:
    older, newer = saved(tmp_path, 5, 10)
    damage(newer / named)
    said: list[str] = []
    found = newest_good(tmp_path, said.append)
    assert found is not None and found[0] == older and found[1].step == 5
    assert len(said) == 1 and str(newer / named) in said[0] and "trying the one before" in said[0]
    with pytest.raises(CheckpointError, match=named) as caught:
        verify(newer)
    assert caught.value.exit_code == 65


def test_any_flipped_bit_of_a_manifest_is_found_or_harmless(tmp_path: Path) -> None:
    (folder,) = saved(tmp_path, 5)
    path, good = folder / "manifest.json", (folder / "manifest.json").read_bytes()
    as_written, found = verify(folder), 0
    for bit in range(0, len(good) * 8, 23):  # 23 meets each bit of a byte alike
        flip(bit)(path)
        try:
            assert verify(folder) == as_written, f"bit {bit}: {path.read_bytes()!r}"
        except CheckpointError:
            found += 1
        path.write_bytes(good)
    assert found > 100


def test_damaged_newest_is_said_aloud_and_training_goes_on_from_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_job(tmp_path / "never", stage_plan(steps=6, save_every=2))
    run_job(tmp_path / "hurt", stage_plan(steps=4, save_every=2))
    newest = listed(tmp_path / "hurt")[0]
    flip(99_999)(newest / FILES[0])
    run_job(tmp_path / "hurt", stage_plan(steps=6, save_every=2), console=Console())
    assert f"{newest / FILES[0]} is damaged" in capsys.readouterr().err
    assert_same_tensors(tensors_of(tmp_path / "hurt"), tensors_of(tmp_path / "never"))


def test_model_is_untouched_when_no_checkpoint_is_whole(tmp_path: Path) -> None:
    run_job(tmp_path, stage_plan(steps=4, save_every=2))
    for folder in listed(tmp_path):
        truncate(folder / FILES[1])  # the weights themselves are good
    model, before = tiny_model(seed=7), dict(tiny_model(seed=7).named_parameters())
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole") as caught:
        run_job(tmp_path, stage_plan(steps=6), model)
    assert caught.value.exit_code == 65 and FILES[1] in caught.value.found
    assert_same_tensors(dict(model.named_parameters()), before)


def test_step_asked_for_is_verified_and_an_unknown_one_lists_those_there(tmp_path: Path) -> None:
    older, newer = saved(tmp_path, 5, 10)
    truncate(newer / FILES[0])
    assert chosen(tmp_path, 5, str)[0] == older
    with pytest.raises(CheckpointError, match=FILES[0]):
        chosen(tmp_path, 10, str)
    with pytest.raises(RecipeError) as caught:
        chosen(tmp_path, 7, str)
    assert caught.value.found == "steps 5, 10"


# What counts, and what is kept.


def test_folder_without_manifest_counts_for_nothing_and_is_swept_by_the_next_save(tmp_path: Path) -> None:
    whole, half = saved(tmp_path, 5, 10)
    (half / "manifest.json").unlink()
    (half / ".optimizer-00000.safetensors.123.tmp").write_bytes(b"half")
    assert listed(tmp_path) == [whole] and newest_good(tmp_path, pytest.fail)[0] == whole
    (newer,) = saved(tmp_path, 7)
    assert not half.exists() and listed(tmp_path) == [newer, whole]


def test_nothing_is_no_checkpoint_and_no_error(tmp_path: Path) -> None:
    assert newest_good(tmp_path, pytest.fail) is None
    checkpoint_folder(tmp_path, 5).mkdir(parents=True)
    assert newest_good(tmp_path, pytest.fail) is None


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_prune_keeps_the_newest(keep: int, tmp_path: Path) -> None:
    saved(tmp_path, 5, 10, 15)
    prune(tmp_path, keep, 15)
    assert [verify(folder).step for folder in listed(tmp_path)] == [15, 10, 5][:keep]
    assert len(list((tmp_path / "checkpoints").iterdir())) == keep


def test_damaged_checkpoint_of_a_later_step_never_pushes_out_a_good_one(tmp_path: Path) -> None:
    plan = stage_plan(steps=4, save_every=4)
    run_job(tmp_path, plan)
    run_job(tmp_path, stage_plan(steps=8, save_every=4))
    truncate(checkpoint_folder(tmp_path, 8) / FILES[0])
    # Goes on at 4, is stopped at 6, and keeps one checkpoint only.
    run_job(tmp_path, stage_plan(steps=6, keep=1))
    found = newest_good(tmp_path, str)
    assert found is not None and found[1].step == 6
