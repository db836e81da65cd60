"""What `eaft-probe list` prints, from the registries. A registry is loaded when it is asked for."""

from collections.abc import Callable, Iterable, Sequence

from rich.table import Table

from eaft_probe.quantities import number
from eaft_probe.registry import Registry

LISTS = Registry[Callable[[], Table]]("list")


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(*names, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    return table


def objectives() -> Table:
    from eaft_probe.objectives.gates import OBJECTIVES, Objective, settable

    def fields(kind: type[Objective]) -> str:
        values = {name: getattr(kind(), name) for name in settable(kind)}
        return ", ".join(
            f"{k}={number(v) if isinstance(v, float) else v}" for k, v in values.items()
        )

    rows = ((name, kind.formula, fields(kind)) for name, kind in OBJECTIVES.items())
    return _table(("name", "gate", "fields (--set)"), rows)


def statistics() -> Table:
    from eaft_probe.columns.statistics import STATISTICS

    return _table(
        ("name", "unit", "meaning"),
        (
            (s.name, s.unit, s.meaning + ("" if s.default else " (on request)"))
            for s in STATISTICS.values()
        ),
    )


def scores() -> Table:
    from eaft_probe.analysis.scores import SCORES

    return _table(
        ("name", "unit", "meaning", "columns"),
        ((s.name, s.unit, s.meaning, ", ".join(s.reads)) for s in SCORES.values()),
    )


def formats() -> Table:
    from eaft_probe.data.formats import FORMATS

    return _table(
        ("name", "columns", "meaning"),
        ((name, ", ".join(f.columns), f.meaning) for name, f in FORMATS.items()),
    )


def plots() -> Table:
    from eaft_probe.view.plots import PLOTS

    return _table(
        ("name", "what it shows"),
        ((name, (draw.__doc__ or "").split("\n")[0]) for name, draw in PLOTS.items()),
    )


for _list in (objectives, statistics, scores, formats, plots):
    LISTS.add(_list.__name__, _list)
