"""Where rows come from: files, folders, globs, saved or hub data sets, standard input, memory.

A source can be read again and again in the same order, holds one record at a time, and never
parses more than it must: a JSON line stays bytes until its unit is scored.
"""

import glob
import hashlib
import json
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from eaft_probe.data.files.folders import folder_files, matching_files
from eaft_probe.data.files.options import FileOptions
from eaft_probe.data.files.readers import KNOWN, SUFFIXES, DataFile, is_data
from eaft_probe.data.files.tables import without_nulls
from eaft_probe.data.files.unpacking import data_suffix
from eaft_probe.data.in_memory import rows_in_memory
from eaft_probe.data.record import Record, path_fingerprint
from eaft_probe.data.record import Source as Source
from eaft_probe.data.standard_input import StandardInput
from eaft_probe.errors import BadInput, DataError, ProbeError, one_line
from eaft_probe.storage.atomic import require_utf8
from eaft_probe.storage.remote import HUB_ID, Store, local, name_of

DEMO = Path(__file__).with_name("demo.jsonl")
DEFAULTS = FileOptions()
OF_THE_HUB = ("split", "config_name", "data_revision")
SPREADSHEETS = (".xlsx", ".xls", ".ods", ".numbers")


def require_same_content(source: Source, fingerprint: str) -> None:
    """The last look, before what was made of the data counts as finished: a file that was changed
    within a tick of the file system's clock has the size and the time that it had.

    Raises `ProbeError`."""
    source.require_unchanged()
    if source.reopened().fingerprint() != fingerprint:
        raise ProbeError(
            f"{source.name} changed while it was being read; start again with --overwrite"
        )


class Files(Source):
    """Rows of one or more files, one after the other."""

    def __init__(
        self,
        name: str,
        files: Sequence[DataFile],
        notes: Sequence[str] = (),
        obeyed: Collection[str] = (),
    ) -> None:
        self.paths = [Path(file.name) for file in files]
        super().__init__(name, self.paths)
        self._files, self._notes, self._obeyed = files, notes, obeyed

    def records(self) -> Iterator[Record]:
        row = 0
        for file, name in zip(self._files, self._names, strict=True):
            for line, value in file.rows():
                yield Record(row, name, line, value)
                row += 1

    def notes(self) -> Sequence[str]:
        return [*self._notes, *filter(None, (file.note() for file in self._files))]

    def obeys(self, setting: str) -> bool:
        of_files = setting == "split" and any(file.split for file in self._files)
        return of_files or setting in self._obeyed

    def fingerprint(self) -> str:
        """sha256 over the content of every file; names and folders do not matter.

        Of several files: over the fingerprints that each has alone, which is what scans of each,
        merged, have.
        """
        if len(self.paths) == 1:
            return self._fingerprints[0]
        return hashlib.sha256("".join(self._fingerprints).encode()).hexdigest()

    def files(self) -> dict[str, str]:
        return dict(zip(self._names, self._fingerprints, strict=True))

    @cached_property
    def _names(self) -> list[str]:
        """The paths from the folder that holds them all: parts and lists of rejected rows are
        passed on, and where the data lay on this machine is nobody's business."""
        whole = [path.absolute() for path in self.paths]
        folder = os.path.commonpath([path.parent for path in whole])
        return [path.relative_to(folder).as_posix() for path in whole]

    @cached_property
    def _fingerprints(self) -> list[str]:
        pairs = zip(self._files, self.paths, strict=True)
        return [file.fingerprint(path_fingerprint(path)) for file, path in pairs]

    def reopened(self) -> "Files":
        return Files(self.name, self._files, self._notes, self._obeyed)


class Rows(Source):
    """Rows already in memory or memory-mapped: a list of dictionaries or a `datasets.Dataset`."""

    def __init__(self, name: str, rows: Iterable[object], obeyed: Collection[str] = ()) -> None:
        super().__init__(name, (Path(f["filename"]) for f in getattr(rows, "cache_files", ())))
        self.rows, self._obeyed = rows, obeyed
        self._fingerprint: str | None = getattr(rows, "_fingerprint", None)  # of `datasets`

    def obeys(self, setting: str) -> bool:
        return setting in self._obeyed

    def records(self) -> Iterator[Record]:
        for row, value in enumerate(self.rows):
            shown = value if self._fingerprint is None else without_nulls(value)
            yield Record(row, name_of(self.name), None, shown)

    def fingerprint(self) -> str:
        if self._fingerprint is not None:  # a saved data set keeps it when a shard is replaced
            prints = [str(self._fingerprint), *map(path_fingerprint, self._stamps)]
            return hashlib.sha256("".join(prints).encode()).hexdigest()
        digest = hashlib.sha256()
        for value in self.rows:
            digest.update(json.dumps(value, default=str, sort_keys=True).encode() + b"\n")
        return digest.hexdigest()


