"""What the environment of training is, that a user's own values win, and that the exec happens once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bessemer.hardware import usable_cores
from bessemer.launch import environment
from bessemer.launch.environment import MARKER, variables, wanted_environment

ROOT = Path(__file__).parents[2]
OURS = ["glibc.malloc.mmap_threshold=17179869184", "glibc.malloc.trim_threshold=17179869184",
        "glibc.malloc.top_pad=268435456"]  # fmt: skip
needs_glibc = pytest.mark.skipif(not environment._is_glibc(), reason="needs glibc")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_every_variable_has_its_reason() -> None:
    rows = variables()
    assert len({row.name for row in rows}) == len(rows)
    assert all(row.name and row.value and len(row.reason) > 20 for row in rows)


@needs_glibc
def test_what_is_set_where_nothing_is(tmp_path: Path) -> None:
    assert wanted_environment({"PATH": "/bin"}) == {
        "PATH": "/bin",
        "GLIBC_TUNABLES": ":".join(OURS),
        "OMP_NUM_THREADS": str(usable_cores()),
        "TOKENIZERS_PARALLELISM": "true",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache/bessemer/compiled"),
        "TORCHINDUCTOR_FX_GRAPH_CACHE": "1",
        MARKER: "arranged",
    }


def test_values_of_the_user_win() -> None:
    theirs = {row.name: "theirs" for row in variables() if row.name != "GLIBC_TUNABLES"}
    wanted = wanted_environment(theirs)
    assert {name: wanted[name] for name in theirs} == theirs


@needs_glibc
@pytest.mark.parametrize(
    ("theirs", "wanted"),
    [
        ("", OURS),
        ("glibc.cpu.hwcaps=-AVX512F", ["glibc.cpu.hwcaps=-AVX512F", *OURS]),
        ("glibc.malloc.top_pad=1", ["glibc.malloc.top_pad=1", *OURS[:2]]),
        (":".join(f"{key.split('=')[0]}=5" for key in OURS), [f"{key.split('=')[0]}=5" for key in OURS]),
    ],
)
def test_tunables_of_the_user_are_kept_and_ours_added(theirs: str, wanted: list[str]) -> None:
    assert wanted_environment({"GLIBC_TUNABLES": theirs})["GLIBC_TUNABLES"].split(":") == wanted


@needs_glibc
def test_older_variables_of_malloc_win_too() -> None:
    wanted = wanted_environment({"MALLOC_TOP_PAD_": "0", "MALLOC_TRIM_THRESHOLD_": "0"})
    assert wanted["GLIBC_TUNABLES"] == OURS[0]


@pytest.mark.parametrize("marker", ["off", "arranged"])
def test_marker_leaves_the_environment_as_it_is(marker: str) -> None:
    assert wanted_environment({MARKER: marker, "A": "b"}) == {MARKER: marker, "A": "b"}


def test_an_environment_with_all_of_it_is_left_alone() -> None:
    arranged = wanted_environment({})
    del arranged[MARKER]
    assert wanted_environment(arranged) == arranged


def test_a_cache_folder_that_cannot_be_written_is_not_given_to_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # tests may run as root
    assert "TORCHINDUCTOR_CACHE_DIR" not in wanted_environment({})


# The exec, for real.

SCRIPT = """
import json, os, sys
with open(sys.argv[1], "a") as starts:
    starts.write(f"{os.getpid()}\\n")
print("said before", end="")
from bessemer.launch.environment import arrange
arrange()
arrange()
print(json.dumps({"pid": os.getpid(), "argv": sys.argv[1:], "environment": dict(os.environ)}))
"""


def start(tmp_path: Path, *words: str, **changes: str) -> "subprocess.Popen[str]":
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    unset = {MARKER, "PYTHONUNBUFFERED", *(row.name for row in variables())}
    bare = {key: value for key, value in os.environ.items() if key not in unset}
    bare |= {"PYTHONPATH": str(ROOT), **changes}
    command = [sys.executable, "-X", "utf8", str(script), str(tmp_path / "starts"), *words]
    return subprocess.Popen(command, env=bare, cwd=tmp_path, stdout=subprocess.PIPE, text=True)


def test_the_same_process_begins_once_more_with_the_same_words(tmp_path: Path) -> None:
    child = start(tmp_path, "a b", "--set", "x=é")
    out, _ = child.communicate(timeout=50)
    assert child.returncode == 0
    assert (tmp_path / "starts").read_text().split() == [str(child.pid)] * 2
    assert out.count("said before") == 2  # what was printed is not lost with the first image
    told = json.loads(out.removeprefix("said before" * 2))
    assert told["pid"] == child.pid and told["argv"][1:] == ["a b", "--set", "x=é"]
    assert told["environment"][MARKER] == "arranged"
    assert told["environment"]["OMP_NUM_THREADS"] == str(usable_cores())


@pytest.mark.parametrize("marker", ["off", "arranged"])
def test_nothing_is_replaced_where_the_marker_is_set(marker: str, tmp_path: Path) -> None:
    child = start(tmp_path, **{MARKER: marker})
    out, _ = child.communicate(timeout=50)
    assert (tmp_path / "starts").read_text().split() == [str(child.pid)]
    assert "GLIBC_TUNABLES" not in json.loads(out.removeprefix("said before"))["environment"]


def test_a_folder_beside_the_user_does_not_stand_in_for_a_package(tmp_path: Path) -> None:
    """A console script does not import from the current folder; nor may it after the exec."""
    here = tmp_path / "here"
    here.mkdir()
    (here / "json.py").write_text("raise SystemExit('the wrong json')")
    script = tmp_path / "script.py"
    script.write_text(
        "from bessemer.launch.environment import arrange\narrange()\nimport json\nprint('right')"
    )
    bare = {key: value for key, value in os.environ.items() if key != MARKER} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], cwd=here, env=bare, capture_output=True, check=False)
    assert done.stdout == b"right\n"


MEASURE = """
import resource, sys
from bessemer.launch.environment import arrange
arrange()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
bytearray(2**26)
before = faults()
for _ in range(10):
    bytearray(2**26)
print(faults() - before)
"""


@needs_glibc
def test_freed_memory_is_used_again_without_page_faults() -> None:
    """The reason for all this: a tensor of 64 MiB, made ten times over."""

    def faults(**changes: str) -> int:
        bare = {key: value for key, value in os.environ.items() if key not in (MARKER, "GLIBC_TUNABLES")}
        command = [sys.executable, "-c", MEASURE]
        done = subprocess.run(command, env={**bare, **changes}, cwd=ROOT, capture_output=True, check=True)
        return int(done.stdout)

    as_it_was, arranged = faults(**{MARKER: "off"}), faults()
    assert as_it_was > 100 and arranged < as_it_was / 10
