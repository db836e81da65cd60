"""Figures: their data against pandas and loops, their files, and the texts that they survive."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import reference
import scans_made
from figures import (
    HOSTILE,
    RULE,
    WORDS,
    Charts,
    Subjects,
    caption,
    drawn,
    fitting,
    flagged,
    logged,
    of_scans,
    parameters,
)
from matplotlib.figure import Figure
from matplotlib.text import Text

from eaft_probe import Scan, plots
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.errors import BadInput, MissingColumn, ProbeError, ScanError, UnknownName
from eaft_probe.objectives.gates import OBJECTIVES, objective
from eaft_probe.quantities import percent
from eaft_probe.view.labels import shown
from eaft_probe.view.plots import PLOTS, Chart, draw
from eaft_probe.view.plots.landscape import sample
from eaft_probe.view.plots.plane import step

pytestmark = pytest.mark.usefixtures("coarse_pixels")
NORMS = ("grad_logits", "grad_head", "grad_hidden")


@pytest.fixture(scope="module")
def based(tokens: pandas.DataFrame) -> pandas.DataFrame:
    """The same labels under another model."""
    return scans_made.measured(tokens, 5, follow=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, based: pandas.DataFrame) -> Scan:
    return scans_made.write(tmp_path_factory.mktemp("base") / "s", based, model="base")


def in_float64(tokens: pandas.DataFrame) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """The tokens and the mean nll of each example, as the reference loops read them."""
    columns = {c: tokens[c].astype(np.float64).tolist() for c in tokens if c != "token"}
    nll = (-tokens["logprob"].astype(np.float64)).groupby(tokens["example"])
    means = nll.mean().astype(np.float32).astype(np.float64).tolist()
    columns["base_prob"], columns["reference_logprob"] = columns["prob"], columns["logprob"]
    columns["base_mean_nll"] = nll.transform("mean").tolist()
    return columns, {"mean_nll": means, "base_mean_nll": means}


def cells(tokens: pandas.DataFrame, by: int = 8) -> pandas.DataFrame:
    """The lower bounds of each token's cell of `by` / 256 and `by` / 32 nats."""
    p = np.minimum(np.floor(tokens["prob"].astype(np.float64) * 256 / by), 256 // by - 1)
    h = np.floor(tokens["entropy"].astype(np.float64) * 32 / by)
    return pandas.DataFrame({"prob_from": p * by / 256, "entropy_from": h * by / 32})


# --- what every figure promises ---


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_is_a_figure_with_its_data(name: str, charts: Charts) -> None:
    chart = drawn(charts(name))
    assert isinstance(chart, Figure)
    assert isinstance(chart.data, pandas.DataFrame)
    assert len(chart.data) > 0
    assert chart.data.columns.is_unique


@pytest.mark.parametrize("name", PLOTS)
def test_axes_are_labelled(name: str, charts: Charts) -> None:
    axes = charts(name).axes
    assert any(a.get_xlabel() for a in axes)
    assert any(a.get_ylabel() or a.get_yticklabels() for a in axes)


@pytest.mark.parametrize("name", of_scans())
def test_the_caption_names_model_data_tokens_and_rule(name: str, charts: Charts) -> None:
    said = caption(charts(name))
    assert "rows under made, 2,000 trained tokens" in said
    assert "entropy < 0.8 nats and prob < 0.25" in said


@pytest.mark.parametrize("name", PLOTS)
def test_files_are_what_their_endings_say_and_the_same_again(
    name: str, charts: Charts, subjects: Subjects, tmp_path: Path
) -> None:
    """However often the figure was shown and written before, and as what."""
    for ending, magic in (("PNG", b"\x89PNG\r\n"), ("pdf", b"%PDF-"), ("svg", b"<?xml")):
        charts(name).write(tmp_path / f"f.{ending}")
        assert (tmp_path / f"f.{ending}").read_bytes().startswith(magic)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["f.PNG", "f.pdf", "f.svg"]
    PLOTS[name](*subjects(name)).write(tmp_path / "again.svg")
    found = [(tmp_path / f"{n}.svg").read_bytes() for n in ("f", "again")]
    assert b"<svg" in found[0]
    assert found[0] == found[1]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize("name", PLOTS)
def test_data_come_back_as_they_were(
    name: str, charts: Charts, tmp_path: Path, ending: str
) -> None:
    data, file = charts(name).data, tmp_path / f"d.{ending}"
    charts(name).write_data(file)
    back = pandas.read_csv(file) if ending == "csv" else pandas.read_parquet(file)
    wanted = data.reset_index(drop=True)
    pandas.testing.assert_frame_equal(back, wanted, check_dtype=ending == "parquet", rtol=1e-6)


@pytest.mark.parametrize("name", PLOTS)
def test_a_folder_does_as_well_as_a_scan(name: str, subjects: Subjects) -> None:
    given = subjects(name)
    folders = [g if isinstance(g, Path) else g.path for g in given]
    wanted = PLOTS[name](*given).data
    for chart in (PLOTS[name](*folders), draw(name, [str(f) for f in folders], {})):
        pandas.testing.assert_frame_equal(chart.data, wanted)


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_says_what_it_shows(name: str) -> None:
    assert (PLOTS[name].__doc__ or "").split("\n")[0].rstrip().endswith((".", ":"))
    assert getattr(plots, name) is PLOTS[name]


def test_a_notebook_shows_it_as_png(charts: Charts) -> None:
    assert charts("landscape")._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", of_scans())
def test_parts_and_row_groups_do_not_change_the_data(
    name: str, scan: Scan, tokens: pandas.DataFrame, tmp_path: Path
) -> None:
    split = scans_made.write(tmp_path / "s", tokens, parts=4, group=60, rule=RULE)
    wanted, found = (
        PLOTS[name](s).data.drop(columns="scan", errors="ignore") for s in (scan, split)
    )
    pandas.testing.assert_frame_equal(found, wanted, rtol=1e-9)


@pytest.mark.parametrize("name", of_scans())
def test_another_rule_gives_the_data_of_a_scan_flagged_so(
    name: str, few: pandas.DataFrame, tmp_path: Path
) -> None:
    """Whatever was drawn before."""
    twice = scans_made.write(tmp_path / "a", few, parts=1, rule=RULE)
    PLOTS[name](twice)
    wanted = PLOTS[name](
        scans_made.write(tmp_path / "b", few, parts=1, rule=ConflictRule(2, 0.5))
    ).data
    found = PLOTS[name](twice.flag(ConflictRule(2, 0.5))).data
    pandas.testing.assert_frame_equal(
        *(d.drop(columns="scan", errors="ignore") for d in (found, wanted))
    )


@pytest.mark.parametrize("name", of_scans())
def test_texts_of_the_data_are_drawn_not_obeyed(
    name: str, few: pandas.DataFrame, tmp_path: Path
) -> None:
    """As names of the data and the model and as tokens; a warning would fail."""
    scan = scans_made.write(
        tmp_path / "s", few, parts=1, rule=RULE, source=HOSTILE, model="$m_{", words=WORDS
    )
    chart = drawn(PLOTS[name](scan))
    texts = "".join(t.get_text() for t in chart.findobj(Text))
    assert "\\u202e" in texts
    assert not set("\u202e\u200b\0数🙂") & set(texts)


@pytest.mark.parametrize("name", of_scans())
def test_one_token_is_enough(name: str, few: pandas.DataFrame, tmp_path: Path) -> None:
    chart = fitting(PLOTS[name](scans_made.write(tmp_path / "s", few[:1], parts=1)))
    assert "1 trained token;" in caption(chart)


@pytest.mark.parametrize("name", of_scans())
def test_no_flagged_token(name: str, few: pandas.DataFrame, tmp_path: Path) -> None:
    rule = ConflictRule(0, 0.2)
    chart = fitting(PLOTS[name](scans_made.write(tmp_path / "s", few, parts=1, rule=rule)))
    assert f"conflict: {rule}." in caption(chart)
    assert not chart.data.filter(like="conflict").fillna(0).to_numpy().any()


@pytest.mark.parametrize("name", of_scans())
def test_all_tokens_alike(name: str, few: pandas.DataFrame, tmp_path: Path) -> None:
    columns = few.columns.difference(["example", "turn", "position"])
    alike = few.assign(**{c: few[c].iloc[5] for c in columns})
    chart = fitting(PLOTS[name](scans_made.write(tmp_path / "s", alike, parts=1)))
    assert "300 trained tokens" in caption(chart)
    assert chart.data.get("prob_from", pandas.Series([0])).nunique() == 1


@pytest.mark.parametrize("name", of_scans())
def test_a_scan_without_a_token_is_refused_in_one_line(
    name: str, few: pandas.DataFrame, tmp_path: Path
) -> None:
    scan = scans_made.write(tmp_path / "s", few[:0], parts=1)
    with pytest.raises(BadInput, match="no scored token") as caught:
        PLOTS[name](scan)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", PLOTS)
def test_nothing_to_draw_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput):
        PLOTS[name]()
    with pytest.raises(ScanError):
        PLOTS[name](tmp_path)


