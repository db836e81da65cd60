"""One row of a source, not parsed yet."""

import hashlib
from dataclasses import dataclass
from typing import Any

from eaft_probe.data.readers import (
    parse_json,
)
from eaft_probe.errors import RowError


@dataclass(frozen=True, slots=True)
class Record:
    """One row of the data, not yet understood."""

    row: int  # from 0, over all files
    file: str
    line: int | None  # from 1, where the file has lines
    value: Any  # bytes of one JSON line, or the parsed row

    def parse(self) -> dict[str, Any]:
        """The row as a dictionary. Raises `RowError` where it is none."""
        value = parse_json(self.value) if isinstance(self.value, bytes) else self.value
        if isinstance(value, RowError):
            raise value
        if not isinstance(value, dict):
            raise RowError(f"expected a JSON object, found {type(value).__name__}")
        return value

    @property
    def size(self) -> int:
        """Bytes of a JSON line; for parsed rows the characters of their values."""
        if isinstance(self.value, bytes):
            return len(self.value)
        return sum(len(str(v)) for v in self.value.values()) if isinstance(self.value, dict) else 0


def file_fingerprint(file: Any) -> str:
    content = hashlib.file_digest(file, "sha256").digest()
    return hashlib.sha256(content).hexdigest()
