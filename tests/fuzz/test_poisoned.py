"""A poisoned scan is refused in one line by every verb that opens one, and nothing else is lost."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import poison
import pytest
import scans_made
from rich.console import Console

from eaft_probe.analysis.exact_gradients import FullGradients
from eaft_probe.analysis.histogram2d import histogram
from eaft_probe.analysis.stratified_sample import draw_sample
from eaft_probe.analysis.summary import summarize
from eaft_probe.cli import _run
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.errors import BadInput, ProbeError, ScanError
from eaft_probe.objectives.gates import objective
from eaft_probe.scans.scan import Scan
from eaft_probe.settings import ExportSettings, TrainSettings
from eaft_probe.storage.atomic import _sweep
from eaft_probe.verbs.compare import compare
from eaft_probe.verbs.export.choice import choose
from eaft_probe.verbs.export.messages import conversation
from eaft_probe.verbs.export.renderings import Gate, renderings
from eaft_probe.verbs.train.scan_features import Scans
from eaft_probe.view.coloured import show_example
from eaft_probe.view.plots import gates
from eaft_probe.view.report.page import encode
from eaft_probe.view.report.report import collect
from eaft_probe.view.terminal import show_summary

SECONDS = 20  # that one command may take; on a quiet machine it is one at most
RULE = ConflictRule(0.6, 0.3)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "s"
    tokens = scans_made.measured(scans_made.places(300))
    return scans_made.write(folder, tokens, rule=RULE).path


@pytest.fixture
def scan(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "s"))


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """A hang is a failure."""

    def late(*_: object) -> None:
        raise AssertionError(f"not done within {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def commands(folder: Path, sound: Path) -> list[list[str]]:
    out = folder.parent
    return [
        ["show", str(folder)],
        ["show", str(folder), "--example", "0"],
        ["export", str(folder), "--out", str(out / "rows.jsonl")],
        ["flag", str(folder)],
        ["plot", "landscape", str(folder), "--out", str(out / "f.png")],
        ["report", str(folder), "--out", str(out / "r.html")],
        ["report", str(sound), "--against", str(folder), "--out", str(out / "a.html")],
        ["compare", str(folder), str(sound)],
        ["compare", str(sound), str(folder)],
        ["gradients", str(folder), "--model", "./nowhere"],
    ]


@pytest.mark.parametrize("name", poison.REFUSED)
def test_opening_refuses_it(name: str, scan: Path) -> None:
    change, said = poison.REFUSED[name]
    change(scan)
    with within(SECONDS), pytest.raises(ScanError) as error:
        Scan.open(scan, verify="another model" in name)
    assert re.search(said, str(error.value)), str(error.value)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("name", ["rows huge", "a part is a link", "both swapped", "a part is cut"])
def test_every_verb_refuses_it_in_one_line(
    name: str, scan: Path, sound: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    poison.REFUSED[name][0](scan)
    for arguments in commands(scan, sound):
        with within(SECONDS):
            assert _run(arguments) == 2, arguments
        said = capsys.readouterr().err
        assert said.count("\n") == 1, said
        assert said[:-1].isprintable()
    for flag in ("mask", "base_scan"):
        given = TrainSettings(objective="flow", **{flag: str(scan)})
        with pytest.raises(ScanError):
            Scans.opened(given, objective("flow"))


def rows_of(scan: Scan) -> list[object]:
    with tempfile.TemporaryDirectory() as folder:
        return [*choose(scan, ExportSettings(), Path(folder))]


READERS: dict[str, Callable[[Scan, Path], object]] = {
    "show": lambda s, _: show_summary(Console(file=io.StringIO()), summarize(s)),
    "show --example": lambda s, _: show_example(Console(file=io.StringIO()), s, 0),
    "export": lambda s, out: rows_of(s),
    "export --for ms-swift": lambda s, out: [
        [*conversation(r, None, "ms-swift", Counter())]
        for r in renderings(s, Gate.of(s, ExportSettings(for_="ms-swift")))
    ],
    "report": lambda s, _: encode(collect(s)),
    "plot landscape": lambda s, _: histogram(s),
    "plot gates": lambda s, _: gates(s),
    "gradients": lambda s, _: FullGradients.open(s).summary(),
    "compare": lambda s, _: compare(s, s, by="tokens"),
    "the sample of gradients": lambda s, _: draw_sample(s, 50, 0, []),
    "flag": lambda s, _: s.flag(ConflictRule(0.7, 0.4)),
    "flag --quantile": lambda s, _: s.flag(ConflictRule(quantile=0.3)),
}


@pytest.mark.parametrize("name", poison.LATE)
def test_what_opening_does_not_see_is_one_line_too(name: str, scan: Path) -> None:
    precious = scan.parent / "precious"
    precious.write_text("mine")
    poison.LATE[name](scan)
    for read in READERS.values():
        with within(SECONDS), suppress(ProbeError):  # each a printable line: test_fuzz.py
            read(Scan.open(scan), scan.parent)
    assert precious.read_text() == "mine"


def test_a_swap_in_a_scan_too_large_to_hash_is_seen_on_request(
    scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison.other_model(scan)
    monkeypatch.setattr("eaft_probe.scans.verification.HASHED", 1)
    Scan.open(scan)
    with pytest.raises(ScanError, match="its sha256 differs"):
        Scan.open(scan, verify=True)
    assert _run(["show", str(scan), "--verify"]) == 2


def test_some_parts_of_a_large_scan_are_hashed_all_the_same(
    scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of parts from another scan does not pass as this one's."""
    poison.other_model(scan)
    part = scan / "tokens" / poison.FIRST
    monkeypatch.setattr("eaft_probe.scans.verification.HASHED", part.stat().st_size + 1)
    with pytest.raises(ScanError, match="its sha256 differs"):
        Scan.open(scan)


