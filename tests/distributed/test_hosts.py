"""Several machines: network namespaces joined by a pair of virtual interfaces, each with torchrun's agent.

The second machine dies (every process of it, by SIGKILL) and comes back; the run goes on with one rank and
then with two again. Nobody names the network interface: the machines' own names resolve to nothing here.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from making_runs import SMALL, curve, own_cache, pretrained, write_recipe

from bessemer.rundir import read_rows

PREFIX = f"bessemer-{os.getpid()}-"
STEPS = 3000  # more than it comes to: the test stops it
# torch's agents share a store that one which joins later does not find (2.13): docs/parallel.md.
ELASTIC = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
ROOT = Path(__file__).parents[2]
# A constant rate, so that how many steps were planned changes none of them.
SETTINGS = ("pretrain.micro_batch=1", "pretrain.schedule=constant", "pretrain.warmup=10", "pretrain.lr=3e-4")


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Names of two namespaces whose addresses are 10.77.0.1 and 10.77.0.2."""
    ip = shutil.which("ip") if os.geteuid() == 0 else None
    names = [f"{PREFIX}{number}" for number in range(2)]
    if ip is None or subprocess.run([ip, "netns", "add", names[0]], capture_output=True).returncode:
        pytest.skip("only root can make network namespaces, and not everywhere")
    try:
        _ip("netns", "add", names[1])
        _ip(
            "link",
            "add",
            "veth0",
            "netns",
            names[0],
            "type",
            "veth",
            "peer",
            "name",
            "veth1",
            "netns",
            names[1],
        )
        for number, name in enumerate(names):
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "addr", "add", f"10.77.0.{number + 1}/24", "dev", f"veth{number}")
            _ip("-n", name, "link", "set", f"veth{number}", "up")
        yield names
    finally:
        for name in names:
            for process in _processes(name):
                os.kill(process, signal.SIGKILL)
            subprocess.run([ip, "netns", "del", name], capture_output=True)


@pytest.mark.slow
def test_a_machine_dies_and_comes_back(tmp_path: Path, hosts: list[str]) -> None:
    write_recipe(tmp_path, sizes=SMALL, ready=False)
    with own_cache(tmp_path / "cache"):
        agents = [_agent(tmp_path, hosts, number) for number in range(2)]
        _until(lambda: _steps(tmp_path, "shard=2") > 10, agents[0])
        for process in _processes(hosts[1]):
            os.kill(process, signal.SIGKILL)
        agents[1].wait(30)
        _until(lambda: _steps(tmp_path, "replicate=1") > 10, agents[0])
        agents[1] = _agent(tmp_path, hosts, 1)
        _until(lambda: _attempts(tmp_path) >= 3 and _last_layout(tmp_path) == "shard=2", agents[0])
        for agent in agents:
            agent.send_signal(signal.SIGTERM)
        for agent in agents:
            agent.wait(60)
        reached = curve(tmp_path / "run/pretrain")
        assert [row[0] for row in reached] == list(range(1, len(reached) + 1))
        pretrained(tmp_path, f"pretrain.steps={len(reached)}", *SETTINGS, run="one")
    one = curve(tmp_path / "one/pretrain")
    assert len(reached) > 20
    for (step, loss, *_), (_, expected, *_) in zip(reached, one, strict=False):
        assert loss == pytest.approx(expected, rel=1e-4), f"step {step}"


def _agent(folder: Path, hosts: list[str], number: int) -> "subprocess.Popen[bytes]":
    command = [
        *("ip", "netns", "exec", hosts[number], sys.executable, "-m", "torch.distributed.run"),
        *("--nnodes", "1:2", "--nproc-per-node", "1", "--max-restarts", "5"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", "10.77.0.1:29400", "--rdzv-id", "hosts"),
        *("--rdzv-conf", f"is_host={int(number == 0)},last_call_timeout=2,close_timeout=5"),
        *("--local-addr", f"10.77.0.{number + 1}", "--monitor-interval", "0.2"),
        *("-m", "--", "bessemer", "pretrain", "tiny.toml", "--run", "run"),
        *("--set", f"pretrain.steps={STEPS}"),
        *(word for setting in SETTINGS for word in ("--set", setting)),
    ]
    with open(folder / f"host-{number}.log", "ab") as log:
        return subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **ELASTIC, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
        )


def _steps(folder: Path, layout: str) -> int:
    return sum(row["layout"] == layout for row in read_rows(folder / "run/pretrain/metrics.jsonl"))


def _last_layout(folder: Path) -> str:
    return str(read_rows(folder / "run/pretrain/metrics.jsonl")[-1]["layout"])


def _attempts(folder: Path) -> int:
    rows = read_rows(folder / "run/pretrain/events.jsonl")
    return sum(row["kind"] in ("start", "resume") for row in rows)


def _until(condition: Callable[[], bool], agent: "subprocess.Popen[bytes]", timeout_s: float = 120.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert agent.poll() is None, f"the first machine's agent ended with {agent.returncode}"
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.2)


def _processes(namespace: str) -> list[int]:
    found = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True)
    return [int(word) for word in found.stdout.split()]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