@pytest.mark.parametrize("name", [n for n in of_scans() if n != "topk"])
def test_several_scans_stand_side_by_side(name: str, scan: Scan, other: Scan) -> None:
    chart, labels = fitting(PLOTS[name](scan, other)), ["rows, made", "others, made"]
    assert list(chart.data["scan"].unique()) == labels
    assert all(any(label in t.get_text() for t in chart.findobj(Text)) for label in labels)


@pytest.mark.parametrize("name", ["gates", "stability", "positions", "tokens"])
def test_a_scan_s_data_are_the_same_beside_another(name: str, scan: Scan, other: Scan) -> None:
    both = PLOTS[name](scan, other).data
    for one in (scan, other):
        alone = PLOTS[name](one).data.reset_index(drop=True)
        mine = both[both["scan"] == alone["scan"].iloc[0]].reset_index(drop=True)
        pandas.testing.assert_frame_equal(mine, alone)


def test_scans_that_are_named_alike_are_told_apart_by_folder(
    scan: Scan, tokens: pandas.DataFrame, tmp_path: Path
) -> None:
    twin = scans_made.write(tmp_path / "twin", tokens[:300])
    assert plots.positions(scan, twin).data["scan"].nunique() == 2


# --- landscape ---


def test_landscape_counts_the_tokens_of_each_cell(scan: Scan, tokens: pandas.DataFrame) -> None:
    data = plots.landscape(scan).data
    wanted = cells(tokens).groupby(["entropy_from", "prob_from"]).size()
    found = data.set_index(["entropy_from", "prob_from"])["tokens"]
    pandas.testing.assert_series_equal(found, wanted, check_names=False)
    np.testing.assert_allclose(data["prob_to"] - data["prob_from"], 8 / 256)
    np.testing.assert_allclose(data["entropy_to"] - data["entropy_from"], 8 / 32)


