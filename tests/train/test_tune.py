"""The power limit is found in windows of steps, on boards that are files.

What a step takes at each limit stands in `TIMES`, so where the knee is follows by hand. The clock is moved by
hand, too: on a busy machine time would pass that no step takes.
"""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from making_boards import ONE, TWO, Boards, build_library

from bessemer.train.tune import earlier_choice

needs_nvml = pytest.mark.skipif(importlib.util.find_spec("pynvml") is None, reason="needs nvidia-ml-py")

# What a step takes, as a multiple of that at full power: joules go with watts times this. At 700, 600, 500,
# 400 and 300 W it is 700, 600, 550, 500 and 600: least at 400 W, where steps take a quarter longer.
TIMES = {700: 1.0, 600: 1.0, 500: 1.1, 400: 1.25, 300: 2.0, 200: 4.0, 100: 9.0}
STEP_S = 0.03
TOKENS = 1000
PRELUDE = f"""
import ctypes, os, threading, time
from pathlib import Path
from bessemer.energy.levers.board import Board
from bessemer.energy.levers.guard import hold
from bessemer.energy.readers.nvml import open_nvml
from bessemer.train.tune import Rules, Search, Tell, Tune

TIMES, STEP_S, ONE, TWO = {TIMES!r}, {STEP_S!r}, {ONE!r}, {TWO!r}
nvml = ctypes.CDLL("libnvidia-ml.so.1")


class ByHand:
    def __init__(self):
        self.now_s = time.monotonic()
        time.monotonic = lambda: self.now_s
        self.sleep(0.0)

    def sleep(self, seconds):
        self.now_s += seconds
        nvml.fakeClock(ctypes.c_longlong(round(self.now_s * 1e9)))


class Ranks:
    def __init__(self, world=1):
        self.values, self.barrier, self.exchanges = [None] * world, threading.Barrier(world), 0

    def of(self, rank):
        return type("Rank", (), {{"each_rank": lambda _, values: self.each_rank(rank, values)}})()

    def each_rank(self, rank, values):
        self.barrier.wait()
        self.values[rank] = values
        self.exchanges += rank == 0
        self.barrier.wait()
        told = list(self.values)
        self.barrier.wait()
        return told


class Rank:
    def __init__(self, uuid=ONE, slower_at_most=0.18, due=lambda step: False, clock=time):
        self.lines, self.events, self.limits, self.step, self.clock = [], [], [], 0, clock
        event = lambda kind, step, **more: self.events.append({{"kind": kind, "step": step, **more}})
        limited = lambda watts, how: self.limits.append([watts, how])
        tell = Tell(self.lines.append, event, limited)
        rules = Rules(slower_at_most, {TOKENS}, "shard=2", window_s=0.2, window_steps=6, warmup_steps=2)
        self.board, self.due = Board(uuid), due
        meter = open_nvml([uuid])[uuid][0]
        self.tune = Tune([hold(self.board)], Search(self.board, meter, rules, due, tell), tell)

    def train(self, ranks, steps):
        for self.step in range(self.step + 1, self.step + 1 + steps):
            self.clock.sleep(STEP_S * TIMES[round(self.board.limit_w, -2)])
            self.tune.after_step(ranks, self.step)
            if self.due(self.step):
                self.clock.sleep(2 * STEP_S)  # validation
        return self

    def told(self):
        found = {{"lines": self.lines, "events": self.events, "limits": self.limits}}
        return {{**found, "watts": self.board.limit_w}}


def together(clock, *ranks, steps=32):
    meeting = Ranks(len(ranks))

    def train(number, rank):
        for step in range(1, 1 + steps):
            if meeting.barrier.wait() == 0:
                clock.sleep(STEP_S * TIMES[round(rank.board.limit_w, -2)])
            meeting.barrier.wait()
            rank.tune.after_step(meeting.of(number), step)

    threads = [threading.Thread(target=train, args=parts) for parts in enumerate(ranks)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return [*(rank.told() for rank in ranks), meeting.exchanges]
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_library(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def boards(library: Path, tmp_path: Path) -> Boards:
    return Boards(tmp_path, library, ONE, TWO)


@needs_nvml
@pytest.mark.parametrize(
    ("slower_at_most", "tried"),
    [(0.0, [700, 600, 500]), (0.18, [700, 600, 500, 400]), (0.9, [700, 600, 500, 400, 300])],
)
def test_least_energy_a_token_within_the_time_allowed_is_kept_and_put_back_at_the_end(
    boards: Boards, slower_at_most: float, tried: list[int]
) -> None:
    found, after = boards.run(f"""{PRELUDE}
