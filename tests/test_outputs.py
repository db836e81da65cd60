"""Files that commands write: what they may replace, where they may not lie, what they are named."""

import json
import os
import sys
from pathlib import Path
from typing import TextIO

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer

from eaft_probe import cli
from eaft_probe.cli import _run
from eaft_probe.cli.printing import StandardOutput, print_summary
from eaft_probe.data.sources import open_source
from eaft_probe.errors import ProbeError, ScanError
from eaft_probe.scans.verification import reading
from eaft_probe.storage.atomic import read_json
from eaft_probe.storage.remote import name_of

ROWS = [{"question": f"what is {n}", "answer": f"it is {n} and no more"} for n in range(4)]
PRECIOUS = b'{"question": "mine", "answer": "not yours"}\n'


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose name nobody should see."""
    folder = tmp_path_factory.mktemp("secret-client") / "in"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, [*ROWS, {"question": 1}])))
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: Path, model_folder: str) -> str:
    out = str(tmp_path_factory.mktemp("secret-scans") / "s")
    wide = ["--entropy-below", "9", "--prob-below", "0.5"]
    assert _run(["scan", str(data), "--model", model_folder, "--out", out, *wide]) == 0
    return out


def writers(scan: str, out: Path) -> list[list[str]]:
    """Every command that writes one file, into a file of its kind in `out`."""
    plot = ["plot", "gates", scan, "--objective", "eaft", "--out"]
    figures = [[*plot, str(out / f"f.{kind}")] for kind in ("png", "svg", "pdf")]
    tables = [
        [*plot, str(out / "t.png"), "--data", str(out / f"t.{k}")] for k in ("csv", "parquet")
    ]
    pages = [["report", scan, "--out", str(out / "page.html")]]
    return [*figures, *tables, *pages]


def test_only_an_earlier_output_of_the_same_kind_is_replaced(
    finished: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in writers(finished, tmp_path):
        target = Path(command[-1])
        target.write_bytes(PRECIOUS)
        capsys.readouterr()
        assert _run(command) == 2, command
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "--overwrite" in error
        assert target.read_bytes() == PRECIOUS
        assert _run([*command, "--overwrite"]) == 0, command
        written = target.read_bytes()
        assert written != PRECIOUS
        assert _run(command) == 0, command  # what it wrote itself it replaces
        if "pdf" not in command[-1]:
            assert target.read_bytes() == written


def test_outputs_of_another_kind_and_files_of_a_scan_are_not_replaced(
    finished: str, tmp_path: Path
) -> None:
    figure, rows = tmp_path / "f.png", tmp_path / "rows.jsonl"
    assert _run(["plot", "gates", finished, "--out", str(figure)]) == 0
    assert _run(["export", finished, "--out", str(rows)]) == 0
    for target in (figure, Path(finished) / "manifest.json", Path(finished) / "rejected.jsonl"):
        before = target.read_bytes()
        assert _run(["export", finished, "--out", str(target)]) == 2
        assert _run(["report", finished, "--out", str(target)]) == 2
        assert target.read_bytes() == before


def test_what_is_no_file_is_not_replaced_even_if_asked(finished: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.html")
    (tmp_path / "folder.html").mkdir()
    for name in ("pipe.html", "folder.html"):
        assert _run(["report", finished, "--out", str(tmp_path / name)]) == 2
    (tmp_path / "empty.html").touch()  # as mktemp leaves it
    assert _run(["report", finished, "--out", str(tmp_path / "empty.html")]) == 0


def test_a_folder_that_has_the_names_of_a_scan_but_no_plan_is_left_alone(
    data: Path, model_folder: str, tmp_path: Path
) -> None:
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "notes.txt").write_text("mine")
    command = ["scan", str(data), "--model", model_folder, "--out", str(tmp_path)]
    for more in ([], ["--overwrite"]):
        assert _run([*command, *more]) == 2
        assert (tmp_path / "examples" / "notes.txt").read_text() == "mine"


def test_a_list_of_rejected_rows_that_is_no_rollouts_stops_one(
    data: Path, model_folder: str, tmp_path: Path
) -> None:
    (tmp_path / "own.jsonl.rejected.jsonl").write_bytes(PRECIOUS)
    own = str(tmp_path / "own.jsonl")
    assert _run(["rollout", str(data), "--model", model_folder, "--out", own]) == 2
    assert (tmp_path / "own.jsonl.rejected.jsonl").read_bytes() == PRECIOUS


# --- not into the data ---


@pytest.mark.parametrize("verb", ["scan", "rollout", "train"])
def test_output_inside_the_data_is_refused(
    verb: str, model_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[0]))
    for out in (tmp_path / "more.jsonl", tmp_path / "deep" / "more.jsonl"):
        assert _run([verb, str(tmp_path), "--model", model_folder, "--out", str(out)]) == 2
        assert "lies in the data" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_pattern_that_finds_the_output_is_refused(model_folder: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[0]))
    shallow, deep = str(tmp_path / "*.jsonl"), str(tmp_path / "**" / "*.jsonl")
    for pattern, status in ((shallow, 0), (shallow, 0), (deep, 2)):  # rejected.jsonl is found
        command = ["scan", pattern, "--model", model_folder, "--out", str(tmp_path / "s")]
        assert _run(command) == status


def test_training_does_not_write_into_what_it_is_measured_on(
    data: Path, model_folder: str, tmp_path: Path
) -> None:
    (tmp_path / "held.jsonl").write_text(json.dumps(ROWS[0]))
    for flag in ("--eval-data", "--retain-data"):
        command = ["train", str(data), "--model", model_folder, "--out", str(tmp_path / "run")]
        assert _run([*command, flag, str(tmp_path)]) == 2
        assert not (tmp_path / "run").exists()


def test_an_export_does_not_become_data(finished: str, data: Path) -> None:
    assert _run(["export", finished, "--out", str(data / "back.jsonl")]) == 2
    assert not (data / "back.jsonl").exists()


# --- names, not paths ---


def test_what_is_passed_on_names_no_folder(
    finished: str, data: Path, model_folder: str, tmp_path: Path
) -> None:
    exported = ["export", finished, "--out", str(tmp_path / "rows.jsonl")]
    for command in [*writers(finished, tmp_path), exported]:
        assert _run(command) == 0
    other = str(tmp_path / "other")
    (tmp_path / "b.jsonl").write_text(json.dumps({"question": "who", "answer": "nobody at all"}))
    assert _run(["scan", str(tmp_path / "b.jsonl"), "--model", model_folder, "--out", other]) == 0
    assert _run(["merge", finished, other, "--out", str(tmp_path / "whole")]) == 0
    assert _run(["gradients", finished, "--sample", "2"]) == 0
    against = ["report", finished, "--against", other, "--out", str(tmp_path / "against.html")]
    assert _run(against) == 0
    compared = ["plot", "compare", finished, finished, "--out", str(tmp_path / "compare.svg")]
    assert _run(compared) == 0
    passed_on = [
        p
        for folder in (Path(finished), tmp_path)
        for p in folder.rglob("*")
        if p.is_file() and p.name != "plan.json"
    ]
    assert len(passed_on) > 20
    hidden = [str(p).encode() for p in (data.parent, Path(model_folder).parent, tmp_path)]
    hidden += [b"secret-client", b"secret-scans"]
    for path in passed_on:
        metadata = b""
        if path.suffix == ".parquet":  # compressed
            metadata = json.dumps(pq.read_table(path).to_pylist(), default=str).encode()
        content = path.read_bytes() + metadata
        assert not [h for h in hidden if h in content], path


def test_the_manifest_and_rejected_rows_have_names(finished: str, model_folder: str) -> None:
    manifest = json.loads((Path(finished) / "manifest.json").read_text())
    assert manifest["data"]["source"] == "in"
    assert manifest["model"]["name"] == manifest["config"]["model"] == Path(model_folder).name
    (rejected,) = map(json.loads, (Path(finished) / "rejected.jsonl").open())
    assert rejected["file"] == "rows.jsonl"
    plan = json.loads((Path(finished) / "plan.json").read_text())
    assert plan["settings"]["model"] == model_folder


def test_a_finished_scan_is_known_again_and_its_model_found(
    finished: str, data: Path, model_folder: str, tmp_path: Path
) -> None:
    before = (Path(finished) / "manifest.json").stat().st_mtime_ns
    wide = ["--entropy-below", "9", "--prob-below", "0.5"]
    command = ["scan", str(data), "--model", model_folder, "--out", finished, *wide]
    assert _run(command) == 0
    assert (Path(finished) / "manifest.json").stat().st_mtime_ns == before
    (tmp_path / "b.jsonl").write_text(json.dumps({"question": "who", "answer": "no one"}))
    other, whole = str(tmp_path / "b"), str(tmp_path / "whole")
    assert _run(["scan", str(tmp_path / "b.jsonl"), "--model", model_folder, "--out", other]) == 0
    for _ in range(2):
        assert _run(["merge", finished, other, "--out", whole]) == 0
    assert _run(["gradients", whole, "--sample", "2"]) == 0


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    known = {
        "org/model": "model",  # a folder here
        "org/other": "org/other",  # a hub id
        "/gone/a/b.jsonl": "b.jsonl",
        "/gone/*.jsonl": "*.jsonl",
        ".": tmp_path.name,
        "smollm2": "smollm2",
        "file:///a/b": "b",
        "s3://key:password@host/bucket/scan": "s3://key@host/bucket/scan",
    }
    assert {place: name_of(place) for place in known} == known


def test_files_are_named_from_the_folder_that_holds_them_all(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rows.jsonl").write_text(json.dumps(ROWS[0]))
    source = open_source(str(tmp_path))
    assert [r.file for r in source.records()] == ["a/rows.jsonl", "b/rows.jsonl"]
    assert list(source.files()) == ["a/rows.jsonl", "b/rows.jsonl"]


# --- a reader that leaves, and memory that does not do ---


def unread() -> TextIO:
    """A pipe whose other end is closed."""
    read, write = os.pipe()
    os.close(read)
    return open(write, "w")


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["show"], 0),
        (["show", "--json"], 0),
        (["flag"], 0),
        (["show", "--fail-if", "rows>0"], 3),
        (["show", "--json", "--fail-if", "rows>0"], 3),
        (["show", "--fail-if", "rows<0"], 0),
    ],
)
def test_a_reader_that_leaves_is_no_failure(
    command: list[str], status: int, finished: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    verb, *more = command
    monkeypatch.setattr(sys, "stdout", unread())  # here: pytest sets it again before a test
    monkeypatch.setattr(sys, "argv", ["eaft-probe", verb, finished, *more])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == status


def test_long_output_ends_when_nobody_reads_it() -> None:
    out = StandardOutput(unread())
    with pytest.raises(typer.Exit) as ended:
        out.write("many lines of text\n" * 10_000)
    assert ended.value.exit_code == 0


def test_a_gate_is_tripped_where_telling_ends_early() -> None:
    def tell(_: object) -> None:
        raise typer.Exit

    with pytest.raises(typer.Exit) as ended:
        print_summary({"rows": 1}, False, lambda _: True, tell)
    assert ended.value.exit_code == 3


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), ProbeError),
        (pa.ArrowMemoryError("malloc of size 9 failed"), ProbeError),
        (duckdb.OutOfMemoryException("no"), ProbeError),
        (pa.ArrowInvalid("no parquet"), ScanError),
    ],
)
def test_out_of_memory_is_not_damage(error: Exception, kind: type[ProbeError]) -> None:
    with pytest.raises(ProbeError) as raised, reading("part"):
        raise error
    assert type(raised.value) is kind
    assert ("damaged" in str(raised.value)) == (kind is ScanError)


def test_out_of_memory_is_one_line(
    finished: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(json, "loads", full)
    with pytest.raises(MemoryError):
        read_json(Path(finished) / "manifest.json", 10**9)
    assert _run(["show", finished]) == 1
    error = capsys.readouterr().err
    assert "out of memory" in error
    assert error.count("\n") == 1