def open_source(data: Any, options: FileOptions = DEFAULTS, revision: str | None = None) -> Source:
    """Finds the data that `data` names.

    `data` is None (the bundled demo), a path, a folder, a glob, a hub id, "-" for JSON on
    standard input, or rows as `rows_in_memory` takes them. Raises `DataError`.
    """
    if data is None:
        return Files("demo", (DataFile.at(DEMO, DEFAULTS),))
    if not isinstance(data, str | Path):
        splits = {"split"} if isinstance(data, Mapping) else ()
        return Rows("rows", rows_in_memory(data, options.split), splits)
    name = str(data)
    require_utf8(name)
    if name == "-":
        if sys.stdin is None:
            raise DataError("standard input is closed, but DATA is `-`, which reads from it")
        return StandardInput(sys.stdin.buffer, options)
    path = _path(name)
    if path.is_dir() and ((path / "state.json").exists() or (path / "dataset_dict.json").exists()):
        splits = {"split"} if (path / "dataset_dict.json").exists() else ()
        return Rows(name, _from_disk(path, options.split), splits)
    if path.is_dir():
        return _required(Files(name, *folder_files(path, options)))
    if path.exists():
        return _required(Files(name, (_data_file(name, path, options),)))
    if any(c in name for c in "*?["):
        return _required(Files(name, *matching_files(str(path), options)))
    if HUB_ID.fullmatch(name) and data_suffix(path) not in SUFFIXES and not path.parent.exists():
        return Rows(name, _from_hub(name, options, revision), OF_THE_HUB)
    raise DataError(f"no such file or folder: {name}")


def _required(files: Files) -> Files:
    """Raises `DataError` where there are none, or a name that cannot be written down."""
    if not files.paths:
        left_out = "".join(f"; {note}" for note in files.notes())
        raise DataError(f"{files.name}: no data files found; looked for {KNOWN}{left_out}")
    for path in files.paths:
        require_utf8(path)
    return files


def _path(name: str) -> Path:
    """The path of that name, whether anything is there or not."""
    if not name.strip():  # Path("") is the folder that one happens to stand in
        raise DataError("the name of the data is empty; write `.` for the current folder")
    try:
        path = Path(name).expanduser()
        with suppress(FileNotFoundError):  # a hub id or a pattern
            path.stat()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, ~nobody
        raise DataError(f"cannot read {name[:60]}: {one_line(error)}") from error
    return path


def _data_file(name: str, path: Path, options: FileOptions) -> DataFile:
    if not path.is_file():  # it is read twice: to plan, and to score
        raise DataError(f"{name} is not a regular file; use `-` to read from standard input")
    if not is_data(path):
        hint = "; save the sheet as CSV" if path.suffix.lower() in SPREADSHEETS else ""
        raise DataError(f"{name}: unknown file type; expected one of {KNOWN}{hint}")
    return DataFile.at(path, options)


def require_outside(out: str | Path, data: Any, flag: str = "--out") -> None:
    """Raises `BadInput` where the next run would read `out` as data, or it is the data."""
    if not isinstance(data, str | Path) or str(data) == "-" or Store.of(out):
        return
    target, name = local(out).resolve(), os.path.expanduser(data)
    if os.path.exists(name):
        inside = target.is_relative_to(Path(name).resolve())
    else:
        files = map(Path, glob.iglob(name, recursive=True))
        inside = any(p.is_file() and p.resolve().is_relative_to(target) for p in files)
    if inside:
        raise BadInput(
            f"{flag} {out} lies in the data, {data}, so the next run would read it as data; "
            f"choose another path"
        )


def _from_disk(path: Path, split: str) -> Sequence[object]:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no whole saved data set: {one_line(error)}") from error
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded  # type: ignore[no-any-return]
    if split not in loaded:
        raise DataError(f"{path} has no split {split!r}; available: {', '.join(loaded)} (--split)")
    return loaded[split]  # type: ignore[no-any-return]


def _from_hub(name: str, options: FileOptions, revision: str | None) -> Sequence[object]:
    import datasets

    try:
        return datasets.load_dataset(  # type: ignore[no-any-return]
            name, options.config_name, split=options.split, revision=revision
        )
    except Exception as error:  # the hub client raises some twenty kinds
        raise DataError(
            f"{name} is not a file, and the hub did not load it as a data set: {one_line(error)}"
        ) from error
