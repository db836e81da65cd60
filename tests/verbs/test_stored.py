"""Scans into a store and out of it: the same bytes, whoever dies, whatever fails, however often."""

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import pytest
import scans_made
from stores_made import Flaky

from eaft_probe import Scan, compare, scan
from eaft_probe.analysis.exact_gradients import FullGradients
from eaft_probe.analysis.summary import summarize
from eaft_probe.cli import _run
from eaft_probe.columns.conflicts import RULE_FILE, ConflictRule
from eaft_probe.errors import BadInput, DataError, ProbeError, ScanError
from eaft_probe.progress import Silent
from eaft_probe.scans.part_writer import CONFLICTS
from eaft_probe.scans.upload import Deposit
from eaft_probe.storage import remote as stores
from eaft_probe.storage.remote import Store
from eaft_probe.verbs.gradients.gradients import gradients
from eaft_probe.verbs.merge.merge import merge
from eaft_probe.verbs.scan.load_scorer import Loading
from eaft_probe.verbs.scan.score_unit import Scorer
from eaft_probe.view import plots
from eaft_probe.view.report.report import report

ROWS = [{"prompt": f"say {i}", "completion": f"the dog {i} and the fox {i * i}"} for i in range(20)]
OTHER = [{"prompt": f"tell {i}", "completion": f"a lazy fox {i}"} for i in range(8)]
UNITS = 5
URL = "memory://stored/scan"
PARTS = [f"{kind}/part-{i:05d}.parquet" for kind in ("tokens", "examples") for i in range(UNITS)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("EAFT_PROBE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stores, "PAUSE", 0)
    yield
    Flaky.share, Flaky.late = 0.0, 0
    for name in ("memory", "flaky"):
        fs = fsspec.filesystem(name)
        fs.store.clear()
        fs.pseudo_dirs[:] = [""]


@pytest.fixture
def again(tmp_path: Path, model_folder: str) -> Callable[..., Scan]:
    """The same scan, wherever it goes."""

    def run(out: str | Path = URL, rows: Any = ROWS, **settings: Any) -> Scan:
        return scan(rows, out, model=model_folder, **{"rows_per_unit": 4, **settings})

    return run


@pytest.fixture(scope="session")
def truth(tmp_path_factory: pytest.TempPathFactory, model_folder: str) -> dict[str, bytes]:
    """The files of the same scan in a folder."""
    folder = tmp_path_factory.mktemp("truth") / "scan"
    scan(ROWS, folder, model=model_folder, rows_per_unit=4)
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def held(url: str = URL) -> dict[str, bytes]:
    """What the store has."""
    store = Store(url)
    return {n: store.get(n, 10**9) or b"" for n in store.names()}


def parts(files: dict[str, bytes]) -> dict[str, bytes]:
    return {n: b for n, b in files.items() if n in PARTS}


def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str = "elsewhere") -> None:
    """From here on as on another machine, which has nothing yet."""
    monkeypatch.setenv("EAFT_PROBE_CACHE", str(tmp_path / name))


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The units that were scored, in order."""
    units: list[int] = []
    before = Scorer.score

    def score(self: Scorer, unit: Any, rows: Any) -> None:
        units.append(unit.index)
        before(self, unit, rows)

    monkeypatch.setattr(Scorer, "score", score)
    return units


def at_unit(
    monkeypatch: pytest.MonkeyPatch, index: int, do: Callable[[], Any], before: bool = True
) -> None:
    """Something happens once, before the unit is scored, or before it is put."""
    kind, done = (Scorer, "score") if before else (Deposit, "put_part"), []
    method = getattr(*kind)

    def wrapped(self: Any, *given: Any) -> None:
        at = given[0].index if before else int(given[0][5:10])
        if at == index and not done:
            done.append(True)
            do()
        method(self, *given)

    monkeypatch.setattr(*kind, wrapped)


def die() -> None:
    raise KeyboardInterrupt


# --- one run ---


def test_the_store_has_what_a_folder_would(
    again: Callable[..., Scan], truth: dict[str, bytes]
) -> None:
    done, there = again(), held()
    assert set(there) == set(truth)
    assert parts(there) == parts(truth)
    assert there[CONFLICTS] == truth[CONFLICTS]
    assert there["plan.json"] == truth["plan.json"]
    assert done.manifest["parts"] == again().manifest["parts"]
    assert len(done.tokens()) == done.manifest["counts"]["trained_tokens"]


def test_a_finished_scan_is_neither_scored_nor_fetched_again(
    again: Callable[..., Scan], scored: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    before = Store._fetch

    def fetch(self: Store, name: str, path: Path) -> None:
        fetched.append(name)
        before(self, name, path)

    monkeypatch.setattr(Store, "_fetch", fetch)
    again()
    again()
    assert scored == [*range(UNITS)]
    assert not {*fetched} & {*PARTS}


@pytest.mark.parametrize("before", [True, False], ids=["scored", "put"])
@pytest.mark.parametrize("lost", [True, False], ids=["elsewhere", "here"])
def test_a_killed_run_goes_on(
    again: Callable[..., Scan],
    truth: dict[str, bytes],
    scored: list[int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    before: bool,
    lost: bool,
) -> None:
    at_unit(monkeypatch, 2, die, before)
    with pytest.raises(KeyboardInterrupt):
        again()
    assert "manifest.json" not in held()
    with pytest.raises(ScanError, match="memory://stored/scan holds an unfinished scan"):
        Scan.open(URL)
    if lost:
        elsewhere(monkeypatch, tmp_path)
    again()
    assert parts(held()) == parts(truth)
    twice = [2] if lost and not before else []  # scored, and died with its machine
    assert sorted(scored) == sorted([*range(UNITS), *twice])


@pytest.mark.parametrize("lost", [True, False], ids=["elsewhere", "here"])
def test_a_scan_that_keeps_a_sample(
    again: Callable[..., Scan],
    scored: list[int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    lost: bool,
) -> None:
    """Units wait in the store for the others, then come few parts and the totals."""
    kept = again(tmp_path / "here", keep_tokens="sample:0.3")
    scored.clear()
    at_unit(monkeypatch, 2, die)
    with pytest.raises(KeyboardInterrupt):
        again(keep_tokens="sample:0.3")
    assert sum(n.startswith("units/") for n in held()) == 3 * 2
    if lost:
        elsewhere(monkeypatch, tmp_path)
    done = again(keep_tokens="sample:0.3")
    assert sorted(scored) == [*range(UNITS)]
    wanted = {
        str(f.relative_to(kept.path)): f.read_bytes() for f in kept.path.rglob("*") if f.is_file()
    }
    there = held()
    assert set(there) == set(wanted)
    same = [n for n in wanted if n.endswith(".parquet")]
    assert len(same) == 4
    assert all(there[n] == wanted[n] for n in same)
    mine, theirs = ({**summarize(s), "path": ""} for s in (done, kept))
    assert mine == theirs


def test_half_of_a_part_is_no_part(
    again: Callable[..., Scan],
    truth: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    at_unit(monkeypatch, 2, die)
    with pytest.raises(KeyboardInterrupt):
        again()
    Store(URL).put("tokens/part-00002.parquet", b"of another kind of device")
    elsewhere(monkeypatch, tmp_path)
    again()
    assert parts(held()) == parts(truth)


def test_whatever_fails_at_whatever_request(
    again: Callable[..., Scan],
    truth: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Every second run on a machine that has nothing yet."""
    url, Flaky.dice = "flaky://stored/scan", random.Random(1)
    failed = 0
    for attempt in range(200):
        Flaky.share = 0.6
        elsewhere(monkeypatch, tmp_path, str(attempt // 2))
        with suppress(ProbeError):
            again(url)
            break
        failed += 1
    else:
        pytest.fail("it never came to an end")
    Flaky.share = 0.0
    assert failed > 5, failed
    assert set(held(url)) == set(truth)
    assert parts(held(url)) == parts(truth)
    assert held(url)[CONFLICTS] == truth[CONFLICTS]


def test_a_store_that_is_not_ours_is_said_before_the_model_is_loaded(
    again: Callable[..., Scan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Loading, "__call__", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(BadInput, match="forbidden://scan refuses access: not yours"):
        again("forbidden://scan")


# --- several ---


def test_two_runs_at_once_on_two_machines(
    again: Callable[..., Scan],
    truth: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    manifest: list[bytes] = []

    def second() -> None:
        elsewhere(monkeypatch, tmp_path)
        again()
        manifest.append(held()["manifest.json"])

    at_unit(monkeypatch, 2, second, before=False)
    again()
    assert parts(held()) == parts(truth)
    assert held()["manifest.json"] == manifest[0]


def test_two_runs_at_once_on_one_machine(
    again: Callable[..., Scan], truth: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share a folder, which the first to finish takes away."""
    at_unit(monkeypatch, 2, again)
    again()
    assert parts(held()) == parts(truth)


def test_other_bytes_are_refused(
    again: Callable[..., Scan], truth: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two kinds of devices give other last digits; what was there first stays."""
    theirs = "examples/part-00002.parquet", b"of another kind of device"
    at_unit(monkeypatch, 2, lambda: Store(URL).create(*theirs), before=False)
    with pytest.raises(ScanError, match="was already written with different bytes"):
        again()
    assert held()[theirs[0]] == theirs[1]
    assert "manifest.json" not in held()


def test_a_run_whose_scan_was_replaced_stops(
    again: Callable[..., Scan], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    there: dict[str, bytes] = {}

    def replaced() -> None:
        elsewhere(monkeypatch, tmp_path)
        again(rows_per_unit=5, overwrite=True)
        there.update(held())

    at_unit(monkeypatch, 3, replaced, before=False)
    with pytest.raises(ScanError, match="holds a scan with other settings"):
        again()
    assert held() == there


def test_a_removed_scan_is_not_written_to(
    again: Callable[..., Scan], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_unit(monkeypatch, 3, lambda: Store(URL).remove(Store(URL).names()), before=False)
    with pytest.raises(ScanError, match="another run has removed the scan"):
        again()
    assert held() == {}


def test_other_settings_are_refused_until_overwrite(
    again: Callable[..., Scan], truth: dict[str, bytes]
) -> None:
    again(rows_per_unit=5)
    first = held()
    with pytest.raises(ScanError, match=r"^memory://stored/scan holds a scan with other settings"):
        again()
    assert held() == first
    again(overwrite=True)
    assert set(held()) == set(truth)
    assert parts(held()) == parts(truth)


def test_an_overwriting_run_that_dies_goes_on(
    again: Callable[..., Scan], truth: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    again(rows_per_unit=3)
    at_unit(monkeypatch, 2, die)
    with pytest.raises(KeyboardInterrupt):
        again(overwrite=True)
    again()
    assert set(held()) == set(truth)
    assert parts(held()) == parts(truth)


def test_files_of_others_are_left_alone(again: Callable[..., Scan]) -> None:
    store = Store(URL)
    store.put("precious.txt", b"1")
    with pytest.raises(ScanError, match="memory://stored/scan is not empty and holds no scan"):
        again(overwrite=True)
    assert set(held()) == {"precious.txt"}
    store.remove(["precious.txt"])
    again(rows_per_unit=3)
    store.put("deep/precious.txt", b"1")
    again(overwrite=True)
    assert held()["deep/precious.txt"] == b"1"


def test_nothing_to_score(again: Callable[..., Scan]) -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": 3}]
    with pytest.raises(DataError, match=r"memory://stored/scan/rejected\.jsonl lists them"):
        again(rows=rows[1:], format="prompt-completion")
    assert set(held()) == {"rejected.jsonl"}
    again(rows=rows, format="prompt-completion")  # nothing that would be in the way
    assert "manifest.json" in held()


def test_a_worker_on_a_machine_without_the_folder(
    again: Callable[..., Scan],
    truth: dict[str, bytes],
    model_folder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its parts reach the run's folder through the store."""
    before, folders = Loading.__call__, []

    def far_away(self: Any, *given: Any) -> Any:
        shared = self.work.folder.path
        monkeypatch.setattr(Path, "is_dir", lambda p: p != shared and p.exists())
        made = before(self, *given)
        monkeypatch.undo()
        monkeypatch.setenv("EAFT_PROBE_CACHE", str(tmp_path / "cache"))
        folders.append((made.work.folder.path, shared))
        return made

    monkeypatch.setattr(Loading, "__call__", far_away)
    again()
    assert parts(held()) == parts(truth)
    assert folders[0][0] != folders[0][1]


def test_memory_is_not_shared_with_workers(again: Callable[..., Scan]) -> None:
    with pytest.raises(BadInput, match="is the memory of one process"):
        again(workers=2)
    assert held() == {}


@pytest.mark.parametrize("plan", [b"{", b"3", b""])
def test_a_damaged_plan(again: Callable[..., Scan], plan: bytes) -> None:
    """It counts for nothing where it has no part, and stands in the way of others."""
    Store(URL).put("plan.json", plan)
    again()
    Store(URL).put("plan.json", plan)
    Store(URL).remove(["manifest.json"])
    with pytest.raises(ScanError, match=r"plan\.json is damaged"):
        again()
    again(overwrite=True)
    assert "manifest.json" in held()


@pytest.mark.parametrize(
    "name",
    [
        "tokens/../../../out.parquet",
        "tokens/part-\0.parquet",
        "examples/part-../../out.parquet",
        "../../out.parquet",
        "\0",
        f"tokens/{'a' * 300}",
    ],
)
def test_names_that_lead_astray(
    again: Callable[..., Scan],
    truth: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    tmp_path: Path,
) -> None:
    at_unit(monkeypatch, 2, die)
    with pytest.raises(KeyboardInterrupt):
        again()
    Store(URL).put(name, b"evil")
    elsewhere(monkeypatch, tmp_path)
    again()
    assert parts(held()) == parts(truth)
    assert not [*tmp_path.rglob("*out.parquet")]


# --- to read ---


@pytest.fixture
def made(tmp_path: Path) -> Scan:
    """A finished scan by hand, which lies in the store as well."""
    tokens = scans_made.measured(scans_made.places(1500))
    done = scans_made.write(tmp_path / "made", tokens)
    upload(done.path, URL)
    return done


def upload(folder: Path, url: str) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            Store(url).put(str(file.relative_to(folder)), file.read_bytes())


def test_every_reader_takes_the_url(made: Scan, tmp_path: Path) -> None:
    there = Scan.open(URL, verify=True)
    assert there.place == summarize(there)["path"] == URL
    assert there.tokens().equals(made.tokens())
    assert there.conflicts().equals(made.conflicts())
    figure = plots.landscape(URL)
    assert figure.data.equals(plots.landscape(made).data)
    page = report([there], tmp_path / "report.html", against=URL)
    assert page.stat().st_size > 10_000
    assert compare(URL, made.path, by="tokens").summary()["tokens"] == len(made.tokens())


def test_a_rule_is_put_back_for_other_machines(
    made: Scan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = Scan.open(URL)
    elsewhere(monkeypatch, tmp_path)
    flagged = Scan.open(URL).flag(ConflictRule(1.0, 0.4))
    assert flagged.store == Store(URL)
    monkeypatch.setenv("EAFT_PROBE_CACHE", str(tmp_path / "cache"))
    seen = Scan.open(URL)
    assert seen.path == here.path
    assert seen.rule == ConflictRule(1.0, 0.4)
    assert len(seen.conflicts()) == len(flagged.conflicts()) != len(made.conflicts())
    Store(URL).remove([CONFLICTS, RULE_FILE])
    assert Scan.open(URL).rule == ConflictRule()


def test_conflicts_are_put_before_their_rule(made: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    put: list[str] = []
    before = Store.put
    monkeypatch.setattr(Store, "put", lambda s, n, d: (put.append(n), before(s, n, d))[1])
    Scan.open(URL).flag(ConflictRule(1.0, 0.4))
    assert put == [CONFLICTS, RULE_FILE, "README.md"]


def test_a_rule_that_did_not_come_through_is_put_again(
    again: Callable[..., Scan], truth: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Store.put

    def put(self: Store, name: str, data: bytes) -> None:
        if name == RULE_FILE:
            raise ProbeError("the network is gone")
        before(self, name, data)

    with monkeypatch.context() as broken:
        broken.setattr(Store, "put", put)
        with pytest.raises(ProbeError):
            again()
    assert RULE_FILE not in held()
    again()
    assert held()[RULE_FILE] == truth[RULE_FILE]


def test_a_swapped_part_is_seen(made: Scan) -> None:
    first, second = "tokens/part-00000.parquet", "tokens/part-00001.parquet"
    Store(URL).put(second, held()[first])
    with pytest.raises(ScanError, match=r"memory://stored/scan/tokens/part-00001\.parquet is not"):
        Scan.open(URL)
    Store(URL).remove([second])
    with pytest.raises(ScanError, match=r"part-00001\.parquet is missing"):
        Scan.open(URL)


def test_no_part_leads_out_of_the_mirror(made: Scan) -> None:
    manifest = held()["manifest.json"].replace(b"part-00000.parquet", b"../../../../out.parquet")
    Store(URL).put("manifest.json", manifest)
    with pytest.raises(ScanError, match=r"manifest\.json is damaged"):
        Scan.open(URL)


def test_another_scan_at_the_same_url(made: Scan, tmp_path: Path) -> None:
    first = Scan.open(URL)
    other = scans_made.write(tmp_path / "other", scans_made.measured(scans_made.places(300)))
    upload(other.path, URL)
    second = Scan.open(URL)
    assert len(second.tokens()) == 300
    assert second.path != first.path
    assert not first.path.exists()


def test_what_is_no_scan() -> None:
    with pytest.raises(ScanError, match="memory://stored/none holds no scan"):
        Scan.open("memory://stored/none")


def test_a_cache_that_cannot_be_written(
    made: Scan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, again: Callable[..., Scan]
) -> None:
    (tmp_path / "file").touch()
    elsewhere(monkeypatch, tmp_path, "file")
    with pytest.raises(ProbeError, match="cannot write"):
        Scan.open(URL)
    with pytest.raises(BadInput, match="cannot write"):
        again("memory://stored/other")


# --- merge ---


def test_merged_scans_of_stores(
    again: Callable[..., Scan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, whole = (f"memory://stored/{n}" for n in ("first", "second", "whole"))
    a, b = again(first), again(second, OTHER)
    folder = merge([a, b.path], tmp_path / "whole")
    merged = merge([first, second], whole)
    assert merged.tokens().equals(folder.tokens())
    there = {n: hashlib.sha256(d).digest() for n, d in held(whole).items()}
    shutil.rmtree(tmp_path / "cache")
    assert merge([first, second], whole).tokens().equals(folder.tokens())
    assert {n: hashlib.sha256(d).digest() for n, d in held(whole).items()} == there
    with pytest.raises(BadInput, match="is one of the scans to merge"):
        merge([first, second], second, overwrite=True)
    with pytest.raises(ScanError, match="memory://stored/whole holds a scan with other settings"):
        merge([second, first], whole)


def test_exact_norms_go_where_the_scan_is(
    again: Callable[..., Scan], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    urls = [f"memory://stored/{n}" for n in ("first", "second")]
    again(urls[0])
    again(urls[1], OTHER)
    norms = [gradients(url, sample=20).table["grad_full"] for url in urls]
    merge(urls, "memory://stored/whole")
    elsewhere(monkeypatch, tmp_path)
    found = FullGradients.open(Scan.open("memory://stored/whole")).table
    assert list(found["grad_full"]) == [n for part in norms for n in part]


# --- the command line ---


def test_the_command_line_says_it_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["show", "nosuch://bucket/scan"]) == 2
    assert capsys.readouterr().err == (
        "eaft-probe: nosuch://bucket/scan cannot be opened: Protocol not known: nosuch\n"
    )


def test_data_that_become_unreadable_cost_no_part(
    again: Callable[..., Scan], tmp_path: Path, model_folder: str
) -> None:
    """What was put so far stays; only data without a row to score leave nothing but why."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in OTHER))

    class Removing(Silent):
        def advance(self, rows: int, tokens: int) -> None:
            (folder / "b.jsonl").unlink(missing_ok=True)

    with pytest.raises(ProbeError, match=r"b\.jsonl"):
        again(rows=folder, progress=Removing())
    assert any(name.startswith("examples/part-") for name in Store(URL).names())
    with pytest.raises(DataError, match="nothing to score"):
        again(rows=[{"messages": []}] * 3, overwrite=True)
    assert set(Store(URL).names()) == {"rejected.jsonl"}
