"""The end of a scan: rejected.jsonl, then the manifest, from which on the scan is complete."""

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from eaft_probe.errors import NothingScored, ScanError
from eaft_probe.scans.folder import Plan, plan_digest, require_plan
from eaft_probe.scans.manifest import SUMS, write_manifest
from eaft_probe.scans.part_writer import (
    REJECTED,
    UNITS,
    part_facts,
    part_file,
    sha256,
    unit_report,
)
from eaft_probe.scans.rejections import summed_reasons
from eaft_probe.scans.upload import Workspace
from eaft_probe.settings import ScanSettings
from eaft_probe.storage.atomic import written_aside
from eaft_probe.storage.remote import name_of, without_paths
from eaft_probe.verbs.scan.join_units import join_units

PACKAGES = ("eaft-probe", "torch", "transformers", "tokenizers", "pyarrow", "numpy")


def finish(work: Workspace, settings: ScanSettings, facts: Mapping[str, Any]) -> None:
    """`facts`: what a scorer says of its model. Raises `NothingScored`, and `ScanError` where
    another run has removed a part."""
    plan, folder = work.plan, work.folder.path
    results = _unit_results(work)
    if not results["counts"]["trained_tokens"]:
        raise _nothing_scored(work, results["counts"]["rejected"])
    require_plan(work.folder, plan)
    write_manifest(
        work.folder,
        {
            "command": "scan",
            "config": without_paths(asdict(settings)),
            "model": _model_facts(plan, settings, facts["model"]),
            "data": {**plan["data"], "source": name_of(plan["data"]["source"])},
            "chat_template": plan["chat_template"],
            "columns": facts["columns"],
            **results,
            "special_tokens": facts["special_tokens"],
            "versions": {name: _version(name) for name in PACKAGES},
        },
    )
    shutil.rmtree(folder / UNITS, ignore_errors=True)


def _unit_results(work: Workspace) -> dict[str, Any]:
    """What the units reported, added up, as the manifest has it; their rejected rows go to
    `rejected.jsonl`."""
    plan, folder, units = work.plan, work.folder.path, work.units
    counts, parts, last_row = Counter[str](), [], None
    sums = {name: Counter[str]() for name in SUMS}
    with written_aside(folder / REJECTED) as aside, aside.open("w") as file:
        for index in range(plan["data"]["units"]):
            report = _whole(units, index, plan_digest(plan))
            file.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in report["rejected"])
            counts.update(report["counts"])
            for name in SUMS:
                sums[name].update(report.get(name, {}))
            last_row = report.get("last_row", last_row)
            if units == folder:
                parts.append(part_facts(folder, index, report["counts"]["trained_tokens"]))
    results = {"parts": parts, "counts": {**counts, **{n: dict(s) for n, s in sums.items()}}}
    if units == folder or not counts["trained_tokens"]:
        return results
    return {**results, **join_units(work.folder, plan["data"]["units"]), "last_row": last_row}


def _nothing_scored(work: Workspace, rejected: int) -> NothingScored:
    """The error, after everything is gone that a corrected command would have to respect."""
    folder = work.folder.path
    for kind in ("tokens", "examples", UNITS):
        shutil.rmtree(folder / kind, ignore_errors=True)
    return NothingScored(
        f"nothing to score in {work.plan['data']['source']}: no row of {rejected:,} can be used, "
        f"most often because of this: {_commonest(folder / REJECTED)}; "
        f"{folder / REJECTED} lists them"
    )


def _commonest(rejected: Path) -> str:
    with rejected.open() as file:
        return next(iter(summed_reasons(json.loads(line)["reason"] for line in file)))


def _whole(units: Path, index: int, plan: str) -> dict[str, Any]:
    """What a unit reported. Raises `ScanError` where its two files are not of one run: two that
    differ in hardware were at it at once."""
    report = unit_report(units, index, plan)
    tokens = part_file(units, "tokens", index)
    if report is None or report.get("tokens_sha256") not in (None, sha256(tokens)):
        part_file(units, "examples", index).unlink(missing_ok=True)
        raise ScanError(
            f"{tokens} is missing, or was written by another run at the same time; run the same "
            f"command again"
        )
    return report


def _model_facts(
    plan: Plan, settings: ScanSettings, loaded: Mapping[str, object]
) -> dict[str, object]:
    return {
        "name": name_of(settings.model),
        "adapter": settings.adapter and name_of(settings.adapter),
        "revision": settings.revision,
        **loaded,
        "identity": plan["model_identity"],
        "adapter_identity": plan["adapter_identity"],
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except ImportError:
        return None