def test_landscape_density_integrates_to_one(scan: Scan) -> None:
    data = plots.landscape(scan).data
    area = (data["prob_to"] - data["prob_from"]) * (data["entropy_to"] - data["entropy_from"])
    assert (data["density"] * area).sum() == pytest.approx(1)


def test_landscape_draws_its_data_on_one_scale(scan: Scan, other: Scan) -> None:
    chart = plots.landscape(scan, other)
    images = [a.images[0] for a in chart.axes if a.images]
    drawn_cells = np.concatenate([i.get_array().compressed() for i in images])
    np.testing.assert_array_equal(np.sort(drawn_cells), np.sort(chart.data["density"]))
    assert images[0].norm is images[1].norm
    assert images[0].norm.vmax == chart.data["density"].max()


def test_landscape_axes_have_units(scan: Scan) -> None:
    labels = {(a.get_xlabel(), a.get_ylabel()) for a in plots.landscape(scan).axes}
    assert ("prob (of the label)", "entropy (nats)") in labels


@pytest.mark.parametrize("style", ["density", "scatter"])
def test_landscape_tells_the_exact_share(scan: Scan, tokens: pandas.DataFrame, style: Any) -> None:
    said = [t.get_text() for a in plots.landscape(scan, style=style).axes for t in a.texts]
    assert f"conflicts: {100 * flagged(tokens).mean():.2g} %" in said


@pytest.mark.parametrize(
    ("count", "by"), [(1, 8), (2999, 8), (3000, 4), (30_000, 2), (999_999, 2), (10**8, 1)]
)
def test_more_tokens_have_finer_cells(count: int, by: int) -> None:
    assert step(count) == by


def test_scatter_draws_every_token_of_a_small_scan(scan: Scan, tokens: pandas.DataFrame) -> None:
    chart = plots.landscape(scan, style="scatter")
    data = chart.data.sort_values(["example", "position"]).reset_index(drop=True)
    for column in ("example", "position", "prob", "entropy"):
        np.testing.assert_array_equal(data[column], tokens[column])
    np.testing.assert_array_equal(data["conflict"], flagged(tokens))
    (dots,) = chart.axes[0].collections
    np.testing.assert_array_equal(dots.get_offsets(), chart.data[["prob", "entropy"]])


def test_a_sample_is_the_same_on_every_call(
    scan: Scan, tokens: pandas.DataFrame, tmp_path: Path
) -> None:
    """Whatever the parts, the connection or the order of reading."""
    first = sample(scan, 100)
    split = scans_made.write(tmp_path / "s", tokens, parts=2, group=70, rule=RULE)
    for again in (scan, Scan.open(scan.path), split):
        pandas.testing.assert_frame_equal(sample(again, 100), first)
    assert len(first.drop_duplicates(["example", "position"])) == 100
    assert first["example"].nunique() > 30  # drawn from everywhere


def test_difference_is_log2_of_the_ratio(scan: Scan, other: Scan, tokens: pandas.DataFrame) -> None:
    data = plots.landscape(scan, other, difference=True).data
    second = other.tokens(["prob", "entropy"])
    counts = (
        pandas.concat(
            [cells(t).groupby(["entropy_from", "prob_from"]).size() for t in (tokens, second)],
            axis=1,
        )
        .fillna(0)
        .sort_index()
    )
    found = data.set_index(["entropy_from", "prob_from"]).sort_index()
    np.testing.assert_array_equal(found[["tokens_first", "tokens_second"]], counts)
    for (a, b), ratio in zip(counts.to_numpy(), found["log2_ratio"], strict=True):
        wanted = math.log2(((a + 0.5) / 2000) / ((b + 0.5) / 900)) if a + b >= 10 else math.nan
        assert ratio == pytest.approx(wanted, nan_ok=True)
    assert found["log2_ratio"].notna().any()


