"""How every file is written: aside, and moved into its place when it is whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to. It takes the place of `path` in one step, or goes.

    A reader sees the old file or the whole new one. Raises `OSError`.
    """
    aside = path.parent / f".{path.name}.part"
    try:
        yield aside
        os.replace(aside, path)
    finally:
        with suppress(OSError):  # a name too long to be there
            aside.unlink(missing_ok=True)
