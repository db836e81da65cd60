"""How a source is cut into units, limited and sampled."""

import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from eaft_probe.data.sources import Rows, open_source
from eaft_probe.data.units import UNIT_BYTES, Selection, Unit, UnitPlan
from eaft_probe.errors import DataError


def source(count: int, size: int = 1) -> Rows:
    return Rows("rows", [{"text": "x" * size, "n": ""} for _ in range(count)])


def planned(rows: Rows, rows_per_unit: int = 256, **selection: Any) -> tuple[UnitPlan, list[Unit]]:
    plan = UnitPlan.of(rows, Selection(**selection), rows_per_unit)
    units = list(plan.units())
    assert [u.index for u in units] == list(range(plan.count))
    assert sum(len(u.records) for u in units) == plan.rows
    assert units == list(plan.units())
    return plan, units


def rows_of(units: list[Unit]) -> list[list[int]]:
    return [[r.row for r in u.records] for u in units]


def flat(units: list[Unit]) -> list[int]:
    return [r.row for u in units for r in u.records]


def test_units_close_at_their_number_of_rows() -> None:
    _, units = planned(source(7), rows_per_unit=3)
    assert rows_of(units) == [[0, 1, 2], [3, 4, 5], [6]]
    assert rows_of(planned(source(6), rows_per_unit=3)[1]) == [[0, 1, 2], [3, 4, 5]]


def test_units_close_early_at_a_megabyte() -> None:
    _, units = planned(source(7, UNIT_BYTES // 3))
    assert rows_of(units) == [[0, 1, 2], [3, 4, 5], [6]]
    for unit in units:
        assert sum(r.size for r in unit.records) <= UNIT_BYTES


def test_a_row_over_a_megabyte_is_a_unit_of_its_own() -> None:
    rows = Rows("rows", [{"text": "x" * n} for n in (1, 2 * UNIT_BYTES, 1, 1)])
    assert rows_of(planned(rows)[1]) == [[0], [1], [2, 3]]


def test_a_limit_takes_the_first_rows() -> None:
    plan, units = planned(source(9), rows_per_unit=3, limit=4)
    assert rows_of(units) == [[0, 1, 2], [3]]
    assert plan.rows == 4
    assert planned(source(3), limit=10)[0].rows == 3


def test_a_sample_is_drawn_the_same_and_keeps_its_row_numbers() -> None:
    plan, units = planned(source(100), rows_per_unit=4, sample=10)
    drawn = flat(units)
    assert drawn == sorted(set(drawn))
    assert len(drawn) == plan.rows == 10
    assert max(drawn) > 10
    assert rows_of(planned(source(100), rows_per_unit=4, sample=10)[1]) == rows_of(units)
    assert rows_of(planned(source(100), rows_per_unit=4, sample=10, seed=1)[1]) != rows_of(units)


def test_a_sample_of_more_than_there_is_takes_all() -> None:
    assert rows_of(planned(source(3), sample=10)[1]) == [[0, 1, 2]]


def test_a_sample_comes_from_the_limit() -> None:
    _, units = planned(source(100), sample=5, limit=10)
    assert max(flat(units)) < 10


@pytest.mark.parametrize("selection", [{}, {"limit": 0}, {"sample": 0}])
def test_no_rows_are_refused(selection: dict[str, int]) -> None:
    with pytest.raises(DataError, match="rows has no rows"):
        UnitPlan.of(source(0 if not selection else 5), Selection(**selection), 256)


def test_rejected_rows_count() -> None:
    rows = Rows("rows", [{"text": "a"}, "no row", {"text": "b"}])
    assert rows_of(planned(rows)[1]) == [[0, 1, 2]]


def test_planning_holds_one_unit_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drawn sample is held, and nothing else that grows with the rows."""
    monkeypatch.setattr("eaft_probe.data.files.unpacking.BUFFER", 10_000)

    def peak(count: int, **selection: int) -> int:
        path = tmp_path / f"{count}.jsonl"
        path.write_text("".join(f'{{"text": "{n}"}}\n' for n in range(count)))
        tracemalloc.start()
        plan = UnitPlan.of(open_source(path), Selection(**selection), 100)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert plan.rows == selection.get("sample", count)
        return found

    few = peak(2_000)
    assert peak(40_000) < few + 50_000  # bytes; the file has 700,000
    assert peak(40_000, sample=500) < few + 150_000