def test_difference_of_a_scan_and_itself_is_0(scan: Scan) -> None:
    ratio = plots.landscape(scan, scan, difference=True).data["log2_ratio"].dropna()
    assert len(ratio) > 0
    assert (ratio == 0).all()


def test_difference_counts_both_scans_by_the_rule_of_the_first(
    scan: Scan, few: pandas.DataFrame, tmp_path: Path
) -> None:
    wide = ConflictRule(3, 0.9)
    second = scans_made.write(tmp_path / "wide", few, parts=1, rule=wide)
    for pair, mine in (((scan, second), RULE), ((second, scan), wide)):
        chart = plots.landscape(*pair, difference=True)
        shares = [percent(flagged(s.tokens(), mine).mean(), digits=2) for s in pair]
        said = [t.get_text() for a in chart.axes for t in a.texts]
        assert f"conflicts: {shares[0]} against {shares[1]}" in said
        note = " ".join(chart.get_supxlabel().split())
        assert f"by the first scan's rule: {mine}." in note
    assert "first scan's" not in plots.landscape(scan, scan, difference=True).get_supxlabel()


def test_difference_of_a_scan_whose_conflicts_were_counted_by_another_rule(
    scan: Scan, few: pandas.DataFrame, tmp_path: Path
) -> None:
    whole = scans_made.write(tmp_path / "whole", few, parts=1, rule=ConflictRule(3, 0.9))
    some = scans_made.keeping(whole, tmp_path / "some")
    with pytest.raises(ScanError, match="another rule than the scan's own reads every token"):
        plots.landscape(scan, some, difference=True)


def test_difference_takes_the_densities_of_two_scans(scan: Scan, other: Scan) -> None:
    for scans, style in (
        ((scan,), "density"),
        ((scan,) * 3, "density"),
        ((scan, other), "scatter"),
    ):
        with pytest.raises(BadInput, match="--difference"):
            plots.landscape(*scans, difference=True, style=style)
    with pytest.raises(BadInput, match="--style"):
        plots.landscape(scan, style="dots")


