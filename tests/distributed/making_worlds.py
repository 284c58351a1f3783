"""Real ranks for the tests of whole runs: started by hand, as torchrun would, or by the command itself.

Ranks started by hand are forked from a server that has imported torch already: a world begins in a tenth
of a second, where the command's own launcher takes seconds. All else is as under torchrun: processes of
their own, torchrun's variables, `bessemer`'s command line, gloo.
"""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from making_processes import finish, start
from making_runs import QUIET, SMALLEST, write_recipe

from bessemer.checkpoint.ranks import Talk
from bessemer.checkpoint.saver import Saver
from bessemer.cli.main import main
from bessemer.energy.metering.meter import PowerMeter
from bessemer.launch.world import held_port, world_of_environment
from bessemer.planner.layout import parse_layout
from bessemer.train import loop, metering
from bessemer.train import ranks as ranking
from bessemer.train.build import build
from bessemer.train.machine import Machine
from bessemer.train.ranks import ALONE, joined
from bessemer.train.stage import read_stage
from bessemer.train.stop import Stop

TWO_LAYERS = {**SMALLEST, "layers": 2}
MOE = """
experts = 4
experts_per_token = 2
expert_ffn = 32
"""

RESAVE = "resave"
HELD = "held"  # before a command: this rank's part of a checkpoint never comes
MACHINES = "machines"  # and a folder, before a command: each rank is a machine with counters of its own there
STEP_J, VALIDATION_J = 10, 7  # what the first one counts; the second one twice as much

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["bessemer.train.pretrain", "bessemer.finetune.run", "bessemer.export.huggingface"]
)


@dataclass(frozen=True)
class Ended:
    """A rank that has ended."""

    code: int
    out: str
    err: str


class World:
    """Ranks that live, each with its own command line."""

    def __init__(self, folder: Path, words: Sequence[Sequence[str]], port: int) -> None:
        self._said = folder / f"said-{port}"
        self._said.mkdir()
        self._ranks: list[BaseProcess] = []
        for rank, given in enumerate(words):
            variables = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(len(words)),
                "LOCAL_WORLD_SIZE": str(len(words)),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"],
                "OMP_NUM_THREADS": "1",
            }
            files = str(self._said / f"out-{rank}"), str(self._said / f"err-{rank}")
            process = _SERVER.Process(target=_rank, args=(str(folder), list(given), variables, files))
            process.start()
            self._ranks.append(process)

    def signal(self, rank: int, number: signal.Signals) -> None:
        pid = self._ranks[rank].pid
        assert pid is not None
        os.kill(pid, number)

    def ended(self, timeout_s: float = 60.0) -> list[Ended]:
        end_s = time.monotonic() + timeout_s
        for process in self._ranks:
            process.join(max(0.0, end_s - time.monotonic()))
        living = [rank for rank, process in enumerate(self._ranks) if process.exitcode is None]
        assert not living, f"ranks {living} hang:\n{[self._of(rank) for rank in range(len(self._ranks))]}"
        return [self._of(rank) for rank in range(len(self._ranks))]

    def kill(self) -> None:
        for process in self._ranks:
            process.kill()
            process.join()

    @property
    def pid(self) -> int:
        """Of the first rank."""
        assert self._ranks[0].pid is not None
        return self._ranks[0].pid

    def poll(self) -> int | None:
        """As of a Popen, for `wait_for`: the exit code of a rank that has ended."""
        return next((process.exitcode for process in self._ranks if process.exitcode is not None), None)

    def communicate(self, timeout: float) -> tuple[str, str]:
        told = self.ended(timeout)
        return told[0].out, "\n".join(one.err for one in told)

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def _of(self, rank: int) -> Ended:
        code = self._ranks[rank].exitcode
        texts = [(self._said / f"{name}-{rank}") for name in ("out", "err")]
        out, err = (path.read_text() if path.exists() else "" for path in texts)
        return Ended(-1000 if code is None else code, out, err)


@contextmanager
def world(folder: Path, *words: Sequence[str]) -> Iterator[World]:
    """One rank for each command line; none lives afterwards."""
    with held_port("127.0.0.1") as port:
        ranks = World(folder, words, port)
        try:
            yield ranks
        finally:
            ranks.kill()


def run_world(folder: Path, *words: Sequence[str], timeout_s: float = 60.0) -> list[Ended]:
    with world(folder, *words) as ranks:
        return ranks.ended(timeout_s)


