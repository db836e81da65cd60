"""Where rows come from: files, folders, globs, saved or hub data sets, standard input, memory.

A source can be read again and again in the same order, holds one record at a time, and never
parses more than it must: a JSON line stays bytes until its unit is scored.
"""

import glob
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from eaft_probe.data.readers import (
    READERS,
    data_suffix,
    read_file,
    without_nulls,
)
from eaft_probe.data.record import Record, file_fingerprint
from eaft_probe.data.standard_input import Spooled
from eaft_probe.errors import BadInput, DataError, ProbeError, one_line
from eaft_probe.storage.atomic import require_utf8
from eaft_probe.storage.remote import HUB_ID, Store, local, name_of

DEMO = Path(__file__).with_name("demo.jsonl")


class Source(Protocol):
    """A data set that can be read more than once."""

    @property
    def name(self) -> str: ...

    def records(self) -> Iterator[Record]: ...

    def fingerprint(self) -> str: ...

    def files(self) -> dict[str, str]:
        """File → its fingerprint alone, where there are files."""

    def require_unchanged(self) -> None:
        """Raises `ProbeError` where a file is no longer the one that was opened, as far as its
        size, time and inode tell."""

    def reopened(self) -> "Source":
        """The same data, with nothing remembered of them."""


def require_same_content(source: Source, fingerprint: str) -> None:
    """The last look, before what was made of the data counts as finished: a file that was changed
    within a tick of the file system's clock has the size and the time that it had.

    Raises `ProbeError`."""
    source.require_unchanged()
    if source.reopened().fingerprint() != fingerprint:
        raise ProbeError(
            f"{source.name} changed while it was being read; start again with --overwrite"
        )


class Stamps:
    """Size, time and inode of files as they were when this was made."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self.then = {path: _stamp(path) for path in paths}

    def require(self) -> None:
        """Raises `ProbeError` where one of them has changed."""
        for path, then in self.then.items():
            if _stamp(path) != then:
                raise ProbeError(
                    f"{path} changed while it was being read; put the old file back "
                    f"and rerun, or start again with --overwrite"
                )


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        now = path.stat()
    except OSError:
        return None
    return now.st_size, now.st_mtime_ns, now.st_ino


@dataclass(frozen=True)
class Files:
    """Rows of one or more files, one after the other."""

    name: str
    paths: tuple[Path, ...]
    _stamps: Stamps = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_stamps", Stamps(self.paths))  # before anything is read

    def records(self) -> Iterator[Record]:
        row, names = 0, dict(zip(self.paths, self._names, strict=True))
        for path in self.paths:
            for line, value in read_file(path):
                yield Record(row, names[path], line, value)
                row += 1

    def fingerprint(self) -> str:
        """sha256 over the content of every file; names and places do not matter.

        Of several files: over the fingerprints that each has alone, which is what scans of each,
        merged, have.
        """
        together = hashlib.sha256("".join(self._alone).encode()).hexdigest()
        return self._alone[0] if len(self.paths) == 1 else together

    def files(self) -> dict[str, str]:
        return dict(zip(self._names, self._alone, strict=True))

    @cached_property
    def _names(self) -> list[str]:
        """The paths from the folder that holds them all: parts and lists of rejected rows are
        passed on, and where the data lay on this machine is nobody's business."""
        if self.name == "-":
            return ["-"]
        whole = [path.absolute() for path in self.paths]
        folder = os.path.commonpath([path.parent for path in whole])
        return [path.relative_to(folder).as_posix() for path in whole]

    @cached_property
    def _alone(self) -> list[str]:
        found = []
        for path in self.paths:
            with path.open("rb") as file:
                found.append(file_fingerprint(file))
        return found

    def require_unchanged(self) -> None:
        self._stamps.require()

    def reopened(self) -> "Files":
        return Files(self.name, self.paths)


@dataclass(frozen=True)
class Rows:
    """Rows already in memory or memory-mapped: a list of dictionaries or a `datasets.Dataset`."""

    name: str
    rows: Sequence[Any]
    _stamps: Stamps = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        mapped = getattr(self.rows, "cache_files", ())  # the files that a data set lies in
        object.__setattr__(self, "_stamps", Stamps(Path(f["filename"]) for f in mapped))

    def records(self) -> Iterator[Record]:
        of_arrow = hasattr(self.rows, "_fingerprint")  # a `datasets.Dataset`
        for row, value in enumerate(self.rows):
            yield Record(row, name_of(self.name), None, without_nulls(value) if of_arrow else value)

    def fingerprint(self) -> str:
        known = getattr(self.rows, "_fingerprint", None)
        if known is not None:
            return str(known)
        digest = hashlib.sha256()
        for value in self.rows:
            digest.update(json.dumps(value, default=str, sort_keys=True).encode() + b"\n")
        return digest.hexdigest()

    def files(self) -> dict[str, str]:
        return {}

    def require_unchanged(self) -> None:
        self._stamps.require()

    def reopened(self) -> "Rows":
        return self