# --- gradients ---


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_are_the_mean_of_gate_times_norm(
    scan: Scan, tokens: pandas.DataFrame, norm: Any
) -> None:
    wanted = ["sft", "eaft", "masked-sft", "mile", "talr"]
    whole = plots.gradients(scan, objective=wanted, norm=norm).data
    assert list(whole["objective"].unique()) == wanted
    for name in wanted:
        data = whole[whole["objective"] == name].set_index(["entropy_from", "prob_from"])
        gate = np.array(reference.GATES[name](*in_float64(tokens)))
        weight = gate * tokens[norm].astype(np.float64)
        frame = cells(tokens).assign(weight=weight).groupby(["entropy_from", "prob_from"])
        np.testing.assert_array_equal(data["tokens"], frame.size())
        np.testing.assert_allclose(
            data[f"mean_{norm}"], frame["weight"].mean(), rtol=1e-5, atol=1e-7
        )
        share = weight[flagged(tokens)].sum() / weight.sum()
        np.testing.assert_allclose(data["conflict_share_of_gradient"], share, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("plot", ["gradients", "gates"])
def test_every_objective_can_be_drawn(plot: str, scan: Scan, base: Scan) -> None:
    chart = PLOTS[plot](scan, objective=list(OBJECTIVES), base_scan=base.path)
    assert list(chart.data["objective"].unique()) == list(OBJECTIVES)
    assert np.isfinite(chart.data.select_dtypes("number")).all(axis=None)


@pytest.mark.parametrize("name", ["asft", "eaft"])
def test_an_anchor_that_is_not_drawn_is_said(name: str, scan: Scan) -> None:
    for plot in (plots.gradients, plots.gates):
        said = " ".join(plot(scan, objective=[name]).get_supxlabel().split())
        assert (f"The KL anchor of {name} is not drawn" in said) == (name == "asft")


def test_gradients_draw_one_panel_for_each_objective_on_one_scale(scan: Scan, other: Scan) -> None:
    chart = plots.gradients(scan, other, objective=["sft", "dft", "eaft"])
    titled = [a for a in chart.axes if a.get_title("left")]
    assert [a.get_title("left").split("\n")[-1] for a in titled] == ["sft", "dft", "eaft"] * 2
    limits = {a.images[0].get_clim() for a in titled}
    assert limits == {(0, chart.data["mean_grad_logits"].max())}


def test_gradients_bars_are_the_conflict_shares(scan: Scan) -> None:
    chart = plots.gradients(scan)
    bars = next(a for a in chart.axes if "gradient mass" in a.get_xlabel())
    shares = chart.data.groupby("objective", sort=False)["conflict_share_of_gradient"].first()
    np.testing.assert_allclose([b.get_width() for b in bars.patches], 100 * shares)
    assert [t.get_text() for t in bars.get_yticklabels()] == ["sft", "eaft"]


def test_gates_named_by_hand_do_as_well(scan: Scan) -> None:
    made = [objective("eaft", {"alpha": 2}), "sft"]
    chart = plots.gradients(scan, objective=made)
    assert list(chart.data["objective"].unique()) == ["eaft alpha=2", "sft"]
    by_set = plots.gradients(scan, objective=["eaft", "sft"], set={"alpha": "2"})
    pandas.testing.assert_frame_equal(chart.data, by_set.data)


@pytest.mark.parametrize("plot", ["gradients", "gates"])
def test_what_an_objective_lacks_is_said(
    plot: str, scan: Scan, few: pandas.DataFrame, tmp_path: Path
) -> None:
    with pytest.raises(UnknownName, match="did you mean 'eaft'"):
        PLOTS[plot](scan, objective=["eaff"])
    with pytest.raises(BadInput, match="--set alhpa: no objective here has that field"):
        PLOTS[plot](scan, objective=["eaft"], set={"alhpa": 2})
    with pytest.raises(BadInput, match="k is at least 2"):
        PLOTS[plot](scan, objective=["eaft"], set={"k": 1})
    with pytest.raises(BadInput, match="--base-scan"):
        PLOTS[plot](scan, objective=["rho"])
    with pytest.raises(ScanError, match="nowhere"):
        PLOTS[plot](scan, objective=["stm"], base_scan=tmp_path / "nowhere")
    poor = scans_made.write(tmp_path / "s", few, without=["entropy_top20", "grad_logits"])
    with pytest.raises(MissingColumn, match=r"entropy_top20|grad_logits"):
        PLOTS[plot](poor)


def test_a_norm_that_the_scan_lacks_is_named(
    scan: Scan, few: pandas.DataFrame, tmp_path: Path
) -> None:
    poor = scans_made.write(tmp_path / "s", few, without=["grad_hidden"])
    with pytest.raises(MissingColumn, match="--statistics grad_hidden"):
        plots.gradients(poor, norm="grad_hidden")
    with pytest.raises(BadInput, match="--norm"):
        plots.gradients(scan, norm="entropy")


# --- gates ---


@pytest.mark.parametrize("name", ["sft", "eaft", "masked-sft", "mile", "flow", "dft", "asft"])
def test_gates_table_equals_a_loop(scan: Scan, tokens: pandas.DataFrame, name: str) -> None:
    data = plots.gates(scan, objective=[name]).data.set_index("group")
    gate = reference.GATES[name](*in_float64(tokens))
    conflict = flagged(tokens).tolist()
    rows = list(zip(gate, conflict, tokens.to_dict("records"), strict=True))
    members = {
        "conflict": lambda c, t: c,
        "low": lambda c, t: t["entropy"] <= 0.5,
        "high": lambda c, t: t["entropy"] >= 2,
        "agreeing": lambda c, t: t["rank"] == 0,
        "all": lambda c, t: True,
    }
    assert list(data.index) == list(members)
    for group, inside in members.items():
        mine = [(g, t) for g, c, t in rows if inside(c, t)]
        found = data.loc[group]
        assert found["tokens"] == len(mine) > 0
        assert found["mean_gate"] == pytest.approx(
            math.fsum(g for g, _ in mine) / len(mine), rel=1e-5
        )
        for column, mass in (
            ("loss_removed", lambda t: -t["logprob"]),
            ("gradient_removed", lambda t: t["grad_logits"]),
        ):
            gated = math.fsum(g * mass(t) for g, t in mine) / math.fsum(mass(t) for _, t in mine)
            assert found[column] == pytest.approx(1 - gated, rel=1e-4, abs=1e-5)


def test_sft_takes_nothing_away(scan: Scan) -> None:
    data = plots.gates(scan, objective=["sft"]).data
    assert (data[["loss_removed", "gradient_removed"]] == 0).all(axis=None)
    assert (data["mean_gate"] == 1).all()


def test_an_empty_group_has_no_share(few: pandas.DataFrame, tmp_path: Path) -> None:
    scan = scans_made.write(tmp_path / "s", few, rule=ConflictRule(0, 0.1))
    empty = drawn(plots.gates(scan)).data.set_index("group").loc["conflict"]
    assert (empty["tokens"] == 0).all()
    assert empty[["mean_gate", "loss_removed", "gradient_removed"]].isna().all(axis=None)


def test_gates_bars_and_curves_are_the_data(scan: Scan) -> None:
    chart = plots.gates(scan, objective=["dft"])
    curves, bars = chart.axes
    widths = [b.get_width() for b in bars.patches]
    np.testing.assert_allclose(widths[:5], 100 * chart.data["loss_removed"], rtol=1e-9)
    np.testing.assert_allclose(widths[5:], 100 * chart.data["gradient_removed"], rtol=1e-9)
    for line in curves.lines:
        shares = line.get_ydata()
        assert shares[0] == 0
        assert shares[-1] == pytest.approx(1)
        assert (np.diff(shares) >= 0).all()


def test_the_curve_of_gates_is_their_distribution(scan: Scan, tokens: pandas.DataFrame) -> None:
    curve = plots.gates(scan, objective=["dft"]).axes[0].lines[-1]
    for x, share in zip(curve.get_xdata(), curve.get_ydata(), strict=True):
        if x < 1:
            assert share == pytest.approx((tokens["prob"] < x).mean())


def test_another_base_gives_other_gates(
    scan: Scan, base: Scan, tokens: pandas.DataFrame, based: pandas.DataFrame
) -> None:
    for model, given in ((tokens, None), (based, base.path)):
        data = plots.gates(scan, objective=["stm"], base_scan=given).data.set_index("group")
        wanted = (model["prob"] >= np.float32(0.4)).mean()
        assert data.loc["all", "mean_gate"] == pytest.approx(wanted)


# --- stability ---


def test_stability_counts_below_both_thresholds(scan: Scan, tokens: pandas.DataFrame) -> None:
    data = plots.stability(scan).data
    assert (data["entropy_below"].max(), data["prob_below"].max()) == (2, 0.5)
    for row in data.sample(300, random_state=0).itertuples():
        both = (tokens["entropy"] < row.entropy_below) & (tokens["prob"] < row.prob_below)
        assert row.flagged_share == both.mean()


def test_stability_marks_the_rule_and_tells_its_exact_share(
    scan: Scan, tokens: pandas.DataFrame
) -> None:
    axes = plots.stability(scan).axes[0]
    (cross,) = axes.lines
    assert (cross.get_xdata()[0], cross.get_ydata()[0]) == (RULE.prob_below, RULE.entropy_below)
    assert axes.get_title("left").endswith(f"rule: {100 * flagged(tokens).mean():.2g} %")


# --- positions ---


@pytest.mark.parametrize("group", [None, 1, 13])
def test_positions_count_from_the_first_trained_token_of_a_turn(
    tokens: pandas.DataFrame, tmp_path: Path, group: int | None
) -> None:
    """Also where pieces of a part end within a turn."""
    few = tokens[:600]
    scan = scans_made.write(tmp_path / "s", few, group=group, rule=RULE)
    place = few["position"] - few.groupby(["example", "turn"])["position"].transform("min")
    values = pandas.DataFrame(
        {"entropy": few["entropy"], "nll": -few["logprob"], "conflict": flagged(few)}
    ).astype(np.float64)
    data = plots.positions(scan).data
    assert data["tokens"].sum() == 600
    assert data["position_from"].tolist()[:17] == list(range(17))
    for row in data.itertuples():
        mine = values[(place >= row.position_from) & (place < row.position_to)]
        assert row.tokens == len(mine) > 0
        for name in values:
            assert getattr(row, f"mean_{name}") == pytest.approx(mine[name].mean())
            error = mine[name].std(ddof=0) / math.sqrt(len(mine))
            assert getattr(row, f"error_{name}") == pytest.approx(error, abs=1e-7)


def test_a_turn_of_one_token_begins_anew(tokens: pandas.DataFrame, tmp_path: Path) -> None:
    alone = tokens[:40].assign(example=0, turn=range(40), position=range(7, 87, 2))
    data = plots.positions(scans_made.write(tmp_path / "s", alone, parts=1, group=3)).data
    assert data[["position_from", "tokens"]].to_numpy().tolist() == [[0, 40]]


def test_positions_draw_three_curves_with_units(scan: Scan, other: Scan) -> None:
    chart = plots.positions(scan, other)
    assert [a.get_ylabel() for a in chart.axes] == ["entropy (nats)", "nll (nats)", "conflicts (%)"]
    for axes, name in zip(chart.axes, ("entropy", "nll", "conflict"), strict=True):
        scale = 100 if name == "conflict" else 1
        heights = np.concatenate([line.get_ydata() for line in axes.lines])
        np.testing.assert_allclose(heights, scale * chart.data[f"mean_{name}"])
        assert axes.get_ylim()[0] == 0
        assert axes.get_ylim()[1] > heights.max()  # of both scans: the first alone set it once
    legend = [t.get_text() for t in chart.axes[0].get_legend().get_texts()]
    assert legend == list(chart.data["scan"].unique())


# --- tokens ---


def test_tokens_are_the_commonest_pairs_of_the_conflicts(scan: Scan) -> None:
    data = plots.tokens(scan).data
    conflicts = scan.tokens(["token", "top1", "prob", "top1_prob", "conflict"])
    conflicts = conflicts[conflicts["conflict"]].astype({"token": str, "top1": str})
    pairs = conflicts.groupby(["token", "top1"]).agg(
        conflicts=("prob", "size"), mean_prob=("prob", "mean"), mean_top1_prob=("top1_prob", "mean")
    )
    wanted = pairs.reset_index().sort_values(["conflicts", "token", "top1"], ascending=[0, 1, 1])[
        :20
    ]
    assert data[["token", "top1", "conflicts"]].to_numpy().tolist() == (
        wanted[["token", "top1", "conflicts"]].to_numpy().tolist()
    )
    for column in ("mean_prob", "mean_top1_prob"):
        np.testing.assert_allclose(data[column], wanted[column], rtol=1e-5)


def test_tokens_labels_show_blanks_and_breaks(few: pandas.DataFrame, tmp_path: Path) -> None:
    scan = scans_made.write(tmp_path / "s", few, words=["\n", " a", "中"], rule=RULE)
    axes = plots.tokens(scan).axes[0]
    labels = "; ".join(t.get_text() for t in axes.get_yticklabels())
    assert "'\\n' → ' a'" in labels
    assert "\\u4e2d" in labels


def test_tokens_says_that_none_is_flagged(
    few: pandas.DataFrame, tmp_path: Path, scan: Scan
) -> None:
    none = scans_made.write(tmp_path / "s", few, rule=ConflictRule(0, 0.2), source="none")
    for chart in (plots.tokens(none), plots.tokens(scan, none), plots.tokens(none, scan)):
        drawn(chart)
        said = [t.get_text() for a in chart.axes for t in a.texts]
        assert "no token is flagged under this rule" in said


# --- topk ---


def test_topk_is_pearson_s_r_with_the_full_entropy(scan: Scan, tokens: pandas.DataFrame) -> None:
    data = plots.topk(scan).data
    assert data["k"].tolist() == [5, 10, 20, 50]
    for row in data.itertuples():
        top, full = (tokens[c].astype(np.float64) for c in (f"entropy_top{row.k}", "entropy"))
        assert row.pearson_r == pytest.approx(np.corrcoef(top, full)[0, 1], abs=1e-9)
        assert row.mean_shortfall == pytest.approx((full - top).mean(), rel=1e-6)
        assert row.tokens == 2000


def test_topk_draws_every_k(scan: Scan) -> None:
    chart = plots.topk(scan)
    curve = next(a for a in chart.axes if a.get_xlabel() == "K").lines[0]
    np.testing.assert_array_equal(curve.get_xdata(), chart.data["k"])
    np.testing.assert_array_equal(curve.get_ydata(), chart.data["pearson_r"])
    density = next(a for a in chart.axes if a.images)
    assert density.images[0].get_array().sum() == 2000
    assert density.get_ylabel() == "entropy_top20 (nats)"


def test_topk_needs_more_than_one_k(few: pandas.DataFrame, tmp_path: Path) -> None:
    one = scans_made.write(tmp_path / "s", few, without=[f"entropy_top{k}" for k in (5, 10, 50)])
    with pytest.raises(MissingColumn, match="--statistics entropy_top5,entropy_top10"):
        plots.topk(one)


def test_topk_without_20_shows_the_least_k(few: pandas.DataFrame, tmp_path: Path) -> None:
    chart = drawn(plots.topk(scans_made.write(tmp_path / "s", few, without=["entropy_top20"])))
    density = next(a for a in chart.axes if a.get_ylabel() == "entropy_top5 (nats)")
    assert density.images[0].get_array().sum() == len(few)


# --- dynamics ---


def test_dynamics_draws_each_group_over_the_steps(run: Path) -> None:
    chart = plots.dynamics(run)
    log = pandas.read_parquet(run / "log.parquet")
    for axes, group in zip(chart.axes, ("high", "low", "conflict"), strict=True):
        mine = log[log["group"] == group]
        (line,) = axes.lines
        np.testing.assert_array_equal(line.get_xdata(), mine["step"])
        np.testing.assert_array_equal(line.get_ydata(), mine["group_nll"])
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "nll (nats)")
    assert len(chart.data) == len(log)
    assert "eaft (steps 0 to 20)" in chart.get_supxlabel()


