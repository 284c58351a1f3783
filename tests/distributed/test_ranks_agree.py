"""What ranks say to each other before training: one decides, and an error of any is heard by all."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from making_runs import QUIET
from torch.distributed import DistError, HashStore, Store, TCPStore

from bessemer.checkpoint.ranks import Ranks, Talk
from bessemer.errors import DataError, NumericsError, RecipeError, UserError, WorkerError, WriteError
from bessemer.launch.world import World
from bessemer.train import ranks as ranking
from bessemer.train.ranks import Company, _Many, grouped, lost, lost_error
from bessemer.train.rows import prepared_feed
from bessemer.train.run import _among

Answer = tuple[Company, Any]


def together(work: Callable[[Company], Any], size: int = 3, store: Store | None = None) -> list[Answer]:
    """What `work` gives or raises on each rank; ranks are threads here, with one store."""
    store = HashStore() if store is None else store
    ranks = [_Many(World(rank, size, rank, size, "127.0.0.1", 1), store) for rank in range(size)]

    def one(company: Company) -> Any:
        try:
            return work(company)
        except Exception as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(zip(ranks, pool.map(one, ranks), strict=True))


def missing() -> DataError:
    return DataError("no data", found="none", wanted="some", fix="copy it")


def test_all_hear_what_the_first_does_or_the_error_that_stopped_it() -> None:
    answers = together(lambda company: company.first_does("say", lambda: {"rank": company.rank}))
    assert [answer for _, answer in answers] == [{"rank": 0}] * 3

    def fails() -> dict[str, Any]:
        raise missing()

    for company, error in together(lambda company: company.first_does("say", fails)):
        assert type(error) is DataError and str(error) == str(missing()) and company.is_alike(error)


def test_error_of_one_rank_is_raised_on_all_with_its_number() -> None:
    def work(company: Company) -> None:
        def see() -> None:
            if company.rank == 2:
                raise missing()

        company.all_do("see", see)

    for company, error in together(work):
        assert type(error) is DataError and error.problem == "rank 2: no data" and company.is_alike(error)


def test_mistake_of_ours_on_one_rank_is_told_there_and_ends_the_others() -> None:
    def work(company: Company) -> None:
        company.all_do("see", lambda: 1 // (1 - company.rank))

    (first, heard), (second, own), (_, third) = together(work)
    assert type(own) is ZeroDivisionError and not second.is_alike(own)
    for error in (heard, third):
        assert type(error) is WorkerError and error.problem == "rank 1 failed: ZeroDivisionError"
    assert first.is_alike(heard)


def test_texts_that_differ_are_told_by_their_first_different_line() -> None:
    def work(company: Company) -> None:
        company.all_same("recipe", f"same\nlr = {company.rank // 2}\nsteps = {company.rank}", "fix it")

    for company, error in together(work, size=4):
        assert type(error) is RecipeError and company.is_alike(error)
        assert error.found == "rank 1: steps = 1; rank 0: steps = 0"


def test_only_errors_that_all_ranks_have_are_left_to_the_first() -> None:
    texts = {"found": "", "wanted": "", "fix": ""}
    ((company, _),) = together(lambda company: None, size=1)
    told = WriteError("rank 1: disk full", **texts)
    Talk(Ranks(), 1).fail(told)
    alike: list[UserError] = [NumericsError("nan", **texts), told]
    alone = [missing(), WriteError("cannot write rank-00001.log", **texts), ValueError()]
    assert all(map(company.is_alike, alike)) and not any(map(company.is_alike, alone))


def test_lost_peer_is_no_internal_error() -> None:
    broken = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1")
    assert lost(broken) and not lost(RuntimeError("shapes differ")) and not lost(missing())
    assert lost_error(1, broken).problem == "rank 1 lost another rank"
    with pytest.raises(WorkerError, match="Connection closed by peer"):
        raise lost_error(1, broken)


@pytest.mark.parametrize("over_tcp", [False, True])
def test_rank_that_falls_silent_is_named_by_the_others(
    over_tcp: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ranking, "_ANSWER_S", 0.3)
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    client = TCPStore("127.0.0.1", server.port, is_master=False)

    def work(company: Company) -> None:
        if company.rank < 2:
            company.store = server if over_tcp and company.rank == 0 else company.store
            company.all_do("see", lambda: None)

    for company, error in together(work, store=client if over_tcp else None)[:2]:
        assert isinstance(error, WorkerError) and error.problem == "rank 2 is silent"
        assert 'on "see/2"' in error.found and company.is_alike(error)


def test_store_that_is_gone_is_no_silence() -> None:
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store = TCPStore("127.0.0.1", server.port, is_master=False, timeout=timedelta(seconds=5))
    company = _Many(World(1, 2, 1, 2, "127.0.0.1", 1), store)
    end = threading.Timer(0.2, lambda: servers.clear())
    servers = [server]
    del server
    end.start()
    with pytest.raises(DistError) as caught:
        company.first_does("begin", dict)
    assert lost(caught.value)


def test_device_that_one_rank_cannot_take_is_told_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def take(world: World) -> None:
        if world.rank == 1:
            raise RuntimeError("invalid device ordinal")

    def work(company: Company) -> None:
        with grouped(company):
            pass

    monkeypatch.setattr(ranking, "_take_device", take)
    (first, heard), (_, own) = together(work, size=2)
    assert type(own) is RuntimeError
    assert heard.problem == "rank 1 failed: RuntimeError" and "ordinal" in heard.found
    assert first.is_alike(heard)


def test_machines_are_told_apart_by_name_however_ranks_are_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    here = threading.local()

    def work(company: Company) -> Any:
        here.rank = company.rank
        company.see_machines()  # type: ignore[attr-defined]
        return company.hosts, company.leads, company.accelerators(torch.device("cpu"))

    monkeypatch.setattr(ranking, "_machine", lambda: "abacc"[here.rank])
    monkeypatch.setattr(ranking, "meter_name", lambda device: f"meter {here.rank}")
    answers = [answer for _, answer in together(work, size=5)]
    assert answers[0] == (3, True, ("meter 0", "meter 2"))  # of its own machine, which has its ranks in turn
    assert answers[1] == (3, True, ("meter 1",)) and answers[3] == (3, True, ("meter 3", "meter 4"))
    assert answers[2] == answers[4] == (3, False, ())


def test_recipe_is_loaded_once_a_rank_and_one_place_has_one_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "earlier").mkdir()
    places, asked = ["earlier@3", f"{tmp_path}/earlier@3", "../" + tmp_path.name + "/earlier@3"], []

    def work(company: Company) -> Any:
        def ask() -> Any:
            asked.append(company.rank)
            return SimpleNamespace(text="recipe"), tmp_path / "run"

        def begin(*_: Any) -> Any:
            raise missing()

        return _among(company, ask, {"--from": places[company.rank]}, QUIET, begin, prepared_feed)

    for _, error in together(work):
        assert type(error) is DataError and error.problem == "no data"
    assert sorted(asked) == [0, 1, 2]


def test_work_that_takes_its_time_is_waited_for_as_long_as_anybody_gets_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ranking, "_COLLECTIVE", timedelta(seconds=0.4))
    done: list[int] = []

    def work(company: Company) -> None:
        def slowly() -> None:
            for number in range(5 * company.rank):  # of the last rank three times as long as the patience
                time.sleep(0.12)
                done.append(number)

        company.each_does("sample", slowly, lambda: len(done))

    assert [answer for _, answer in together(work)] == [None] * 3


def test_a_rank_that_is_lost_at_work_or_fails_there_is_named_by_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ranking, "_COLLECTIVE", timedelta(seconds=0.3))

    def lost_work(company: Company) -> None:
        if company.rank < 2:
            company.each_does("sample", lambda: None, lambda: 7)

    for company, error in together(lost_work)[:2]:
        assert type(error) is WorkerError and error.problem == "rank 2 is silent" and company.is_alike(error)

    def failing_work(company: Company) -> None:
        def fails() -> None:
            raise missing()

        company.each_does("sample", fails if company.rank == 1 else lambda: None, lambda: 7)

    for company, error in together(failing_work):
        assert type(error) is DataError and error.problem == "rank 1: no data" and company.is_alike(error)
