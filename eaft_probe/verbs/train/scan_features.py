"""Columns of a finished scan beside the rows that a run is trained on, token by token.

Rows and scan are read together, both in the order of the data, one example at a time: a row, or
under --turns each one turn of it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.columns.groups import READS, groups
from eaft_probe.data.batches import Window
from eaft_probe.data.rendering.render import chat_templates
from eaft_probe.data.sources import Source
from eaft_probe.errors import BadInput
from eaft_probe.model.loading import CausalLM
from eaft_probe.model.resolve import find_model
from eaft_probe.objectives.objective import Objective
from eaft_probe.objectives.scan_columns import OF_BASE, ScanStep
from eaft_probe.objectives.step_metrics import GROUP_BITS
from eaft_probe.scans.keys import sortable
from eaft_probe.scans.scan import Scan
from eaft_probe.settings import ScanSettings, TrainSettings
from eaft_probe.verbs.scan.plan import folder_identity, template_hash

Arrays = dict[str, NDArray[Any]]  # name → (n,) of one example's trained tokens


@dataclass(frozen=True)
class Beside:
    """What a scan adds to the rows: `made` from the columns `reads`, for each trained token."""

    scan: Scan
    reads: tuple[str, ...]
    made: Callable[[Arrays], Arrays]

    def cursor(self) -> "Cursor":
        """One pass over the scan, to be asked for rows, and turns of a row, in rising order."""
        return Cursor(self, self._examples())

    def _examples(self) -> Iterator[Arrays]:
        """The columns of one example after the other; an example may span two pieces."""
        held: Arrays = {}
        columns = sorted({*self.scan.token_key, "token_id", *self.reads})
        for piece in self.scan.token_arrays(columns):
            joined = {n: np.concatenate([held[n], c]) if held else c for n, c in piece.items()}
            cuts = np.flatnonzero(np.diff(sortable(joined, self.scan.example_key))) + 1
            bounds = [0, *cuts.tolist(), len(joined["example"])]
            *whole, held = ({n: c[a:b] for n, c in joined.items()} for a, b in pairwise(bounds))
            yield from whole
        if held and len(held["example"]):
            yield held


class Cursor:
    """Where a pass over the scan stands."""

    def __init__(self, beside: Beside, examples: Iterator[Arrays]) -> None:
        self.beside, self.examples = beside, examples
        self.here: Arrays | None = next(examples, None)

    def columns(self, row: int, turn: int | None, window: Window) -> Arrays:
        """The window's columns (T,), 0 at untrained tokens. Raises `BadInput` where the scan
        holds other tokens. `turn`: the one that is rendered, under --turns each."""
        named = f"row {row}" if turn is None else f"turn {turn} of row {row}"
        here = self._example((row,) if turn is None else (row, turn))
        if here is None:
            raise BadInput(
                f"{self.beside.scan.path} holds no {named} of the data; scan it with "
                f"the same --limit and --sample, or whole"
            )
        trained = np.flatnonzero(window.trained)
        places, wanted = here["position"], window.start + trained
        at = np.searchsorted(places, wanted).clip(max=len(places) - 1)
        same = (places[at] == wanted) & (here["token_id"][at] == window.ids[trained])
        if not same.all():
            raise BadInput(
                f"{self.beside.scan.path} holds other tokens for {named} than this "
                f"run would train on; scan the data again"
            )
        found = {}
        for name, values in self.beside.made(here).items():
            found[name] = np.zeros(len(window.ids), values.dtype)
            found[name][trained] = values[at]
        return found

    def _example(self, wanted: tuple[int, ...]) -> Arrays | None:
        """The columns of an example, given by its key; None where the scan has none of it."""
        key = self.beside.scan.example_key
        while self.here is not None:
            place = tuple(int(self.here[name][0]) for name in key)
            if place >= wanted:
                return self.here if place == wanted else None
            self.here = next(self.examples, None)
        return None


def for_objective(scan: Scan, names: Sequence[str]) -> Beside:
    """The columns `names` of OF_BASE, float32."""
    reads = {OF_BASE[n] for n in names} | ({"logprob"} if "base_mean_nll" in names else set())

    def made(columns: Arrays) -> Arrays:
        found = {n: columns[OF_BASE[n]] for n in names}
        if "base_mean_nll" in found:  # of the whole example, of which there is all here
            mean = -columns["logprob"].mean(dtype=np.float64)
            found["base_mean_nll"] = np.full(len(columns["logprob"]), mean)
        return {n: c.astype(np.float32) for n, c in found.items()}

    return Beside(scan, tuple(sorted(reads)), made)


def for_groups(scan: Scan) -> Beside:
    """`group`, the bits of GROUP_BITS under the scan's rule."""

    def made(columns: Arrays) -> Arrays:
        found = groups(columns, scan.rule)
        return {
            "group": sum(
                (found[n].astype(np.uint8) * np.uint8(bit) for n, bit in GROUP_BITS.items()),
                np.zeros(len(columns["prob"]), np.uint8),
            )
        }

    return Beside(scan, READS, made)