def test_dynamics_compares_runs(run: Path, tmp_path: Path) -> None:
    other = logged(tmp_path / "sft", "sft", steps=(20, 0, 10))
    chart = plots.dynamics(run, other / "log.parquet")
    legend = [t.get_text() for t in chart.axes[0].get_legend().get_texts()]
    assert legend == ["eaft", "sft"]
    assert list(chart.axes[0].lines[1].get_xdata()) == [0, 10, 20]


def test_runs_of_one_objective_are_told_apart_by_name(tmp_path: Path) -> None:
    pair = [logged(tmp_path / n, run=n) for n in ("one", "two")]
    legend = plots.dynamics(*pair).axes[0].get_legend().get_texts()
    assert [t.get_text() for t in legend] == ["one: eaft", "two: eaft"]


def test_a_group_without_tokens_is_said(tmp_path: Path) -> None:
    chart = drawn(plots.dynamics(logged(tmp_path, groups=("all", "high"), group_count=3)))
    assert [len(a.lines) for a in chart.axes] == [1, 0, 0]
    assert "no such token" in [t.get_text() for a in chart.axes for t in a.texts]
    empty = drawn(plots.dynamics(logged(tmp_path, group_count=0)))
    assert [[t.get_text() for t in a.texts] for a in empty.axes] == [["no such token"]] * 3


