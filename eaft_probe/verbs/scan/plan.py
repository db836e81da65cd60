"""What a rerun must repeat, and whether a folder may be written to."""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import torch

from eaft_probe.data.formats import RowFormat
from eaft_probe.data.rendering.chat_template import reads_date
from eaft_probe.data.rendering.render import chat_templates
from eaft_probe.data.sources import Source
from eaft_probe.data.units import UnitPlan
from eaft_probe.engines.vllm_model import version
from eaft_probe.errors import ScanError
from eaft_probe.model.loaded import configuration_identity, identity
from eaft_probe.model.loading import CausalLM, load_tokenizer, own_tokenizer, resolve_device
from eaft_probe.model.resolve import ModelFiles, find_model
from eaft_probe.scans.folder import Plan, read_plan
from eaft_probe.settings import ScanSettings

# Tokens of a batch where --tokens-per-batch is auto. On 2 CPU cores 800 to 3,200 tokens a batch
# were equally fast and 8,000 slower by a tenth; a GPU wants more.
AUTO_TOKENS = {"cpu": 2048, "cuda": 16384}


def make_plan(
    source: Source,
    row_format: RowFormat,
    units: UnitPlan,
    settings: ScanSettings,
    held: CausalLM | None = None,
) -> dict[str, Any]:
    """`held`: the model, where a program has it loaded."""
    device = str(held.device) if held else resolve_device(settings.device)
    tokenizer = held.tokenizer if held else _tokenizer(settings)
    templates = chat_templates(tokenizer, settings.chat_template)
    return {
        "settings": settings.identity(),
        "device": device,
        # vLLM's numbers depend on its version, and other shards give other last digits.
        **({"engine": f"vllm {version()}"} if settings.engine == "vllm" else {}),
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
        **(_held_identities(held) if held else _identities(settings)),
        "reference_identity": settings.reference
        and find_model(settings.reference, settings.revision).identity(),
        "chat_template": template_hash(templates),
        **({"today": settings.today} if any(map(reads_date, templates.values())) else {}),
    }


def _tokenizer(settings: ScanSettings) -> Any:
    return load_tokenizer(
        settings.model,
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
        adapter=settings.adapter,
    )


def _identities(settings: ScanSettings) -> dict[str, object]:
    """Of the files of the model."""
    files, own = find_model(settings.model, settings.revision), own_tokenizer(settings.adapter)
    return {
        "model_identity": files.identity(),
        "model_files": files.small_files(),
        "adapter_identity": folder_identity(settings.adapter),
        **({"adapter_files": ModelFiles(own, Path(own)).small_files()} if own else {}),
    }


def _held_identities(held: CausalLM) -> dict[str, object]:
    return {
        "model_identity": identity(held.whole),
        "model_files": configuration_identity(held),
        "adapter_identity": None,
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
    return None if adapter is None else ModelFiles(adapter, Path(adapter)).identity()


def template_hash(templates: Mapping[str, str]) -> str | None:
    """sha256 of the chat templates by name; of the only one, where there is one."""
    only = templates.get("default") if len(templates) == 1 else None
    text = json.dumps(only or templates, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest() if templates else None


def date_of_plan_file(plan_file: Path, given: str | None = None, overwrite: bool = False) -> str:
    """The date that chat templates are told: the one `given`, that of the plan which is gone on
    with, so that two days give one scan, or this day."""
    earlier: Plan = {}
    if not overwrite:
        with suppress(ScanError):  # not there, or to be refused later
            earlier = read_plan(plan_file)
    return template_date(given, earlier)


def template_date(given: str | None, earlier: Plan) -> str:
    """The date for chat templates: the one `given`, that of an earlier plan, or today."""
    return str(given or earlier.get("today") or date.today().isoformat())


def threads(settings: ScanSettings, device: str, resumed: Plan) -> int | None:
    """CPU threads with which every batch is computed, whoever computes it; None on a GPU.

    They split a sum, or an array at a place where the vector unit does not end, so that last digits
    differ: of 13 units of GSM8K under stories260K 10 between one thread and two, by 8e-6 at most. A
    scan that goes on has the number that it began with; a new one the cores, shared by its workers,
    or on a cluster, whose machines nobody knows yet, one.
    """
    if device != "cpu" or settings.tp or settings.engine == "vllm":
        return None
    if settings.threads:
        return settings.threads
    if resumed and isinstance(resumed.get("threads"), int | None):
        return resumed.get("threads")
    own_cores = max(1, torch.get_num_threads() // (settings.workers or 1))
    return own_cores if settings.engine == "local" else 1
