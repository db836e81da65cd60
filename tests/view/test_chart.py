"""What all figures share: names, captions, titles, rows of panels, resolution and place."""

import os
from pathlib import Path

import matplotlib
import pandas
import pytest
import scans_made
from figures import RULE, caption, fitting
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from eaft_probe import Scan, plots
from eaft_probe.cli import _run
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.view.labels import data_name, names
from eaft_probe.view.plots import default_out, draw
from eaft_probe.view.plots.chart import STYLE

SIX = ["sft", "eaft", "dft", "masked-sft", "focal", "mile"]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/home/me/chats/rows.jsonl.gz", "rows"),
        ("org/math-1.5", "org/math-1.5"),
        ("gsm8k/test.jsonl", "gsm8k/test"),
        ("test.jsonl", "my-scan (test)"),
        ("s3://bucket/folder/rows.parquet", "rows"),
        (".jsonl", ".jsonl"),
    ],
)
def test_data_are_named_without_path_and_ending(
    source: str, name: str, few: pandas.DataFrame, tmp_path: Path
) -> None:
    scan = scans_made.write(tmp_path / "my-scan", few[:1], parts=1, source=source, model="/m/tiny")
    assert data_name(scan) == name
    assert names([scan]) == [f"{name}, tiny"]
    assert f"{name} under tiny, 1 trained token" in caption(plots.tokens(scan))


def test_a_caption_says_a_rule_that_scans_share_once(
    scan: Scan, other: Scan, few: pandas.DataFrame, tmp_path: Path
) -> None:
    assert caption(plots.stability(scan, other)).startswith(
        f"rows under made, 2,000 trained tokens; others under made, 900 trained tokens; "
        f"conflict: {RULE}. "
    )
    third = scans_made.write(tmp_path / "s", few, parts=1, rule=ConflictRule(), source="third")
    said = caption(plots.stability(scan, third))
    assert all(f"trained tokens; conflict: {s.rule}. " in said for s in (scan, third))


def test_a_title_stands_above_and_a_caption_may_be_left_out(scan: Scan) -> None:
    plain = plots.compare(scan, scan)
    titled = draw("compare", [str(scan.path)] * 2, {"title": "Two of them $ 数", "caption": False})
    assert fitting(titled).get_suptitle() == f"Two of them $ \\u6570\n{plain.get_suptitle()}"
    assert titled.get_supxlabel() == ""
    long = fitting(plots.tokens(scan).labelled("word " * 30))
    assert long.get_suptitle().count("\n") > 1
    assert caption(long)
    assert long.get_figheight() > plots.tokens(scan).get_figheight()


def test_panels_wrap_at_three(scan: Scan, other: Scan) -> None:
    for chart, per_panel in (
        (plots.landscape(scan, other, scan, other), 3),
        (plots.landscape(scan, other, scan, other, style="scatter"), 1),
        (plots.stability(scan, other, scan, other), 1),
        (plots.tokens(scan, other, scan, other), 1),
    ):
        fitting(chart)
        panels = [a for a in chart.axes if a.get_subplotspec() is not None]
        assert len(panels) == 4 * per_panel
        lefts = {round(a.get_position().x0, 2) for a in panels if a.get_title("left")}
        assert len(lefts) == 3
        assert chart.get_figwidth() < 7


def test_six_objectives_stand_in_rows_of_three(scan: Scan) -> None:
    chart = fitting(plots.gradients(scan, objective=SIX))
    titled = [a for a in chart.axes if a.get_title("left")]
    assert [a.get_title("left") for a in titled] == SIX
    assert [a.get_subplotspec().rowspan.start for a in titled] == [0, 0, 0, 1, 1, 1]
    fitting(plots.gates(scan, objective=SIX))


def test_an_objective_that_takes_nothing_away_says_so(scan: Scan) -> None:
    said = [t.get_text() for a in plots.gates(scan).axes for t in a.texts]
    assert said.count("takes nothing away") == 1
    assert not [text for text in said if text.startswith("loss 0")]


def test_a_file_has_300_dots_an_inch_from_python_too(run: Path, tmp_path: Path) -> None:
    chart = plots.dynamics(run)
    chart.savefig(tmp_path / "a.png")
    chart.savefig(tmp_path / "b.png", dpi=50)
    for name, dpi in (("a", 300), ("b", 50)):
        width, height = Image.open(tmp_path / f"{name}.png").size
        assert (width / dpi, height / dpi) == pytest.approx(tuple(chart.get_size_inches()), abs=0.1)


def test_text_has_one_width_at_every_resolution(scan: Scan) -> None:
    """A figure is laid out once: in a notebook (150) its text was wider, and cut off."""
    chart = plots.tokens(scan)
    widths = {}
    for dpi in (100, 150, 300):
        chart.set_dpi(dpi)
        with matplotlib.rc_context(STYLE):
            label = max(chart.axes[0].get_yticklabels(), key=lambda t: len(t.get_text()))
            widths[dpi] = label.get_window_extent(FigureCanvasAgg(chart).get_renderer()).width / dpi
    assert list(widths.values()) == pytest.approx([widths[300]] * 3, rel=0.01)


# --- where it goes ---


def test_a_figure_goes_beside_its_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/log.parquet").write_text("")
    monkeypatch.chdir(tmp_path / "run")
    beside = str(tmp_path / "run-dynamics.png")
    for place in (".", "log.parquet", "./"):
        assert os.path.abspath(default_out("dynamics", place)) == beside
    assert default_out("landscape", "a/scan/") == "a/scan-landscape.png"
    assert default_out("landscape", "file:///a/scan") == "/a/scan-landscape.png"
    assert default_out("landscape", "s3://bucket/some/scan") == "scan-landscape.png"


def test_a_file_there_that_is_no_figure_of_ours_is_kept(
    few: pandas.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = scans_made.write(tmp_path / "s", few, parts=1)
    inside = sorted(scan.path.rglob("*"))
    taken = tmp_path / "s-tokens.png"
    taken.write_text("a photograph")
    assert _run(["plot", "tokens", str(scan.path)]) == 2
    assert "is not an earlier figure; choose another name" in capsys.readouterr().err
    assert taken.read_text() == "a photograph"
    taken.unlink()
    words = ["--title", "What the model wants", "--no-caption"]
    for _ in range(2):
        assert _run(["plot", "tokens", str(scan.path), *words]) == 0
    assert capsys.readouterr().out.rstrip().endswith(str(taken))
    assert sorted(scan.path.rglob("*")) == inside
