"""Which files of a folder are its data: not what is put beside them."""

import glob
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from eaft_probe.data.files.options import FileOptions
from eaft_probe.data.files.readers import KNOWN, DataFile, is_data
from eaft_probe.data.files.unpacking import is_hidden
from eaft_probe.errors import DataError, one_line

DESCRIPTIONS = {
    *("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"),
    *("readme.txt", "license.txt"),
}
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
SHOWN = 3  # names in a note
_FRONT = re.compile(r"---\s*\n(.*?)\n---\s*$", re.DOTALL | re.MULTILINE)
_SHARD = re.compile(r"(\w+(?:\.\w+)*)-\d{5}-of-\d{5}")
_SPLIT = re.compile(rf"(?<![a-z])({'|'.join(sorted(SPLITS, key=len, reverse=True))})(?![a-z])")


Notes = list[str]


class Found(NamedTuple):
    """Data files in the order of their names."""

    files: list[DataFile]
    notes: Notes  # which others were left out
    obeyed: Collection[str] = ()  # the settings that choose among all of them


def folder_files(folder: Path, options: FileOptions) -> Found:
    """The data files of a folder.

    Raises `DataError` where the folder has splits or configurations, and not the one asked for.
    """
    notes, obeyed = Notes(), {"config_name", "split"}
    paths = _configured(folder, options, notes)
    if paths is None:
        found, obeyed = sorted(folder.rglob("*")), set()
        _note_others(folder, found, notes)
        paths = _without(folder, list(filter(is_data, found)), is_hidden, "hidden", notes)
        paths = _without(folder, paths, _only_describes, "no rows", notes)
        if splits := set(filter(None, map(split_of, _names(folder, paths)))):
            paths, obeyed = _of_split(folder, paths, splits, options.split, notes), {"split"}
    if other := next((path for path in paths if not is_data(path)), None):
        raise DataError(f"{folder}: its README.md lists {other.name}; expected one of {KNOWN}")
    return Found(_opened(paths, options, notes), notes, obeyed)


def matching_files(pattern: str, options: FileOptions) -> Found:
    """The data files that a glob matches, but none of a folder that it matches."""
    found, notes = sorted(map(Path, glob.glob(pattern, recursive=True))), Notes()
    folder = Path(os.path.commonpath([path.parent for path in found])) if found else Path()
    entered = {parent for path in found for parent in path.parents}
    folders = [path for path in found if path.is_dir() and path not in entered]
    _without(folder, folders, lambda _: True, "a folder", notes)
    _note_others(folder, [path for path in found if path not in folders], notes)
    paths = _without(folder, list(filter(is_data, found)), _only_describes, "no rows", notes)
    return Found(_opened(paths, options, notes), notes)


def _only_describes(path: Path) -> bool:
    return path.name.lower() in DESCRIPTIONS


def _opened(paths: Iterable[Path], options: FileOptions, notes: Notes) -> list[DataFile]:
    files = list[DataFile]()
    for path in paths:
        try:
            files.append(DataFile.at(path, options))
        except DataError as error:  # a .zip of something else
            notes.append(f"left out: {error}")
    return files


def _without(
    folder: Path,
    paths: Sequence[Path],
    is_left_out: Callable[[Path], bool],
    why: str,
    notes: Notes,
) -> list[Path]:
    """The paths that stay; the others are noted."""
    names = {path: path.relative_to(folder) for path in paths}
    left_out = [name.as_posix() for name in names.values() if is_left_out(name)]
    if left_out:
        more = f" and {len(left_out) - SHOWN:,} more" if len(left_out) > SHOWN else ""
        notes.append(f"{folder}: left out {', '.join(left_out[:SHOWN])}{more} ({why})")
    return [path for path, name in names.items() if not is_left_out(name)]


def _note_others(folder: Path, found: Iterable[Path], notes: Notes) -> None:
    """Notes what is no data, but might be meant as such. A README is never."""
    names = ((path, path.relative_to(folder)) for path in found if not is_data(path))
    seen = [path for path, name in names if not is_hidden(name) and name.name != "README.md"]
    rest = _without(folder, seen, lambda n: (folder / n).is_file(), "unknown type", notes)
    _without(folder, rest, lambda n: (folder / n).is_symlink(), "a link", notes)


# --- splits ---


def split_of(name: Path) -> str | None:
    """The split that the name of a file, else of a folder above it, says.

    >>> split_of(Path("data/train_sft-00000-of-00003.parquet")), split_of(Path("dev/a.jsonl"))
    ('train_sft', 'validation')
    """
    if shard := _SHARD.match(name.name):
        return SPLITS.get(shard[1], shard[1])
    for part in reversed(name.parts):
        if found := _SPLIT.search(part.lower()):
            return SPLITS[found[1]]
    return None


def _of_split(
    folder: Path, paths: list[Path], splits: Collection[str], split: str, notes: Notes
) -> list[Path]:
    """The files of one of the splits. Where none is the first, `train`, those that name none."""
    wanted = SPLITS.get(split, split)
    chosen = None if wanted == "train" and wanted not in splits else wanted
    if chosen not in map(split_of, _names(folder, paths)):
        raise _no_split(folder, split, sorted(splits))
    why = f"not of split {split!r}; see --split"
    return _without(folder, paths, lambda p: split_of(p) != chosen, why, notes)


def _names(folder: Path, paths: Iterable[Path]) -> Iterator[Path]:
    return (path.relative_to(folder) for path in paths)


def _no_split(folder: Path, split: str, available: Iterable[str]) -> DataError:
    names = ", ".join(available)
    return DataError(f"{folder} has no split {split!r}; available: {names} (--split)")


def _configured(folder: Path, options: FileOptions, notes: Notes) -> list[Path] | None:
    """The files that a data set of the hub lists in its README, where it does."""
    if not _lists_files(folder / "README.md"):
        return None
    import datasets

    try:
        names = datasets.get_dataset_config_names(str(folder))
        name = options.config_name or (names[0] if len(names) == 1 else "default")
        if name not in names:
            raise DataError(
                f"{folder} has no configuration {name!r}; available: {', '.join(names)} "
                f"(--config-name)"
            )
        splits = datasets.load_dataset_builder(str(folder), name).config.data_files
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: its README.md lists no files: {one_line(error)}") from error
    if options.split not in splits:
        raise _no_split(folder, options.split, splits)
    if others := [
        *(f"split {s!r}" for s in splits if s != options.split),
        *(f"configuration {n!r}" for n in names if n != name),
    ]:
        notes.append(f"{folder}: left out {', '.join(others)}, by its README.md")
    return [Path(path) for path in splits[options.split]]


def _lists_files(readme: Path) -> bool:
    try:
        front = _FRONT.match(readme.read_text())
        return front is not None and "configs" in yaml.safe_load(front[1])
    except (OSError, ValueError, TypeError, yaml.YAMLError):
        return False
