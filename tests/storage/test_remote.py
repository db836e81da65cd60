"""What a store promises, whatever its kind: a put is one step, the first put of a name stays."""

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from stores_made import Flaky, Forbidden

from eaft_probe.errors import BadInput, ProbeError, ScanError
from eaft_probe.storage import remote as stores
from eaft_probe.storage.remote import Store, local, same


@pytest.fixture
def store() -> Iterator[Store]:
    yield Store("memory://store-test/there")
    fsspec.filesystem("memory").rm("/store-test", recursive=True)


@pytest.mark.parametrize("place", ["eaft-scan", "/a/b", Path("a"), "file:///a/b", "C:/a", "a:b//c"])
def test_a_folder_of_this_machine_is_no_store(place: str | Path) -> None:
    assert Store.of(place) is None


def test_a_local_url_is_a_folder(tmp_path: Path) -> None:
    assert (
        local(f"file://{tmp_path}") == local(f"local://{tmp_path}") == local(tmp_path) == tmp_path
    )
    assert local("file-a/b") == Path("file-a/b")


def test_a_password_is_shown_nowhere() -> None:
    store = Store("sftp://me:secret@host/scan")
    assert store.shown == "sftp://me@host/scan"
    assert "secret" not in str(store.cache)
    assert store.cache != Store("sftp://me:other@host/scan").cache


def test_the_first_put_of_a_name_stays(store: Store) -> None:
    assert store.create("tokens/a", b"1") is None
    assert store.create("tokens/a", b"2") == b"1"
    assert store.get("tokens/a", 10) == b"1"
    store.put("tokens/a", b"3")
    assert store.get("tokens/a", 10) == b"3"
    assert store.get("b", 10) is None
    assert set(store.names()) == {"tokens/a"}
    store.put("c", b"4")
    assert set(store.top()) == {"c"}
    store.remove(["c", "never there"])
    assert set(store.names()) == {"tokens/a"}


def test_a_fetched_file_is_whole_or_not_there(store: Store, tmp_path: Path) -> None:
    store.put("a", b"12345")
    path = tmp_path / "here" / "a"
    with pytest.raises(ScanError, match="its sha256 differs"):
        store.fetch({"a": path}, {"a": "0" * 64})
    assert [*path.parent.iterdir()] == []
    store.fetch({"a": path}, {"a": hashlib.sha256(b"12345").hexdigest()})
    assert path.read_bytes() == b"12345"
    with pytest.raises(ScanError, match="b is missing"):
        store.fetch({"b": path})
    assert path.read_bytes() == b"12345"


def test_a_file_too_large_to_be_true_is_not_read(store: Store) -> None:
    store.put("plan.json", b"1" * 100)
    with pytest.raises(ScanError, match=r"plan\.json is damaged"):
        store.get("plan.json", 99)


@pytest.mark.parametrize("scheme", ["sftp", "SSH", "ftp", "smb", "hdfs", "webhdfs"])
def test_a_file_server_is_refused(scheme: str) -> None:
    """They would show half a file under its name; refused before anything is connected."""
    with pytest.raises(BadInput, match=r"a folder .* or an object store such as s3://") as error:
        Store(f"{scheme}://me:secret@host/scan").names()
    assert "secret" not in str(error.value)


def test_what_fails_for_a_moment_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "PAUSE", 0)
    store = Store("flaky://retried")
    Flaky.dice = random.Random(0)
    Flaky.share = 0.2
    for i in range(50):
        store.put(str(i), b"1")
    Flaky.share = 1.0
    with pytest.raises(ProbeError, match="does not answer: the network is gone; finished parts"):
        store.names()
    Flaky.share = 0.0
    assert len(store.names()) == 50


def test_a_put_that_came_through_though_it_failed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "PAUSE", 0)
    monkeypatch.setattr(Flaky, "share", 0.0)
    monkeypatch.setattr(Flaky, "late", 1)
    assert Store("flaky://late").create("a", b"1") == b"1"


def test_what_a_store_refuses_is_the_users_to_mend() -> None:
    assert Forbidden.protocol == "forbidden"
    with pytest.raises(BadInput, match="forbidden://a refuses access: not yours"):
        Store("forbidden://a").put("b", b"1")
    with pytest.raises(BadInput, match="cannot be opened: Protocol not known: nosuch"):
        Store("nosuch://a").names()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise ImportError("Install gcsfs to access Google Storage")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(BadInput, match=r"pip install 'eaft-probe\[gs\]'"):
        Store("gs://a/b").names()
    with pytest.raises(BadInput, match="Install gcsfs"):
        Store("other://a/b").names()


def test_a_file_is_known_by_what_the_store_says_of_it(tmp_path: Path) -> None:
    path, digest = tmp_path / "a", hashlib.md5(b"12345").hexdigest()
    assert not same({"size": 5, "ETag": digest}, path)
    path.write_bytes(b"12345")
    assert same({"size": 5, "ETag": f'"{digest}"'}, path)
    assert same({"size": 5, "md5Hash": "gnzLDuqKcGxMNKFokfhOew=="}, path)
    assert same({"size": 5, "ETag": hashlib.md5(b"54321").hexdigest()}, path) is False
    assert same({"size": 4, "ETag": digest}, path) is False
    assert same({"size": 5, "ETag": f"{digest}-2"}, path) is None  # put in pieces
    assert same({"size": 5}, path) is None


def test_memory_is_of_one_process() -> None:
    assert Store("memory://a").of_this_process
    assert issubclass(Flaky, MemoryFileSystem)
    assert not Store("s3://a/b").of_this_process
