"""`gradients`: what the whole model feels of a sample of a scan's tokens, beside the closed forms.

check the model → draw the sample → read the tokens' contexts → one backward each, written aside
every few seconds. A token that is already there is skipped, so a stopped run goes on, and a larger
--sample goes on from a smaller one.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eaft_probe.analysis import exact_gradients
from eaft_probe.analysis.exact_gradients import FullGradients, Made
from eaft_probe.analysis.rank_correlation import CLOSED, EXACT
from eaft_probe.analysis.stratified_sample import drawn
from eaft_probe.data.rendering.render import Renderer
from eaft_probe.errors import BadInput, NonFinite, ProbeError, ScanError, one_line
from eaft_probe.model.loading import CausalLM, load_model
from eaft_probe.model.resolve import find_model
from eaft_probe.model.token_gradients import WholeModel
from eaft_probe.progress import Progress, Silent
from eaft_probe.scans.folder import stored_plan
from eaft_probe.scans.keys import named_place
from eaft_probe.scans.part_writer import GRADIENTS
from eaft_probe.scans.scan import Scan
from eaft_probe.settings import GradientSettings, make_settings
from eaft_probe.storage.remote import without_paths
from eaft_probe.verbs.gradients.token_contexts import Context, contexts
from eaft_probe.verbs.scan.plan import folder_identity

SAVE_SECONDS = 10.0  # between writings of what is done
# How far a token's nll may lie from the scan's, nats: rounding is 1e-4, other weights or another
# context are tenths.
SAME_NLL = 0.01

Arrays = dict[str, NDArray[Any]]


def gradients(
    folder: str | Path, *, progress: Progress | None = None, **settings: Any
) -> FullGradients:
    """Takes the exact gradient norm of sampled tokens of a finished scan, into its folder.

    Every other argument is a field of `GradientSettings` and a flag of `eaft-probe gradients`. A
    sample that is there is returned as it is; one that is not complete, or smaller, goes on.
    Raises `BadInput` (the scan, another model or seed) or `ProbeError`.
    """
    chosen: GradientSettings = make_settings(GradientSettings, settings)
    scan = Scan.open(folder)
    scan.require_all("gradients")
    chosen = _of_scan(scan, chosen)
    made = _made(scan, chosen)
    before = None if chosen.overwrite else _before(scan, made)
    if before is None or not before.made.finished or before.made.sample < chosen.sample:
        _go_on(scan, chosen, made, before, progress or Silent())
    return FullGradients.open(scan)


# --- which model, and what is there already ---


def _of_scan(scan: Scan, settings: GradientSettings) -> GradientSettings:
    """The model that the scan was made under, where none is given: the manifest has its name,
    the plan where it lay."""
    theirs, plan = scan.manifest["model"], stored_plan(scan)
    paths = plan.get("opened") or plan.get("settings") or {}
    if settings.model is None:
        settings = replace(
            settings,
            model=paths.get("model") or theirs["name"],
            revision=settings.revision or theirs["revision"],
        )
    adapter = settings.adapter or paths.get("adapter") or theirs["adapter"]
    return replace(settings, adapter=adapter)


def _made(scan: Scan, settings: GradientSettings) -> Made:
    """Raises `BadInput` where the model is not the scan's."""
    theirs, name = scan.manifest["model"], str(settings.model)
    model = find_model(name, settings.revision).identity()
    adapter = folder_identity(settings.adapter)
    if (model, adapter) != (theirs["identity"], theirs["adapter_identity"]):
        said = name if model != theirs["identity"] else f"{name} with --adapter {settings.adapter}"
        raise BadInput(
            f"{scan.path} was made under other weights than those of {said}; its model "
            f"was {theirs['name']}"
        )
    return Made(
        exact_gradients.scan_identity(scan),
        model,
        adapter,
        settings.dtype,
        settings.seed,
        settings.sample,
        config=without_paths(asdict(settings)),
    )


def _before(scan: Scan, made: Made) -> FullGradients | None:
    """What an earlier run left. Raises `ScanError` where it was another one."""
    if not (scan.path / GRADIENTS).exists():
        return None
    before = FullGradients.open(scan)
    differing = before.made.differences(made)
    if differing:
        raise ScanError(
            f"{scan.path / GRADIENTS} was made with another {' and '.join(differing)}; "
            f"--overwrite replaces it"
        )
    return before


