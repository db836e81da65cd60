"""Why rows were rejected, summed up."""

from eaft_probe.scans.rejections import MOST_REASONS, OTHERS, summed_reasons


def test_reasons_that_differ_in_numbers_are_one() -> None:
    given = ["a 1", "b", "a 2", "a 1", "c 7", "c 7"]
    assert list(summed_reasons(given).items()) == [("a N", 3), ("c 7", 2), ("b", 1)]
    assert summed_reasons([]) == {}


def test_reasons_without_end_are_summed_as_others() -> None:
    letters = "abcdefghij"
    reasons = [f"{a}{b}{c}{d}" for a in letters for b in letters for c in letters for d in letters]
    found = summed_reasons(reasons)
    assert len(found) == MOST_REASONS + 1
    assert found[OTHERS] == 10_000 - MOST_REASONS
