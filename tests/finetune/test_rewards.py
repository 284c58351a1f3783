"""What an answer is worth: our comparisons, and a function of the user's own."""

from pathlib import Path

import pytest

from bessemer.errors import DataError, RecipeError
from bessemer.evaluate.text import number_match
from bessemer.finetune.rewards import begin_reward, check_reward, reward_of


@pytest.mark.parametrize(
    ("answer", "expected", "same"),
    [
        ("The answer is 12.", "12", True),
        ("12 apples and 7 pears, so 19", "19", True),
        ("19, of which 12 are apples", "19", False),  # the last one counts
        ("It costs $1,234.50", "1234.5", True),
        ("-7", "-7", True),
        ("10-3=7", "-7", False),
        ("10-3=7", "7", True),
        ("no number", "7", False),
        ("0.50", ".5", True),
        ("1e3 is a thousand", "3", True),
        ("", "", False),
    ],
)
def test_number_is_the_value_of_the_last_number(answer: str, expected: str, same: bool) -> None:
    assert number_match(answer, expected) == same


def test_exact_and_number_are_one_or_nothing(tmp_path: Path) -> None:
    assert check_reward(tmp_path, "exact", tmp_path, allow_code=False) is None
    exact, number = reward_of(tmp_path, "exact"), reward_of(tmp_path, "number")
    assert [exact("", "Paris. ", "paris"), exact("", "Rome", "paris")] == [1.0, 0.0]
    assert [number("", "= 4", "4"), number("", "= 5", "4")] == [1.0, 0.0]


def own(folder: Path, body: str, name: str = "own:reward") -> None:
    (folder / "own.py").write_text(f"def reward(prompt, answer, expected):\n    return {body}\n")
    found = check_reward(folder, name, folder, allow_code=True)
    assert found is not None
    begin_reward(folder, found)


def test_an_own_function_gets_prompt_answer_and_expected(tmp_path: Path) -> None:
    own(tmp_path, "len(prompt) + 10 * len(answer) + 100 * len(expected)")
    assert reward_of(tmp_path, "own:reward")("a", "bb", "ccc") == 321.0


@pytest.mark.parametrize(("body", "found"), [("1 / 0", "ZeroDivisionError"), ("float('nan')", "nan")])
def test_an_own_function_without_a_reward_is_named_with_the_answer(
    tmp_path: Path, body: str, found: str
) -> None:
    own(tmp_path, body)
    with pytest.raises(DataError, match="own:reward gave no reward") as caught:
        reward_of(tmp_path, "own:reward")("p", "the answer", "e")
    assert found in str(caught.value) and "the answer" in str(caught.value)


def test_a_function_that_changes_under_the_run_is_refused(tmp_path: Path) -> None:
    own(tmp_path, "1.0")
    (tmp_path / "own.py").write_text("def reward(prompt, answer, expected):\n    return 2.0\n")
    with pytest.raises(DataError, match="changed under the run"):
        check_reward(tmp_path, "own:reward", tmp_path, allow_code=True)


def test_a_function_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot use 'nowhere:reward'"):
        check_reward(tmp_path, "nowhere:reward", tmp_path, allow_code=True)
