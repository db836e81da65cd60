"""The notebooks run from top to bottom, and the committed ones show what they give."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from eaft_probe.model.resolve import BUNDLED_PACKAGE, INSTALL_BUNDLED

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
MOST_BYTES = 1_000_000
PICTURE = "image/png"

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell: Any) -> list[set[str]]:
    """What a cell shows: the MIME types of each of its outputs, or the stream's name."""
    return [set(o.get("data", [o.get("name", o.output_type)])) for o in cell.outputs]


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
@each
def test_it_runs_and_shows_the_same_kinds_of_things(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(path, as_version=4)
    if any("CLAIMS" in cell.source for cell in code_cells(notebook)):
        monkeypatch.setenv("CLAIMS", str(request.getfixturevalue("claims_folder")))
    committed = [kinds(cell) for cell in code_cells(notebook)]
    (tmp_path / "work").mkdir()
    place = {"metadata": {"path": str(tmp_path / "work")}}
    NotebookClient(notebook, timeout=600, resources=place).execute()
    assert [kinds(cell) for cell in code_cells(notebook)] == committed
    assert not os.listdir(tmp_path / "work")
