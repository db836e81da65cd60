"""The end of a scan: rejected.jsonl, then the manifest, from which on the scan is complete."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from eaft_probe.columns.table import REJECTED, part_facts, unit_report, write_manifest
from eaft_probe.errors import DataError
from eaft_probe.files import written_aside
from eaft_probe.settings import ScanSettings
from eaft_probe.verbs.plan import remove_results

PACKAGES = ("eaft-probe", "torch", "transformers", "tokenizers", "pyarrow", "numpy")


def finish(
    folder: Path,
    plan: Mapping[str, Any],
    settings: ScanSettings,
    facts: Mapping[str, Any],
    scratch: Path,
) -> None:
    """`facts`: what a scorer says of its model. Raises `DataError` where no row was scored."""
    totals: dict[str, int] = {}
    parts = []
    with written_aside(folder / REJECTED, scratch) as aside, aside.open("w") as file:
        for index in range(plan["data"]["units"]):
            report = unit_report(folder, index) or {}
            file.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in report["rejected"])
            parts.append(part_facts(folder, index, report["counts"]["trained_tokens"]))
            for name, value in report["counts"].items():
                totals[name] = totals.get(name, 0) + value
    if not totals["trained_tokens"]:
        # Nothing that a corrected command should respect.
        remove_results(folder, scratch, ("tokens", "examples"))
        raise DataError(
            f"nothing to score in {plan['data']['source']}: all {totals['rejected']} rows were "
            f"rejected; {folder / REJECTED} says why"
        )
    write_manifest(
        folder,
        {
            "command": "scan",
            "config": asdict(settings),
            "model": _model_facts(plan, settings, facts["model"]),
            "data": plan["data"],
            "chat_template": plan["chat_template"],
            "columns": facts["columns"],
            "parts": parts,
            "counts": totals,
            "special_tokens": facts["special_tokens"],
            "versions": {name: _version(name) for name in PACKAGES},
        },
        scratch,
    )


def _model_facts(
    plan: Mapping[str, Any], settings: ScanSettings, loaded: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "name": settings.model,
        "adapter": settings.adapter,
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
