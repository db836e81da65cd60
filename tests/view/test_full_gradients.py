"""`plot gradients --norm full`: its data against pandas, and samples it must stand."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import scans_made
from matplotlib.text import Text

from eaft_probe import Scan, plots
from eaft_probe.analysis import exact_gradients
from eaft_probe.analysis.exact_gradients import FullGradients, Provenance, scan_identity
from eaft_probe.analysis.rank_correlation import student
from eaft_probe.analysis.stratified_sample import draw_sample
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.errors import BadInput, ScanError
from eaft_probe.view.plots import draw

pytestmark = pytest.mark.usefixtures("coarse_pixels")
NORMS = ["grad_full", "grad_logits", "grad_head"]
RULE = ConflictRule(0.8, 0.25)


def sampled(scan: Scan, size: int = 600, hidden: bool = False, norm: float | None = None) -> Scan:
    """The scan with a file of gradients: grad_logits times noise, or `norm` throughout."""
    closed = ["grad_logits", "grad_head", *(["grad_hidden"] if hidden else [])]
    sample = draw_sample(scan, size, 0, closed)
    noise = np.exp(np.random.default_rng(0).normal(size=len(sample["prob"])))
    norms = sample["grad_logits"] * noise if norm is None else np.full(len(noise), norm)
    made = Provenance(scan_identity(scan), "m", None, "float32", 0, size, True)
    exact_gradients.write(scan, sample, norms, made)
    return scan


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory, tokens: pandas.DataFrame) -> Scan:
    folder = tmp_path_factory.mktemp("made") / "s"
    return sampled(scans_made.write(folder, tokens, rule=RULE))


@pytest.fixture(scope="module")
def data(scan: Scan) -> pandas.DataFrame:
    return plots.gradients(scan, norm="full").data


def lower_bounds(tokens: pandas.DataFrame, by: int) -> pandas.DataFrame:
    """Of each token's cell of `by` / 256 and `by` / 32 nats."""
    p = np.minimum(np.floor(tokens["prob"].astype(np.float64) * 256 / by), 256 // by - 1)
    h = np.floor(tokens["entropy"].astype(np.float64) * 32 / by)
    return pandas.DataFrame({"entropy_from": h * by / 32, "prob_from": p * by / 256})


def width(data: pandas.DataFrame) -> int:
    return round(256 * float((data["prob_to"] - data["prob_from"]).iloc[0]))


def test_data_are_counts_means_and_intervals_of_each_cell(
    scan: Scan, data: pandas.DataFrame, tokens: pandas.DataFrame
) -> None:
    table, cell = FullGradients.open(scan).table, ["entropy_from", "prob_from"]
    assert list(data["norm"].unique()) == NORMS
    for norm in NORMS:
        mine = data[data["norm"] == norm].set_index(cell)
        counts = lower_bounds(tokens, width(data)).groupby(cell).size()
        np.testing.assert_array_equal(mine["tokens"], counts)
        weight, value = table["stands_for"].astype(float), table[norm].astype(float)
        for place, here in lower_bounds(table, width(data)).groupby(cell).groups.items():
            w, x, row = weight[here], value[here], mine.loc[place]
            mean = (w * x).sum() / w.sum()
            assert row["sampled"] == len(x)
            assert row["mean"] == pytest.approx(mean)
            if len(x) > 1:
                se = np.sqrt(((w * (x - mean)) ** 2).sum() * len(x) / (len(x) - 1)) / w.sum()
                half = student(np.array([len(x) - 1.0]))[0] * se
                assert row["high"] - row["mean"] == pytest.approx(half)
                assert row["mean"] - row["low"] == pytest.approx(half)
        assert mine["sampled"].sum() == len(table) == 600


def test_data_hold_the_agreement(scan: Scan, data: pandas.DataFrame) -> None:
    agreed = FullGradients.open(scan).agreement().set_index(["measure", "norm"])
    for (measure, norm), row in agreed.iterrows():
        mine = data[data["norm"] == norm].iloc[0]
        for end, column in (("", "value"), ("_low", "low"), ("_high", "high")):
            assert mine[f"{measure}{end}"] == row[column]
    assert 0.3 < agreed["value"]["rank_correlation", "grad_logits"] < 0.95
    assert data.loc[data["norm"] == "grad_full", "rank_correlation"].isna().all()


def test_the_sample_stands_for_the_scan(scan: Scan, tokens: pandas.DataFrame) -> None:
    """Means and the conflicts' share of the closed forms, which the whole scan knows exactly."""
    found = FullGradients.open(scan)
    assert found.covered == pytest.approx(1)
    conflict = (tokens["entropy"] < np.float32(0.8)) & (tokens["prob"] < np.float32(0.25))
    agreed = found.agreement().set_index(["measure", "norm"])
    for norm in NORMS[1:]:
        estimate = np.average(found.table[norm], weights=found.table["stands_for"])
        assert estimate == pytest.approx(tokens[norm].mean(), rel=0.02)
        row = agreed.loc["conflict_share", norm]
        assert row["low"] < tokens[norm][conflict].sum() / tokens[norm].sum() < row["high"]


def test_maps_are_on_one_scale_and_few_are_grey(scan: Scan, data: pandas.DataFrame) -> None:
    chart = plots.gradients(scan, norm="full")
    titles = {a.get_title("left"): a for a in chart.axes}
    for norm in NORMS:
        mine = data[data["norm"] == norm]
        (axes,) = (a for t, a in titles.items() if t.startswith(f"{norm}: mean"))
        shown = np.sort(axes.images[0].get_array().compressed())
        known = mine[mine["sampled"] >= 5]
        np.testing.assert_allclose(shown, np.sort(known["mean"] / known["mean_of_all"]))
        grey = axes.images[1].get_array().compressed()
        assert len(grey) == ((mine["sampled"] > 0) & (mine["sampled"] < 5)).sum()
    assert len({a.images[0].get_clim() for t, a in titles.items() if ": mean" in t}) == 1
    counted = titles["sampled"].images[0].get_array().compressed()
    assert counted.sum() == 600


def test_panels_show_the_agreement(scan: Scan) -> None:
    chart = plots.gradients(scan, norm="full")
    agreed = FullGradients.open(scan).agreement().set_index("measure")
    (correlations,) = (a for a in chart.axes if "rank correlation" in a.get_xlabel())
    (shares,) = (a for a in chart.axes if "gradient mass" in a.get_xlabel())
    drawn_all = [line.get_xdata() for line in correlations.lines if len(line.get_xdata()) == 2]
    np.testing.assert_array_equal(drawn_all[0], agreed.loc["rank_correlation", "value"])
    np.testing.assert_array_equal(drawn_all[1], agreed.loc["conflict_rank_correlation", "value"])
    np.testing.assert_allclose(
        shares.lines[0].get_xdata(), 100 * agreed.loc["conflict_share", "value"]
    )
    legend = [t.get_text() for t in correlations.get_legend().get_texts()]
    assert legend[0] == "all (600)"
    assert legend[1].startswith("conflicts (")
    said = " ".join(chart.get_supxlabel().split())
    assert "600 sampled tokens" in said
    assert "conflict: entropy < 0.8 nats and prob < 0.25" in said


def test_a_small_sample_has_wider_cells(tokens: pandas.DataFrame, tmp_path: Path) -> None:
    made = scans_made.write(tmp_path / "s", tokens)
    widths = [width(plots.gradients(sampled(made, n), norm="full").data) for n in (100, 2000)]
    assert widths == [32, 16]


@pytest.mark.parametrize(
    "given",
    [{"objective": ["sft"]}, {"set": {"alpha": 2}}, {"base_scan": "x"}, {"zoom": "conflicts"}],
)
def test_it_takes_no_objective(scan: Scan, given: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="takes no --objective"):
        draw("gradients", [str(scan.path)], {"norm": "full", **given})


def test_it_takes_one_scan_that_has_gradients(
    scan: Scan, tokens: pandas.DataFrame, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="shows one scan"):
        plots.gradients(scan, scan, norm="full")
    bare = scans_made.write(tmp_path / "s", tokens)
    with pytest.raises(ScanError, match="`eaft-probe gradients"):
        plots.gradients(bare, norm="full")


@pytest.mark.parametrize(
    ("count", "size", "norm"), [(300, 1, None), (1, 9, None), (300, 40, 2.0), (300, 40, 0.0)]
)
def test_poor_samples_are_drawn(
    tokens: pandas.DataFrame, tmp_path: Path, count: int, size: int, norm: float | None
) -> None:
    """One token, a scan of one token, norms that do not vary; a warning would fail."""
    made = scans_made.write(tmp_path / "s", tokens[:count], parts=1)
    chart = plots.gradients(sampled(made, size, norm=norm), norm="full")
    chart.draw_without_rendering()
    sums = chart.data.groupby("norm")[["tokens", "sampled"]].sum()
    assert set(sums.index) == set(NORMS)
    assert (sums == [count, min(count, size)]).all(axis=None)


@pytest.mark.parametrize("rule", [ConflictRule(0, 0.2), ConflictRule(99, 2)])
def test_rules_that_flag_none_or_all(
    tokens: pandas.DataFrame, tmp_path: Path, rule: ConflictRule
) -> None:
    made = sampled(scans_made.write(tmp_path / "s", tokens, rule=rule), hidden=True)
    chart = plots.gradients(made, norm="full")
    chart.write(tmp_path / "f.pdf")
    assert set(chart.data["norm"]) == {*NORMS, "grad_hidden"}
    (shares,) = (a for a in chart.axes if "gradient mass" in a.get_xlabel())
    np.testing.assert_allclose(shares.lines[0].get_xdata(), 100 * (rule.entropy_below > 0))


def test_hostile_names_are_drawn_not_obeyed(tokens: pandas.DataFrame, tmp_path: Path) -> None:
    made = scans_made.write(tmp_path / "s", tokens, source="$x_{ 数 \u202e\0", model="$m_{")
    chart = plots.gradients(sampled(made), norm="full")
    chart.write(tmp_path / "f.svg")
    texts = "".join(t.get_text() for t in chart.findobj(Text))
    assert "\\u202e" in texts
    assert not set("\u202e\0数") & set(texts)


def test_the_same_file_again(scan: Scan, tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        plots.gradients(scan, norm="full").write(tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
