"""Which files of a folder are its data: not what is put beside them."""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

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


def folder_files(folder: Path, options: FileOptions) -> tuple[list[DataFile], Notes]:
    """The data files of a folder, in the order of their names, and which files were left out.

    Raises `DataError` where the folder has splits or configurations, and not the one asked for.
    """
    notes = Notes()
    paths = _configured(folder, options, notes)
    if paths is None:
        found = sorted(folder.rglob("*"))
        _note_others(folder, [p for p in found if not is_data(p)], notes)
        paths = _without(folder, list(filter(is_data, found)), is_hidden, "hidden", notes)
        paths = _without(folder, paths, lambda p: p.name.lower() in DESCRIPTIONS, "no rows", notes)
        paths = _of_split(folder, paths, options.split, notes)
    if other := next((path for path in paths if not is_data(path)), None):
        raise DataError(f"{folder}: its README.md lists {other.name}; expected one of {KNOWN}")
    files = list[DataFile]()
    for path in paths:
        try:
            files.append(DataFile.at(path, options))
        except DataError as error:  # a .zip of something else
            notes.append(f"left out: {error}")
    return files, notes


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


def _note_others(folder: Path, others: Iterable[Path], notes: Notes) -> None:
    """Notes what is no data, but might be meant as such. A README is never."""
    names = ((path, path.relative_to(folder)) for path in others)
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


def _of_split(folder: Path, paths: list[Path], split: str, notes: Notes) -> list[Path]:
    """The files of a split. Where none names the first, `train`, those that name no split."""
    splits = {split_of(path.relative_to(folder)) for path in paths}
    if splits <= {None}:
        return paths
    wanted = SPLITS.get(split, split)
    chosen = None if wanted == "train" and wanted not in splits else wanted
    if chosen not in splits:
        raise _no_split(folder, split, sorted(filter(None, splits)))
    why = f"not of split {split!r}; see --split"
    return _without(folder, paths, lambda p: split_of(p) != chosen, why, notes)


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
