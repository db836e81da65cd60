"""`gradients`: exact gradients of the whole model for a sample of a scan's tokens.

check the model → draw the sample → read the tokens' contexts → one backward pass each, saved every
few seconds. A token that has a norm already is skipped, so a stopped run continues, and a larger
--sample continues a smaller one.
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
from eaft_probe.analysis.exact_gradients import FullGradients, Provenance
from eaft_probe.analysis.rank_correlation import CLOSED, EXACT
from eaft_probe.analysis.stratified_sample import draw_sample
from eaft_probe.data.rendering.render import Renderer
from eaft_probe.errors import BadInput, NonFinite, ProbeError, ScanError, one_line
from eaft_probe.model.loading import load_model
from eaft_probe.model.resolve import find_model
from eaft_probe.model.token_gradients import WholeModel
from eaft_probe.progress import Progress, Silent
from eaft_probe.progress_bar import watched
from eaft_probe.scans.folder import stored_plan
from eaft_probe.scans.keys import named_place
from eaft_probe.scans.manifest import require_model_files
from eaft_probe.scans.part_writer import GRADIENTS
from eaft_probe.scans.scan import Scan
from eaft_probe.settings import GradientSettings, make_settings
from eaft_probe.storage.remote import without_paths
from eaft_probe.verbs.gradients.token_contexts import Context, contexts
from eaft_probe.verbs.scan.plan import folder_identity

SAVE_SECONDS = 10.0  # between writings of what is done
# How far a token's nll may be from the scan's, nats: rounding is 1e-4, other weights or another
# context move it by tenths.
SAME_NLL = 0.01

Arrays = dict[str, NDArray[Any]]


@watched
def gradients(
    folder: str | Path, *, progress: Progress | None = None, **settings: Any
) -> FullGradients:
    """Takes the exact gradient norm of sampled tokens of a finished scan, into its folder.

    Every other argument is a field of `GradientSettings` and a flag of `eaft-probe gradients`. A
    finished sample is returned as it is; an unfinished or a smaller one is continued.
    Raises `BadInput` (the scan, another model or seed) or `ProbeError`.
    """
    chosen: GradientSettings = make_settings(GradientSettings, settings)
    scan = Scan.open(folder)
    scan.require_all("gradients")
    chosen = _of_scan(scan, chosen)
    made = _made(scan, chosen)
    earlier = None if chosen.overwrite else _earlier(scan, made)
    if earlier is None or not earlier.made.finished or earlier.made.sample < chosen.sample:
        _continue(scan, chosen, made, earlier, progress or Silent())
    return FullGradients.open(scan)


# --- which model, and which norms there are already ---


def _of_scan(scan: Scan, settings: GradientSettings) -> GradientSettings:
    """The model that the scan was made under, where none is given: the manifest has its name,
    the plan its path."""
    scanned, plan = scan.manifest["model"], stored_plan(scan)
    paths = plan.get("opened") or plan.get("settings") or {}
    if settings.model is None:
        settings = replace(
            settings,
            model=paths.get("model") or scanned["name"],
            revision=settings.revision or scanned["revision"],
        )
    return replace(settings, adapter=settings.adapter or paths.get("adapter") or scanned["adapter"])


def _made(scan: Scan, settings: GradientSettings) -> Provenance:
    """Raises `BadInput` where the model is not the scan's."""
    scanned, name = scan.manifest["model"], str(settings.model)
    require_model_files(scan.manifest, scan.path)
    model = find_model(name, settings.revision).identity()
    adapter = folder_identity(settings.adapter)
    if (model, adapter) != (scanned["identity"], scanned["adapter_identity"]):
        if model == scanned["identity"]:
            name = f"{name} with --adapter {settings.adapter}"
        raise BadInput(
            f"{scan.path} was made under other weights than those of {name}; its model was "
            f"{scanned['name']}, so give that one"
        )
    return Provenance(
        exact_gradients.scan_identity(scan),
        model,
        adapter,
        settings.dtype,
        settings.seed,
        settings.sample,
        config=without_paths(asdict(settings)),
    )