def test_hostile_objectives_and_runs_are_drawn(tmp_path: Path) -> None:
    pair = [logged(tmp_path / n, "$x_{ 🙂\n", run=f"{n} $\0\u202e") for n in "ab"]
    chart = drawn(plots.dynamics(*pair))
    legend = [t.get_text() for t in chart.axes[0].get_legend().get_texts()]
    assert len(legend) == 2
    assert all("\\u202e" in text for text in legend)
    assert not set("🙂\0\u202e") & set("".join(legend))


def test_a_log_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match=r"eaft-probe train"):
        plots.dynamics(tmp_path)
    (tmp_path / "log.parquet").write_text("no parquet")
    with pytest.raises(ScanError, match="cannot be read as a log"):
        plots.dynamics(tmp_path)
    pq.write_table(pa.table({"run": ["a"], "step": [1]}), tmp_path / "log.parquet")
    with pytest.raises(MissingColumn, match="no column 'objective'"):
        plots.dynamics(tmp_path)
    pq.write_table(pq.read_table(logged(tmp_path) / "log.parquet")[:0], tmp_path / "log.parquet")
    with pytest.raises(ScanError, match="no step yet"):
        plots.dynamics(tmp_path)


# --- words ---


def test_shown_text_is_in_the_font_and_steers_nothing() -> None:
    assert shown("plain ünï → ²") == "plain ünï → ²"
    assert shown("中\0\u202e🙂\t") == "\\u4e2d\\x00\\u202e\\U0001f642\\t"


