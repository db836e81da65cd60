"""What `eaft-probe list` prints, from the registries. A registry is loaded when it is asked for."""

from collections.abc import Callable

from rich.table import Table

from eaft_probe.registry import Registry


def _statistics() -> Table:
    from eaft_probe.columns.statistics import STATISTICS

    table = Table("name", "unit", "meaning", box=None, pad_edge=False)
    for s in STATISTICS.values():
        table.add_row(s.name, s.unit, s.meaning + ("" if s.default else " (on request)"))
    return table


def _objectives() -> Table:
    from eaft_probe.objectives.gates import OBJECTIVES, settable

    table = Table("name", "gate", "fields (--set)", box=None, pad_edge=False)
    for name, kind in OBJECTIVES.items():
        entry = kind()
        shown = (f"{f}={getattr(entry, f)}" for f in settable(kind))
        table.add_row(name, kind.formula, ", ".join(shown))
    return table


def _plots() -> Table:
    from eaft_probe.view.plots import PLOTS

    table = Table("name", "what it shows", box=None, pad_edge=False)
    for name, function in PLOTS.items():
        table.add_row(name, (function.__doc__ or "").split("\n")[0])
    return table


def _formats() -> Table:
    from eaft_probe.data.formats import FORMATS

    table = Table("name", "columns", "meaning", box=None, pad_edge=False)
    for name, f in FORMATS.items():
        table.add_row(name, ", ".join(f.columns), f.meaning)
    return table


LISTS = Registry[Callable[[], Table]]("list")
LISTS.add("objectives", _objectives)
LISTS.add("statistics", _statistics)
LISTS.add("formats", _formats)
LISTS.add("plots", _plots)
