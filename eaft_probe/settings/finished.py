"""The settings of what is done with finished scans."""

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from eaft_probe.errors import BadInput
from eaft_probe.settings.common import ModelSettings
from eaft_probe.settings.option import Panel, Settings, option

LEAST_DELTA = 1e-4  # nats: one model's float32 log-probabilities differ by less between two runs


@dataclass(frozen=True, kw_only=True)
class ShowSettings(Settings):
    """What `show` prints about a finished scan."""

    example: int | None = option("show only this example, coloured")
    worst: int = option("how many of the worst examples to show", 3, at_least=0)
    rank_by: str | None = option("order the worst examples by a score; see `list scores`")
    export: str | None = option("write the rows to a file; `eaft-probe export` replaces it")
    verify: bool = option("read every part and check its sha256", False)
    overwrite: bool = option("--export: replace a file", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.overwrite and self.export is None:
            raise BadInput("--overwrite replaces the file of --export: add --export F.jsonl")
        if self.example is not None and self.changed("worst", "rank_by"):
            raise BadInput("--example shows one example and --worst others: give only one of them")


@dataclass(frozen=True, kw_only=True)
class ExportSettings(Settings):
    """Which rows of a scan are written, and for whom."""

    for_: Literal["rows", "tokens", "axolotl", "ms-swift", "llamafactory"] = option(
        "what to write: the data's rows, or what a trainer reads", "rows"
    )
    where: str | None = option(
        "write only rows for which this SQL holds, e.g. 'probe_conflict_share < 0.05'"
    )
    rank_by: str | None = option("rank the rows by a score, the worst first; see `list scores`")
    top: int | None = option("with --rank-by: write only the first N", at_least=1)
    drop_top: int | None = option("with --rank-by: leave out the first N", at_least=1)
    objective: str | None = option(
        "weight each token by an objective's gate; see `list objectives`"
    )
    set: dict[str, Any] = option("the objective's fields, name=value,…", {})
    base_scan: str | None = option("finished scan of the same tokens that the objective reads")
    masked: bool = option("do not train the conflicts under the scan's rule", False)
    model: str | None = option(
        "the scan's model, if it has moved: --for tokens reads its tokenizer"
    )
    overwrite: bool = option("replace a file or a saved data set", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top is not None and self.drop_top is not None:
            raise BadInput("--top keeps rows and --drop-top leaves them out: give only one of them")
        if (self.rank_by is None) != (self.top is None and self.drop_top is None):
            raise BadInput("--rank-by needs --top N or --drop-top N, and they need --rank-by")
        if self.for_ == "rows" and (self.masked or self.objective):
            raise BadInput(
                "the data's own rows have neither a mask nor weights: add --for tokens, or a "
                "trainer's name"
            )
        if self.for_ == "axolotl" and self.objective:
            raise BadInput("axolotl reads a mask, but no weights: use --masked or --for tokens")
        if self.objective is None and (self.set or self.base_scan):
            raise BadInput("--set and --base-scan are settings of an objective: add --objective")


@dataclass(frozen=True, kw_only=True)
class MergeSettings(Settings):
    """How finished scans are joined."""

    overwrite: bool = option("replace a scan made from other scans", False)


@dataclass(frozen=True, kw_only=True)
class CompareSettings(Settings):
    """How two finished scans are compared."""

    PANEL: ClassVar[Panel] = Panel.COMPARISON

    delta: float = option(
        "nats by which a label's log-probability rises when learned, falls when forgotten",
        math.log(2),
        unset="ln 2, or 0.693",
    )
    by: Literal["tokens", "distributions"] | None = option(
        "what to compare", unset="tokens if the fingerprints of the data agree"
    )
    seed: int = option("seed of the bootstrap", 0, at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_delta(self.delta)


def require_delta(delta: float) -> None:
    """Raises `BadInput` for a threshold that would count rounding noise or nothing as a change."""
    if not LEAST_DELTA <= delta < float("inf"):
        raise BadInput(
            f"--delta must be finite and at least {LEAST_DELTA} nats, which two runs of one model "
            f"differ by, found {delta}"
        )


@dataclass(frozen=True, kw_only=True)
class GradientSettings(ModelSettings):
    """For how many tokens of a scan exact gradients are computed, and under which model."""

    PANEL: ClassVar[Panel] = Panel.SAMPLING

    # None: the one that the manifest names.
    model: str | None = option(  # type: ignore[assignment]
        "the scan's model, if it has moved", unset="where the scan found it"
    )
    dtype: str = option("float32, or a smaller type where memory is short", "float32")
    sample: int = option("tokens, drawn evenly over cells, tokens and conflicts", 512, at_least=1)
    seed: int = option("seed of the draw", 0)
    overwrite: bool = option("replace the norms of another seed", False)


@dataclass(frozen=True, kw_only=True)
class FigureSettings(Settings):
    """What a figure shows. Each kind takes some of these; see `eaft_probe.plots`."""

    PANEL: ClassVar[Panel] = Panel.FIGURE

    style: Literal["density", "scatter"] = option("landscape: density or scatter", "density")
    difference: bool = option("landscape: the ratio of the densities of two scans", False)
    zoom: Literal["conflicts"] | None = option(
        "landscape, gradients: the conflict region alone, probability on a logarithmic axis"
    )
    norm: Literal["grad_logits", "grad_head", "grad_hidden", "full"] = option(
        "gradients: which norm; full: exact norms next to the closed forms", "grad_logits"
    )
    objective: list[str] = option(
        "gradients, gates: objectives, repeated or with commas", [], unset="sft,eaft"
    )
    set: dict[str, Any] = option("gradients, gates: fields of the objectives, name=value,…", {})
    base_scan: str | None = option("gradients, gates: a scan of the same tokens to compare with")
    delta: float = option(
        "compare: nats of change that count as learned or forgotten",
        math.log(2),
        unset="ln 2, or 0.693",
    )
    by: Literal["tokens", "distributions"] | None = option(
        "compare: tokens, if the same data have different fingerprints"
    )


@dataclass(frozen=True, kw_only=True)
class PlotSettings(FigureSettings):
    """A figure and its file."""

    title: str | None = option("a line above the figure")
    caption: bool = option(
        "the caption below the figure; --no-caption leaves it out", True, unset="shown"
    )
    overwrite: bool = option(
        "replace files even if they are not an earlier figure or its data", False
    )


@dataclass(frozen=True, kw_only=True)
class ReportSettings(CompareSettings):
    """Where the page goes, and the scan it compares with, by the settings of `compare`."""

    out: str = option("the HTML file", "report.html")
    against: str | None = option("another finished scan to compare this one with on the page")
    overwrite: bool = option("replace a file even if it is not an earlier report", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.against is None and (given := self.changed("delta", "by")):
            raise BadInput(f"{given[0]} says how to compare: add --against B")

    def comparing(self) -> dict[str, object]:
        """The settings of the comparison alone."""
        return {f.name: getattr(self, f.name) for f in fields(CompareSettings)}