def trained(folder: Path, layout: str, size: int, *words: str) -> dict[str, Any]:
    """A command run by `size` ranks to its end: the document that the first one, and it alone, prints."""
    setting = ("--set", f"parallel.layout={layout}", "--json")
    ranks = run_world(folder, *[(*words, *setting)] * size, timeout_s=120.0)
    assert [rank.code for rank in ranks] == [0] * size, "\n".join(rank.err for rank in ranks)
    assert [rank.out for rank in ranks[1:]] == [""] * (size - 1)
    return json.loads(ranks[0].out)


def ran(folder: Path, *words: str) -> str:
    """The command itself, to its end: stderr."""
    code, _, err = finish(start(folder, *words))
    assert code == 0, err
    return err


def torchrun(folder: Path, size: int, *words: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={size}", "--standalone"]
    return subprocess.Popen(
        # --: else torchrun takes our --run for an abbreviation of its --run-path, and refuses it.
        [*command, "-m", "--", "bessemer", *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def write_moe_recipe(folder: Path) -> Path:
    path = write_recipe(folder, sizes=TWO_LAYERS)
    text = path.read_text().replace("[model]\n", '[model]\nfamily = "qwen3-moe"\n', 1)
    path.write_text(text.replace("\n[tokenizer]", f"{MOE}\n[tokenizer]", 1))
    return path


def resave(stage: str, out: str, layout: str) -> None:
    """The newest checkpoint of a stage, read by a layout and saved by it in a stage `out`."""
    given = world_of_environment()
    with nullcontext(ALONE) if given is None else joined(given) as company:
        found = read_stage(Path(stage))
        found = replace(found, plan=replace(found.plan, layout=parse_layout(layout)))
        job, state = build(found, Machine("cpu", 1, None), QUIET, Stop(), company)
        size = 1 if given is None else given.size
        saver = Saver(Path(out), 1, rank=company.rank, world=size, store=company.store)
        told = state.to_json(), found.plan.layout.to_json()
        saver.save(state.step, job.model, job.optimizer, *told, job.engine.pieces)
        saver.close()
        job.close()
        if company.rank == 0:
            for name in ("stage.json", "tokenizer.json"):
                shutil.copy(Path(stage) / name, Path(out) / name)


def workers_of(command: int) -> list[int]:
    """Process ids of the ranks that a command has started (not of their keeper)."""
    found = []
    for child in Path(f"/proc/{command}/task/{command}/children").read_text().split():
        if b"bessemer.train.run" in Path(f"/proc/{child}/cmdline").read_bytes():
            found.append(int(child))
    return found


def lives(process: int) -> bool:
    """A zombie does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _rank(folder: str, words: list[str], variables: dict[str, str], files: tuple[str, str]) -> None:
    for descriptor, name in enumerate(files, start=1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.chdir(folder)
    os.environ.update(variables)
    torch.set_num_threads(1)
    if words[0] == RESAVE:
        resave(*words[1:])
        return
    if words[0] == MACHINES:
        _as_own_machine(Path(words[1]), int(variables["RANK"]))
        words = words[2:]
    if words[0] == HELD:
        Talk.tell_files = lambda *_: time.sleep(120.0)  # type: ignore[method-assign]
        words = words[1:]
    sys.exit(main(words))


def _as_own_machine(folder: Path, rank: int) -> None:
    """A counter of its memory, which each step and each validation moves on; without a folder for it there, a
    device that nobody reads."""
    ranking._machine = lambda: f"machine {rank}"
    zone = folder / str(rank) / "intel-rapl:0:0"
    if not (folder / str(rank)).is_dir():
        unread = {"accelerators": ["one that nobody reads"]}
        metering.PowerMeter = lambda *args, **more: PowerMeter(*args, **{**more, **unread})
        return
    for place, name in ((zone.with_name("intel-rapl:0"), "another part"), (zone, "dram")):
        place.mkdir(exist_ok=True)
        for file, text in (("name", name), ("max_energy_range_uj", 10**15), ("energy_uj", 0)):
            (place / file).write_text(f"{text}\n")
    metering.PowerMeter = partial(PowerMeter, powercap=folder / str(rank))

    def drawing(name: str, joules: int) -> None:
        real = getattr(loop, name)

        def work(*args: Any, **more: Any) -> Any:
            drawn = int((zone / "energy_uj").read_text()) + 1_000_000 * joules * (rank + 1)
            (zone / "energy_uj").write_text(f"{drawn}\n")
            return real(*args, **more)

        setattr(loop, name, work)

    drawing("train_step", STEP_J)
    drawing("validation_loss", VALIDATION_J)