rank = Rank(slower_at_most={slower_at_most} + 1e-6, clock=ByHand()).train(Ranks().of(0), 60)
told = rank.told()
rank.tune.close()
print(json.dumps([told, rank.board.limit_w]))
""")
    (event,), chosen = found["events"], tried[-2]
    assert found["watts"] == event["watts"] == chosen and after == event["full_w"] == 700
    assert [window["limit_w"] for window in event["windows"]] == tried
    for window in event["windows"]:
        step_s = STEP_S * TIMES[window["limit_w"]]
        assert window["step_time_s"] == pytest.approx(step_s, rel=1e-6)
        assert window["joules_per_token"] == pytest.approx(window["limit_w"] * step_s / TOKENS, rel=1e-3)
    assert found["limits"] == [*([watts, "searching"] for watts in tried[1:]), [chosen, "found"]]
    saved, slower = 1 - chosen * TIMES[chosen] / 700, TIMES[chosen] - 1
    assert found["lines"] == [
        f"power limit: {chosen} of 700 W: {saved:.0%} less energy a token, {slower:+.1%} time a step "
        f"(tried {', '.join(map(str, tried))} W)"
    ]


@needs_nvml
def test_limit_that_saves_nothing_in_the_time_allowed_is_not_kept(boards: Boards) -> None:
    found = boards.run(f"""{PRELUDE}
TIMES.update({{600: 1.3}})
print(json.dumps(Rank(clock=ByHand()).train(Ranks().of(0), 30).told()))
""")
    assert found["watts"] == found["events"][0]["watts"] == 700 and found["limits"][-1] == [None, "found"]
    assert found["lines"] == [
        "power limit: 700 of 700 W: no lower one saves energy within 18% more time (tried 700, 600 W)"
    ]


@needs_nvml
def test_limit_under_which_steps_take_many_times_as_long_ends_the_search(boards: Boards) -> None:
    found = boards.run(f"""{PRELUDE}
TIMES.update({{600: 6.0}})
print(json.dumps(Rank(clock=ByHand()).train(Ranks().of(0), 60).told()))
""")
    assert [window["limit_w"] for window in found["events"][0]["windows"]] == [700, 600]
    assert found["watts"] == 700 and found["limits"] == [[600, "searching"], [None, "found"]]


@needs_nvml
def test_board_that_draws_less_than_its_lowest_limit_is_left_alone(boards: Boards) -> None:
    found = boards.run(f"""{PRELUDE}
limits = Path(os.environ["FAKE_NVML_LIMITS"])
limits.write_text(limits.read_text().replace(",100000,", ",700000,"))
print(json.dumps(Rank(clock=ByHand()).train(Ranks().of(0), 30).told()))
""")
    assert [window["limit_w"] for window in found["events"][0]["windows"]] == [found["watts"]] == [700]
    assert "the lowest, 700 W, is not below what the boards draw" in found["lines"][0]


@needs_nvml
def test_validation_saves_and_pauses_are_not_counted(boards: Boards) -> None:
    events = boards.run(f"""{PRELUDE}
clock, ranks = ByHand(), Ranks().of(0)
rank = Rank(due=lambda step: step % 3 == 0, clock=clock)
for _ in range(15):
    rank.train(ranks, 4)
    clock.sleep(30.0)  # a pause
