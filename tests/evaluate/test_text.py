import pytest

from bessemer.evaluate.text import exact_match, rouge_l


@pytest.mark.parametrize(
    ("answer", "expected", "score"),
    [
        ("the cat sat", "the cat sat", 1.0),
        ("The CAT, sat!", "the cat sat", 1.0),
        # "the cat ... mat": 3 common of 5 found and 6 wanted -> 2 * 3 / (5 + 6)
        ("the cat on a mat", "the cat sat upon the mat", 6 / 11),
        # order counts: "police the gunman" shares police..gunman or the gunman with the target
        ("the gunman kill police", "police killed the gunman", 2 * 2 / 8),
        ("police kill the gunman", "police killed the gunman", 2 * 3 / 8),
        ("one two", "three four", 0.0),
        ("", "three four", 0.0),
        ("a_b-c", "a b c", 1.0),
        ("3.14", "3 14", 1.0),
    ],
)
def test_rouge_l_equals_values_worked_out_by_hand(answer, expected, score):
    assert rouge_l(answer, expected) == pytest.approx(score)
    assert rouge_l(expected, answer) == pytest.approx(score)


def test_exact_match_looks_past_case_white_space_and_a_full_stop():
    assert exact_match("  The   answer. ", "the answer")
    assert exact_match("the answer", "The answer.")
    assert not exact_match("the answers", "the answer")
    assert not exact_match("", "the answer")
