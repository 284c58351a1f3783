"""What any number of ranks writes, any number reads, bit for bit."""

import json
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from making_checkpoints import parts, trained
from making_parts import CUTS, assert_restored, columns, cut_up, mixed, rows, save_together
from making_runs import assert_same_tensors
from safetensors import safe_open
from torch.distributed import HashStore, TCPStore

from bessemer.checkpoint.folder import read_manifest, verify
from bessemer.checkpoint.load import load_weights, restore
from bessemer.checkpoint.tensors import CheckpointTensors
from bessemer.checkpoint.write import save
from bessemer.errors import CheckpointError, RecipeError
from bessemer.model.pieces import stored, stored_names


@pytest.mark.parametrize("reader", CUTS)
@pytest.mark.parametrize("writer", CUTS)
def test_weights_and_optimizer_state_are_read_by_any_ranks_bit_for_bit(
    writer: str, reader: str, tmp_path: Path
) -> None:
    model, optimizer = mixed()
    folder = save_together(tmp_path, 3, cut_up(model, optimizer, CUTS[writer]))
    verify(folder)
    assert_restored(folder, cut_up(model, optimizer, CUTS[reader]), CUTS[reader])


def test_one_process_reads_all_of_it_and_each_expert_under_its_own_name(tmp_path: Path) -> None:
    model, optimizer = mixed()
    folder = save_together(tmp_path, 3, cut_up(model, optimizer, CUTS["3 x 2"]))
    wanted = {
        each: tensor if each == name else tensor[number]
        for name, tensor in stored(model)
        for number, each in enumerate(stored_names(name, tensor))
    }
    assert "mlp.experts.4.up_proj.weight" in wanted and "table" not in wanted
    with CheckpointTensors(folder, "model") as tensors:
        assert_same_tensors({name: tensors.read(name) for name in tensors.names}, wanted)
    other, fresh = mixed(seed=9)
    restore(other, fresh, folder)
    assert_same_tensors(dict(stored(other)), dict(stored(model)))


def test_one_to_eight_to_one_is_the_first_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    model, optimizer = trained()
    first = save(tmp_path / "one", 1, model, optimizer, {}, {})
    eight = cut_up(*parts(seed=7), rows(8))
    for held in eight:
        restore(held.model, held.optimizer, first, held.pieces)
    folder = save_together(tmp_path / "eight", 1, eight)
    other, fresh = parts(seed=9)
    restore(other, fresh, folder)
    last = save(tmp_path / "again", 1, other, fresh, {}, {})
    assert read_manifest(last).files == read_manifest(first).files


def test_each_tensor_has_one_writer_and_its_header_says_where_it_lies(tmp_path: Path) -> None:
    folder = save_together(tmp_path, 3, cut_up(*mixed(), rows(8)))
    held: dict[str, int] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            slices = json.loads(file.metadata()["slices"])
            for name in file.keys():  # noqa: SIM118 (not a dict)
                numel = file.get_tensor(name).numel()
                held[name] = held.get(name, 0) + numel
                whole = slices.get(name, {"shape": [numel], "offset": []})
                assert (numel < torch.Size(whole["shape"]).numel()) == (name in slices), name
    model, _ = mixed()
    for name, tensor in model.named_parameters():
        for each in stored_names(name, tensor):
            numel = tensor.numel() if each == name else tensor[0].numel()
            assert held[each] == held[f"optimizer.{each}.exp_avg"] == numel, each
            assert held[f"optimizer.{each}.step"] == 1


