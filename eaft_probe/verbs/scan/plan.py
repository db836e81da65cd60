"""What a rerun must repeat, and whether a folder may be written to."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import torch

from eaft_probe.columns.conflicts import RULE_FILE, json_bytes
from eaft_probe.data.chat_template import reads_date
from eaft_probe.data.formats import RowFormat
from eaft_probe.data.render import chat_templates
from eaft_probe.data.sources import Source
from eaft_probe.data.units import UnitPlan
from eaft_probe.errors import ScanError
from eaft_probe.model.loading import load_tokenizer, own_tokenizer, resolve_device
from eaft_probe.model.resolve import Place, find_model
from eaft_probe.scans.manifest import MANIFEST, parsed_json, read_json
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
from eaft_probe.settings import ScanSettings
from eaft_probe.storage.atomic import own_file
from eaft_probe.storage.folder import Destination, Folder

# Tokens of a batch where --tokens-per-batch is auto. On 2 CPU cores 800 to 3,200 tokens a batch
# were equally fast and 8,000 slower by a tenth; a GPU wants more.
AUTO_TOKENS = {"cpu": 2048, "cuda": 16384}
RESULTS = (MANIFEST, REJECTED, CONFLICTS, RULE_FILE, GRADIENTS, TOTALS, "tokens", "examples",
           UNITS, CACHE)  # fmt: skip
EARLIER = ("running", "halved")  # of versions before 0.2, which nothing reads
SCAN_FILES = (*RESULTS, PLAN, LOCK, *EARLIER)


def make_plan(
    source: Source, row_format: RowFormat, units: UnitPlan, settings: ScanSettings
) -> dict[str, Any]:
    device = resolve_device(settings.device)
    tokenizer = load_tokenizer(
        settings.model,
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
        adapter=settings.adapter,
    )
    templates = chat_templates(tokenizer, settings.chat_template)
    return {
        "settings": settings.identity(),
        "device": device,
        # Other shards give other last digits.
        **({"processes": int(os.environ["WORLD_SIZE"])} if settings.tp else {}),
        "tokens_per_batch": batch_tokens(settings, device),
        "data": {
            "source": source.name,
            "split": settings.split,
            "fingerprint": source.fingerprint(),
            "rows": units.rows,
            "units": units.count,
            "format": row_format.name,
            **_files(source, units),
        },
        "model_identity": find_model(settings.model, settings.revision).identity(),
        "model_files": find_model(settings.model, settings.revision).small_files(),
        "adapter_identity": folder_identity(settings.adapter),
        **_adapter_files(settings.adapter),
        "reference_identity": settings.reference
        and find_model(settings.reference, settings.revision).identity(),
        "chat_template": template_hash(templates),
        **({"today": settings.today} if any(map(reads_date, templates.values())) else {}),
    }


def _files(source: Source, units: UnitPlan) -> dict[str, dict[str, str]]:
    """The fingerprints of several files, by which `merge` sees one of them in another scan."""
    alone = source.files()
    return {"files": {f: alone[f] for f in sorted(units.files)}} if len(alone) > 1 else {}


def batch_tokens(settings: ScanSettings, device: str) -> int:
    """The token budget of a batch, `auto` resolved."""
    if settings.tokens_per_batch != "auto":
        return settings.tokens_per_batch
    return auto_tokens(device)


def auto_tokens(device: str) -> int:
    return AUTO_TOKENS["cuda" if device.startswith("cuda") else "cpu"]


def folder_identity(adapter: str | None) -> str | None:
    return None if adapter is None else Place(adapter, Path(adapter)).identity()


def _adapter_files(adapter: str | None) -> dict[str, str]:
    """Of an adapter with a tokenizer of its own what identifies that."""
    own = own_tokenizer(adapter)
    return {"adapter_files": Place(own, Path(own)).small_files()} if own else {}


def template_hash(templates: Mapping[str, str]) -> str | None:
    """sha256 of the chat templates by name; of the only one, where there is one."""
    only = templates.get("default") if len(templates) == 1 else None
    text = json.dumps(only or templates, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest() if templates else None


def told_date(plan_file: Path, given: str | None = None, overwrite: bool = False) -> str:
    """The date that chat templates are told: the one `given`, that of the plan which is gone on
    with, so that two days give one scan, or this day."""
    stored: Any = None
    if not (given or overwrite):
        with suppress(ScanError):  # not there, or to be refused later
            stored = read_plan(plan_file).get("today")
    return str(given or stored or date.today().isoformat())


def threads(folder: Path, settings: ScanSettings, device: str) -> int | None:
    """CPU threads with which every batch is computed, whoever computes it; None on a GPU.

    They split a sum, or an array at a place where the vector unit does not end, so that last digits
    differ: of 13 units of GSM8K under stories260K 10 between one thread and two, by 8e-6 at most. A
    scan that goes on has the number that it began with; a new one the cores, shared by its workers,
    or on a cluster, whose machines nobody knows yet, one.
    """
    if device != "cpu" or settings.tp:
        return None
    if settings.threads is None and not settings.overwrite:
        with suppress(ScanError):
            stored = read_plan(folder / PLAN).get("threads")
            if has_parts(folder) and (stored is None or isinstance(stored, int)):
                return stored
    here = max(1, torch.get_num_threads() // (settings.workers or 1))
    return settings.threads or (here if settings.engine == "local" else 1)


def read_plan(file: Path) -> dict[str, Any]:
    """The plan of an earlier run. Raises `ScanError`."""
    return read_json(own_file(file.parent, file.name), PLAN_BYTES)


def is_finished(folder: Path, plan: Mapping[str, Any], overwrite: bool) -> bool:
    """Whether the folder holds this very scan, done. Raises `ScanError` where it holds anything
    else that is worth keeping."""
    if not (folder / PLAN).exists():
        if folder.exists() and not _only_scan_files(folder):
            raise ScanError(f"{folder} is not empty and holds no scan; choose another --out")
        return False
    if overwrite:
        return False
    place = Folder(folder)
    if (folder / MANIFEST).exists() or has_parts(folder):
        _require_same(place, place.get(PLAN, PLAN_BYTES) or b"", plan)
    return (folder / MANIFEST).exists()


def _only_scan_files(folder: Path) -> bool:
    """An empty folder, or what a start that was cut short left behind: the plan is written before
    anything has content, so what has some is somebody else's, by whatever name."""
    return folder.is_dir() and all(
        p.name.endswith(".part")
        or p.name in EARLIER
        or (p.name in SCAN_FILES and not (any(p.iterdir()) if p.is_dir() else p.stat().st_size))
        for p in folder.iterdir()
    )


