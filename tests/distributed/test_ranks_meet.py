"""Where ranks meet: on one machine at its loopback alone; under an agent in the attempt that lives."""

import json
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from bessemer.errors import RefusedError
from bessemer.launch.world import World, held_port
from bessemer.train.meeting import _ADDRESS, meet

HERE = "127.0.0.1"


def world(rank: int, port: int, host: str = HERE) -> World:
    return World(rank, 2, rank, 2, host, port)


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> TCPStore:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    return TCPStore(HERE, 0, is_master=True, wait_for_workers=False)


@pytest.mark.parametrize("host", [HERE, "localhost"])
def test_first_rank_listens_at_the_loopback_alone(host: str) -> None:
    with held_port("127.0.0.1") as port:
        first = meet(world(0, port, host))
        second = meet(world(1, port, host))
        first.set("word", "heard")
        assert second.get("word") == b"heard"
        if sys.platform == "linux":  # where all of 127.0.0.0/8 is this machine
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.2", port), 1.0)


def test_port_that_is_taken_is_refused_by_name() -> None:
    with closing(socket.create_server((HERE, 0))) as other:
        port = other.getsockname()[1]
        with pytest.raises(RefusedError, match=f"rank 0 cannot listen at {HERE}:{port}") as caught:
            meet(world(0, port))
    assert "address already in use" in caught.value.found.lower() and "MASTER_PORT" in caught.value.fix


def test_first_rank_that_never_comes_is_refused_by_name() -> None:
    told = f"rank 1 cannot reach {HERE}"
    with held_port("127.0.0.1") as port, pytest.raises(RefusedError, match=f"{told}:{port}"):
        meet(world(1, port), patience_s=0.3)


@pytest.mark.parametrize("is_taken", [False, True])
def test_what_an_earlier_attempt_left_with_the_agent_leads_nobody_astray(
    agent: TCPStore, is_taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is at its address, or a store that is not its."""
    another = TCPStore(HERE, 0, is_master=True, wait_for_workers=False)
    stale = {"host": HERE, "port": another.port, "token": "of an earlier attempt"}
    agent.set(_ADDRESS, json.dumps(stale))
    agent.set("run/load", "stale")
    if not is_taken:
        del another
    with ThreadPoolExecutor(1) as pool:
        # Counts of restarts differ where one agent began anew and another let a machine join.
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
        waiting = pool.submit(meet, world(1, agent.port), 20.0)
        with pytest.raises(TimeoutError):
            waiting.result(0.3)
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
        first = meet(world(0, agent.port))
        second = waiting.result(20.0)
    first.set("word", "heard")
    second.wait(["word"], timedelta(seconds=5))
    assert second.get("word") == b"heard" and not second.check(["run/load"])


def test_first_rank_that_never_tells_the_agent_is_refused_by_name(agent: TCPStore) -> None:
    with pytest.raises(RefusedError, match="rank 1 cannot reach"):
        meet(world(1, agent.port), patience_s=0.3)
    agent.set(_ADDRESS, json.dumps({"host": HERE, "port": 1, "token": "none"}))
    with pytest.raises(RefusedError) as caught:
        meet(world(1, agent.port), patience_s=0.3)
    assert caught.value.found == f"no first rank at {HERE}:1 in 0.3 s"
