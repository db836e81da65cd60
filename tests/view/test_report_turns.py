"""What is shown of scans by turn (--turns each): every place names its turn."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import scans_made
from rich.console import Console

from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.scans.keys import EACH
from eaft_probe.scans.scan import Scan
from eaft_probe.verbs.compare import compare
from eaft_probe.view.coloured import show_example
from eaft_probe.view.plots.landscape import sample
from eaft_probe.view.report.largest_changes import largest_changes
from eaft_probe.view.report.report import collect, report

Frame = pandas.DataFrame
RULE = ConflictRule(3, 0.3)
KEY = [*EACH, "position"]


@pytest.fixture(scope="module")
def tokens() -> Frame:
    frame = scans_made.measured(scans_made.by_turn(scans_made.places(600)))
    return scans_made.with_text(frame, key=EACH)


@pytest.fixture(scope="module")
def scan(tokens: Frame, tmp_path_factory: pytest.TempPathFactory) -> Scan:
    folder = tmp_path_factory.mktemp("scan") / "s"
    return scans_made.write(folder, tokens, rule=RULE, group=70, turns="each")


@pytest.fixture(scope="module")
def page(scan: Scan) -> dict[str, Any]:
    return collect(scan)


def text_of(tokens: Frame, example: int, turn: int) -> str:
    return "".join(tokens[(tokens["example"] == example) & (tokens["turn"] == turn)]["token"])


def shown(scan: Scan, example: int) -> str:
    out = io.StringIO()
    assert show_example(Console(file=out, width=10_000), scan, example)
    return out.getvalue()


def test_an_example_is_shown_turn_by_turn(scan: Scan, tokens: Frame) -> None:
    turns = tokens.groupby("example")["turn"].nunique()
    example = int(turns[turns > 1].index[0])
    own, found = tokens[tokens["example"] == example], shown(scan, example)
    conflicts = scan.conflicts().groupby([*EACH]).size()
    for turn, group in own.groupby("turn"):
        n = conflicts.get((example, turn), 0)
        title = f"example {example}, turn {turn} (): {n} conflicts in {len(group)} tokens"
        after = re.sub("[«»]", "", found.split(title)[1])
        assert text_of(tokens, example, turn) in after
    assert found.count(f"example {example},") == own["turn"].nunique()


def test_an_older_scan_is_shown_as_ever(tokens: Frame, tmp_path: Path) -> None:
    older = scans_made.write(tmp_path / "s", tokens, rule=RULE, turns=None)
    assert shown(older, 0).startswith("example 0 (): ")
    assert not show_example(Console(file=io.StringIO()), older, 10**6)


def test_tokens_of_a_report_stand_in_their_turn(page: dict[str, Any], tokens: Frame) -> None:
    listed = [
        dict(zip(page["tokens"]["names"], row, strict=True)) for row in page["tokens"]["rows"]
    ]
    assert len(listed) > 100
    places = tokens.set_index(KEY)
    for token in listed:
        own = places.loc[tuple(token[n] for n in KEY)]
        text = text_of(tokens, token["example"], token["turn"])
        assert token["prob"] == pytest.approx(own["prob"], rel=1e-3)
        assert text[: own["char_start"]].endswith(token["before"])
        assert text[own["char_end"] :].startswith(token["after"])
    for pair in page["pairs"]["rows"]:
        assert all(
            places.loc[tuple(p[n] for n in KEY), "token"] == pair["token"] for p in pair["places"]
        )


def test_examples_of_a_report_are_turns(
    page: dict[str, Any], tokens: Frame, scan: Scan, tmp_path: Path
) -> None:
    examples = page["examples"]
    groups = tokens.groupby(list(EACH))
    assert (examples["of"], examples["noun"]) == (groups.ngroups, "turn")
    assert len(examples["rows"]) == groups.ngroups
    conflicts = scan.conflicts().groupby([*EACH]).size()
    for row in examples["rows"]:
        place = row["example"], row["turn"]
        own = groups.get_group(place)
        assert "".join(row["text"]) + "".join(row["gaps"]) == text_of(tokens, *place)
        assert row["columns"]["position"] == [*own["position"]]
        assert row["conflicts"] == len(row["flags"]) == conflicts.get(place, 0)
    assert report([scan], tmp_path / "r.html").stat().st_size > 10_000


def test_a_report_of_whole_rows_has_no_turns(tokens: Frame, tmp_path: Path) -> None:
    found = collect(scans_made.write(tmp_path / "s", tokens, rule=RULE, turns="together"))
    assert "turn" not in found["tokens"]["names"]
    assert found["examples"]["noun"] == "example"
    assert not any("turn" in row or "turn" in row["columns"] for row in found["examples"]["rows"])


def test_an_example_kept_in_part_counts_its_own_tokens(scan: Scan, tmp_path: Path) -> None:
    kept = scans_made.keeping(scan, tmp_path / "kept", 0.3)
    there = kept.tokens(list(EACH)).groupby(list(EACH)).size()
    for row in collect(kept)["examples"]["rows"]:
        assert row["held"] == there[row["example"], row["turn"]]


def test_movers_stand_in_their_turn(scan: Scan, tokens: Frame, tmp_path: Path) -> None:
    change = np.random.default_rng(3).normal(size=len(tokens)).astype(np.float32)
    other = tokens.assign(logprob=np.minimum(tokens["logprob"] + change, 0).astype(np.float32))
    found = largest_changes(
        compare(scan, scans_made.write(tmp_path / "b", other, rule=RULE, turns="each"))
    )
    far = tokens.assign(change=other["logprob"] - tokens["logprob"]).set_index(KEY)
    for kind, order in (("forgotten", True), ("learned", False)):
        wanted = far.sort_values("change", ascending=order)[:20]
        assert [tuple(m[n] for n in KEY) for m in found[kind]] == [*wanted.index]
        assert [m["token"] for m in found[kind]] == [*wanted["token"]]
        for mover, start in zip(found[kind], wanted["char_start"], strict=True):
            assert text_of(tokens, *(mover[n] for n in EACH))[:start].endswith(mover["before"])


def test_dots_of_a_landscape_are_tokens_of_turns(scan: Scan, tokens: Frame) -> None:
    found = sample(scan, len(tokens))
    assert not found.duplicated(KEY).any()
    assert len(found) == len(tokens)