def _earlier(scan: Scan, made: Provenance) -> FullGradients | None:
    """What an earlier run left. Raises `ScanError` where it had other settings."""
    if not (scan.path / GRADIENTS).exists():
        return None
    earlier = FullGradients.open(scan)
    if differing := earlier.made.differences(made):
        raise ScanError(
            f"{scan.path / GRADIENTS} was made with another {' and '.join(differing)}; "
            f"--overwrite replaces it"
        )
    return earlier


def _known(
    sample: Arrays, earlier: FullGradients | None, key: Sequence[str]
) -> NDArray[np.float64]:
    """(N,) the norms that there are already, NaN elsewhere."""
    if earlier is None:
        return np.full(len(sample["example"]), np.nan)
    norms = dict(zip(_keys(earlier.table, key), earlier.table[EXACT], strict=True))
    return np.array([norms.get(token, np.nan) for token in _keys(sample, key)])


def _keys(columns: Mapping[str, Any], key: Sequence[str]) -> Iterator[tuple[int, ...]]:
    return zip(*(columns[name].tolist() for name in key), strict=True)


# --- the work ---


def _continue(
    scan: Scan,
    settings: GradientSettings,
    made: Provenance,
    earlier: FullGradients | None,
    progress: Progress,
) -> None:
    """Takes the missing norms. What another run had beyond this sample is kept."""
    columns = ["turn", "logprob", *(n for n in (*CLOSED, "surprise") if n in scan.columns)]
    size = max(settings.sample, earlier.made.sample if earlier else 0)
    sample = draw_sample(scan, size, settings.seed, columns)
    norms = _known(sample, earlier, scan.token_key)
    todo = np.flatnonzero(np.isnan(norms[: settings.sample]))
    progress.note(f"loading {settings.model}")
    # An adapter is merged into the weights, and the gradient is theirs.
    model = load_model(str(settings.model), **settings.loading(), merge_adapter=True)
    tokens = {n: sample[n][todo] for n in ("part", *scan.token_key)}
    read = dict(zip(todo.tolist(), contexts(scan, tokens, Renderer(model.tokenizer)), strict=True))
    todo_contexts = {index: context for index, context in read.items() if context is not None}
    if not todo_contexts and np.isnan(norms).all():
        raise ScanError(
            f"no sampled example of {scan.path} comes back from its text; rows of token ids do "
            f"not keep what was read, so give a scan of text"
        )
    examples = list(_keys(sample, scan.example_key))
    lost = {examples[index] for index in todo if index not in todo_contexts}
    if lost:
        s, whose = ("", "its") if len(lost) == 1 else ("s", "their")
        progress.note(f"{len(lost):,} example{s} left out: {whose} text gives other tokens")
    work = _Work(scan, sample, norms, replace(made, left_out=len(lost)), progress)
    work.run(WholeModel(model), todo_contexts, settings.sample)


@dataclass
class _Work:
    """The norms of a sample, and the file that they are saved to."""

    scan: Scan
    sample: Arrays
    norms: NDArray[np.float64]  # (N,), NaN where not taken yet
    made: Provenance
    progress: Progress

    def run(self, whole: WholeModel, todo: Mapping[int, Context], asked: int) -> None:
        """Takes every norm; what is done is written whatever happens."""
        total = min(asked, len(self.norms))
        self.progress.start("gradients", total)
        self.progress.advance(total - len(todo), 0)
        saved, finished = time.monotonic(), False
        try:
            for index, context in todo.items():
                self.norms[index] = self._norm(whole, index, context)
                self.progress.advance(1, 1)
                if time.monotonic() - saved > SAVE_SECONDS:
                    self._save(False)
                    saved = time.monotonic()
            finished = True
        finally:
            self._save(finished)

    def _norm(self, whole: WholeModel, index: int, context: Context) -> float:
        key = self.scan.token_key
        token = named_place(key, [self.sample[n][index] for n in key])
        norm, nll = whole(context.ids.tolist(), context.label)
        if not math.isfinite(norm):
            raise NonFinite(f"the gradient at {token} is not finite; check the weights")
        scanned = -float(self.sample["logprob"][index])
        dtypes = {self.made.dtype, self.scan.manifest["model"]["dtype"]}
        if dtypes == {"float32"} and abs(nll - scanned) > SAME_NLL:
            raise ProbeError(
                f"at {token} the model gives an nll of {nll:.3f} nats, but the scan has "
                f"{scanned:.3f}: what was read is not the same; scan the data again"
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
