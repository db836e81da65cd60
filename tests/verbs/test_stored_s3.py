"""Scans under s3:// against a server of that protocol (moto), from several processes."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forked import Forked, main

from eaft_probe import Scan, scan
from eaft_probe.errors import BadInput, ProbeError
from eaft_probe.storage import remote as stores
from eaft_probe.storage.remote import Store

pytest.importorskip("s3fs", reason="no s3fs: pip install 'eaft-probe[s3]'")
pytest.importorskip("moto.server", reason="no S3 server: pip install 'moto[server]'")

ROWS = [
    {"prompt": f"say {i}", "completion": f"the dog {i} and the fox {i * i}"} for i in range(120)
]
SETTINGS = {"rows_per_unit": 4, "threads": 1}
UNITS = 30


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def bucket(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a bucket of this test's own, which this process and its children can reach."""
    import boto3
    import s3fs

    name = f"test-{abs(hash(tmp_path)):x}"
    own = {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "me",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
        "EAFT_PROBE_CACHE": str(tmp_path / "cache"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for variable, value in own.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(stores, "PAUSE", 0)
    s3fs.S3FileSystem.clear_instance_cache()
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


@pytest.fixture
def started(data: Path, model_folder: str) -> Iterator[Callable[..., Forked]]:
    """Starts the same scan as a process of its own."""
    running: list[Forked] = []

    def start(url: str, *more: str, cache: Path | None = None) -> Forked:
        given = [
            "scan",
            str(data),
            "--model",
            model_folder,
            "--out",
            url,
            "--rows-per-unit",
            "4",
            "--threads",
            "1",
            *more,
        ]
        env = {"EAFT_PROBE_CACHE": str(cache)} if cache else {}
        running.append(Forked(main, given, **env))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()


def parts(url: str) -> dict[str, bytes]:
    store = Store(url)
    return {n: store.get(n, 10**9) or b"" for n in store.names() if "/part-" in n}


def truth(data: Path, folder: Path, model: str) -> dict[str, bytes]:
    done = scan(str(data), folder, model=model, **SETTINGS)
    return {str(f.relative_to(done.path)): f.read_bytes() for f in folder.glob("*/part-*")}


def test_a_put_is_conditional(bucket: str) -> None:
    store = Store(f"{bucket}/a/b")
    assert store.create("tokens/x", b"1") is None
    assert store.create("tokens/x", b"2") == b"1"
    store.put("y", b"3")
    assert (set(store.names()), set(store.top())) == ({"tokens/x", "y"}, {"y"})
    store.remove(["y"])
    assert set(store.names()) == {"tokens/x"}


def test_what_another_machine_put_is_seen(bucket: str) -> None:
    """s3fs keeps listings, which say nothing of it."""
    import boto3

    store = Store(f"{bucket}/scan")
    store.put("tokens/a", b"1")
    assert set(store.names()) == {"tokens/a"}
    for name, data in (("tokens/b", b"2"), ("tokens/a", b"3")):
        boto3.client("s3").put_object(Bucket=bucket[5:], Key=f"scan/{name}", Body=data)
        assert store.create(name, b"4") == data
        assert store.get(name, 10) == data
    assert store.has("tokens/b")


def test_killed_with_its_workers_and_finished_by_two_others(
    bucket: str,
    started: Callable[..., Forked],
    data: Path,
    tmp_path: Path,
    model_folder: str,
) -> None:
    url = f"{bucket}/deep/scan"
    first = started(url, "--workers", "2")
    while not (before := parts(url)) and first.poll() is None:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert before
    assert len(parts(url)) < 2 * UNITS
    both = [started(url, cache=tmp_path / name) for name in ("second", "third")]
    said = [process.communicate() for process in both]
    assert [p.returncode for p in both] == [0, 0], said
    assert parts(url) == truth(data, tmp_path / "local", model_folder)
    assert all(parts(url)[name] == data for name, data in before.items())
    opened = Scan.open(url, verify=True)  # on a machine that had no part in it
    assert len(opened.manifest["parts"]) == UNITS


def test_what_is_here_is_not_fetched_again(
    bucket: str, data: Path, model_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on on its own machine: the store says by the md5 that it has the same."""
    fetched: list[str] = []
    before = Store._fetch
    monkeypatch.setattr(Store, "_fetch", lambda s, n, p: (fetched.append(n), before(s, n, p))[1])
    from eaft_probe.verbs.scan.score_unit import Scorer

    score, units = Scorer.score, []

    def dies(self: Scorer, unit: object, rows: object) -> None:
        units.append(unit)
        if len(units) == 10:
            raise KeyboardInterrupt
        score(self, unit, rows)  # type: ignore[arg-type]

    monkeypatch.setattr(Scorer, "score", dies)
    with pytest.raises(KeyboardInterrupt):
        scan(str(data), f"{bucket}/scan", model=model_folder, **SETTINGS)
    scan(str(data), f"{bucket}/scan", model=model_folder, **SETTINGS)
    assert fetched == []
    assert len(units) == UNITS + 1
    Scan.open(f"{bucket}/scan")
    assert fetched == []


def test_no_bucket_and_no_server(
    bucket: str, data: Path, model_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    with pytest.raises(BadInput, match="s3://no-such-bucket/scan"):
        scan(str(data), "s3://no-such-bucket/scan", model=model_folder)
    with pytest.raises(BadInput, match="s3://no-such-bucket/scan"):
        Scan.open("s3://no-such-bucket/scan")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(ProbeError, match="does not answer") as error:
        Scan.open(f"{bucket}/scan")
    assert error.value.exit_status == 1
