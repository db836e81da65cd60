"""The data of a finished scan, read again: the same rows under the numbers that the scan has."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eaft_probe.data.files.options import FileOptions
from eaft_probe.data.record import Record, Source
from eaft_probe.data.sources import open_source, require_same_content
from eaft_probe.data.units import Selection
from eaft_probe.errors import BadInput, DataError
from eaft_probe.scans.folder import stored_plan
from eaft_probe.scans.scan import Scan
from eaft_probe.verbs.merge.inputs import SOURCE, is_merged, sources

IN_MEMORY, STANDARD_INPUT, DEMO = "rows", "-", "demo"  # what sources without a path are called


@dataclass(frozen=True)
class ScannedSource:
    """A data set that the scan was made from; a merged scan has several."""

    source: Source
    fingerprint: str
    selection: Selection
    first: int  # what its row 0 is called in the scan

    def records(self) -> Iterator[Record]:
        rows = self.selection.rows(self.source)
        for record in self.selection.records(self.source, rows):
            yield record._replace(row=record.row + self.first)


def scanned_sources(scan: Scan, data: Any) -> list[ScannedSource]:
    """`data`: where it lies now, or several such places; None is where it lay.

    Raises `BadInput` where it is not there, or not what was scanned.
    """
    given = {s.fingerprint(): s for s in (_opened(scan, d) for d in _several(data))}
    found = []
    for facts in sources(scan):
        source = given.get(facts["fingerprint"]) or _where_it_lay(scan, facts, bool(given))
        selection = Selection(**(facts["selection"] or {}))
        found.append(ScannedSource(source, facts["fingerprint"], selection, facts["first"]))
    return found


def known_schema(found: Sequence[ScannedSource]) -> pa.Schema | None:
    """The types of the data's columns, where all of the data say them."""
    schemas = [_schema(one.source) for one in found]
    if not all(schemas):
        return None
    return pa.unify_schemas(schemas, promote_options="permissive").remove_metadata()


def _schema(source: Source) -> pa.Schema | None:
    features = getattr(getattr(source, "rows", None), "features", None)  # of a data set in Arrow
    if features is not None:
        return features.arrow_schema
    paths: Sequence[Path] = getattr(source, "paths", ())
    if not paths or any(path.suffix.lower() != ".parquet" for path in paths):
        return None
    schemas = [pq.read_schema(path) for path in paths]
    return pa.unify_schemas(schemas, promote_options="permissive")


def require_unchanged(found: Sequence[ScannedSource]) -> None:
    """Raises `ProbeError` where the data changed while it was read."""
    for one in found:
        require_same_content(one.source, one.fingerprint)


def _several(data: Any) -> list[Any]:
    """Places, or one that may itself be a list of rows."""
    if data is None:
        return []
    places = isinstance(data, list | tuple) and not any(isinstance(d, Mapping) for d in data)
    return list(data) if places else [data]


def _opened(scan: Scan, place: Any) -> Source:
    config = scan.manifest["config"]
    revision = config.get("data_revision") or config.get("revision")
    return open_source(place, FileOptions.of(config), revision)


def _where_it_lay(scan: Scan, facts: Mapping[str, Any], others: bool) -> Source:
    name, place = facts[SOURCE], _places(scan).get(facts["fingerprint"])
    known = place is not None and place not in (IN_MEMORY, STANDARD_INPUT)
    place = None if place == DEMO and not Path(DEMO).exists() else place
    try:
        source = _opened(scan, place) if known else None
    except DataError:
        source = None
    if source is None:
        seen = "is not among the data that were given" if others else "cannot be found"
        raise BadInput(f"{scan.place} was made from {name}, which {seen}; give it as --data")
    if source.fingerprint() != facts["fingerprint"]:
        raise BadInput(
            f"{place} has changed since {scan.place} was made from it; give the old data as "
            f"--data, or scan again"
        )
    return source


def _places(scan: Scan) -> Mapping[str, str | None]:
    """Fingerprint → the path or id that the scan's command gave."""
    plan = stored_plan(scan)
    if is_merged(scan):
        return plan.get("opened", {}).get("data") or {}
    data = plan.get("data") or {}
    return {str(data.get("fingerprint")): data.get("source")}
