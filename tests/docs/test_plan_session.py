"""What docs/planner.md shows of a plan is what the command says."""

from pathlib import Path

import pytest
from making_processes import ran_here
from test_data_examples import is_said, sessions

SHOWN = sessions("planner.md")


def test_the_page_shows_plans() -> None:
    assert SHOWN and all(command.startswith("bessemer plan ") and lines for command, lines in SHOWN)


@pytest.mark.parametrize(("command", "lines"), SHOWN, ids=[command for command, _ in SHOWN])
def test_a_plan_that_is_shown_is_what_is_said(command: str, lines: list[str], tmp_path: Path) -> None:
    code, out, err = ran_here(tmp_path, *command.split()[1:])
    assert code == 0, err
    assert is_said(lines, out.splitlines()), out
