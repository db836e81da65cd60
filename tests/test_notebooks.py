"""The notebooks run from top to bottom, and the committed ones show what they give."""

import importlib.util
from pathlib import Path

import nbformat
import pytest
from notebook_cells import NOTEBOOKS, OF_CLAIMS, OF_DATA, code_cells, kinds, require_same_kinds

from eaft_probe.model.resolve import BUNDLED_PACKAGE, INSTALL_BUNDLED

MOST_BYTES = 1_000_000
PICTURE = "image/png"

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@each
def test_the_committed_one_was_run_in_order_and_without_complaint(path: Path) -> None:
    cells = code_cells(nbformat.read(path, as_version=4))
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    for cell in cells:
        assert not {"error", "stderr"} & set().union(*kinds(cell))


@each
def test_the_committed_one_has_its_pictures(path: Path) -> None:
    cells = code_cells(nbformat.read(path, as_version=4))
    drawn = [cell for cell in cells if "plots." in cell.source]
    assert drawn
    assert all(PICTURE in set().union(*kinds(cell)) for cell in drawn)
    assert path.stat().st_size < MOST_BYTES


@pytest.mark.skipif(
    importlib.util.find_spec(BUNDLED_PACKAGE) is None, reason=f"no model: {INSTALL_BUNDLED}"
)
@pytest.mark.parametrize(
    "path", [p for p in NOTEBOOKS if p not in (*OF_CLAIMS, *OF_DATA)], ids=lambda p: p.stem
)
def test_it_runs_and_shows_the_same_kinds_of_things(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the claims run in `test_claims`, where there are some."""
    require_same_kinds(path, tmp_path, monkeypatch)


@pytest.mark.parametrize("path", OF_DATA, ids=lambda p: p.stem)
def test_it_runs_under_a_small_model(
    path: Path, shared: Path, stories: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GSM8K", str(shared / "data" / "gsm8k" / "train.jsonl"))
    monkeypatch.setenv("WIKITEXT", str(shared / "data" / "text" / "wikitext2_test.txt"))
    monkeypatch.setenv("MODEL", stories)
    require_same_kinds(path, tmp_path, monkeypatch)
