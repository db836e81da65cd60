"""Columns of a finished scan for the rows that a run is trained on, token by token.

Rows and scan are read together, both in the order of the data, one example at a time: a row, or
under --turns each one turn of it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from eaft_probe.columns.groups import GROUP_COLUMNS, groups
from eaft_probe.data.batches import Window
from eaft_probe.data.rendering.render import chat_templates
from eaft_probe.data.sources import Source
from eaft_probe.errors import BadInput
from eaft_probe.model.loading import CausalLM
from eaft_probe.model.resolve import find_model
from eaft_probe.objectives.objective import Objective
from eaft_probe.objectives.scan_columns import OF_BASE, Arrays, by_example, open_base, resolved
from eaft_probe.objectives.step_metrics import group_bits
from eaft_probe.scans.manifest import require_model_files
from eaft_probe.scans.scan import Scan
from eaft_probe.settings import ScanSettings, TrainSettings
from eaft_probe.verbs.scan.plan import folder_identity, template_hash


@dataclass(frozen=True)
class ScanFeatures:
    """What a scan adds to the rows: the columns `compute` makes of `reads`, for each trained token
    of an example."""

    scan: Scan
    reads: Sequence[str]
    compute: Callable[[Arrays], Arrays]

    def examples(self) -> Iterator[Arrays]:
        """The columns of one example after the other."""
        columns = sorted({*self.scan.token_key, "token_id", *self.reads})
        yield from by_example(self.scan.token_arrays(columns), self.scan.example_key)


class Cursor:
    """One pass over the scan, to be asked for rows, and turns of a row, in rising order."""

    def __init__(self, features: ScanFeatures) -> None:
        self.scan, self.compute = features.scan, features.compute
        self.examples = features.examples()
        self.example: Arrays | None = next(self.examples, None)

    def columns(self, row: int, turn: int | None, window: Window) -> Arrays:
        """The window's columns (T,), 0 at untrained tokens. Raises `BadInput` where the scan
        holds other tokens. `turn`: the one that is rendered, under --turns each."""
        name = f"row {row}" if turn is None else f"turn {turn} of row {row}"
        example = self._example((row,) if turn is None else (row, turn))
        if example is None:
            raise BadInput(
                f"{self.scan.path} holds no {name} of the data; scan it with the same --limit and "
                f"--sample, or whole"
            )
        trained = np.flatnonzero(window.trained)
        scanned, wanted = example["position"], window.start + trained
        at = np.searchsorted(scanned, wanted).clip(max=len(scanned) - 1)
        same = (scanned[at] == wanted) & (example["token_id"][at] == window.ids[trained])
        if not same.all():
            raise BadInput(
                f"{self.scan.path} holds other tokens for {name} than this run would train on; "
                f"scan the data again"
            )
        columns = {}
        for column, values in self.compute(example).items():
            columns[column] = np.zeros(len(window.ids), values.dtype)
            columns[column][trained] = values[at]
        return columns

    def _example(self, wanted: tuple[int, ...]) -> Arrays | None:
        """The columns of an example, given by its key; None where the scan does not have it."""
        while self.example is not None:
            key = tuple(int(self.example[name][0]) for name in self.scan.example_key)
            if key >= wanted:
                return self.example if key == wanted else None
            self.example = next(self.examples, None)
        return None


def for_objective(scan: Scan, names: Sequence[str]) -> ScanFeatures:
    """The columns `names` of OF_BASE, float32."""
    reads = {OF_BASE[n] for n in names} | ({"logprob"} if "base_mean_nll" in names else set())

    def compute(columns: Arrays) -> Arrays:
        base = {n: columns[OF_BASE[n]] for n in names}
        if "base_mean_nll" in base:  # over the columns of the whole example
            nll = -columns["logprob"]
            base["base_mean_nll"] = np.full(len(nll), nll.mean(dtype=np.float64))
        return {n: c.astype(np.float32) for n, c in base.items()}

    return ScanFeatures(scan, sorted(reads), compute)


def for_groups(scan: Scan) -> ScanFeatures:
    """`group`, the bits of GROUP_BITS under the scan's rule."""
    return ScanFeatures(
        scan,
        sorted({*GROUP_COLUMNS, *scan.rule.reads}),
        lambda c: {"group": group_bits(groups(c, scan.rule)).astype(np.uint8)},
    )


