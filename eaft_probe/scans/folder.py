"""The folder of a scan: what is its own there, and whose scan it holds."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from eaft_probe.columns.conflicts import RULE_FILE
from eaft_probe.errors import ScanError
from eaft_probe.scans.alignment import ALIGNMENT, FORECAST
from eaft_probe.scans.manifest import MANIFEST
from eaft_probe.scans.part_writer import (
    CACHE,
    CONFLICTS,
    GRADIENTS,
    LOCK,
    PLAN,
    PLAN_BYTES,
    REJECTED,
    TOTALS,
    UNITS,
)
from eaft_probe.scans.scan import Scan
from eaft_probe.scans.shown.hub_card import CARD, is_own_card
from eaft_probe.storage.atomic import file_inside, json_bytes, parsed_json, read_json
from eaft_probe.storage.folder import Destination, Folder

RESULTS = (
    MANIFEST,
    REJECTED,
    CONFLICTS,
    RULE_FILE,
    GRADIENTS,
    TOTALS,
    "tokens",
    "examples",
    UNITS,
    CACHE,
    ALIGNMENT,
    FORECAST,
)
EARLIER = ("running", "halved")  # of versions before 0.2, which nothing reads
SCAN_FILES = (*RESULTS, PLAN, LOCK, *EARLIER)

Plan = Mapping[str, Any]  # what a rerun must repeat, as plan.json has it


def read_plan(file: Path) -> dict[str, Any]:
    """The plan of an earlier run. Raises `ScanError`."""
    return read_json(file_inside(file.parent, file.name), PLAN_BYTES)


def earlier_plan(place: Destination) -> Plan:
    """The plan of an earlier run; empty where there is none, or a damaged one."""
    with suppress(ScanError):
        return parsed_json(place.get(PLAN, PLAN_BYTES) or b"", PLAN)
    return {}


def is_finished(place: Destination, plan: Plan, overwrite: bool) -> bool:
    """Whether the place holds this very scan, done. Raises `ScanError` where it holds anything
    else that is worth keeping."""
    stored, names = place.get(PLAN, PLAN_BYTES), [*place.names()]
    if stored is None:
        if not all(_is_leftover(place, name) for name in names):
            raise ScanError(f"{place.shown} is not empty and holds no scan; choose another --out")
        return False
    if overwrite:
        return False
    if MANIFEST in names or has_parts(names):
        _require_same(place, stored, plan)
    return MANIFEST in names


def _is_leftover(place: Destination, name: str) -> bool:
    """What a start that was cut short left behind: the plan is written before anything has content,
    so what has some in a folder is somebody else's, by whatever name."""
    if name.endswith(".part") or name.split("/")[0] in EARLIER:
        return True
    file = place.path / name if isinstance(place, Folder) else None
    return name in SCAN_FILES and not (file and file.is_file() and file.stat().st_size)


def has_parts(names: Iterable[str]) -> bool:
    """Whether any unit of a scan is finished there."""
    return any(name.startswith(("examples/part-", f"{UNITS}/examples/part-")) for name in names)


def begin(place: Destination, plan: Plan, overwrite: bool) -> None:
    """Puts the plan where there is none: what --overwrite gives up goes, and what another plan left
    that has no part. Raises `ScanError` where the place holds a scan with other settings by then.
    """
    stored, names = place.get(PLAN, PLAN_BYTES), [*place.names()]
    if overwrite or stored is None or (not has_parts(names) and _other_plan(stored, plan)):
        clear(place, names)
    if isinstance(place, Folder):
        require_no_links(place.path / n for n in ("tokens", "examples", UNITS, *EARLIER))
    data = json_bytes(plan)
    _require_same(place, place.create(PLAN, data) or data, plan)


def _other_plan(stored: bytes, plan: Plan) -> bool:
    try:
        return plan_digest(parsed_json(stored, PLAN)) != plan_digest(plan)
    except (ScanError, KeyError, TypeError, AttributeError):
        return True  # damaged


def require_plan(place: Destination, plan: Plan) -> None:
    """Raises `ScanError` where another run has replaced the scan by now."""
    stored = place.get(PLAN, PLAN_BYTES)
    if stored is None:
        raise ScanError(f"another run has removed the scan from {place.shown}")
    _require_same(place, stored, plan)


def require_no_links(folders: Iterable[Path]) -> None:
    """What is written into a link to a folder lands in somebody else's."""
    for folder in folders:
        if folder.is_symlink():
            raise ScanError(
                f"{folder} is a link, where a folder of its own should be; "
                f"remove it, or choose another --out"
            )


def clear(place: Destination, names: Iterable[str]) -> None:
    """Only the files of a scan; the manifest first, so that no half of one looks complete, and the
    plan last."""
    rest = [n for n in names if n.split("/")[0] in (*RESULTS, *EARLIER) and n != MANIFEST]
    rest += [CARD] if is_own_card(place) else []
    for some in ([MANIFEST], rest, [PLAN]):
        place.remove(some)


def plan_digest(plan: Plan) -> str:
    """What every part carries, so that a run of another plan cannot mix in. The data count, not
    the path that they have."""
    data = {n: v for n, v in plan["data"].items() if n not in ("source", "files")}
    text = json.dumps({**plan, "data": data}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _require_same(place: Destination, stored: bytes, plan: Plan) -> None:
    try:
        theirs = parsed_json(stored, f"{place.shown}/{PLAN}")
    except ScanError as error:
        raise ScanError(f"{error}; --overwrite starts a new scan") from error
    require_same(theirs, plan, f"{place.shown} holds a scan")


def require_same(stored: Plan, plan: Plan, what: str) -> None:
    """Raises `ScanError` where a stored plan has other settings than the one asked for."""
    differing = [
        f"{name} {_short(was)} there, {_short(now)} now"
        for name, was, now in _differences(stored, json.loads(json.dumps(plan)))
        # The same data by another path, or in a plan that says less of them.
        if not name.startswith(("data.source", "data.files", "opened"))
    ]
    if differing:
        raise ScanError(
            f"{what} with other settings ({'; '.join(differing)}); choose another "
            f"--out or replace it with --overwrite"
        )


def _differences(a: object, b: object, name: str = "") -> Iterator[tuple[str, object, object]]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted({*a, *b}):
            yield from _differences(a.get(key), b.get(key), f"{name}.{key}" if name else key)
    elif a != b:
        yield name.removeprefix("settings."), a, b


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:12]}…"


def stored_plan(scan: Scan) -> dict[str, Any]:
    """plan.json of a scan; what it says of the model stands nowhere else."""
    return read_plan(scan.path / PLAN) if (scan.path / PLAN).exists() else {}