def _known(sample: Arrays, before: FullGradients | None, key: Sequence[str]) -> NDArray[np.float64]:
    """(N,) the norms that are there already, NaN elsewhere."""
    norms = {}
    if before is not None:
        norms = dict(zip(_places(before.table, key), before.table[EXACT], strict=True))
    return np.array([norms.get(place, np.nan) for place in _places(sample, key)])


def _places(columns: Mapping[str, Any], key: Sequence[str]) -> Iterator[tuple[int, ...]]:
    return zip(*(columns[name].tolist() for name in key), strict=True)


# --- the work ---


def _go_on(
    scan: Scan,
    settings: GradientSettings,
    made: Made,
    before: FullGradients | None,
    progress: Progress,
) -> None:
    """The norms that are not there yet. What another run had beyond this sample is kept."""
    closed = [n for n in CLOSED if n in scan.columns]
    size = max(settings.sample, before.made.sample if before else 0)
    sample = drawn(scan, size, settings.seed, ["turn", "logprob", *closed])
    norms = _known(sample, before, scan.token_key)
    todo = np.flatnonzero(np.isnan(norms[: settings.sample]))
    progress.note(f"loading {settings.model}")
    model = _load(settings)
    ids = _read(scan, sample, todo, model)
    if not ids and np.isnan(norms).all():
        raise ScanError(
            f"no sampled example of {scan.path} comes back from its text; rows of "
            f"token ids do not keep what was read"
        )
    examples = list(_places(sample, scan.example_key))
    lost = {examples[at] for at in todo if at not in ids}
    if lost:
        progress.note(f"{len(lost):,} examples left out: their text does not give back the tokens")
    work = _Work(scan, sample, norms, replace(made, left_out=len(lost)), progress)
    work.run(WholeModel(model), ids, settings.sample)


def _read(
    scan: Scan, sample: Arrays, todo: NDArray[np.int64], model: CausalLM
) -> dict[int, Context]:
    """Index in the sample → its context; without those that do not come back."""
    places = {n: sample[n][todo] for n in ("part", *scan.token_key)}
    found = contexts(scan, places, Renderer(model.tokenizer))
    return {at: ids for at, ids in zip(todo.tolist(), found, strict=True) if ids is not None}


def _load(settings: GradientSettings) -> CausalLM:
    """With an adapter merged into the weights, whose gradient it is then."""
    return load_model(str(settings.model), **settings.loading(), merge_adapter=True)


@dataclass
class _Work:
    """A sample on its way into the file."""

    scan: Scan
    sample: Arrays
    norms: NDArray[np.float64]  # (N,), NaN where not taken yet
    made: Made
    progress: Progress
    saved: float = 0.0

    def run(self, whole: WholeModel, todo: Mapping[int, Context], asked: int) -> None:
        """Takes every norm; what is done is written whatever happens."""
        self.progress.start("gradients", min(asked, len(self.norms)))
        self.progress.advance(min(asked, len(self.norms)) - len(todo), 0)
        self.saved, finished = time.monotonic(), False
        try:
            for at, context in todo.items():
                self.norms[at] = self._norm(whole, at, context)
                self.progress.advance(1, 1)
                if time.monotonic() - self.saved > SAVE_SECONDS:
                    self._save(False)
            finished = True
        finally:
            self._save(finished)

    def _norm(self, whole: WholeModel, at: int, context: Context) -> float:
        key = self.scan.token_key
        place = named_place(key, [self.sample[n][at] for n in key])
        norm, nll = whole(context.ids.tolist(), context.label)
        if not math.isfinite(norm):
            raise NonFinite(f"the gradient at {place} is not finite; check the weights")
        logprob = float(self.sample["logprob"][at])
        both = (self.made.dtype, self.scan.manifest["model"]["dtype"])
        if both == ("float32", "float32") and abs(nll + logprob) > SAME_NLL:
            raise ProbeError(
                f"at {place} the model gives an nll of {nll:.3f} nats, the scan has "
                f"{-logprob:.3f}: what was read is not the same"
            )
        return norm

    def _save(self, finished: bool) -> None:
        if np.isnan(self.norms).all():
            return
        try:
            made = replace(self.made, finished=finished)
            exact_gradients.write(self.scan, self.sample, self.norms, made)
        except OSError as error:
            raise ProbeError(
                f"cannot write {self.scan.path / GRADIENTS}: {error.strerror or one_line(error)}"
            ) from error
        self.saved = time.monotonic()
