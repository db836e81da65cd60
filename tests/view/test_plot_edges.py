"""Odd rules, names, files, bases and caches: every figure stands, or says in one line why not."""

import json
from pathlib import Path

import numpy as np
import pandas
import pytest
import scans_made
from figures import WORDS, caption, drawn, fitting, logged, of_scans
from matplotlib.text import Text

from eaft_probe import plots
from eaft_probe.analysis.histogram2d import greatest_entropy, least_entropy
from eaft_probe.cli import _run
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.errors import BadInput, ProbeError, ScanError
from eaft_probe.objectives.gates import objective
from eaft_probe.view.labels import names
from eaft_probe.view.plots import PLOTS

BEYOND, BELOW = (1e6, 1e6), (-50, -50)
NAMES = [
    ("x" * 100, "y" * 100),
    ("x" * 30 + " " + "y" * 18 + "a", "x" * 30 + " " + "y" * 18 + "b"),
    ("_a", "_b"),
    ("中" * 40 + "a", "中" * 40 + "b"),
    ("🙂" * 48, "🙂" * 48 + "a"),  # the widest
]


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        *(("landscape", rule) for rule in ((99, 2), (9, 0.5), BELOW)),
        *((name, BEYOND) for name in of_scans()),
        ("stability", BELOW),
    ],
)
def test_a_rule_beyond_the_axes_takes_no_room(name, rule, few, tmp_path: Path) -> None:
    given = ConflictRule(*rule)
    chart = fitting(PLOTS[name](scans_made.write(tmp_path / "s", few, parts=1, rule=given)))
    assert f"conflict: {given}." in caption(chart)
    ends = [y for a in chart.axes if a.get_ylabel() == "entropy (nats)" for y in a.get_ylim()]
    assert all(0 <= y < 5 for y in ends)


@pytest.mark.parametrize(
    ("name", "a", "b"),
    [
        *(("positions", *pair) for pair in NAMES[:-1]),
        *((name, *NAMES[-1]) for name in of_scans() if name != "topk"),
    ],
)
def test_long_and_odd_names_stay_apart_and_fit(name, a, b, few, tmp_path: Path) -> None:
    pair = [
        scans_made.write(tmp_path / f"{i}", few, parts=1, source=s) for i, s in enumerate((a, b))
    ]
    chart = fitting(PLOTS[name](*pair))
    assert chart.data["scan"].nunique() == 2
    texts = "\n".join(t.get_text() for t in chart.findobj(Text))
    assert all(label in texts for label in names(pair))


def test_a_name_of_one_long_word_is_cut_not_lost(few, tmp_path: Path) -> None:
    (name,) = names([scans_made.write(tmp_path / "s", few, parts=1, source="x" * 100)])
    assert name.startswith("x" * 35)
    assert name.endswith("…")


def test_a_scan_beside_itself_is_told_apart(scan) -> None:
    assert plots.positions(scan, scan).data["scan"].nunique() == 2


def test_long_tokens_in_other_scripts_fit(few, tmp_path: Path) -> None:
    words = [*WORDS, "中" * 20, "🙂" * 30, "z" * 300, "\0" * 20]
    scan = scans_made.write(tmp_path / "s", few, words=words, rule=ConflictRule(2, 0.5))
    chart = drawn(plots.tokens(scan))
    labels = [t.get_text() for t in chart.axes[0].get_yticklabels()]
    assert len(labels) == len(chart.data) > 10
    assert not set("中🙂\0") & set("".join(labels))


def test_runs_named_with_an_underscore_are_in_the_legend(tmp_path: Path) -> None:
    pair = [logged(tmp_path / n, run=n) for n in ("_a", "_b")]
    legend = plots.dynamics(*pair).axes[0].get_legend().get_texts()
    assert [t.get_text() for t in legend] == ["_a: eaft", "_b: eaft"]


def test_a_legend_stands_where_most_runs_are(tmp_path: Path) -> None:
    """The first panel (high) may have no line at all."""
    pair = [logged(tmp_path / n, run=n, groups=("low",)) for n in ("a", "b")]
    legends = [a.get_legend() for a in plots.dynamics(*pair).axes]
    assert [bool(x) for x in legends] == [False, True, False]


