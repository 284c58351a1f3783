"""Which compiler torch.compile is told to need, by the kind of device."""

from dataclasses import replace
from pathlib import Path

import pytest
from making_runs import stage_plan

from bessemer.errors import RecipeError
from bessemer.formulas.shape import ModelShape
from bessemer.hardware import Ceilings
from bessemer.measure.compiler import compiler
from bessemer.planner.machine.facts import Facts
from bessemer.planner.predict import device_bytes, predict
from bessemer.recipe.schema import Recipe
from bessemer.train.compiling import check_compiler, settle_compile

SHAPE = ModelShape("llama", 2, 128, 4, 2, 32, 320, 8192, 512, tie_embeddings=True, qk_norm=False)
CPU, GPU = Facts("a CPU", "cpu"), Facts("a GPU", "gpu")


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with nothing on it yet, and Linux's names."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    return tmp_path


def put(folder: Path, name: str) -> str:
    (folder / name).write_text("#!/bin/sh\n")
    (folder / name).chmod(0o755)
    return str(folder / name)


def test_cpu_takes_a_cpp_compiler_and_an_accelerator_a_c_compiler(path: Path) -> None:
    cpp = put(path, "g++")
    assert compiler("cpu") == cpp and compiler("gpu") is None
    clang = put(path, "clang")
    assert compiler("gpu") == clang
    c = put(path, "gcc")
    assert compiler("gpu") == c and compiler("cpu") == cpp


def test_variable_replaces_the_search_even_by_one_that_is_not_there(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(path, "g++"), put(path, "gcc")
    monkeypatch.setenv("CXX", "mine")
    assert compiler("cpu") is None
    mine = put(path, "mine")
    assert compiler("cpu") == mine
    monkeypatch.setenv("CC", "mine")
    assert compiler("gpu") == mine


@pytest.mark.parametrize(
    ("kind", "language", "variable", "good"), [("cpu", "C++", "CXX", "g++"), ("gpu", "C", "CC", "gcc")]
)
def test_compile_true_without_a_compiler_is_refused_with_what_to_install(
    path: Path, kind: str, language: str, variable: str, good: str
) -> None:
    with pytest.raises(RecipeError, match=f"needs a {language.replace('+', '[+]')} compiler") as caught:
        check_compiler(kind)
    assert good in caught.value.found and variable in caught.value.fix
    put(path, good)
    check_compiler(kind)


@pytest.mark.parametrize("facts", [CPU, GPU])
def test_auto_means_no_without_a_compiler_on_every_device(path: Path, facts: Facts) -> None:
    answer, reason = settle_compile(stage_plan(), SHAPE, facts)
    assert not answer and "compiler" in reason
    put(path, "g++"), put(path, "gcc")
    assert settle_compile(stage_plan(), SHAPE, replace(facts))[0]


@pytest.mark.parametrize(
    ("steps", "has_compiler", "compiled"), [(20, True, False), (10**7, True, True), (10**7, False, False)]
)
def test_plan_speaks_of_the_step_and_the_memory_that_training_will_have(
    path: Path, steps: int, has_compiler: bool, compiled: bool
) -> None:
    """`compile = "auto"` is decided in one place: what it comes to is what the plan has counted with."""
    if has_compiler:
        put(path, "g++")
    facts = replace(
        CPU, cores=2, has_compiler=has_compiler, ceilings=Ceilings("a CPU", 2.0, 0.4, 20.0, 2, "", "")
    )
    plan = replace(stage_plan(), steps=steps, batch_rows=16, micro_batch=8, dtype="bf16", compile="auto")
    settled = replace(plan, compile=settle_compile(plan, SHAPE, facts)[0])
    assert settled.compile is compiled
    before, during, other = (
        predict(Recipe(name="a"), SHAPE, one, facts)
        for one in (plan, settled, replace(settled, compile=not compiled))
    )
    for name in ("step_time_s", "memory_gib"):
        assert before[name] == during[name] != other[name]
    assert device_bytes(SHAPE, plan, facts) == device_bytes(SHAPE, settled, facts)
