"""A scan in a notebook: short to print, its summary to look at, its tables as data sets."""

import html
import re
from pathlib import Path

import numpy as np
import pytest
import scans_made

from eaft_probe import Scan
from eaft_probe.analysis.summary import summarize
from eaft_probe.errors import BadInput


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Scan:
    tokens = scans_made.measured(scans_made.places(400))
    words = [f" <b>{i}" for i in range(scans_made.VOCAB)]
    return scans_made.write(tmp_path_factory.mktemp("scans") / "s", tokens, words=words)


def test_it_prints_in_a_line(made: Scan) -> None:
    count = made.manifest["counts"]["examples"]
    wanted = f"Scan({made.path}: rows.jsonl under made, examples: {count}, trained tokens: 400)"
    assert repr(made) == wanted
    assert str(made) == wanted


def test_it_shows_the_summary(made: Scan) -> None:
    shown = made._repr_html_()
    text = html.unescape(re.sub("<[^>]*>", "", shown))
    flagged = len(made.conflicts())
    assert text.startswith(f"{flagged} of 400 trained tokens")
    assert "By class of token" in text
    assert "<b>" in text  # a token, not a tag
    assert "<b>" not in shown
    assert made.summary() == summarize(made)


def test_the_worst_examples(made: Scan) -> None:
    tokens = made.tokens()
    flagged = tokens[tokens["conflict"]].groupby("example").size()
    worst = made.worst(3)
    assert list(worst["conflicts"]) == sorted(flagged, reverse=True)[:3]
    for row in worst.itertuples():
        own = tokens[tokens["example"] == row.example]
        assert row.conflicts == flagged[row.example]
        assert row.trained_tokens == len(own)
        assert row.mean_nll == pytest.approx(-own["logprob"].mean(), abs=1e-5)
        assert "".join(own["token"]) in row.text
    assert len(made.worst(10_000)) == len(flagged)


def test_the_worst_examples_by_a_score(made: Scan) -> None:
    of_rows = made.tokens().groupby("example")
    worst = made.worst(10_000, rank_by="ppl")
    wanted = np.exp(-of_rows["logprob"].mean()).sort_values(ascending=False)
    assert worst["ppl"].tolist() == pytest.approx(wanted.tolist(), rel=1e-5)
    assert worst["ppl"].tolist() == pytest.approx(wanted[worst["example"]].tolist(), rel=1e-5)
    flagged = of_rows["conflict"].sum()
    assert worst["conflicts"].tolist() == flagged[worst["example"]].tolist()
    assert 0 in flagged.tolist()  # rows without a conflict are ranked too
    nll = made.worst(2, rank_by="mean_nll")
    assert list(nll) == list(made.worst(2))
    with pytest.raises(BadInput, match="unknown score 'colour'"):
        made.worst(rank_by="colour")


def test_the_worst_examples_of_renderings(tmp_path: Path) -> None:
    placed = scans_made.by_turn(scans_made.places(300))
    each = scans_made.write(tmp_path / "s", scans_made.measured(placed), turns="each")
    tokens = each.tokens()
    for row in each.worst(5).itertuples():
        own = tokens[tokens["example"] == row.example]
        assert (row.conflicts, row.trained_tokens) == (own["conflict"].sum(), len(own))
        assert row.text.count("\n") >= own["turn"].nunique() - 1


def test_the_report_stands_below_the_cell(made: Scan, tmp_path: Path) -> None:
    page = made.report()
    assert page.path is None
    assert not [*made.path.glob("*.html")]
    frame = page._repr_html_()
    assert frame.count("<") == 2  # an element and its end: the page is an attribute
    assert html.unescape(frame.split('srcdoc="')[1].split('" sandbox')[0]) == page.html
    written = made.report(tmp_path / "r.html")
    assert written.path == tmp_path / "r.html"
    assert written.path.read_text() == written.html
    assert len(repr(written)) < 200


def test_tables_become_data_sets(made: Scan) -> None:
    tokens, frame = made.to_dataset(), made.tokens()
    assert tokens.column_names == list(frame)
    assert tokens["token"][:] == list(frame["token"])
    assert sum(tokens["conflict"]) == len(made.conflicts()) == len(made.to_dataset("conflicts"))
    examples = made.to_dataset("examples").filter(lambda row: row["mean_nll"] < 3)
    assert examples["text"][:] == list(made.examples().query("mean_nll < 3")["text"])
    with pytest.raises(BadInput, match="no table 'rows'; give tokens, examples, conflicts"):
        made.to_dataset("rows")  # type: ignore[arg-type]
