"""Numbers at their edges; what is usual stands in the docstrings, which run as tests too."""

import pytest

from eaft_probe.quantities import number, percent


@pytest.mark.parametrize(
    ("share", "said"),
    [
        *((0, "0 %"), (-0.0, "0 %"), (1.0, "100 %"), (0.995, "100 %"), (0.123, "12 %")),
        *((0.0169, "1.7 %"), (0.5, "50 %"), (1e-4, "0.01 %"), (1e-7, "<0.01 %")),
        *((-1e-7, ">-0.01 %"), (-0.393, "-39 %"), (-12.3, "-1,230 %"), (float("nan"), "–")),
    ],
)
def test_a_share_in_two_digits(share: float, said: str) -> None:
    assert percent(share, digits=2) == said


def test_a_number_in_three_digits() -> None:
    said = [number(x) for x in (0, -0.0, 0.952, 89.61, 1234.5, 0.00012, 0.000012, None)]
    assert said == ["0", "0", "0.952", "89.6", "1,234", "0.00012", "1.2e-5", "–"]


def test_a_sign_stands_before_what_is_not_zero() -> None:
    assert [number(x, sign="+") for x in (0.25, 0, -0.0)] == ["+0.25", "0", "0"]
