"""What ranks say to each other before training: one decides, and an error of any is heard by all."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from torch.distributed import HashStore

from bessemer.errors import DataError, NumericsError, RecipeError, UserError, WorkerError, WriteError
from bessemer.launch.world import World
from bessemer.train.ranks import Company, _Many, lost, lost_error

Answer = tuple[Company, Any]


def together(work: Callable[[Company], Any], size: int = 3) -> list[Answer]:
    """What `work` gives or raises on each rank; ranks are threads here, with one store."""
    store = HashStore()
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
    alike: list[UserError] = [NumericsError("nan", **texts), WriteError("rank 1: disk full", **texts)]
    alone = [missing(), WriteError("rank 1 lost the others while they wrote", **texts), ValueError()]
    assert all(map(company.is_alike, alike)) and not any(map(company.is_alike, alone))


def test_lost_peer_is_no_internal_error() -> None:
    broken = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1")
    assert lost(broken) and not lost(RuntimeError("shapes differ")) and not lost(missing())
    assert lost_error(1, broken).problem == "rank 1 lost another rank"
    with pytest.raises(WorkerError, match="Connection closed by peer"):
        raise lost_error(1, broken)
