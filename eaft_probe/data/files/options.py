"""What files do not say of themselves, and the user may."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from eaft_probe.settings.common import TAB


@dataclass(frozen=True, slots=True)
class FileOptions:
    """Which files of a folder are read, which part of a file, and how."""

    config_name: str | None = None  # of a folder whose README lists configurations
    split: str = "train"  # of a folder whose files name their splits, or of an object of splits
    delimiter: str | None = None  # of CSV; None: as the first rows tell
    encoding: str | None = None  # of text without a byte order mark; None: UTF-8

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "FileOptions":
        """Those among settings, or among the `config` of a manifest."""
        given = {f.name: settings[f.name] for f in fields(cls) if settings.get(f.name) is not None}
        if given.get("delimiter") in TAB:
            given["delimiter"] = "\t"
        return cls(**given)
