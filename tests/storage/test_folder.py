"""A file is created once, whoever else is at it, on every kind of file system."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from eaft_probe.errors import BadInput, ProbeError, ScanError
from eaft_probe.storage.folder import Folder, writing_into

NAME = "tokens/part-00000.parquet"


def without_links(*_: object) -> None:
    raise OSError(errno.EOPNOTSUPP, "not supported")


def of_nfs(source: Path, target: Path) -> None:
    """The link is made, and the server's answer lost."""
    LINK(source, target)
    raise OSError(errno.EIO, "input/output error")


def of_nfs_asked_twice(source: Path, target: Path) -> None:
    LINK(source, target)
    raise FileExistsError(errno.EEXIST, "file exists")


LINK = os.link


@pytest.fixture(params=[LINK, without_links, of_nfs, of_nfs_asked_twice])
def folder(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Folder:
    link: Callable[..., None] = request.param

    def linked(source: Path, target: Path) -> None:
        if link is not without_links and target.exists():
            raise FileExistsError(errno.EEXIST, "file exists")
        link(source, target)

    monkeypatch.setattr(os, "link", linked)
    return Folder(tmp_path / "s")


def test_a_file_is_created_once(folder: Folder) -> None:
    assert folder.create(NAME, b"first") is None
    assert folder.create(NAME, b"first") is None
    assert folder.create(NAME, b"other") == b"first"
    assert folder.get(NAME, 10) == b"first"
    assert folder.names() == [NAME]  # nothing aside is left


def test_of_many_at_once_one_creates_it(folder: Folder) -> None:
    data = [bytes([n]) * 100_000 for n in range(8)]
    start, found = threading.Barrier(len(data)), dict[int, bytes | None]()

    def create(n: int) -> None:
        start.wait()
        found[n] = folder.create(NAME, data[n])

    threads = [threading.Thread(target=create, args=(n,)) for n in range(len(data))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [n for n, there in found.items() if there is None]
    assert (folder.path / NAME).read_bytes() == data[winner]
    assert folder.names() == [NAME]


def test_a_claim_whose_maker_died_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", without_links)
    (tmp_path / "tokens").mkdir()
    (tmp_path / NAME).touch()
    os.utime(tmp_path / NAME, (0, 0))
    assert Folder(tmp_path).create(NAME, b"data") is None
    assert (tmp_path / NAME).read_bytes() == b"data"


def test_a_link_does_not_lead_out(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "s").mkdir()
    (tmp_path / "s/tokens").symlink_to(tmp_path / "elsewhere")
    for write in (Folder(tmp_path / "s").create, Folder(tmp_path / "s").put):
        with pytest.raises(ScanError, match="s/tokens is a link"):
            write(NAME, b"data")
    assert not any((tmp_path / "elsewhere").iterdir())


def test_only_what_is_named_is_removed(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for name in (NAME, "tokens/precious.txt", "examples/part-00000.parquet"):
        folder.put(name, b"")
    folder.remove([NAME, "examples/part-00000.parquet", "tokens/none"])
    assert folder.names() == ["tokens/precious.txt"]
    assert not (tmp_path / "examples").exists()


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="cannot write to"), writing_into(tmp_path / "file/s"):
        pass
    with (
        pytest.raises(ProbeError, match=r"No space left.*the same command again"),
        writing_into(tmp_path / "s"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not (tmp_path / "s").exists()
