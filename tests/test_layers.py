"""Imports only go down, and what must be quick or light imports no torch."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "eaft_probe"
# From the ground up; a room imports from those before it and from itself.
ROOMS = (
    "text",
    "quantities",
    "errors",
    "registry",
    "progress",
    "progress_bar",
    "launcher",
    "settings",
    "storage",
    "model",
    "data",
    "columns",
    "engines",
    "scans",
    "analysis",
    "objectives",
    "verbs",
    "view",
    "cli",
    "__main__",
    "__init__",
)
FILES_A_WING, FILES_A_ROOM, LINES_A_FILE = 12, 14, 350
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
    "eaft_probe.view.coloured",
    "eaft_probe.view.terminal",
)


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return found


MODULES = sorted(PACKAGE.rglob("*.py"))
each_module = pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))


def place(path: Path) -> tuple[str, ...]:
    """Its rooms, from the outermost to its own name."""
    return path.relative_to(PACKAGE).with_suffix("").parts


def own_imports(path: Path) -> list[list[str]]:
    """What a module imports of the package, as places."""
    dotted = (name.split(".") for name in imports(path))
    return [parts[1:] or ["__init__"] for parts in dotted if parts[0] == "eaft_probe"]


@each_module
def test_imports_only_go_down(path: Path) -> None:
    own = place(path)[0]
    for other, *rest in own_imports(path):
        down = ROOMS.index(other) < ROOMS.index(own)
        assert other == own or down, f"{own} imports {'.'.join([other, *rest])}"


@pytest.mark.parametrize("room", ["verbs", "data", "view", "objectives"])
def test_wings_import_each_other_one_way(room: str) -> None:
    """A wing that imports another is not imported by it, whatever lies between the two."""
    below: dict[str, set[str]] = {}
    for path in (PACKAGE / room).rglob("*.py"):
        wing = place(path)[1]
        others = {p[1] for p in own_imports(path) if p[0] == room and len(p) > 1} - {wing}
        below.setdefault(wing, set()).update(others)
    TopologicalSorter(below).prepare()  # raises `CycleError`


@each_module
def test_a_module_can_be_read_at_once(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LINES_A_FILE


def test_a_room_can_be_overlooked() -> None:
    for folder in [p for p in PACKAGE.rglob("*") if p.is_dir()]:
        files = [p.name for p in folder.glob("*.py") if p.name != "__init__.py"]
        room = folder.parent == PACKAGE
        assert len(files) <= (FILES_A_ROOM if room else FILES_A_WING), (folder.name, files)


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
