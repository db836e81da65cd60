"""What loads the models of a scan, in whichever process they are to work."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from eaft_probe.columns.statistics import chosen_statistics
from eaft_probe.data.formats import RowFormat
from eaft_probe.errors import BadInput
from eaft_probe.model.loading import CausalLM, load_model
from eaft_probe.progress import Progress
from eaft_probe.scans.upload import Deposit, Depositing
from eaft_probe.settings import ScanSettings
from eaft_probe.storage.folder import Folder
from eaft_probe.verbs.scan.score_unit import Scorer


@dataclass(frozen=True)
class Loading:
    """Loads and proves the models and makes a scorer. It is sent to workers, so it is small."""

    folder: Path | None  # None: only rank 0 of --tp writes
    plan: Mapping[str, Any] | None  # which every part is of
    row_format: RowFormat
    settings: ScanSettings
    tokens_per_batch: int
    threads: int | None = None  # of torch, which the last digits depend on; see `plan.py`
    deposit: Deposit | None = None  # where the parts go besides

    def __call__(self, progress: Progress, device: str | None = None) -> Scorer | Depositing:
        """On `device`, where it is given. Raises `ModelError`, or `BadInput` for a reference that
        does not fit."""
        if self.deposit is not None:
            return _depositing(self, self.deposit, progress, device)
        return self.scorer(progress, device)

    def scorer(self, progress: Progress, device: str | None) -> Scorer:
        """One that writes into `folder` alone."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        settings = self.settings if device is None else replace(self.settings, device=device)
        model = _load(settings.model, settings)
        reference = None
        if settings.reference is not None:
            reference = _load(settings.reference, settings, adapter=None)
            require_same_vocabulary(model, reference, settings.reference, settings.model)
        statistics = chosen_statistics(settings.statistics, reference is not None)
        return Scorer(
            self.folder,
            model,
            reference,
            self.row_format,
            statistics,
            settings,
            self.tokens_per_batch,
            progress,
            self.plan,
            None if self.deposit or self.folder is None else Folder(self.folder),
        )


def _depositing(
    load: Loading, deposit: Deposit, progress: Progress, device: str | None
) -> Depositing:
    """A part is made in the run's folder; on a machine without it in one of the worker's own."""
    deposit.require_here()
    if load.folder is not None and load.folder.is_dir():
        return Depositing(load.scorer(progress, device), deposit, load.folder)
    own = TemporaryDirectory(prefix="eaft-probe-")
    folder = Path(own.name)
    there = replace(load, folder=folder)
    return Depositing(there.scorer(progress, device), deposit, folder, own)


def with_absolute_paths(settings: ScanSettings) -> ScanSettings:
    """For processes that work in another folder. A bundled model's name is no path."""
    names = {n: getattr(settings, n) for n in ("model", "reference", "adapter", "chat_template")}
    paths: dict[str, Any] = {
        n: str(Path(v).absolute())
        for n, v in names.items()
        if v is not None and v != "smollm2" and Path(v).exists()
    }
    return replace(settings, **paths)


def _load(name: str, settings: ScanSettings, **changed: Any) -> CausalLM:
    return load_model(name, **settings.loading() | changed, tp=settings.tp)


def require_same_vocabulary(
    model: CausalLM, reference: CausalLM, reference_name: str, name: str
) -> None:
    """Raises `BadInput` where the two models' distributions cannot be compared."""
    same = model.tokenizer.get_vocab() == reference.tokenizer.get_vocab()
    if not same or model.head.vocab_size != reference.head.vocab_size:
        raise BadInput(
            f"--reference {reference_name} has another vocabulary than {name}; "
            f"their distributions cannot be compared"
        )