def open_source(
    data: Any,
    *,
    config_name: str | None = None,
    split: str = "train",
    revision: str | None = None,
) -> Source:
    """Finds the data that `data` names.

    `data` is None (the bundled demo), a path, a folder, a glob, a hub id, "-" for JSON lines on
    standard input, a list of dictionaries or a `datasets.Dataset`. Raises `DataError`.
    """
    if data is None:
        return Files("demo", (DEMO,))
    if not isinstance(data, str | Path):
        return Rows("rows", data)
    name = str(data)
    require_utf8(name)
    if name == "-":
        if sys.stdin is None:
            raise DataError("standard input is closed, and `-` reads from it")
        return Spooled.of("-", sys.stdin.buffer)
    if not name.strip():  # Path("") is the folder that one happens to stand in
        raise DataError("DATA is an empty name; `.` is this folder")
    try:
        path = Path(name).expanduser()
        path.stat()
    except FileNotFoundError:
        pass  # a hub id or a pattern
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, ~nobody
        raise DataError(f"cannot read {name[:60]}: {one_line(error)}") from error
    if path.is_dir() and ((path / "state.json").exists() or (path / "dataset_dict.json").exists()):
        return Rows(name, _from_disk(path, split))
    if path.is_dir():
        return Files(name, _readable(path.rglob("*")) or _empty(name))
    if path.exists():
        if not path.is_file():  # it is read twice: to plan, and to score
            raise DataError(f"{name} is no plain file; `-` reads JSON lines from standard input")
        if data_suffix(path) not in READERS:
            raise DataError(f"{name}: unknown file type; expected one of {', '.join(READERS)}")
        return Files(name, (path,))
    if any(c in name for c in "*?["):
        found = _readable(Path(p) for p in glob.glob(name, recursive=True))
        return Files(name, found or _empty(name))
    if HUB_ID.fullmatch(name) and data_suffix(path) not in READERS and not path.parent.exists():
        return Rows(name, _from_hub(name, config_name, split, revision))
    raise DataError(f"no such file or folder: {name}")


def require_outside(out: str | Path, data: Any, flag: str = "--out") -> None:
    """Raises `BadInput` where the next run would read `out` as data, or it is the data."""
    if not isinstance(data, str | Path) or str(data) == "-" or Store.of(out):
        return
    place, given = local(out).resolve(), os.path.expanduser(data)
    if os.path.exists(given):
        inside = place.is_relative_to(Path(given).resolve())
    else:
        files = (Path(p) for p in glob.iglob(given, recursive=True))
        inside = any(p.is_file() and p.resolve().is_relative_to(place) for p in files)
    if inside:
        raise BadInput(
            f"{flag} {out} lies in the data, {data}: the next run would read it as "
            f"data; choose another place"
        )


def _readable(paths: Iterator[Path]) -> tuple[Path, ...]:
    found = tuple(sorted(p for p in paths if data_suffix(p) in READERS and p.is_file()))
    for path in found:
        require_utf8(path)
    return found


def _empty(name: str) -> tuple[Path, ...]:
    raise DataError(f"{name}: no data files there; looked for {', '.join(READERS)}")


def _from_disk(path: Path, split: str) -> Sequence[Any]:
    import datasets

    loaded = datasets.load_from_disk(str(path))
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded  # type: ignore[no-any-return]
    if split not in loaded:
        raise DataError(f"{path} has no split {split!r}; --split takes {', '.join(loaded)}")
    return loaded[split]  # type: ignore[no-any-return]


def _from_hub(name: str, config: str | None, split: str, revision: str | None) -> Sequence[Any]:
    import datasets

    try:
        return datasets.load_dataset(name, config, split=split, revision=revision)  # type: ignore[no-any-return]
    except Exception as error:  # the hub client raises some twenty kinds
        raise DataError(
            f"{name} is no file here, and the hub did not give it as a data set: {one_line(error)}"
        ) from error


# --- one reader a file type: open binary file → (line or None, bytes | row | RowError) ---
