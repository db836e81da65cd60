"""A report of one scan against another: the numbers of `compare`, words, escapes, refusals."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import scans_made
import yaml
from figures import RULE, nudged
from hostile import ATTACKS, THEIRS
from pages import payload, without

from eaft_probe import Scan, plots
from eaft_probe.analysis.aggregates import OfTokens
from eaft_probe.analysis.histogram2d import ENTROPY_BINS, PROB_BINS, Plane
from eaft_probe.cli import _run
from eaft_probe.errors import BadInput, MissingColumn, ScanError
from eaft_probe.settings import ReportSettings, make_settings
from eaft_probe.verbs.compare import compare
from eaft_probe.view.report import largest_changes as movers_module
from eaft_probe.view.report.comparison import against, apart_cards, moved_cards
from eaft_probe.view.report.largest_changes import MOST, largest_changes
from eaft_probe.view.report.page import encode
from eaft_probe.view.report.report import report

Frame = pandas.DataFrame
LAYOUTS = [(3, None, 3, None), (1, None, 4, 7), (5, 60, 2, 13)]  # parts and row groups of A, of B


# --- numbers ---


@pytest.mark.parametrize(
    ("name", "flags"), [("tuned", ["--delta", "1.5"]), ("apart", ["--seed", "3"])]
)
def test_the_numbers_are_those_of_compare(
    a: Scan,
    name: str,
    flags: list[str],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: Any,
) -> None:
    b, out = str(request.getfixturevalue(name).path), tmp_path / "r.html"
    assert _run(["compare", str(a.path), b, "--json", *flags]) == 0
    wanted = json.loads(capsys.readouterr().out)
    assert _run(["report", str(a.path), "--against", b, "--out", str(out), *flags]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    numbers = payload(out.read_text("utf-8"))["against"]["summary"]
    assert dict(figures(numbers)) == dict(figures(wanted))
    assert numbers["by"] == wanted["by"]


def test_without_flags_they_are_those_of_compare_too(
    a: Scan, tuned: Scan, apart: Scan, moved_page: Path, apart_page: Path
) -> None:
    for page, b in ((moved_page, tuned), (apart_page, apart)):
        numbers = payload(page.read_text("utf-8"))["against"]["summary"]
        assert dict(figures(numbers)) == dict(figures(compare(a, b).summary()))


def figures(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is no text, by its place."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from figures(inner, f"{at}.{key}")
    elif not isinstance(value, str | list):
        yield at, value


def test_the_rest_of_the_page_is_that_of_the_scan_alone(
    a: Scan, moved_page: Path, tmp_path: Path
) -> None:
    alone = payload(report([a], tmp_path / "r.html").read_text("utf-8"))
    beside = payload(moved_page.read_text("utf-8"))
    assert beside["scans"] == alone["scans"]
    assert set(beside) - set(alone) == {"against"}


def test_same_scans_same_bytes(a: Scan, tuned: Scan, moved_page: Path, tmp_path: Path) -> None:
    again = report([Scan.open(a.path)], tmp_path / "r.html", str(tuned.path))
    assert again.read_bytes() == moved_page.read_bytes()


def test_headline_of_a_comparison(a: Scan, tuned: Scan) -> None:
    found = compare(a, tuned).summary()
    cards = moved_cards(found)
    assert cards[0].figure == f"{100 * found['learned_share']:.3g}%"
    assert f"{found['learned']:,} of 1,500" in cards[0].detail
    assert f"Unchanged: {found['unchanged']:,} of 1,500." in cards[1].detail
    assert cards[2].figure == f"{found['conflicts_resolved']:,} of {found['conflicts_a']:,}"
    assert f"{found['conflicts_new']:,} new" in cards[2].detail
    assert cards[3].figure == f"{found['nll_change']:+.3g} nats"
    one = {**found, "conflicts_a": 1, "conflicts_resolved": 1}
    assert moved_cards(one)[2].label == "conflict under A is resolved under B"
    assert moved_cards({**found, "conflicts_a": 0})[2].figure == "None"


def test_headline_of_distributions(a: Scan, apart: Scan, tmp_path: Path) -> None:
    found = compare(a, apart).summary()
    conflicts = found["quantities"]["conflict_share"]
    cards = apart_cards(found)
    assert cards[0].figure == f"{conflicts['ratio']:.3g} times"
    assert f"95%: {conflicts['ratio_low']:.3g} to {conflicts['ratio_high']:.3g}" in cards[0].detail
    for share, said in ((0.1, "Only in A"), (0, "None")):
        row = {**conflicts, "a": share, "b": 0, "ratio": None}
        made = {**found, "quantities": {**found["quantities"], "conflict_share": row}}
        assert apart_cards(made)[0].figure == said


def test_too_few_examples_for_an_interval_is_said(a: Scan, labels: Frame, tmp_path: Path) -> None:
    few = labels[labels["example"] < 5]
    b = scans_made.write(tmp_path / "b", few, rule=RULE, source="few")
    found = against(a, b)
    assert any(
        "no intervals: they need at least 10 examples" in n for n in found["summary"]["notes"]
    )
    assert found["cards"][0]["detail"].endswith("No interval.")
    assert "No intervals: both scans need at least 10 examples" in found["cards"][2]["detail"]


def test_the_figure_shows_the_numbers_of_the_plot(a: Scan, tuned: Scan, moved_page: Path) -> None:
    drawn = payload(moved_page.read_text("utf-8"))["against"]["moves"]
    plotted = plots.compare(a, tuned).data.query("group == 'cell'")
    found = Frame(drawn["cells"])
    assert len(found) == len(plotted) > 50
    for name in found:
        np.testing.assert_allclose(found[name], plotted[name], rtol=1e-3)
    assert found["tokens"].sum() == 1500


def test_distributions_are_drawn_from_planes(a: Scan, apart: Scan, apart_page: Path) -> None:
    drawn = payload(apart_page.read_text("utf-8"))["against"]["planes"]
    for scan, plane in zip((a, apart), drawn, strict=True):
        table = scan.tokens(["prob", "entropy"])
        cells = np.floor(table.entropy * 8) * 64 + np.minimum(np.floor(table.prob * 64), 63)
        places, counts = np.unique(cells, return_counts=True)
        np.testing.assert_array_equal(np.cumsum(plane["counts"][::2]), places)
        np.testing.assert_array_equal(plane["counts"][1::2], counts)


def test_the_section_takes_a_megabyte_at_most(
    a: Scan, apart: Scan, tuned: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The densest picture there can be, of noise in every cell."""
    random = np.random.default_rng(0)
    noise = Plane(random.integers(1, 10 ** random.integers(1, 8, (ENTROPY_BINS, PROB_BINS))))
    monkeypatch.setattr(OfTokens, "plane", lambda _: noise)
    assert 100_000 < len(encode(against(a, apart)).encode()) < 300_000
    moved = against(a, tuned)
    moved["moves"]["cells"] *= 10  # of 512 cells a real scan has some 60
    assert len(encode(moved).encode()) < 400_000


