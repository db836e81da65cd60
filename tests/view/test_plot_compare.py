"""The figure of a comparison: its data against pandas, its artists, and what it refuses."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import scans_made
from figures import HOSTILE, RULE, WORDS, drawn, fitting, flagged, nudged
from matplotlib.quiver import Quiver
from matplotlib.text import Text

from eaft_probe import Scan, plots
from eaft_probe.cli import _run
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.errors import BadInput, ScanError
from eaft_probe.quantities import percent
from eaft_probe.verbs.compare import compare
from eaft_probe.view.labels import names
from eaft_probe.view.plots import Chart

pytestmark = pytest.mark.usefixtures("coarse_pixels")
Frame = pandas.DataFrame
BOUNDS = ["entropy_from", "prob_from"]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, tokens: Frame) -> Scan:
    """Without the last examples, in other parts."""
    cut = nudged(tokens)[:1800]
    folder = tmp_path_factory.mktemp("tuned") / "s"
    return scans_made.write(folder, cut, parts=5, group=70, rule=RULE, model="tuned")


@pytest.fixture(scope="module")
def chart(scan: Scan, tuned: Scan) -> Chart:
    return plots.compare(scan, tuned)


def panels(chart: Chart) -> dict[str, Any]:
    titled = {a.get_title("left"): a for a in chart.axes}
    return {**titled, "bars": titled["forgotten"]}


def grid(axes: Any) -> Any:
    return axes.images[0].get_array()


def at(cells: Frame) -> tuple[Any, Any]:
    """Where the cells stand in the image."""
    return ((cells["entropy_from"] / 0.5).astype(int), (cells["prob_from"] * 16).astype(int))


def test_cells_are_those_of_a_frame(chart: Chart, tokens: Frame) -> None:
    a, b = tokens[:1800], nudged(tokens)[:1800]
    change = b["logprob"].astype(np.float64) - a["logprob"]
    frame = pandas.DataFrame(
        {
            "prob_from": np.minimum(np.floor(a["prob"].astype(np.float64) * 16), 15) / 16,
            "entropy_from": np.floor(a["entropy"].astype(np.float64) * 2) / 2,
            "learned": change > math.log(2),
            "forgotten": change < -math.log(2),
            "prob_a": a["prob"],
            "prob_b": b["prob"],
            "entropy_a": a["entropy"],
            "entropy_b": b["entropy"],
        }
    ).astype(np.float64)
    groups = frame.groupby(BOUNDS)
    found = chart.data[chart.data["group"] == "cell"].set_index(BOUNDS)
    np.testing.assert_array_equal(found.index.to_frame(), groups.size().index.to_frame())
    np.testing.assert_array_equal(found["tokens"], groups.size())
    for name in ("learned", "forgotten"):
        np.testing.assert_array_equal(found[name], groups[name].sum())
    net = (groups["learned"].sum() - groups["forgotten"].sum()) / groups.size()
    np.testing.assert_allclose(found["net_share"], net, rtol=1e-9, atol=1e-12)
    for name in ("prob_a", "prob_b", "entropy_a", "entropy_b"):
        np.testing.assert_allclose(found[f"mean_{name}"], groups[name].mean(), rtol=1e-9)
    np.testing.assert_allclose(found["prob_to"] - found.index.get_level_values(1), 1 / 16)
    np.testing.assert_allclose(found["entropy_to"] - found.index.get_level_values(0), 0.5)


def test_groups_are_those_of_the_verb(chart: Chart, scan: Scan, tuned: Scan) -> None:
    found = chart.data[chart.data["group"] != "cell"].reset_index(drop=True)
    wanted = compare(scan, tuned).table
    pandas.testing.assert_frame_equal(found[list(wanted)], wanted)


def test_arrows_go_from_the_mean_place_under_a_to_that_under_b(chart: Chart) -> None:
    cells = chart.data[(chart.data["group"] == "cell") & (chart.data["tokens"] >= 10)]
    assert 10 < len(cells) < (chart.data["group"] == "cell").sum()
    (arrows,) = (c for c in panels(chart)["mean move, A to B"].collections if isinstance(c, Quiver))
    np.testing.assert_allclose(arrows.XY, cells[["mean_prob_a", "mean_entropy_a"]])
    ends = arrows.XY + np.stack([arrows.U, arrows.V], 1)
    np.testing.assert_allclose(ends, cells[["mean_prob_b", "mean_entropy_b"]])
    assert (arrows.angles, arrows.scale_units, arrows.scale) == ("xy", "xy", 1)


def test_images_are_density_and_net_share(chart: Chart) -> None:
    cells = chart.data[chart.data["group"] == "cell"]
    density = grid(panels(chart)["mean move, A to B"])
    np.testing.assert_allclose(density[at(cells)], cells["tokens"] / 1800 / (0.5 / 16))
    assert density.count() == len(cells)
    axes = panels(chart)["learned or forgotten"]
    many = cells[cells["tokens"] >= 10]
    np.testing.assert_allclose(grid(axes)[at(many)], 100 * many["net_share"])
    assert grid(axes).count() == len(many)
    low, high = axes.images[0].get_clim()
    assert -low == high == pytest.approx(100 * many["net_share"].abs().max())


def test_bars_are_the_shares_by_group(chart: Chart) -> None:
    groups = chart.data[chart.data["group"] != "cell"]
    axes = panels(chart)["bars"]
    assert [t.get_text() for t in axes.get_yticklabels()] == list(groups["group"])
    assert (axes.get_title("left"), axes.get_title("right")) == ("forgotten", "learned")
    for bars, name in zip(axes.containers, ("forgotten", "unchanged", "learned"), strict=True):
        np.testing.assert_allclose([b.get_width() for b in bars], 100 * groups[f"{name}_share"])
        assert bars.get_label() == name
    said = [t.get_text() for t in axes.texts]
    wanted = groups[["forgotten_share", "learned_share"]].to_numpy().ravel()
    assert said == [percent(share, digits=2) for share in wanted]
    ends = [b.get_x() + b.get_width() for b in axes.containers[-1]]
    np.testing.assert_allclose(ends, 100)


def test_axes_captions_and_names(chart: Chart, tokens: Frame) -> None:
    labels = [(a.get_xlabel(), a.get_ylabel()) for a in chart.axes[:2]]
    assert labels == [("prob (of the label)", "entropy (nats)")] * 2
    said = " ".join(chart.get_supxlabel().split())
    assert "A: rows under made, 2,000 trained tokens" in said
    assert "entropy < 0.8 nats and prob < 0.25" in said
    assert "B: rows under tuned, 1,800 trained tokens. 1,800 tokens are in both" in said
    assert "more than 0.693 nats" in said
    assert chart.get_suptitle() == "A: rows, made  →  B: rows, tuned"
    share = f"conflicts: {100 * flagged(tokens[:1800]).mean():.2g} %"
    assert share in [t.get_text() for t in panels(chart)["mean move, A to B"].texts]


def test_delta_decides_what_moved(scan: Scan, tuned: Scan) -> None:
    data = plots.compare(scan, tuned, delta=2).data
    wanted = compare(scan, tuned, delta=2).table
    np.testing.assert_array_equal(data["learned"][data["group"] != "cell"], wanted["learned"])
    for delta in (0, math.nan, math.inf):
        with pytest.raises(BadInput, match="--delta"):
            plots.compare(scan, tuned, delta=delta)


def test_parts_and_row_groups_do_not_change_the_data(
    scan: Scan, tuned: Scan, tokens: Frame, chart: Chart, tmp_path: Path
) -> None:
    split = scans_made.write(tmp_path / "s", tokens, parts=4, group=60, rule=RULE)
    pandas.testing.assert_frame_equal(plots.compare(split, tuned).data, chart.data, rtol=1e-9)


def test_other_data_are_refused_unless_the_tokens_are_said_to_be_the_same(
    scan: Scan, tuned: Scan, other: Scan, tokens: Frame, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="plot landscape A B --difference"):
        plots.compare(scan, other)
    with pytest.raises(BadInput, match="plot landscape A B --difference"):
        plots.compare(scan, tuned, by="distributions")
    with pytest.raises(ScanError, match="same tokens"):
        plots.compare(scan, other, by="tokens")
    again = scans_made.write(tmp_path / "s", nudged(tokens), fingerprint="other")
    assert len(plots.compare(scan, again, by="tokens").data) > 5


def test_it_takes_two_scans(scan: Scan) -> None:
    for scans in ((scan,), (scan,) * 3):
        with pytest.raises(BadInput, match="takes two scans"):
            plots.compare(*scans)


@pytest.mark.parametrize("rule", [(0, 0.2), (99, 2), (1e6, 1e6), (-50, -50)], ids=str)
def test_any_rule_is_drawn(few: Frame, tmp_path: Path, rule: Any) -> None:
    """No conflict at all, or a region beyond the axes."""
    pair = [
        scans_made.write(tmp_path / n, t, parts=1, rule=ConflictRule(*rule))
        for n, t in (("a", few), ("b", nudged(few)))
    ]
    texts = [t.get_text() for t in drawn(plots.compare(*pair)).axes[2].texts]
    assert ("no tokens" in texts) == (rule[0] <= 0)


@pytest.mark.parametrize("count", [1, 5])
def test_one_token_is_enough(few: Frame, tmp_path: Path, count: int) -> None:
    """And no cell with enough of them for an arrow."""
    pair = [
        scans_made.write(tmp_path / n, t[:count], parts=1)
        for n, t in (("a", few), ("b", nudged(few)))
    ]
    data = fitting(plots.compare(*pair)).data
    assert data[data["group"] == "cell"]["tokens"].sum() == count


def test_all_tokens_alike(few: Frame, tmp_path: Path) -> None:
    columns = few.columns.difference(["example", "turn", "position"])
    alike = few.assign(**{c: few[c].iloc[5] for c in columns})
    pair = [scans_made.write(tmp_path / n, alike, parts=1) for n in "ab"]
    data = fitting(plots.compare(*pair)).data
    (cell,) = data[data["group"] == "cell"].to_dict("records")
    assert [cell[n] for n in ("tokens", "learned", "forgotten")] == [len(few), 0, 0]


def test_texts_of_the_data_are_drawn_not_obeyed(few: Frame, tmp_path: Path) -> None:
    pair = [
        scans_made.write(tmp_path / n, t, parts=1, source=HOSTILE, model="$m_{" + n, words=WORDS)
        for n, t in (("a", few), ("b", nudged(few)))
    ]
    made = drawn(plots.compare(*pair))
    texts = "".join(t.get_text() for t in made.findobj(Text))
    assert "\\u202e" in texts
    assert not set("\u202e\u200b\0数🙂") & set(texts)


@pytest.mark.parametrize("name", ["x" * 100, "中" * 40, "_a", "🙂" * 48])
def test_long_and_odd_names_fit(few: Frame, tmp_path: Path, name: str) -> None:
    pair = [scans_made.write(tmp_path / n, few, parts=1, source=name, model=n * 60) for n in "ab"]
    chart = fitting(plots.compare(*pair))
    assert chart.data["tokens"].max() == len(few)
    assert chart.get_suptitle() == "A: {}  →  B: {}".format(*names(pair))


def test_the_command_draws_it(
    scan: Scan, tuned: Scan, other: Scan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, data = str(tmp_path / "f.svg"), str(tmp_path / "d.csv")
    pair = [str(scan.path), str(tuned.path)]
    assert _run(["plot", "compare", *pair, "--out", out, "--data", data, "--delta", "1"]) == 0
    assert len(pandas.read_csv(data)) == len(plots.compare(scan, tuned).data)
    capsys.readouterr()
    for arguments, said in (
        ([pair[0], str(other.path)], "--difference"),
        ([pair[0]], "takes two scans"),
        ([*pair, "--delta", "0"], "--delta"),
        ([*pair, "--style", "scatter"], "no --style; it takes --delta, --by"),
    ):
        assert _run(["plot", "compare", *arguments, "--out", out]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert said in error