def test_a_scan_without_a_poison_is_opened(scan: Path, sound: Path) -> None:
    assert Scan.open(scan, verify=True).manifest == Scan.open(sound).manifest


def test_flag_mends_what_it_writes(scan: Path) -> None:
    (scan / "rule.json").write_bytes(b"{")
    assert _run(["show", str(scan)]) == 2
    assert _run(["flag", str(scan)]) == 0
    assert _run(["show", str(scan)]) == 0


@pytest.mark.parametrize("damage", ["cut", "missing", "of another rule", "a link", "a pipe"])
def test_conflicts_are_made_again_from_the_rule(scan: Path, damage: str) -> None:
    """conflicts.parquet of one rule beside rule.json of another gave wrong numbers."""
    opened, file = Scan.open(scan), scan / "conflicts.parquet"
    wanted, precious = opened.conflicts(), scan.parent / "precious"
    precious.write_text("mine")
    if damage == "cut":
        os.truncate(file, 60)
    elif damage == "of another rule":
        before = (scan / "rule.json").read_bytes()
        opened.flag(ConflictRule(2, 0.5))
        (scan / "rule.json").write_bytes(before)
    else:
        file.unlink()
    if damage == "a link":
        file.symlink_to(precious)
    if damage == "a pipe":
        os.mkfifo(file)
    with within(SECONDS):
        counted = Scan.open(scan).rows("SELECT count(*) FROM conflicts")
    assert counted == [(len(wanted),)]
    assert Scan.open(scan).conflicts().equals(wanted)
    assert Scan.open(scan).rule == RULE
    assert precious.read_text() == "mine"


def test_conflicts_that_cannot_be_made_again_are_one_line(scan: Path) -> None:
    (scan / "conflicts.parquet").unlink()
    (scan / "conflicts.parquet").mkdir()
    with pytest.raises(ProbeError, match=r"cannot write conflicts\.parquet or rule\.json"):
        Scan.open(scan).conflicts()


@pytest.mark.parametrize("name", ["fewer conflicts", "conflicts of no example"])
def test_forged_conflicts_are_seen_on_request(scan: Path, name: str) -> None:
    Scan.open(scan, verify=True)
    poison.LATE[name](scan)
    with pytest.raises(ScanError, match=r"does not hold what rule\.json flags"):
        Scan.open(scan, verify=True)
    (scan / "conflicts.parquet").unlink()
    Scan.open(scan, verify=True)


KILLED = """
import os, sys
from eaft_probe import Scan
from eaft_probe.columns.conflicts import ConflictRule
left, replace = [int(sys.argv[2])], os.replace
def dying(*names):
    if not left[0]:
        os._exit(9)
    left[0] -= 1
    replace(*names)
os.replace = dying
Scan.open(sys.argv[1]).flag(ConflictRule(2, 0.5))
"""


@pytest.mark.parametrize(("renames", "rule"), [(0, RULE), (1, ConflictRule(2, 0.5))])
def test_a_flag_killed_at_a_rename_leaves_a_scan_of_one_rule(
    scan: Path, tmp_path: Path, renames: int, rule: ConflictRule
) -> None:
    whole = Scan.open(shutil.copytree(scan, tmp_path / "whole")).flag(rule).conflicts()
    done = subprocess.run([sys.executable, "-c", KILLED, str(scan), str(renames)], check=False)
    assert done.returncode == 9
    _sweep.cache_clear()
    opened = Scan.open(scan)
    assert opened.rule == rule
    assert opened.conflicts().equals(whole)
    assert opened.rows("SELECT count(*) FROM tokens WHERE conflict") == [(len(whole),)]
    assert opened.flag(rule).conflicts().equals(whole)
    assert not list(scan.glob(".*"))


def test_sql_follows_the_rule_whoever_flags(scan: Path) -> None:
    one, other = Scan.open(scan), Scan.open(scan)
    count = "SELECT count(*) FILTER (conflict), (SELECT count(*) FROM conflicts) FROM tokens"
    ((before, listed),) = one.rows(count)
    assert before == listed == int(one.tokens(["conflict"])["conflict"].sum())
    other.flag(ConflictRule(2, 0.5))
    ((after, listed),) = one.rows(count)
    assert before < after == listed == int(one.tokens(["conflict"])["conflict"].sum())
    assert one.sql is one.sql


@pytest.mark.parametrize("name", ["a[1]", "a*b", "a?b", "it's", "x=1", "a\nb", "日本"])
def test_folders_of_any_name_are_read(name: str, sound: Path, tmp_path: Path) -> None:
    """DuckDB takes *, ? and [ as patterns, and x=1 for a column."""
    shutil.copytree(sound, tmp_path / name)
    shutil.copytree(sound, tmp_path / "a1")  # what the pattern a[1] would find
    assert _run(["show", str(tmp_path / name), "--json"]) == 0


@pytest.mark.parametrize("threshold", [1e39, -1e39, 1e308])
def test_thresholds_beyond_float32_are_refused(threshold: float) -> None:
    with pytest.raises(BadInput, match="float32"):
        ConflictRule(threshold, 0.2)
