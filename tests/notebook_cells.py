"""The notebooks of the project: their cells, and that they still give what is committed."""

import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
OF_CLAIMS = [p for p in NOTEBOOKS if "CLAIMS" in p.read_text(encoding="utf-8")]

OF_DATA = [p for p in NOTEBOOKS if "WIKITEXT" in p.read_text(encoding="utf-8")]


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell: Any) -> list[set[str]]:
    """What a cell shows: the MIME types of each of its outputs, or the stream's name."""
    return [set(o.get("data", [o.get("name", o.output_type)])) for o in cell.outputs]


def require_same_kinds(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs it from top to bottom in an empty folder, which stays so."""
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    notebook = nbformat.read(path, as_version=4)
    committed = [kinds(cell) for cell in code_cells(notebook)]
    (folder / "work").mkdir()
    place = {"metadata": {"path": str(folder / "work")}}
    NotebookClient(notebook, timeout=600, resources=place).execute()
    assert [kinds(cell) for cell in code_cells(notebook)] == committed
    assert not os.listdir(folder / "work")
