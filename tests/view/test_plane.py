"""The plane of a zoom: its cells against a loop over the tokens, its axes, and what it refuses."""

from pathlib import Path

import numpy as np
import pandas
import pytest
import scans_made
from figures import RULE, caption, drawn, fitting
from matplotlib.collections import QuadMesh

from eaft_probe import Scan, plots
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.errors import BadInput
from eaft_probe.objectives.gates import objective
from eaft_probe.view.plots import Chart


def in_cell(tokens: pandas.DataFrame, row: pandas.Series) -> pandas.DataFrame:
    """The tokens in a cell; the last one holds probability 1."""
    logprob, entropy = tokens["logprob"].astype(float), tokens["entropy"].astype(float)
    right = np.log(row["prob_to"]) if row["prob_to"] < 1 else np.inf
    across = (logprob >= np.log(row["prob_from"])) & (logprob < right)
    return tokens[across & (entropy >= row["entropy_from"]) & (entropy < row["entropy_to"])]


def low(tokens: pandas.DataFrame) -> pandas.DataFrame:
    """Those with less than twice the rule's entropy, in whole cells of a quarter nat."""
    return tokens[tokens["entropy"] < 1.75]


def meshes(chart: Chart) -> list[QuadMesh]:
    return [c for a in chart.axes for c in a.collections if isinstance(c, QuadMesh)]


def test_a_landscape_s_zoom_counts_the_tokens_of_each_cell(
    scan: Scan, tokens: pandas.DataFrame
) -> None:
    chart = plots.landscape(scan, zoom="conflicts")
    for _, row in chart.data.drop(columns="scan").iterrows():
        assert row["tokens"] == len(in_cell(tokens, row))
    assert chart.data["tokens"].sum() == len(low(tokens))
    decades = np.log10(chart.data["prob_to"]) - np.log10(chart.data["prob_from"])
    np.testing.assert_allclose(decades, 0.5)
    area = decades * (chart.data["entropy_to"] - chart.data["entropy_from"])
    np.testing.assert_allclose(chart.data["density"] * area, chart.data["tokens"] / len(tokens))


def test_it_draws_its_data_on_a_logarithmic_axis(scan: Scan, tokens: pandas.DataFrame) -> None:
    chart = fitting(plots.landscape(scan, zoom="conflicts"))
    (mesh,) = (m for m in meshes(chart) if m.axes.get_xlabel().startswith("prob"))
    np.testing.assert_array_equal(
        np.sort(mesh.get_array().compressed()), np.sort(chart.data["density"])
    )
    least = low(tokens)["prob"].min()
    assert mesh.axes.get_xscale() == "log"
    assert least / 10 <= mesh.axes.get_xlim()[0] <= least
    assert mesh.axes.get_ylim() == (0, 1.75)
    assert "decade of prob" in "".join(a.get_xlabel() for a in chart.axes)


def test_zoomed_gradients_are_means_of_the_same_cells(scan: Scan, tokens: pandas.DataFrame) -> None:
    whole, zoomed = (
        plots.gradients(scan, objective=["eaft"], **z) for z in ({}, {"zoom": "conflicts"})
    )
    gate = objective("eaft").within(scans_made.VOCAB)
    for _, row in zoomed.data.iterrows():
        mine = in_cell(tokens, row)
        gates = gate({c: mine[c].to_numpy() for c in gate.reads}).astype(float)
        assert row["mean_grad_logits"] == pytest.approx((gates * mine["grad_logits"]).mean())
    shares = [c.data["conflict_share_of_gradient"].iloc[0] for c in (whole, zoomed)]
    assert shares[0] == pytest.approx(shares[1])  # of all tokens, whatever is shown
    drawn(zoomed)


def test_zoomed_dots_and_differences(scan: Scan, other: Scan, tokens: pandas.DataFrame) -> None:
    dots = fitting(plots.landscape(scan, style="scatter", zoom="conflicts"))
    assert len(dots.data) == (tokens["entropy"] < 1.625).sum()  # cells of 1/32 nat
    assert dots.axes[0].get_xscale() == "log"
    ratio = fitting(plots.landscape(scan, other, difference=True, zoom="conflicts")).data
    assert ratio["tokens_first"].sum() == len(low(tokens))
    assert ratio["tokens_second"].sum() == len(low(other.tokens(["entropy"])))


def test_several_scans_have_one_zoom(scan: Scan, other: Scan) -> None:
    chart = plots.landscape(scan, other, zoom="conflicts")
    mains = [a for a in chart.axes if a.get_xlabel().startswith("prob")]
    assert len({(a.get_xlim(), a.get_ylim()) for a in mains}) == 1


@pytest.mark.parametrize("rule", [(0, 0.2), (99, 2), (-50, -50)], ids=str)
def test_any_rule_is_zoomed_in_on(few: pandas.DataFrame, tmp_path: Path, rule: tuple) -> None:
    scan = scans_made.write(tmp_path / "s", few, parts=1, rule=ConflictRule(*rule))
    fitting(plots.landscape(scan, zoom="conflicts"))


def test_nothing_to_zoom_in_on_is_refused(few: pandas.DataFrame, tmp_path: Path) -> None:
    scan = scans_made.write(tmp_path / "s", few.assign(entropy=np.float32(3)), parts=1, rule=RULE)
    with pytest.raises(BadInput, match=r"no token has an entropy below 1\.75 nats"):
        plots.landscape(scan, zoom="conflicts")
    with pytest.raises(BadInput, match="--zoom is conflicts"):
        plots.landscape(scan, zoom="tokens")


def test_captions_say_what_is_dashed(scan: Scan) -> None:
    charts = [plots.landscape(scan), plots.gradients(scan), plots.compare(scan, scan)]
    charts += [plots.landscape(scan, style="scatter"), plots.landscape(scan, scan, difference=True)]
    assert all("Dashed: the least and the greatest entropy" in caption(c) for c in charts)
