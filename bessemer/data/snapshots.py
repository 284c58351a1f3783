"""Which reading of a database server is meant, and how it was cut then.

What a server holds cannot be hashed without reading all of it. So what was read first is what its name in a
recipe means until it is asked to be read anew (`refresh`), and its ranges of keys are kept: a build that was
killed goes on with the parts that it had, and a source beside it finds them, whatever was added meanwhile.

    snapshots/<what is asked>.json        how often it has been read anew
    snapshots/<reading, limit …>.parts.json    its ranges of keys
No address and no password is in them.
"""

from collections.abc import Sequence
from pathlib import Path

from bessemer.data.factory.keys import key
from bessemer.data.sources.cutting import cut
from bessemer.data.sources.parts import Input, Part
from bessemer.durable import write_json
from bessemer.recipe.schema import FinetuneData, Source
from bessemer.rundir import read_object


def meant_inputs(
    sources: Sequence[Source | FinetuneData], inputs: Sequence[Sequence[Input]], store: Path, *, refresh: bool
) -> list[list[Input]]:
    """The inputs of each source; those of servers in the reading that is meant, with `refresh` a new one."""
    asked = {
        entry.xxh3_128: entry
        for source, entries in zip(sources, inputs, strict=True)
        for entry in entries
        if source.url_env is not None
    }
    # Once for each that is asked for: two sources may ask the same.
    readings = {known: _reading(entry, store, refresh=refresh) for known, entry in asked.items()}
    return [
        [entry if source.url_env is None else entry.at(readings[entry.xxh3_128]) for entry in entries]
        for source, entries in zip(sources, inputs, strict=True)
    ]


def cut_source(source: Source, inputs: Sequence[Input], store: Path) -> list[Part]:
    """The parts of a source: of a server those of the first time that this reading was cut."""
    if source.url_env is None:
        return cut(source, inputs)
    known = key("parts", inputs[0].xxh3_128, [source.limit, source.split_by])
    path = store / "snapshots" / f"{known}.parts.json"
    kept = read_object(path)
    if kept is None:
        parts = cut(source, inputs)
        rows = [[part.begin, part.end, part.first_row, part.most_rows] for part in parts]
        write_json(path, {"what": inputs[0].name, "parts": rows})
        return parts
    return [Part((inputs[0],), *row) for row in kept["parts"]]


def _reading(entry: Input, store: Path, *, refresh: bool) -> int:
    path = store / "snapshots" / f"{entry.xxh3_128}.json"
    known = read_object(path)
    number = int(known["number"]) if known else 0
    if refresh or known is None:
        number += 1
        write_json(path, {"what": entry.name, "number": number})
    return number