# --- tokens in context ---


def changes(tokens: Frame, tuned: Frame) -> Frame:
    change = tuned["logprob"].astype(np.float64) - tokens["logprob"]
    return tokens.assign(change=change)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_furthest_tokens_are_those_of_a_frame(
    labels: Frame, tmp_path: Path, layout: tuple[Any, ...]
) -> None:
    labels = labels[:400]
    b_tokens = nudged(labels)
    a = scans_made.write(tmp_path / "a", labels, layout[0], RULE, layout[1])
    b = scans_made.write(tmp_path / "b", b_tokens, layout[2], RULE, layout[3])
    made, frame = largest_changes(compare(a, b)), changes(labels, b_tokens)
    for kind, rising in (("forgotten", True), ("learned", False)):
        order = ["change", "example", "position"]
        wanted = frame.sort_values(order, ascending=[rising, True, True])[:MOST]
        found = Frame(made[kind])
        np.testing.assert_array_equal(
            found[["example", "position"]], wanted[["example", "position"]]
        )
        np.testing.assert_allclose(found["change"], wanted["change"], rtol=1e-3)
        np.testing.assert_allclose(found["prob_a"], wanted["prob"], rtol=1e-3)
        np.testing.assert_allclose(found["prob_b"], b_tokens.loc[wanted.index, "prob"], rtol=1e-3)
        assert list(found["conflict_a"]) == list(RULE(wanted))
        assert list(found["conflict_b"]) == list(RULE(b_tokens.loc[wanted.index]))