def test_the_bytes_do_not_depend_on_how_it_was_shown(subjects, tmp_path: Path) -> None:
    shown, fresh = (plots.topk(*subjects("topk")) for _ in range(2))
    shown._repr_png_()
    for name, chart in (("a", shown), ("b", fresh)):
        chart.write(tmp_path / f"{name}.pdf")
        chart.write(tmp_path / f"{name}.png")
    for kind in ("pdf", "png"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


@pytest.mark.parametrize("length", [252, 300])
def test_a_file_name_too_long_is_one_error(run, tmp_path: Path, length: int) -> None:
    for write, end in (
        (plots.dynamics(run).write, ".png"),
        (plots.dynamics(run).write_data, ".csv"),
    ):
        with pytest.raises(ProbeError, match="name too long"):
            write(tmp_path / ("x" * length + end))


def test_bounds_of_float32_probabilities() -> None:
    """In float32 1 − 1e-12 is 1, and 0 · −∞ is NaN."""
    p = np.float32([0, 0.5, 1])
    np.testing.assert_allclose(least_entropy(p), [0, np.log(2), 0], atol=1e-9)
    np.testing.assert_allclose(greatest_entropy(p, 3)[[0, 2]], [np.log(2), 0], atol=1e-9)


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("name", ["stm", "flow", "rho"])
def test_a_base_in_other_units_is_refused(name, parts, few, tmp_path: Path) -> None:
    """Flow raised zip's ValueError, a traceback."""
    scan = scans_made.write(tmp_path / "s", few)
    base = scans_made.write(tmp_path / "b", few, parts=parts)
    with pytest.raises(ScanError, match="in the same units"):
        plots.gates(scan, objective=[name], base_scan=base.path)


def test_a_base_of_more_data_is_refused(tokens, few, tmp_path: Path) -> None:
    """Trailing parts of the base were passed over in silence."""
    cut = tokens["example"] <= 20
    scan = scans_made.write(tmp_path / "s", tokens[cut], parts=1)
    base = scans_made.write(tmp_path / "b", tokens[cut], parts=1)
    more = scans_made.write(tmp_path / "m", tokens[~cut], parts=1)
    (more.path / "tokens/part-00000.parquet").rename(base.path / "tokens/part-00001.parquet")
    (more.path / "examples/part-00000.parquet").rename(base.path / "examples/part-00001.parquet")
    manifest = json.loads((base.path / "manifest.json").read_text())
    manifest["parts"].append(more.manifest["parts"][0] | {"file": "part-00001.parquet"})
    for name, count in more.manifest["counts"].items():
        manifest["counts"][name] += count
    (base.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ScanError, match="same tokens"):
        plots.gates(scan, objective=["stm"], base_scan=base.path)


def test_a_damaged_part_is_not_called_another_scan(few, tmp_path: Path) -> None:
    """ArrowInvalid is a ValueError. Damaged after the scan was opened."""
    scan = scans_made.write(tmp_path / "s", few)
    part = scan.path / "tokens/part-00001.parquet"
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(ScanError, match=r"part-00001\.parquet is damaged"):
        plots.gates(scan, objective=["stm"])


def test_numbers_in_a_config_s_set_are_numbers(few, tmp_path: Path) -> None:
    """`set: {alpha: 2}` is how YAML is written; so numbers are taken"""
    scan = scans_made.write(tmp_path / "s", few)
    (tmp_path / "c.yaml").write_text("objective: [eaft]\nset: {alpha: 2, k: 20}\n")
    out = ["--out", str(tmp_path / "f.svg"), "--data", str(tmp_path / "d.csv")]
    assert _run(["plot", "gates", str(scan.path), *out, "--config", str(tmp_path / "c.yaml")]) == 0
    assert set(pandas.read_csv(tmp_path / "d.csv")["objective"]) == {"eaft alpha=2"}


@pytest.mark.parametrize("given", [{"q": -1}, {"q": "nan"}, {"q": "inf"}])
def test_a_power_below_0_or_no_number_is_refused(given) -> None:
    """As of every field of every objective."""
    with pytest.raises(BadInput):
        objective("qlog", given)


def test_a_steep_sigmoid_overflows_in_silence() -> None:
    gate = objective("eaft", {"gate": "sigmoid", "sharpness": 1000})
    assert gate({"entropy_top20": np.float32([0, 2.99])}).tolist() == pytest.approx([0, 1])


def test_an_unresolved_objective_says_so() -> None:
    """Rho gives all gates 0, the others NaN."""
    with pytest.raises((AssertionError, ProbeError)):
        objective("rho")({"logprob": np.float32([-1]), "reference_logprob": np.float32([-2])})


def test_an_ending_is_refused_before_the_figure_is_made(few, tmp_path: Path, monkeypatch) -> None:
    scan = scans_made.write(tmp_path / "s", few)
    monkeypatch.chdir(tmp_path)
    assert _run(["plot", "landscape", str(scan.path), "--data", "f.xlsx"]) == 2
    assert not (tmp_path / "landscape.png").exists()