@dataclass(frozen=True)
class Scans:
    """The finished scans of a run: one that the objective reads, one that groups the log."""

    read: Scan | None
    names: tuple[str, ...]  # the columns of OF_BASE that the objective reads
    base: Scan | None

    @classmethod
    def opened(cls, settings: TrainSettings, objective: Objective) -> "Scans":
        names = tuple(name for name in objective.reads if name in OF_BASE)
        mask, base = (open_base(d, "training") for d in (settings.mask, settings.base_scan))
        if names and (mask or base) is None:
            raise BadInput(
                f"objective {objective.name!r} reads {names[0]} from a finished scan of the same "
                f"data; give it as --mask DIR"
            )
        if "reference_logprob" in names and mask is None:
            raise BadInput(
                f"objective {objective.name!r} compares with another model; give its scan of the "
                f"same data as --mask DIR"
            )
        if mask and not names:
            raise BadInput(
                f"objective {objective.name!r} reads nothing from a scan; leave --mask out"
            )
        if base:
            require_same_model(base, settings)
        return cls((mask or base) if names else None, names, base)

    def resolved(self, objective: Objective) -> Objective:
        """An objective that must see the whole scan first has seen it."""
        if not objective.of_scan or self.read is None:
            return objective
        if "reference_logprob" not in self.names:
            return resolved(objective, self.read, None)
        if self.base is None:  # `read` is the reference's
            raise BadInput(
                f"objective {str(objective)!r} ranks the whole data under the starting model; give "
                f"its scan as --base-scan DIR"
            )
        return resolved(objective, self.base, self.read)

    @property
    def today(self) -> str | None:
        """The date that the scans' chat template was given."""
        dates = (s.manifest["config"].get("today") for s in (self.read, self.base) if s)
        return next(filter(None, dates), None)

    def features(
        self, source: Source, settings: ScanSettings, model: CausalLM
    ) -> list[ScanFeatures]:
        """What the scans add to the rows. Raises `BadInput` where they are of other data."""
        features = []
        if self.read:
            require_same_data(self.read, source, settings, model, "--mask")
            features.append(for_objective(self.read, self.names))
        if self.base:
            require_same_data(self.base, source, settings, model, "--base-scan")
            features.append(for_groups(self.base))
        return features


# --- whether it is a scan of the same tokens ---


def require_same_data(
    scan: Scan, source: Source, settings: ScanSettings, model: CausalLM, flag: str
) -> None:
    """Raises `BadInput` where data, template, truncation or mask of the scan differ. `Cursor`
    compares the tokens, row by row."""
    manifest, config = scan.manifest, scan.manifest["config"]
    templates = chat_templates(model.tokenizer, settings.chat_template)
    pairs = {
        "data": (manifest["data"]["fingerprint"], source.fingerprint()),
        "chat template": (manifest["chat_template"], template_hash(templates)),
        "--max-length": (manifest["model"]["max_length"], settings.max_length or model.max_length),
        "--train-on": (config.get("train_on"), settings.train_on),
        "--tool-calls": (config.get("tool_calls"), settings.tool_calls),
        "--turns": (scan.turns, settings.turns),
        "--columns": (config.get("columns"), settings.columns),
    }
    for what, (scanned, now) in pairs.items():
        if scanned != now:
            values = f" ({scanned!r} there, {now!r} now)" if what.startswith("--") else ""
            raise BadInput(
                f"{flag} {scan.path} was made from another {what}{values}; scan this data with "
                f"the same settings"
            )


def require_same_model(scan: Scan, settings: TrainSettings) -> None:
    """The groups are those of the model that a run starts from. Raises `BadInput`."""
    scanned = scan.manifest["model"]
    require_model_files(scan.manifest, scan.path, *["load_in_4bit"] * settings.load_in_4bit)
    model = find_model(settings.model, settings.revision).identity()
    if (scanned["identity"], scanned["adapter_identity"]) != (
        model,
        folder_identity(settings.adapter),
    ):
        raise BadInput(
            f"--base-scan {scan.path} was made under {scanned['name']}, not under the model that "
            f"this run starts from; give a scan that the objective reads as --mask"
        )