def test_rank_with_nothing_of_its_own_writes_no_file(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    same = torch.optim.AdamW(model.parameters())
    folder = save_together(tmp_path, 3, cut_up(model, same, rows(4)))
    assert sorted(read_manifest(folder).files) == sorted(path.name for path in folder.glob("*.safetensors"))
    assert sorted(read_manifest(folder).files) == [
        "model-00000.safetensors",
        "model-00001.safetensors",
        "optimizer-00000.safetensors",
    ]
    other = torch.nn.Linear(3, 2)
    restore(other, torch.optim.AdamW(other.parameters()), folder)
    assert_same_tensors(dict(other.named_parameters()), dict(model.named_parameters()))


def test_ranks_of_a_pipeline_read_only_their_own_names(tmp_path: Path) -> None:
    folder = save(tmp_path, 1, *mixed(), {}, {})
    stage = mixed(seed=9)[0].mlp
    pieces = cut_up(*mixed(), rows(1))[0].pieces
    renamed = {name: pieces[f"mlp.{name}"] for name, _ in stored(stage)}
    load_weights(stage, folder, renamed)
    assert_same_tensors(dict(stored(stage)), dict(stored(mixed()[0].mlp)))
    with pytest.raises(CheckpointError, match="does not hold this model") as caught:
        load_weights(torch.nn.Linear(9, 13), folder)
    assert "names differ" in caught.value.found


def test_state_that_cannot_be_cut_is_refused_on_several_ranks_only(tmp_path: Path) -> None:
    model = torch.nn.Linear(4, 4, bias=False)
    optimizer = torch.optim.Adafactor(model.parameters())
    model.weight.grad = torch.ones(4, 4)
    optimizer.step()
    folder = save(tmp_path, 1, model, optimizer, {}, {})
    other = torch.nn.Linear(4, 4, bias=False)
    fresh = torch.optim.Adafactor(other.parameters())
    restore(other, fresh, folder)
    assert_same_tensors(fresh.state[other.weight], optimizer.state[model.weight])
    with pytest.raises(RecipeError, match="cannot be saved from several ranks"):
        save_together(tmp_path, 2, cut_up(model, optimizer, columns(2))[:1])


def test_one_store_serves_a_step_saved_twice_and_stays_small(tmp_path: Path) -> None:
    store, counts = HashStore(), []
    ranks = cut_up(*mixed(), rows(2))
    for stage in ("pretrain", "finetune", "finetune", "pretrain"):
        folder = save_together(tmp_path / stage, 5, ranks, store)
        assert_restored(folder, ranks, rows(2))
        counts.append(store.num_keys())
    assert counts[1] == counts[-1]


def test_ranks_speak_through_a_tcp_store_of_their_own_connections(tmp_path: Path) -> None:
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = cut_up(*mixed(), rows(2))

    def one(rank: int) -> Path:
        store = server if rank == 0 else TCPStore("127.0.0.1", server.port, is_master=False)
        held = ranks[rank]
        others = {"rank": rank, "world": 2, "store": store}
        return save(tmp_path, 5, held.model, held.optimizer, {}, {}, pieces=held.pieces, **others)

    with ThreadPoolExecutor(2) as pool:
        folder, same = pool.map(one, range(2))
    assert folder == same
    assert_restored(folder, ranks, rows(2))


def test_sharded_parameters_of_two_processes_are_saved_and_read_as_one_and_back(tmp_path: Path) -> None:
    """Real ranks on gloo: FSDP2 makes DTensors of parameters and optimizer state; 13 rows cut unevenly."""
    model, optimizer = mixed()
    whole = save(tmp_path, 1, model, optimizer, {}, {})
    spawned = multiprocessing.get_context("spawn")
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    children = [
        spawned.Process(target=_sharded_rank, args=(rank, server.port, str(tmp_path))) for rank in range(2)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(90)
    assert [child.exitcode for child in children] == [0, 0]
    folder = tmp_path / "checkpoints" / "step-00000002"
    assert len(verify(folder).files) == 4
    assert_restored(folder, cut_up(model, optimizer, rows(1)), rows(1))
    assert verify(whole).step == 1


def _sharded_rank(rank: int, port: int, stage: str) -> None:
    """Reads step 1, which one process wrote, into shards; writes step 2."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    torch.set_num_threads(1)
    store = TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    model, _ = mixed(seed=9)
    scalar = {model.get_parameter("scalar")}  # FSDP2 shards no scalar: it lies whole on both
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)), ignored_params=scalar)
    # As FSDP2 cuts dim 0: the first half rounded up. A buffer lies whole on both.
    pieces = cut_up(*mixed(), rows(2))[rank].pieces
    pieces["balance"] = cut_up(*mixed(), columns(2))[rank].pieces["balance"]
    assert isinstance(model.get_parameter("matrix.weight"), DTensor)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    folder = Path(stage) / "checkpoints" / "step-00000001"
    restore(model, optimizer, folder, pieces)
    assert isinstance(optimizer.state[model.get_parameter("matrix.weight")]["exp_avg"], DTensor)
    others = {"rank": rank, "world": 2, "store": store}
    save(Path(stage), 2, model, optimizer, {}, {}, pieces=pieces, **others)
    dist.destroy_process_group()
