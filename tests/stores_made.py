"""File systems for fsspec that fail as real ones do."""

import random
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class _Own(MemoryFileSystem):
    """Memory under another scheme."""

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        found: str = MemoryFileSystem._strip_protocol(str(path).removeprefix(f"{cls.protocol}://"))
        return found


class Flaky(_Own):
    """It fails at some `share` of all requests, half of them after the work is done; `late`: the
    next so many puts come through and fail."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    dice, share, late = random.Random(0), 0.0, 0

    def _fail(self) -> None:
        if Flaky.dice.random() < Flaky.share / 2:
            raise OSError("the network is gone")

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        self._fail()
        super().pipe_file(path, value, mode, **kwargs)
        if Flaky.late > 0:
            Flaky.late -= 1
            raise OSError("the network is gone")
        self._fail()

    def cat_file(self, path: str, *args: Any, **kwargs: Any) -> bytes:
        self._fail()
        found: bytes = super().cat_file(path, *args, **kwargs)
        self._fail()
        return found

    def get_file(self, rpath: str, lpath: str, **kwargs: Any) -> None:
        self._fail()
        super().get_file(rpath, lpath, **kwargs)
        self._fail()

    def find(self, path: str, **kwargs: Any) -> Any:
        self._fail()
        self._fail()
        return super().find(path, **kwargs)

    def rm_file(self, path: str) -> None:
        self._fail()
        super().rm_file(path)
        self._fail()


class Forbidden(_Own):
    """A store that lets nobody write."""

    protocol = "forbidden"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        raise PermissionError("not yours")


for kind in (Flaky, Forbidden):
    fsspec.register_implementation(kind.protocol, kind, clobber=True)
