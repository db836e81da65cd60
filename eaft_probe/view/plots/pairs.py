"""The label → belief pairs that conflict most."""

from pathlib import Path

import pandas

from eaft_probe.analysis.aggregates import counted
from eaft_probe.scans.scan import Scan
from eaft_probe.view.labels import caption, names, shown
from eaft_probe.view.plots.chart import (
    CONFLICT,
    Chart,
    by_scan,
    new_chart,
    no_axes,
    open_scans,
    panels_of,
    plot,
    rows_and_columns,
    width_of,
)

MOST = 20
COLUMNS = ["token", "top1", "conflicts", "mean_prob", "mean_top1_prob"]


@plot
def tokens(*scans: Scan | str | Path) -> Chart:
    """How often the model was sure of another token than the label: the 20 commonest pairs."""
    opened = open_scans(scans)
    frames = [pandas.DataFrame(counted(s).pairs(MOST), columns=COLUMNS) for s in opened]
    rows, columns = rows_and_columns(len(opened))
    data, height = by_scan(frames, opened), rows * (0.8 + 0.16 * max(3, *map(len, frames))) + 0.2
    note = f"{caption(opened)} Belief: what the model would say."
    with new_chart(width_of(columns), height, data, note, is_table=True) as chart:
        panels = panels_of(chart, len(opened))
        for axes, frame, name in zip(panels, frames, names(opened), strict=True):
            axes.set_title(name, loc="left", parse_math=False)
            if frame.empty:
                no_axes(axes, "no token is flagged under this rule")
                continue
            most = 22 if columns < 3 else 11  # characters of a token
            labels = [
                _label(a, b, most) for a, b in zip(frame["token"], frame["top1"], strict=True)
            ]
            bars = axes.barh(range(len(frame)), frame["conflicts"], color=CONFLICT, height=0.7)
            axes.bar_label(bars, padding=2, fontsize=6)
            axes.set_yticks(range(len(frame)), labels, fontsize=6, parse_math=False)
            axes.invert_yaxis()
            axes.set(
                xlabel="conflicts (label → belief)",
                xlim=(0, frame["conflicts"].max() * 1.12),
            )
    return chart


def _label(token: str, top1: str, most: int) -> str:
    texts = [shown(repr(t)) for t in (token, top1)]
    return " → ".join(t if len(t) <= most else t[: most - 1] + "…" for t in texts)
