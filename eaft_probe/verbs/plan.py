"""What a rerun must repeat, and whether a folder may be written to."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eaft_probe.columns.conflicts import RULE_FILE, write_json
from eaft_probe.columns.table import CACHE, CONFLICTS, GRADIENTS, MANIFEST, PLAN, REJECTED
from eaft_probe.data.formats import RowFormat
from eaft_probe.data.sources import Source
from eaft_probe.data.units import UnitPlan
from eaft_probe.errors import BadInput, ScanError, one_line
from eaft_probe.model.loading import load_tokenizer, resolve_device
from eaft_probe.model.places import Place, find_model
from eaft_probe.settings import ScanSettings
from eaft_probe.verbs.score import HALVED

# Tokens of a batch where --tokens-per-batch is auto. On 2 CPU cores 800 to 3,200 tokens a batch
# were equally fast and 8,000 slower by a tenth; a GPU wants more.
AUTO_TOKENS = {"cpu": 2048, "cuda": 16384}
RESULTS = (MANIFEST, REJECTED, CONFLICTS, RULE_FILE, HALVED, GRADIENTS)
SCAN_FILES = (*RESULTS, PLAN, "tokens", "examples")


def make_plan(
    source: Source, row_format: RowFormat, units: UnitPlan, settings: ScanSettings
) -> dict[str, Any]:
    device = resolve_device(settings.device)
    tokenizer = load_tokenizer(
        settings.model,
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
    )
    return {
        "settings": settings.identity(),
        "device": device,
        "tokens_per_batch": batch_tokens(settings, device),
        "data": {
            "source": source.name,
            "split": settings.split,
            "fingerprint": source.fingerprint(),
            "rows": units.rows,
            "units": units.count,
            "format": row_format.name,
        },
        "model_identity": find_model(settings.model, settings.revision).identity(),
        "model_files": find_model(settings.model, settings.revision).small_files(),
        "adapter_identity": folder_identity(settings.adapter),
        "reference_identity": settings.reference
        and find_model(settings.reference, settings.revision).identity(),
        "chat_template": template_hash(tokenizer),
    }


def batch_tokens(settings: ScanSettings, device: str) -> int:
    """The token budget of a batch, `auto` resolved."""
    if settings.tokens_per_batch != "auto":
        return settings.tokens_per_batch
    return auto_tokens(device)


def auto_tokens(device: str) -> int:
    return AUTO_TOKENS["cuda" if device.startswith("cuda") else "cpu"]


def folder_identity(adapter: str | None) -> str | None:
    return None if adapter is None else Place(adapter, Path(adapter)).identity()


def template_hash(tokenizer: Any) -> str | None:
    template = tokenizer.chat_template
    text = json.dumps(template, sort_keys=True)
    return None if template is None else hashlib.sha256(text.encode()).hexdigest()


def is_finished(folder: Path, plan: dict[str, Any], overwrite: bool) -> bool:
    """Whether the folder holds this very scan, done. Raises `ScanError` where it holds anything
    else that is worth keeping."""
    if not (folder / PLAN).exists():
        if folder.exists() and not _only_scan_files(folder):
            raise ScanError(f"{folder} is not empty and holds no scan; choose another --out")
        return False
    if overwrite:
        return False
    if (folder / MANIFEST).exists() or any(folder.glob("examples/part-*")):
        _require_same(folder, plan)
    return (folder / MANIFEST).exists()


def _only_scan_files(folder: Path) -> bool:
    """An empty folder, or what a start that was cut short left behind."""
    return folder.is_dir() and all(p.name in SCAN_FILES for p in folder.iterdir())


def prepare(folder: Path, plan: dict[str, Any], overwrite: bool) -> None:
    """Makes the folder ready for this plan: what another left there without a part counts for
    nothing, what --overwrite gives up goes, the manifest first and the plan last."""
    try:
        if overwrite or not any(folder.glob("examples/part-*")):
            _remove_scan(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / PLAN, plan)
        for kind in ("tokens", "examples"):
            (folder / kind).mkdir(exist_ok=True)
    except OSError as error:
        raise BadInput(f"cannot write to {folder}: {error.strerror or one_line(error)}") from error


def _remove_scan(folder: Path) -> None:
    """Only the files of a scan; the manifest first, so that no half of one looks complete."""
    for name in RESULTS:
        (folder / name).unlink(missing_ok=True)
    for kind in ("tokens", "examples", CACHE):
        shutil.rmtree(folder / kind, ignore_errors=True)


def _require_same(folder: Path, plan: dict[str, Any]) -> None:
    try:
        stored = json.loads((folder / PLAN).read_text())
    except ValueError as error:
        raise ScanError(f"{folder / PLAN} is damaged; --overwrite starts anew") from error
    require_same(stored, plan, f"{folder} holds a scan")


def require_same(stored: Mapping[str, Any], plan: Mapping[str, Any], what: str) -> None:
    """Raises `ScanError` where a stored plan has other settings than the one asked for."""
    differing = [
        f"{name} {_short(was)} there, {_short(now)} now"
        for name, was, now in _differences(stored, json.loads(json.dumps(plan)))
        if name != "data.source"  # the same data by another path
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