@dataclass(frozen=True)
class Scans:
    """The finished scans of a run: one that the objective reads, one that groups the log."""

    read: Scan | None
    names: tuple[str, ...]  # the columns of OF_BASE that the objective reads
    base: Scan | None

    @classmethod
    def opened(cls, settings: TrainSettings, wanted: Objective) -> "Scans":
        names = tuple(name for name in wanted.reads if name in OF_BASE)
        mask, base = opened(settings.mask), opened(settings.base_scan)
        if names and (mask or base) is None:
            raise BadInput(
                f"objective {wanted.name!r} reads {names[0]} from a finished scan of "
                f"the same data; give it as --mask DIR"
            )
        if "reference_logprob" in names and mask is None:
            raise BadInput(
                f"objective {wanted.name!r} compares with another model; give its scan "
                f"of the same data as --mask DIR"
            )
        if mask and not names:
            raise BadInput(f"objective {wanted.name!r} reads nothing from a scan; leave --mask out")
        if base:
            require_same_model(base, settings)
        return cls((mask or base) if names else None, names, base)

    def resolved(self, wanted: Objective) -> Objective:
        """An objective that must see the whole scan first has seen it."""
        if not wanted.of_scan:
            return wanted
        assert self.read is not None
        return wanted.resolve(ScanStep(self.read, None, tuple(wanted.reads)))

    @property
    def today(self) -> str | None:
        """The date that the scans' chat template was told."""
        dates = (s.manifest["config"].get("today") for s in (self.read, self.base) if s)
        return next(filter(None, dates), None)

    @property
    def rule(self) -> ConflictRule | None:
        """By which the scan that the objective reads is flagged."""
        return self.read.rule if self.read else None

    def require_same_data(self, source: Source, settings: ScanSettings, model: CausalLM) -> None:
        for scan, flag in ((self.read, "--mask"), (self.base, "--base-scan")):
            if scan:
                require_same_data(scan, source, settings, model, flag)

    @property
    def beside(self) -> list[Beside]:
        objectives = [for_objective(self.read, self.names)] if self.read else []
        return objectives + ([for_groups(self.base)] if self.base else [])


# --- whether it is a scan of the same tokens ---


def require_same_data(
    scan: Scan, source: Source, settings: ScanSettings, model: CausalLM, flag: str
) -> None:
    """Raises `BadInput` where data, template, truncation or mask of the scan are others. That the
    tokens are the same is seen row by row, by `Cursor`."""
    theirs, config = scan.manifest, scan.manifest["config"]
    templates = chat_templates(model.tokenizer, settings.chat_template)
    pairs = {
        "data": (theirs["data"]["fingerprint"], source.fingerprint()),
        "chat template": (theirs["chat_template"], template_hash(templates)),
        "--max-length": (theirs["model"]["max_length"], settings.max_length or model.max_length),
        "--train-on": (config.get("train_on"), settings.train_on),
        "--tool-calls": (config.get("tool_calls"), settings.tool_calls),
        "--turns": (scan.turns, settings.turns),
        "--columns": (config.get("columns"), settings.columns),
    }
    for what, (was, now) in pairs.items():
        if was != now:
            shown = f" ({was!r} there, {now!r} here)" if what.startswith("--") else ""
            raise BadInput(
                f"{flag} {scan.path} was made from another {what}{shown}; scan this "
                f"data with the same settings"
            )


def require_same_model(scan: Scan, settings: TrainSettings) -> None:
    """The groups are those of the model that a run starts from. Raises `BadInput`."""
    theirs = scan.manifest["model"]
    place = find_model(settings.model, settings.revision)
    adapter = folder_identity(settings.adapter)
    if (theirs["identity"], theirs["adapter_identity"]) != (place.identity(), adapter):
        raise BadInput(
            f"--base-scan {scan.path} was made under {theirs['name']}, not under the "
            f"model that this run starts from; what an objective reads can be given as "
            f"--mask"
        )


def opened(folder: str | None) -> Scan | None:
    if folder is None:
        return None
    scan = Scan.open(folder)
    scan.require_all("training")
    return scan
