"""What loads the models of a scan, in whichever process they are to work."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from eaft_probe.columns.measure import measure
from eaft_probe.columns.statistics import STATISTICS, Statistic, chosen_statistics
from eaft_probe.data.formats import RowFormat
from eaft_probe.engines.vllm_loading import load_vllm
from eaft_probe.engines.vllm_model import VllmModel, available_memory, compared
from eaft_probe.errors import BadInput
from eaft_probe.model.loading import CausalLM, load_model
from eaft_probe.progress import Progress
from eaft_probe.scans.upload import Workspace
from eaft_probe.settings import QUANTIZED, ScanSettings
from eaft_probe.storage.remote import PATHS
from eaft_probe.verbs.scan.perturbation import Perturbation
from eaft_probe.verbs.scan.score_unit import Scorer

WHOLE_UNIT = 1 << 40  # tokens of a batch: vLLM itself decides what it computes together
SERVED = ("dtype", "device", "revision", "trust_remote_code", "allow_pickle")


@dataclass(frozen=True)
class Loading:
    """Loads and proves the models and makes a scorer. It is sent to workers, so it is small."""

    work: Workspace | None  # None: nothing is written, or under --tp by rank 0 only
    row_format: RowFormat
    settings: ScanSettings
    tokens_per_batch: int
    threads: int | None = None  # of torch, which the last digits depend on; see `plan.py`
    held: CausalLM | None = None  # the model, where a program has it loaded; it is never sent
    perturbation: Perturbation | None = None  # of the model's weights

    def __call__(self, progress: Progress, device: str | None = None) -> Scorer:
        """On `device`, where it is given. Raises `ModelError`, or `BadInput` for a reference that
        does not fit."""
        work = self.work and self.work.in_worker()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        settings = self.settings if device is None else replace(self.settings, device=device)
        statistics = chosen_statistics(settings.statistics, settings.reference is not None)
        own = [s for s in statistics if not s.alone]
        budget, reference = self.tokens_per_batch, None
        model: CausalLM | VllmModel
        if settings.engine == "vllm":
            model = serve(settings, own, progress)
            measured = alone = model.measure
            budget = WHOLE_UNIT
        else:
            model, reference = self._loaded(settings)
            measured = partial(measure, model, statistics=own, reference=reference)
            alone = partial(measure, model, statistics=[STATISTICS["logprob"]])
        return Scorer(
            work,
            model,
            reference,
            measured,
            self.row_format,
            statistics,
            settings,
            budget,
            progress,
            alone if len(own) < len(statistics) else None,
        )

    def _loaded(self, settings: ScanSettings) -> tuple[CausalLM, CausalLM | None]:
        """The model and the reference."""
        quantized: dict[str, bool] = {name: getattr(settings, name) for name in QUANTIZED}
        model = self.held or _load(settings.model, settings, **quantized)
        if self.perturbation is not None:
            self.perturbation.apply(model)
        if settings.reference is None:
            return model, None
        reference = _load(settings.reference, settings, adapter=None)
        require_same_vocabulary(model, reference, settings.reference, settings.model)
        return model, reference


def with_absolute_paths(settings: ScanSettings) -> ScanSettings:
    """For processes that work in another folder. A bundled model's name is no path."""
    values = {name: getattr(settings, name) for name in PATHS}
    paths: dict[str, Any] = {
        name: str(Path(value).absolute())
        for name, value in values.items()
        if value not in (None, "smollm2") and Path(value).exists()
    }
    return replace(settings, **paths)


def _load(name: str, settings: ScanSettings, **changed: bool | None) -> CausalLM:
    return load_model(name, **settings.loading() | changed, tp=settings.tp)


def serve(settings: ScanSettings, statistics: Sequence[Statistic], progress: Progress) -> VllmModel:
    """The model in vLLM, compared with `transformers` where it fits on this machine."""
    loading = settings.loading()
    given = {name: loading[name] for name in SERVED}
    served = load_vllm(
        settings.model,
        statistics=statistics,
        engine_arg=settings.engine_arg,
        max_length=settings.max_length,
        gpus=settings.gpus,
        **given,
    )
    size = served.parameters * served.dtype.itemsize
    if size * 1.5 > available_memory():
        progress.note(f"{settings.model} is not compared with transformers: it does not fit here")
        return served
    local = load_model(settings.model, **given | {"dtype": str(served.dtype)[6:], "device": "cpu"})
    difference = compared(served, local, statistics)
    progress.note(f"log-probabilities of vLLM and transformers differ by at most {difference:.2g}")
    return served


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