print(json.dumps(rank.events))
""")
    times = [window["step_time_s"] for window in events[0]["windows"]]
    assert times == pytest.approx([0.03, 0.03, 0.033, 0.0375], rel=1e-6)
    assert events[0]["watts"] == 500


@needs_nvml
def test_ranks_move_their_boards_at_the_same_steps_and_count_together(boards: Boards) -> None:
    first, second, exchanges = boards.run(f"""{PRELUDE}
print(json.dumps(together(ByHand(), Rank(ONE), Rank(TWO))))
""")
    assert first["watts"] == second["watts"] == 500
    assert first["limits"] == second["limits"] and first["events"] == second["events"]
    full = first["events"][0]["windows"][0]
    assert full["joules_per_token"] == pytest.approx(2 * 700 * STEP_S / TOKENS, rel=1e-3)
    assert full["power_w"] == pytest.approx(700, rel=1e-3)
    assert exchanges == 1 + len(first["events"][0]["windows"])


@needs_nvml
def test_boards_of_different_limits_try_the_same_ones(boards: Boards) -> None:
    first, second, exchanges = boards.run(f"""{PRELUDE}
Board(TWO).limit(450)
print(json.dumps(together(ByHand(), Rank(ONE, 0.9), Rank(TWO, 0.9))))
""")
    one, two = (found["events"][0]["windows"] for found in (first, second))
    assert (one[0]["limit_w"], two[0]["limit_w"]) == (700, 450)
    assert len(one) > 1 and [row["limit_w"] for row in one[1:]] == [row["limit_w"] for row in two[1:]]
    assert one[1]["limit_w"] < 450 and exchanges == 1 + len(one)


@needs_nvml
def test_board_that_is_lost_meanwhile_ends_the_search_and_not_the_run(boards: Boards) -> None:
    told = boards.run(f"""{PRELUDE}
ranks = Ranks().of(0)
rank = Rank(clock=ByHand()).train(ranks, 12)
Path(os.environ["FAKE_NVML"]).write_text("")
for step in range(13, 30):
    rank.clock.sleep(STEP_S)
    rank.tune.after_step(ranks, step)
print(json.dumps([rank.lines, rank.events]))
""")
    assert told == [["power limit: left as it is, as a board's energy or limit failed meanwhile"], []]


@needs_nvml
def test_run_that_ends_before_says_so_and_is_put_back(boards: Boards) -> None:
    told = boards.run(f"""{PRELUDE}
rank = Rank(clock=ByHand()).train(Ranks().of(0), 12)
before = rank.board.limit_w
rank.tune.close()
print(json.dumps([rank.lines, rank.events, before, rank.board.limit_w]))
""")
    assert told[0] == ["power limit: not found, as the run ended before; the next attempt begins anew"]
    assert told[1:] == [[], 600, 700]


@needs_nvml
def test_once_it_is_found_a_step_asks_the_board_for_nothing(boards: Boards) -> None:
    told = boards.run(f"""{PRELUDE}
ranks = Ranks().of(0)
rank = Rank(clock=ByHand()).train(ranks, 60)
before = nvml.fakeCalls()
for step in range(61, 100):
    rank.tune.after_step(ranks, step)
print(json.dumps([len(rank.events), nvml.fakeCalls() - before]))
""")
    assert told == [1, 0]


def test_later_attempt_takes_what_an_earlier_one_has_found_for_the_same_device() -> None:
    same = {"layout": "shard=2", "slower_at_most": 0.05}
    found: dict[str, Any] = {
        "kind": "power_limit",
        "found": "measured",
        "device": "H100",
        "watts": 500.0,
        **same,
    }
    events = [
        {"kind": "start"},
        {**found, "watts": 600.0},
        found,
        {"kind": "power_limit", "found": "earlier"},
    ]
    assert earlier_choice(events, "H100", same) == 500.0
    assert earlier_choice(events, "H200", same) is None
    assert earlier_choice(events, "H100", {**same, "slower_at_most": 0.1}) is None
    assert earlier_choice(events[:1], "H100", same) is None
