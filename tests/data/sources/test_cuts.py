"""Where files of lines may be cut, held against Python's own readers."""

import csv
import io
import random

import pytest

from bessemer.data.sources.cuts import Cuts, LineEnds, RecordEnds


def ends_of(data: bytes, rng: random.Random) -> tuple[list[int], list[bool]]:
    """Fed in blocks of random sizes."""
    finder, places, rows, at = RecordEnds(), [], [], 0
    while at < len(data):
        size = rng.randint(1, 9)
        found, is_row = finder.feed(data[at : at + size])
        places, rows, at = places + found.tolist(), rows + is_row.tolist(), at + size
    found, is_row = finder.feed(b"", is_last=True)
    return places + found.tolist(), rows + is_row.tolist()


def ends_byte_by_byte(data: bytes) -> list[int]:
    """Python's strict reader as a state machine: begin and inside of a field, quoted, after a quote."""
    ends, state = [], "begin"
    for place, letter in enumerate(data.decode(), 1):
        if letter == "\n" and state != "quoted":
            ends.append(place)
            state = "begin"
        elif state == "begin":
            state = {'"': "quoted", ",": "begin"}.get(letter, "inside")
        elif state == "inside":
            state = "begin" if letter == "," else "inside"
        elif state == "quoted":
            state = "after" if letter == '"' else "quoted"
        elif state == "after":
            state = {'"': "quoted", ",": "begin", "\r": "inside"}.get(letter, "broken")
    return ends


def test_records_end_where_a_machine_that_sees_byte_after_byte_ends_them() -> None:
    rng = random.Random(1)
    for _ in range(6000):
        letters = rng.choice(['",\na', '",\na\r', '"\n,', '"",,\n\nab'])
        data = "".join(rng.choice(letters) for _ in range(rng.randint(0, 30))).encode()
        assert ends_of(data, rng)[0] == ends_byte_by_byte(data), data


def test_records_are_those_of_the_csv_module() -> None:
    rng = random.Random(2)
    for _ in range(300):
        text = io.StringIO()
        writer = csv.writer(text, lineterminator=rng.choice(["\n", "\r\n"]))
        for _ in range(rng.randint(0, 9)):
            writer.writerow(
                ["".join(rng.choice('ab,"\né') for _ in range(rng.randint(1, 6))) for _ in range(3)]
            )
            if rng.random() < 0.2:
                text.write("\n")
        data = text.getvalue().encode()
        ends, is_row = ends_of(data, rng)
        spans = zip([0, *ends], ends, is_row, strict=False)
        records = [data[begin:end].decode() for begin, end, counts in spans if counts]
        apart = [next(csv.reader((record,), strict=True)) for record in records]
        whole = csv.reader(io.StringIO(text.getvalue(), newline=""), strict=True)
        assert apart == [row for row in whole if row]


def test_lines_end_at_each_line_feed() -> None:
    finder = LineEnds()
    assert [finder.feed(block)[0].tolist() for block in (b"a\n\nb", b"\n", b"c")] == [[2, 3], [5], []]


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_cuts_stand_at_rows_and_the_last_counts_them(bom: bytes, block: int) -> None:
    rows = [f'{n},"one\n""two"" {n}"\n\n'.encode() for n in range(50)]
    data = bom + b"id,text\n" + b"".join(rows)
    cuts = Cuts("csv", len(data), 100)
    for at in range(0, len(data), block):
        cuts.add(data[at : at + block])
    found = cuts.found()
    assert found[-1] == (len(data), 51) and len(found) > 5
    for byte, number in found[:-1]:
        assert data[byte:].lstrip(b"\n").startswith(f"{number - 1},".encode())


@pytest.mark.parametrize(
    ("kind", "data", "end"),
    [
        ("jsonl", b"", (0, 1)),
        ("jsonl", b"a", (1, 2)),
        ("jsonl", b"a\n\nb\n", (5, 4)),
        ("csv", b"", (0, 1)),
        ("csv", b"h", (1, 1)),
        ("csv", b"h\n1\n\r\n2", (7, 3)),
        ("csv", b'h\n"1\n\n', (6, 2)),
    ],
)
def test_end_of_a_file_tells_its_rows(kind: str, data: bytes, end: tuple[int, int]) -> None:
    cuts = Cuts(kind, len(data), 100)
    cuts.add(data)
    assert cuts.found() == (end,)


@pytest.mark.parametrize("magic", [b"\x1f\x8b", b"\x28\xb5\x2f\xfd"])
def test_packed_file_has_no_cut(magic: bytes) -> None:
    cuts = Cuts("jsonl", 1000, 10)
    cuts.add(magic + b"\n" * 998)
    assert cuts.found() == ()


def test_large_file_has_a_bounded_number_of_cuts() -> None:
    cuts = Cuts("jsonl", 1_000_000, 10)
    for _ in range(1000):
        cuts.add(b"123456789\n" * 100)
    assert 200 < len(cuts.found()) <= 257
