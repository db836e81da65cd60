"""The settings of what is done with finished scans."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from eaft_probe.errors import BadInput
from eaft_probe.settings.common import ModelSettings
from eaft_probe.settings.option import option

LEAST_DELTA = 1e-4  # nats: one model's float32 log-probabilities differ by less between two runs


@dataclass(frozen=True, kw_only=True)
class ShowSettings:
    """What `show` prints of a finished scan."""

    example: int | None = option("one example, coloured")
    worst: int = option("how many of the worst examples", 3)
    export: str | None = option("write the rows with their loss to F.jsonl")
    verify: bool = option("read every part and compare its sha256, however large the scan", False)
    overwrite: bool = option("--export: replace a file that is no earlier export", False)

    def __post_init__(self) -> None:
        if self.worst < 0:
            raise BadInput(f"--worst is a whole number from 0, found {self.worst}")


@dataclass(frozen=True, kw_only=True)
class MergeSettings:
    """How finished scans are joined."""

    overwrite: bool = option("replace a scan made from others", False)


@dataclass(frozen=True, kw_only=True)
class CompareSettings:
    """How two finished scans are compared."""

    delta: float = option(
        "nats by which a learned label's log-probability rises, a forgotten one's falls; ln 2",
        math.log(2),
    )
    by: Literal["tokens", "distributions"] | None = option(
        "what to compare; default: tokens where the data's fingerprints agree"
    )
    seed: int = option("seed of the bootstrap", 0)

    def __post_init__(self) -> None:
        require_delta(self.delta)
        if self.seed < 0:
            raise BadInput(f"--seed is a whole number from 0, found {self.seed}")


def require_delta(delta: float) -> None:
    """Raises `BadInput` for a threshold that counts float noise, or nothing, as a change."""
    if not LEAST_DELTA <= delta < float("inf"):
        raise BadInput(
            f"--delta is a finite number from {LEAST_DELTA} nats, by which two runs of "
            f"one model differ, found {delta}"
        )


@dataclass(frozen=True, kw_only=True)
class GradientSettings(ModelSettings):
    """Of how many tokens of a scan the exact gradient is taken, and under which model."""

    # None: the one that the manifest names.
    model: str | None = option(  # type: ignore[assignment]
        "the scan's model, where it lies elsewhere now"
    )
    dtype: str = option("float32, or what does not fit the memory otherwise", "float32")
    sample: int = option("tokens, drawn evenly over cells, tokens and conflicts", 512)
    seed: int = option("seed of the draw", 0)
    overwrite: bool = option("replace the norms of another seed", False)

    def __post_init__(self) -> None:
        if self.sample < 1:
            raise BadInput(f"--sample is a whole number from 1, found {self.sample}")


@dataclass(frozen=True, kw_only=True)
class PlotSettings:
    """What a figure shows. Each kind takes some of these; see `eaft_probe.plots`."""

    style: Literal["density", "scatter"] = option("landscape: density or scatter", "density")
    difference: bool = option("landscape: of two scans, the ratio of their densities", False)
    norm: Literal["grad_logits", "grad_head", "grad_hidden", "full"] = option(
        "gradients: whose norm; full: the exact ones beside the closed forms", "grad_logits"
    )
    objective: list[str] = option(
        "gradients, gates: objectives, repeated or with commas; sft and eaft", []
    )
    set: dict[str, Any] = option("gradients, gates: the objectives' fields, name=value,…", {})
    base_scan: str | None = option("gradients, gates: a scan of the same tokens to compare with")
    delta: float = option("compare: nats of change from which on a token moved; ln 2", math.log(2))
    by: Literal["tokens", "distributions"] | None = option(
        "compare: tokens, where the fingerprints of the same data differ"
    )
    overwrite: bool = option("replace files that are no earlier figure or its data", False)


@dataclass(frozen=True, kw_only=True)
class ReportSettings(CompareSettings):
    """Where the page goes, and what else is on it: a comparison takes the settings of `compare`."""

    out: str = option("the HTML file", "report.html")
    against: str | None = option("another finished scan, compared with this one on the page")
    overwrite: bool = option("replace a file that is no earlier report", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.against is None and self.comparing() != asdict(CompareSettings()):
            raise BadInput("--delta, --by and --seed say how to compare; give --against B too")

    def comparing(self) -> dict[str, Any]:
        """The settings of the comparison alone."""
        return {f.name: getattr(self, f.name) for f in fields(CompareSettings)}