def test_tokens_stand_in_their_text(labels: Frame, tmp_path: Path) -> None:
    pair = [scans_made.write(tmp_path / n, t) for n, t in (("a", labels), ("b", nudged(labels)))]
    texts = pair[0].examples().set_index("example")["text"]
    there = pair[0].tokens().set_index(["example", "position"])
    for row in largest_changes(compare(*pair))["forgotten"]:
        place = there.loc[(row["example"], row["position"])]
        text, start, end = texts[row["example"]], place.char_start, place.char_end
        assert row["token"] == text[start:end] == place.token
        assert row["before"] == text[max(0, start - 60) : start]
        assert row["after"] == text[end : end + 60]
        assert row["top1_a"] == place.top1


def test_what_is_held_does_not_grow(
    labels: Frame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = labels[:600]
    pair = [
        scans_made.write(tmp_path / n, t, 1, group=50)
        for n, t in (("a", labels), ("b", nudged(labels)))
    ]
    seen: list[int] = []
    furthest = movers_module._furthest

    def spy(frame: Frame, *more: Any) -> Frame:
        seen.append(len(frame))
        return furthest(frame, *more)

    monkeypatch.setattr(movers_module, "_furthest", spy)
    largest_changes(compare(*pair))
    assert len(seen) >= 2 * 600 / 50
    assert max(seen) <= MOST + 50


def test_only_what_is_learned_or_forgotten_is_listed(labels: Frame, tmp_path: Path) -> None:
    few = labels[:4].assign(logprob=np.float32([-2, -2, -2, -2]))
    moved = few.assign(logprob=np.float32([-1.9, -9, -1, -2]))
    a, b = (scans_made.write(tmp_path / n, t, 1) for n, t in (("a", few), ("b", moved)))
    made = largest_changes(compare(a, b))
    assert [r["change"] for r in made["forgotten"]] == [-7]
    assert [r["change"] for r in made["learned"]] == [1]
    assert largest_changes(compare(a, a)) == {"forgotten": [], "learned": []}


def test_ties_go_by_place(labels: Frame, tmp_path: Path) -> None:
    labels = labels[:400]
    alike = labels.assign(logprob=np.float32(-1))
    pair = [
        scans_made.write(tmp_path / n, t, 3, group=17)
        for n, t in (("a", alike), ("b", alike.assign(logprob=np.float32(-4))))
    ]
    found = [(r["example"], r["position"]) for r in largest_changes(compare(*pair))["forgotten"]]
    assert found == list(labels[["example", "position"]].itertuples(index=False, name=None))[:MOST]


def test_scans_without_the_models_choice(a: Scan, tuned: Scan, tmp_path: Path) -> None:
    lacking = [without(s, tmp_path / s.path.name, ("top1", "top1_prob")) for s in (a, tuned)]
    for pair in (lacking, (a, lacking[1])):
        rows = largest_changes(compare(*pair))["learned"]
        assert {r["top1_b"] for r in rows} == {None}
        assert len({r["top1_prob_a"] for r in rows}) == (1 if pair is lacking else MOST)


# --- untrusted text ---


def test_text_of_either_scan_is_text(either: Path) -> None:
    html = either.read_text("utf-8")
    inside = html.split('type="application/json">', 1)[1].split("</script>", 1)[0]
    assert not set("<>&") & set(inside)
    assert not any(ord(c) < 32 or c in "\u202e\u2028\x7f\U000e0041" for c in inside)
    assert html.count("<script") == 3
    assert json.dumps(THEIRS[0])[2:-1] in inside.replace("\\u003c", "<").replace(
        "\\u003e", ">"
    ) or (
        either.name == "apart.html"  # where no token of B is shown, its data's name is
        and ATTACKS[1] in payload(html)["against"]["summary"]["b"]["data"]
    )


# --- refusals ---


def refused(arguments: list[str], folder: Path, capsys: Any) -> str:
    """The one line on standard error; nothing is written."""
    assert _run(["report", *arguments, "--out", str(folder / "r.html")]) == 2
    assert not list(folder.glob("*r.html*"))
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return str(line)


def test_scans_that_do_not_match_are_refused_as_compare_does(
    a: Scan, labels: Frame, tmp_path: Path, capsys: Any
) -> None:
    ids = labels["token_id"].copy()
    ids.iloc[700] += 1
    b = scans_made.write(tmp_path / "b", labels.assign(token_id=ids), source=ATTACKS[0])
    assert _run(["compare", str(a.path), str(b.path)]) == 2
    said = capsys.readouterr().err
    assert "do not contain the same tokens" in said
    assert refused([str(a.path), "--against", str(b.path)], tmp_path, capsys) == said
    asked = [str(a.path), "--against", str(b.path), "--by", "distributions"]
    assert _run(["report", *asked, "--out", str(tmp_path / "asked.html")]) == 0
    assert payload((tmp_path / "asked.html").read_text("utf-8"))["against"]["summary"]["by"] == (
        "distributions"
    )


def test_no_scan_and_an_unfinished_one_are_refused(
    a: Scan, tuned: Scan, tmp_path: Path, capsys: Any
) -> None:
    there = [str(a.path), "--against"]
    assert "no such folder" in refused([*there, str(tmp_path / "no")], tmp_path, capsys)
    shutil.copytree(tuned.path, tmp_path / "b")
    (tmp_path / "b" / "manifest.json").rename(tmp_path / "b" / "plan.json")
    assert "an unfinished scan" in refused([*there, str(tmp_path / "b")], tmp_path, capsys)
    with pytest.raises(ScanError, match="no such folder"):
        report([a], tmp_path / "r.html", tmp_path / "no")


def test_a_scan_without_a_column_is_refused(a: Scan, tuned: Scan, tmp_path: Path) -> None:
    lacking = without(a, tmp_path / "a", ("rank",))
    with pytest.raises(MissingColumn, match="'rank'"):
        report([lacking], tmp_path / "r.html", tuned)
    assert not (tmp_path / "r.html").exists()


def test_how_to_compare_needs_a_scan_to_compare_with(a: Scan, tmp_path: Path, capsys: Any) -> None:
    for flags in (["--delta", "1"], ["--by", "tokens"], ["--seed", "1"]):
        assert "add --against B" in refused([str(a.path), *flags], tmp_path, capsys)
    two = [str(a.path), str(a.path), "--delta", "1"]
    assert "add --against B" in refused(two, tmp_path, capsys)
    with pytest.raises(BadInput, match="--delta"):
        make_settings(ReportSettings, {"against": "b", "delta": 0})


def test_a_config_file_names_the_other_scan(
    a: Scan, apart: Scan, tmp_path: Path, capsys: Any
) -> None:
    config, out = tmp_path / "c.yaml", tmp_path / "made.html"
    config.write_text(yaml.safe_dump({"against": str(apart.path), "seed": 2, "out": str(out)}))
    assert _run(["report", str(a.path), "--config", str(config)]) == 0
    made = payload(out.read_text("utf-8"))["against"]["summary"]
    assert dict(figures(made)) == dict(figures(compare(a, apart, seed=2).summary()))
    config.write_text("againts: x")
    assert "did you mean 'against'" in refused(
        [str(a.path), "--config", str(config)], tmp_path, capsys
    )
