"""Where the ranks of one attempt meet: a store (a small key-value server) in the first rank's process.

Without an agent of torchrun's it listens at MASTER_ADDR:MASTER_PORT. Where there is one, its own store has
that address, and outlives attempts: what an earlier attempt said is still in it, and the agents' counts of
restarts differ (torch 2.13 does not count one because of a machine that joins), so that these name no
attempt. There the first rank opens a store on a free port, and the agent's only says where. Who reads the
address of an attempt before finds nobody there, or a server without the token, and reads it again.
"""

import json
import os
import secrets
import socket
import time
from datetime import timedelta

from torch.distributed import DistError, Store, TCPStore  # type: ignore[attr-defined]

from bessemer.errors import RefusedError
from bessemer.launch.world import World

_LOOPBACK = "127.0.0.1"
_ADDRESS = "bessemer/address"  # in the agent's store
_PATIENCE_S = 300.0  # of a rank that waits for the first one to listen
_CONNECT_S = 5.0
_PAUSE_S = 0.1


def meet(world: World, patience_s: float = _PATIENCE_S) -> Store:
    """This attempt's store. RefusedError where the first rank cannot listen, or another not reach it."""
    try:
        if not _has_agent():
            if world.rank == 0:
                return _listen(world.host, world.port)
            return TCPStore(
                _numeric(world.host), world.port, is_master=False, timeout=timedelta(seconds=patience_s)
            )
        agent = TCPStore(world.host, world.port, is_master=False, timeout=timedelta(seconds=patience_s))
        return _announce(world, agent) if world.rank == 0 else _find(agent, patience_s)
    except (DistError, OSError) as error:
        verb = "listen at" if world.rank == 0 and not _has_agent() else "reach"
        raise RefusedError(
            f"rank {world.rank} cannot {verb} {world.host}:{world.port}, where the ranks meet",
            found=str(error).strip().splitlines()[0],
            wanted="a port that is free on the first rank's machine, and that every other machine reaches",
            fix="free it, or set MASTER_PORT (and MASTER_ADDR) to another, the same for all ranks",
        ) from error


def _has_agent() -> bool:
    """Whether torchrun's agent serves a store at the address that it gave."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _listen(host: str, port: int) -> TCPStore:
    """A server, on this machine's loopback alone where `host` is that; torch listens on all interfaces."""
    host, listener = _numeric(host), None
    if host == _LOOPBACK:
        listener = _listener(port)
    if listener is None:
        return TCPStore(host, port, is_master=True, wait_for_workers=False)
    port = listener.getsockname()[1]
    return TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())


def _listener(port: int) -> socket.socket | None:
    """None where the system does not let us listen beside whoever holds the port (launch/local.py), or
    torch cannot be given a socket: then torch itself listens."""
    if "master_listen_fd" not in (TCPStore.__init__.__doc__ or ""):
        return None
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((_LOOPBACK, port))
        listener.listen(socket.SOMAXCONN)
    except OSError:
        listener.close()
        return None
    return listener


def _announce(world: World, agent: Store) -> Store:
    host = _LOOPBACK if world.size == world.local_size else _own_address(world.host, world.port)
    store, token = _listen(host, 0), secrets.token_hex(16)
    store.set(token, "here")
    agent.set(_ADDRESS, json.dumps({"host": host, "port": store.port, "token": token}))
    return store


def _find(agent: Store, patience_s: float) -> Store:
    end_s = time.monotonic() + patience_s
    while (left_s := end_s - time.monotonic()) > 0:
        agent.wait([_ADDRESS], timedelta(seconds=left_s))
        found = json.loads(agent.get(_ADDRESS))
        store = _reached(**found)
        if store is not None:
            return store
        time.sleep(_PAUSE_S)
    raise TimeoutError(f"no first rank at {found['host']}:{found['port']} in {patience_s:g} s")


def _reached(host: str, port: int, token: str) -> Store | None:
    try:
        # torch would try again and again, and warn each time.
        socket.create_connection((host, port), _CONNECT_S).close()
        store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=_CONNECT_S))
        if not store.check([token]):
            return None
    except (DistError, OSError):
        return None
    store.set_timeout(timedelta(seconds=_PATIENCE_S))
    return store


def _own_address(host: str, port: int) -> str:
    """By which the other machines reach this one: that which would speak to `host`, which they know."""
    for family, kind, protocol, _, place in socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM):
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(place)  # sends nothing: asks the routing table
            mine = str(probe.getsockname()[0])
        if not mine.startswith("127.") and mine != "::1":
            return mine
    return host  # this machine's own name, that it takes for its loopback


def _numeric(host: str) -> str:
    """localhost may be two addresses, of which we listen at one."""
    return _LOOPBACK if host == "localhost" else host
