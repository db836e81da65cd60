"""The end of a scan: rejected.jsonl, then the manifest, from which on the scan is complete."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from eaft_probe.columns.part_files import REJECTED, UNITS, part_facts, part_folder, unit_report
from eaft_probe.columns.table import write_manifest
from eaft_probe.errors import NothingScored, ScanError
from eaft_probe.files import written_aside
from eaft_probe.settings import ScanSettings
from eaft_probe.store import name_of, without_paths
from eaft_probe.verbs.join import join_units
from eaft_probe.verbs.plan import remove_results

PACKAGES = ("eaft-probe", "torch", "transformers", "tokenizers", "pyarrow", "numpy")


def finish(
    folder: Path,
    plan: Mapping[str, Any],
    settings: ScanSettings,
    facts: Mapping[str, Any],
    scratch: Path,
) -> None:
    """`facts`: what a scorer says of its model. Raises `NothingScored`."""
    units, count = part_folder(folder, settings.keep_tokens), plan["data"]["units"]
    counts, left_out, parts, last = Counter[str](), Counter[str](), [], None
    with written_aside(folder / REJECTED, scratch) as aside, aside.open("w") as file:
        for index in range(count):
            report = unit_report(units, index)
            if report is None:
                raise ScanError(f"{folder} has lost its part {index}: something else removed it; "
                                f"the same command makes it again")  # fmt: skip
            file.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in report["rejected"])
            counts.update(report["counts"])
            left_out.update(report.get("left_out", {}))
            last = report.get("last_row", last)
            if units == folder:
                parts.append(part_facts(folder, index, report["counts"]["trained_tokens"]))
    if not counts["trained_tokens"]:
        # Nothing that a corrected command should respect.
        remove_results(folder, scratch, ("tokens", "examples", UNITS))
        raise NothingScored(
            f"nothing to score in {plan['data']['source']}: all {counts['rejected']} rows were "
            f"rejected; {folder / REJECTED} says why"
        )
    kept = {} if units == folder else {**join_units(folder, count, scratch), "last_row": last}
    write_manifest(
        folder,
        {
            "command": "scan",
            "config": without_paths(asdict(settings)),
            "model": _model_facts(plan, settings, facts["model"]),
            "data": {**plan["data"], "source": name_of(plan["data"]["source"])},
            "chat_template": plan["chat_template"],
            "columns": facts["columns"],
            "parts": parts,
            "counts": {**counts, "left_out": dict(left_out)},
            "special_tokens": facts["special_tokens"],
            "versions": {name: _version(name) for name in PACKAGES},
            **kept,
        },
        scratch,
    )
    remove_results(folder, scratch, (UNITS,))


def _model_facts(
    plan: Mapping[str, Any], settings: ScanSettings, loaded: Mapping[str, Any]
) -> dict[str, Any]:
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
