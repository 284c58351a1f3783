"""Put back what a run has left moved: trainer and guard were both killed."""

from collections.abc import Callable

from bessemer.energy.levers.lever import lever_of
from bessemer.energy.levers.record import Record, records, try_take
from bessemer.errors import UserError


def put_back(record: Record) -> None:
    lever_of(record["kind"], record["name"]).put(record["before"])


def restore_left(say: Callable[[str], None]) -> list[str]:
    """Every lever that was left moved on this machine by nobody alive; `say` gets a line of each.

    Called when training starts and by `doctor`. Where nothing is left it lists a folder, and no more.
    """
    told = []
    for path in records():
        try:
            holding = try_take(path)
        except UserError as error:  # another user's, who has this home too
            say(f"left alone: {error.found}")
            continue
        if holding is None:
            continue
        record = holding.record
        if record is None:  # its run ended before it had moved anything
            holding.forget()
            continue
        what = f"{record['kind'].replace('_', ' ')} of {record['name']}, left by process {record['process']}"
        try:
            put_back(record)
        except UserError as error:
            holding.close()
            told.append(f"not put back: {what}: {error.found}")
        else:
            holding.forget()
            told.append(f"put back: {what}")
        say(told[-1])
    return told