# --- files ---


@pytest.mark.parametrize("target", ["f.gif", "f", "", "f.txt", ".png"])
def test_endings_that_are_none_are_refused(run: Path, tmp_path: Path, target: str) -> None:
    chart = plots.dynamics(run)
    with pytest.raises(BadInput, match=r"\.png, \.svg or \.pdf"):
        chart.write(tmp_path / "sub" / target if target else "")
    with pytest.raises(BadInput, match=r"\.parquet or \.csv"):
        chart.write_data(tmp_path / "sub" / target if target else "")


@pytest.mark.parametrize("ending", ["svg", "csv", "parquet"])
def test_a_target_that_cannot_be_written_is_one_error(
    run: Path, tmp_path: Path, ending: str
) -> None:
    chart = plots.dynamics(run)
    write = chart.write if ending == "svg" else chart.write_data
    (tmp_path / "file").write_text("")
    (tmp_path / f"folder.{ending}").mkdir()
    for target in ("nowhere/f", "file/f"):
        with pytest.raises(ProbeError, match="cannot write") as caught:
            write(tmp_path / f"{target}.{ending}")
        assert caught.value.exit_status == 1
        assert "\n" not in str(caught.value)
    with pytest.raises(BadInput, match="is not a regular file"):
        write(tmp_path / f"folder.{ending}")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", f"folder.{ending}"]


@pytest.mark.parametrize("ending", ["png", "csv", "parquet"])
def test_an_existing_target_is_kept_when_writing_fails(
    run: Path, tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chart, target = plots.dynamics(run), tmp_path / f"f.{ending}"
    target.write_text("as it was")

    def half(self: Any, path: Any, *arguments: Any, **named: Any) -> None:
        Path(path).write_text("half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Chart, "savefig", half)
    monkeypatch.setattr(pandas.DataFrame, "to_csv", half)
    monkeypatch.setattr(pandas.DataFrame, "to_parquet", half)
    with pytest.raises(ProbeError, match="No space left on device"):
        (chart.write if ending == "png" else chart.write_data)(target, overwrite=True)
    assert target.read_text() == "as it was"
    assert list(tmp_path.iterdir()) == [target]


def test_an_existing_target_is_replaced(run: Path, tmp_path: Path) -> None:
    (tmp_path / "f.svg").write_text("old")
    with pytest.raises(BadInput, match="is not an earlier figure"):
        plots.dynamics(run).write(tmp_path / "f.svg")
    plots.dynamics(run).write(tmp_path / "f.svg", overwrite=True)
    plots.dynamics(run).write(tmp_path / "f.svg")
    assert (tmp_path / "f.svg").read_text().startswith("<?xml")


# --- flags ---


@pytest.mark.parametrize("name", PLOTS)
def test_a_flag_of_another_kind_is_refused_with_those_it_takes(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=rf"plot {name} has no --no-such; it takes") as caught:
        draw(name, [str(tmp_path)], {"no_such": 1})
    for parameter in parameters(name):
        if parameter.kind is parameter.KEYWORD_ONLY:
            assert "--" + parameter.name.replace("_", "-") in str(caught.value)


def test_every_flag_is_a_setting() -> None:
    from dataclasses import fields

    from eaft_probe.settings import PlotSettings

    taken = {p.name for n in PLOTS for p in parameters(n) if p.kind is p.KEYWORD_ONLY}
    assert taken | {"overwrite", "title", "caption"} == {f.name for f in fields(PlotSettings)}


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="did you mean 'landscape'"):
        draw("landscap", [str(tmp_path)], {})
