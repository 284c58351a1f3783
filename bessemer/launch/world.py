"""What a process can know of the world it was started in, and how it tells our launcher of a failure.

A world comes from torchrun's variables, which our own launcher (launch/local.py) sets too, or from those
that Slurm's `srun` gives to each task. A process with neither is alone.

Slurm names no address to meet at: it is the first host of the step, with a port that follows from the
job and step, so that all tasks agree on it and two jobs on one machine rarely meet. MASTER_ADDR and
MASTER_PORT win where they are set.
Source: the output environment variables in srun's manual; torch.distributed.run's documentation.
"""

import os
import re
import socket
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bessemer import errors
from bessemer.durable import write_json
from bessemer.errors import RecipeError, UserError

WORKER = "BESSEMER_WORKER"  # the exchange folder: where a worker of ours leaves word of its failure

_FIRST_PORT, _NUM_PORTS = 10_000, 20_000  # below the ports that Linux gives to outgoing connections
_MEANING = "the variables that torchrun or Slurm give to each process"
_FIX = "start with `torchrun`, `srun`, or `bessemer` alone, and leave these variables to them"


@dataclass(frozen=True)
class World:
    rank: int  # of this process, in 0 … size-1
    size: int
    local_rank: int  # among the processes of this machine
    local_size: int
    host: str  # where rank 0 listens
    port: int


def world_of_environment(environment: Mapping[str, str] = os.environ) -> World | None:
    """None: a process on its own. Raises RecipeError where the variables contradict each other."""
    if environment.get("RANK") or (environment.get("WORLD_SIZE") or "1") != "1":
        return _checked(_torchrun(environment))
    # Only `srun` sets the step's variables. A batch script without it has SLURM_PROCID=0 and its job's
    # SLURM_NTASKS as well, but is one process, and would wait for the others for ever.
    if "SLURM_STEP_NODELIST" in environment and _slurm_size(environment) > 1:
        return _checked(_slurm(environment))
    return None


@contextmanager
def held_port(host: str) -> Iterator[int]:
    """A port of this machine on which rank 0 can listen, and that no other process is given meanwhile.

    A bound socket that does not listen keeps the port from being given away, and with SO_REUSEADDR on both
    does not keep rank 0 (whose torch sets it) from listening there.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((host, 0))
        yield holder.getsockname()[1]


def is_ours(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether our own launcher started this process, and so reads what it reports."""
    return WORKER in environment


def report_failure(error: BaseException, environment: Mapping[str, str] = os.environ) -> int:
    """Tell the launcher, if it is ours, why this rank ends. Returns the exit code to end with.

    Call it once, with what stopped the rank; the launcher shows one failure for the whole world. Then
    end soon: the others get a few seconds from now on.
    """
    exit_code = error.exit_code if isinstance(error, UserError) else 1
    if not is_ours(environment):
        return exit_code
    rank = _number(environment, "RANK")
    report: dict[str, object] = {"exit_code": exit_code, "rank": rank, "time_s": time.monotonic()}
    if isinstance(error, UserError):
        # Its class, or the nearest above that launch/outcome.py will find in bessemer.errors.
        kinds = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__]
        report["kind"] = kinds[0]
        report |= {key: getattr(error, key) for key in ("problem", "found", "wanted", "fix")}
    else:
        report["summary"] = "".join(traceback.format_exception_only(error)).strip()
        report["traceback"] = "".join(traceback.format_exception(error)).strip()
    write_json(report_file(Path(environment[WORKER]), rank), report)
    return exit_code


def report_file(exchange: Path, rank: int) -> Path:
    return exchange / f"rank-{rank:05d}.json"


def _torchrun(environment: Mapping[str, str]) -> World:
    return World(
        rank=_number(environment, "RANK"),
        size=_number(environment, "WORLD_SIZE"),
        local_rank=_number(environment, "LOCAL_RANK"),
        local_size=_number(environment, "LOCAL_WORLD_SIZE"),
        host=_text(environment, "MASTER_ADDR"),
        port=_number(environment, "MASTER_PORT"),
    )


def _slurm(environment: Mapping[str, str]) -> World:
    per_node = _repeated(_text(environment, "SLURM_STEP_TASKS_PER_NODE"))
    node = _number(environment, "SLURM_NODEID")
    if node >= len(per_node):
        raise _malformed(f"SLURM_NODEID={node}, tasks on {len(per_node)} nodes", "a node of the step")
    # Times 31: else the next job's first step would have the port of this job's second.
    identity = _number(environment, "SLURM_JOB_ID") * 31 + _number(environment, "SLURM_STEP_ID")
    given = {"MASTER_PORT": str(_FIRST_PORT + identity % _NUM_PORTS), **environment}
    return World(
        rank=_number(environment, "SLURM_PROCID"),
        size=_slurm_size(environment),
        local_rank=_number(environment, "SLURM_LOCALID"),
        local_size=per_node[node],
        host=environment.get("MASTER_ADDR") or first_host(_text(environment, "SLURM_STEP_NODELIST")),
        port=_number(given, "MASTER_PORT"),
    )


def first_host(nodes: str) -> str:
    """The first name of Slurm's list of hosts: "rack[2-3]node[07,09-12],login" begins with rack2node07."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    if first is None:
        raise _malformed(f"SLURM_STEP_NODELIST={nodes}", "a list of hosts")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0])


def _slurm_size(environment: Mapping[str, str]) -> int:
    """Tasks of this step; older versions of Slurm name only SLURM_NTASKS, which srun sets to the same."""
    name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
    return _number(environment, name)


def _repeated(text: str) -> list[int]:
    """Slurm's way to write a list of counts: "2(x3),1" is 2, 2, 2, 1."""
    counts = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise _malformed(f"SLURM_STEP_TASKS_PER_NODE={text}", "counts such as 2(x3),1")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def _checked(world: World) -> World:
    if not 0 <= world.rank < world.size:
        raise _malformed(f"rank {world.rank} of {world.size}", "a rank below the number of ranks")
    if not 0 <= world.local_rank < world.local_size <= world.size:
        found = f"local rank {world.local_rank} of {world.local_size} on this machine, {world.size} in all"
        raise _malformed(found, "local ranks below the number on this machine")
    if not 0 < world.port < 65536:
        raise _malformed(f"MASTER_PORT={world.port}", "a port, 1 to 65535")
    return world


def _number(environment: Mapping[str, str], name: str) -> int:
    text = _text(environment, name)
    if not re.fullmatch(r"[0-9]+", text):
        raise _malformed(f"{name}={text}", "a whole number")
    return int(text)


def _text(environment: Mapping[str, str], name: str) -> str:
    text = environment.get(name, "")
    if not text:
        raise _malformed(f"{name} is not set", f"{name}, with the others: {_MEANING}")
    return text


def _malformed(found: str, wanted: str) -> RecipeError:
    problem = "the environment does not describe a world of processes"
    return RecipeError(problem, found=found, wanted=wanted, fix=_FIX)