def has_parts(folder: Path) -> bool:
    """Whether any unit of a scan is finished there."""
    return any(any((f / "examples").glob("part-*")) for f in (folder, folder / UNITS))


def begin(place: Destination, plan: Mapping[str, Any], overwrite: bool) -> None:
    """Puts the plan where there is none: what --overwrite gives up goes, and what another plan left
    that has no part. Raises `ScanError` where the place holds a scan with other settings by then.
    """
    stored, names = place.get(PLAN, PLAN_BYTES), list(place.names())
    begun = any("examples/" in name for name in names)
    if overwrite or stored is None or (not begun and _other_plan(stored, plan)):
        clear(place, names)
    data = json_bytes(plan)
    _require_same(place, place.create(PLAN, data) or data, plan)


def _other_plan(stored: bytes, plan: Mapping[str, Any]) -> bool:
    try:
        return plan_digest(parsed_json(stored, PLAN)) != plan_digest(plan)
    except (ScanError, KeyError, TypeError, AttributeError):
        return True  # damaged


def require_plan(place: Destination, plan: Mapping[str, Any]) -> None:
    """Raises `ScanError` where another run has replaced the scan by now."""
    stored = place.get(PLAN, PLAN_BYTES)
    if stored is None:
        raise ScanError(f"another run has removed the scan from {place.shown}")
    _require_same(place, stored, plan)


def require_no_links(folders: Iterable[Path]) -> None:
    """What is written into a link to a folder lands in somebody else's."""
    for folder in folders:
        if folder.is_symlink():
            raise ScanError(f"{folder} is a link, where a folder of its own should be; "
                            f"remove it, or choose another --out")  # fmt: skip


def clear(place: Destination, names: Iterable[str]) -> None:
    """Only the files of a scan; the manifest first, so that no half of one looks complete, and the
    plan last."""
    rest = [n for n in names if n.split("/")[0] in (*RESULTS, *EARLIER) and n != MANIFEST]
    for some in ([MANIFEST], rest, [PLAN]):
        place.remove(some)


def plan_digest(plan: Mapping[str, Any]) -> str:
    """What every part carries, so that a run of another plan cannot mix in. The data count, not
    the path that they have."""
    told = {n: v for n, v in plan["data"].items() if n not in ("source", "files")}
    text = json.dumps({**plan, "data": told}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _require_same(place: Destination, stored: bytes, plan: Mapping[str, Any]) -> None:
    try:
        theirs = parsed_json(stored, f"{place.shown}/{PLAN}")
    except ScanError as error:
        raise ScanError(f"{error}; --overwrite starts anew") from error
    require_same(theirs, plan, f"{place.shown} holds a scan")


def require_same(stored: Mapping[str, Any], plan: Mapping[str, Any], what: str) -> None:
    """Raises `ScanError` where a stored plan has other settings than the one asked for."""
    differing = [
        f"{name} {_short(was)} there, {_short(now)} now"
        for name, was, now in _differences(stored, json.loads(json.dumps(plan)))
        # The same data by another path, or in a plan that says less of them.
        if not name.startswith(("data.source", "data.files", "opened"))
    ]
    if differing:
        raise ScanError(f"{what} with other settings ({'; '.join(differing)}); choose another "
                        f"--out or replace it with --overwrite")  # fmt: skip


def _differences(a: Any, b: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted({*a, *b}):
            yield from _differences(a.get(key), b.get(key), f"{name}.{key}" if name else key)
    elif a != b:
        yield name.removeprefix("settings."), a, b


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
