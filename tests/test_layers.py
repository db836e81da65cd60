"""Imports only go down, and what must be quick or light imports no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "eaft_probe"
FLOORS = {
    "printable": -3, "errors": -2, "files": -1,
    "registry": 0, "progress": 0, "settings": 0, "store": 0,
    "data": 1, "model": 1, "columns": 2, "engines": 3, "objectives": 3,
    "verbs": 4, "view": 5, "cli": 6, "__main__": 7, "__init__": 7,
}  # fmt: skip
LIGHT = (
    "eaft_probe",
    "eaft_probe.cli",
    "eaft_probe.settings",
    "eaft_probe.columns.conflicts",
    "eaft_probe.analysis.histogram2d",
    "eaft_probe.columns.statistics",
    "eaft_probe.analysis.summary",
    "eaft_probe.scans.scan",
    "eaft_probe.objectives.gates",
    "eaft_probe.objectives.scan_columns",
    "eaft_probe.verbs.compare",
    "eaft_probe.view.plots",
    "eaft_probe.view.report.report",
    "eaft_probe.view.terminal",
)


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return found


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_only_go_down(path: Path) -> None:
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for module in (name for name in imports(path) if name.split(".")[0] == "eaft_probe"):
        other = room(module)
        assert other == own or FLOORS[other] < FLOORS[own], f"{own} imports {module}"


def test_no_test_imports_another() -> None:
    """What tests share stands in a fixture or in a module of its own."""
    for path in Path(__file__).parent.rglob("test_*.py"):
        assert not [name for name in imports(path) if name.startswith("test_")], path


def test_what_must_be_light_imports_no_torch() -> None:
    """In one process, after each of them."""
    code = """
import importlib, sys
for module in sys.argv[1:]:
    importlib.import_module(module)
    assert not {"torch", "transformers"} & set(sys.modules), module
from eaft_probe import plots
assert "torch" not in sys.modules, "plots"
"""
    subprocess.run([sys.executable, "-c", code, *LIGHT], check=True)


def test_public_names_in_every_order() -> None:
    """In one process that forgets the package before each order; torch is loaded only once.

    Whatever an import does to another shows between two: each name is once the first, and each
    stands once before every other.
    """
    code = """
import sys
import eaft_probe
for first in range(len(eaft_probe.__all__)):
    names = [*eaft_probe.__all__[first:], *eaft_probe.__all__[:first]]
    for module in [m for m in sys.modules if m.split(".")[0] == "eaft_probe"]:
        del sys.modules[module]
    found = {}
    exec(f"from eaft_probe import {', '.join(names)}", found)
    assert all(callable(found[n]) for n in ("scan", "Scan", "train", "compare")), names
    assert callable(found["plots"].landscape), names
"""
    subprocess.run([sys.executable, "-c", code], check=True)
