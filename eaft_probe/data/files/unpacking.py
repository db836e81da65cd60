"""A file as the bytes of its rows: out of its archive, and in UTF-8."""

import codecs
import io
import lzma
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from eaft_probe.errors import DataError, one_line

BUFFER = 1 << 18  # bytes; what can be seen of a file before it is read
# All frames of an archive: `zstandard`, and so fsspec, end after the first. A damaged one raises.
COMPRESSIONS: dict[str, Callable[[Any], Any]] = {
    ".gz": partial(pa.CompressedInputStream, compression="gzip"),
    ".zst": partial(pa.CompressedInputStream, compression="zstd"),
    ".bz2": partial(pa.CompressedInputStream, compression="bz2"),
    ".xz": lambda raw: _Xz(raw),
}
BYTE_ORDER_MARKS = {  # longer ones first: that of UTF-32 begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class BrokenFile(Exception):
    """A file that cannot be followed to its end; its message becomes that of a `DataError`."""


def data_suffix(name: str | Path) -> str:
    """The file type, compression taken off: data.JSONL.gz → .jsonl"""
    path = Path(str(name).lower())
    return path.with_suffix("").suffix if path.suffix in COMPRESSIONS else path.suffix


@contextmanager
def unpacked(path: Path, member: str | None) -> Iterator[io.BufferedReader]:
    """The content of a file, or of the member of that name of a .zip."""
    if member is None:
        with path.open("rb", buffering=0) as raw:
            yield _decompressed(io.BufferedReader(raw, BUFFER), path.suffix)
        return
    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        yield _decompressed(io.BufferedReader(file, BUFFER), Path(member).suffix)  # type: ignore[arg-type]


def _decompressed(raw: io.BufferedReader, suffix: str) -> io.BufferedReader:
    decompress = COMPRESSIONS.get(suffix.lower())
    return raw if decompress is None else io.BufferedReader(decompress(raw), BUFFER)


class _Xz(io.RawIOBase):
    """Every stream of a .xz: `lzma.open` takes a damaged one behind the first for its end."""

    def __init__(self, raw: io.BufferedReader) -> None:
        self._blocks, self._rest = _streams(raw), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = next(filter(None, self._blocks), b"")
        part, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


def _streams(raw: io.BufferedReader) -> Iterator[bytes]:
    packed = raw.read(BUFFER)
    while packed:
        stream = lzma.LZMADecompressor()
        while not stream.eof:
            packed = packed or (raw.read(BUFFER) if stream.needs_input else b"")
            if not packed and stream.needs_input:
                raise EOFError("it ends in the middle of a stream")
            yield stream.decompress(packed, BUFFER)
            packed = b""
        packed = stream.unused_data.lstrip(b"\0")  # zeros may stand between streams
        while not packed and (more := raw.read(BUFFER)):
            packed = more.lstrip(b"\0")


def zip_member(path: Path, suffixes: tuple[str, ...]) -> str:
    """The one member that is data. Raises `DataError` where there is none, or more than one."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if data_suffix(m.filename) in suffixes]
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise DataError(f"cannot read {path}: {one_line(error)}") from error
    members = [m for m in members if not is_hidden(Path(m.filename))]
    if len(members) != 1:
        names = ", ".join(m.filename for m in members[:5])
        raise DataError(
            f"{path} should hold one data file, found {len(members)}"
            + (f" ({names}); unpack it and name the folder" if members else "")
        )
    if members[0].flag_bits & 1:
        raise DataError(f"{path} is encrypted; unpack it first")
    return members[0].filename


def is_hidden(path: Path) -> bool:
    """Whether a file is none of the user's: hidden, or what macOS puts beside those it packs."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def seekable(file: IO[bytes]) -> IO[bytes]:
    """Tables are read from their end, which a compressed stream cannot give."""
    if file.seekable():
        return file
    copy = tempfile.TemporaryFile()  # noqa: SIM115  closed with the reader that holds it
    shutil.copyfileobj(file, copy)
    copy.seek(0)
    return copy


def as_utf8(file: io.BufferedReader, encoding: str | None) -> io.BufferedReader:
    """The text of a file in UTF-8, whose byte order mark wins over `encoding`."""
    head = file.peek(BUFFER)[:1000]
    mark = next((mark for mark in BYTE_ORDER_MARKS if head.startswith(mark)), b"")
    encoding = BYTE_ORDER_MARKS.get(mark, encoding or "utf-8")
    if codecs.lookup(encoding).name != "utf-8":
        return io.BufferedReader(_Recoded(file, encoding), BUFFER)
    if b"\0" in head:
        raise BrokenFile(
            "it holds zero bytes, as no text in UTF-8 does; "
            "if it is a text file in UTF-16, give --encoding utf-16"
        )
    file.read(len(mark))
    return file


class _Recoded(io.RawIOBase):
    """A text file of another encoding, in UTF-8. A byte that cannot be decoded stays as it is,
    which rejects its own row and no other."""

    def __init__(self, file: io.BufferedReader, encoding: str) -> None:
        self._text = io.TextIOWrapper(file, encoding, errors="surrogateescape", newline="")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        text = self._text.read(len(buffer) // 4)  # a character takes four bytes at most
        data = text.encode("utf-8", "surrogateescape")
        buffer[: len(data)] = data
        return len(data)
