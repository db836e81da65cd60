"""The settings of `scan`, its conflict rule and its estimate."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from eaft_probe.errors import BadInput
from eaft_probe.settings.common import DataSettings, ModelSettings
from eaft_probe.settings.option import flag, option

MOST_PROCESSES = 1024  # or threads of one: torch crashes where the system gives no more of them


@dataclass(frozen=True, kw_only=True)
class RuleSettings:
    """The conflict rule. Without any of these: entropy < 0.509 nats and prob < 0.2."""

    entropy_below: float | None = option("conflicts have entropy below this, in nats")
    prob_below: float | None = option("conflicts have a label probability below this")
    quantile: float | None = option("conflicts are in this lowest part of both, over the scan")

    def __post_init__(self) -> None:
        if self.quantile is not None and (self.entropy_below, self.prob_below) != (None, None):
            raise BadInput("give --quantile, or --entropy-below and --prob-below, not both")


@dataclass(frozen=True, kw_only=True)
class ScanSettings(DataSettings, ModelSettings, RuleSettings):
    """Everything a scan depends on."""

    reference: str | None = option("a model whose KL to the model is written: kl_reference")
    statistics: list[str] = option("extra columns, see `list statistics`", [])
    keep: list[str] = option("columns of the data passed through to the examples", [])
    keep_tokens: str = option(
        "tokens kept row by row: all, flagged or sample:F, a random part F; sums are of all", "all"
    )
    rows_per_unit: int = option("rows that are scored and resumed together", 256)
    tokens_per_batch: Literal["auto"] | int = option(
        "tokens of a batch, padding counted; auto or a number", "auto"
    )
    engine: str = option("who runs the units: local, or ray on a cluster", "local")
    workers: int | None = option(
        "processes that score, each with the model; default: one a GPU, on a CPU this one"
    )
    threads: int | None = option(
        "CPU threads of each of them; the last digits depend on it. default: all, shared; ray: 1"
    )
    address: str | None = option("of a running Ray cluster, host:port or auto; default: its own")
    tp: bool = option("spread the model over the processes of torchrun (tensor parallel)", False)
    overwrite: bool = option("replace a scan made with other settings", False)

    def __post_init__(self) -> None:
        RuleSettings.__post_init__(self)
        self.require_readable()
        if self.tp and (self.device_map, self.adapter) != (None, None):
            raise BadInput(
                "--tp spreads a model by its own plan: leave out --device-map, and "
                "merge an --adapter into the model before"
            )
        if len(set(self.keep)) < len(self.keep):
            raise BadInput("--keep names a column twice")
        self._require_kept()
        if self.tp and (self.workers not in (None, 1) or self.engine != "local"):
            raise BadInput(
                "--tp works with the processes of torchrun: leave out --workers and --engine"
            )
        if self.address is not None and self.engine != "ray":
            raise BadInput("--address is that of a Ray cluster: give --engine ray too")
        for name in (
            "rows_per_unit",
            "max_length",
            "limit",
            "sample",
            "tokens_per_batch",
            "workers",
            "threads",
        ):
            value, least = getattr(self, name), 2 if name == "max_length" else 1
            if value not in (None, "auto") and value < least:
                raise BadInput(f"{flag(name)} is a whole number from {least}, found {value}")
        for name in ("workers", "threads"):
            if (getattr(self, name) or 0) > MOST_PROCESSES:
                raise BadInput(
                    f"{flag(name)} is at most {MOST_PROCESSES:,}, found {getattr(self, name)}"
                )

    def identity(self) -> dict[str, Any]:
        """The settings that the numbers of a scan may depend on: what a rerun must repeat.

        Not how the work is run or stopped, nor the rule, which flags a finished scan; where not
        all tokens are kept it says which, or what is counted.
        """
        free = {"engine", "workers", "threads", "address", "overwrite", "strict", "tp"}
        if self.keep_tokens == "all":
            free |= {f.name for f in fields(RuleSettings)} | {"keep_tokens"}
        return {k: v for k, v in asdict(self).items() if k not in free | self.as_ever()}

    def _require_kept(self) -> None:
        share = kept_share(self.keep_tokens)
        if share is None and self.keep_tokens not in ("all", "flagged"):
            raise BadInput(
                f"--keep-tokens is all, flagged or sample:F with F between 0 and 1, "
                f"found {self.keep_tokens!r}"
            )
        if self.keep_tokens != "all" and self.quantile is not None:
            raise BadInput(
                "--quantile needs every token of the finished scan, and --keep-tokens "
                "drops them before; give --entropy-below and --prob-below"
            )


def kept_share(keep_tokens: str) -> float | None:
    """The F of sample:F, as long as it lies between 0 and 1."""
    kind, _, number = keep_tokens.partition(":")
    try:
        share = float(number) if kind == "sample" else 0.0
    except ValueError:
        return None
    return share if 0 < share < 1 else None


@dataclass(frozen=True, kw_only=True)
class EstimateSettings(ScanSettings):
    """A scan, and what is known of the machines that would run it."""

    dry_run: bool = option("say what the scan would take, and write nothing", False)
    estimate_rows: int = option("--dry-run: rows tokenized to estimate by, drawn at random", 1000)
    tokens_per_second: float | None = option(
        "--dry-run: scored tokens/s that a device reaches; default: what this machine does"
    )
    devices: int = option("--dry-run: devices that share the work", 1)
    price_per_hour: float | None = option("--dry-run: price of a device's hour")

    def __post_init__(self) -> None:
        super().__post_init__()
        least = {"estimate_rows": 30, "devices": 1}  # rows: fewer have no normal interval
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise BadInput(
                    f"{flag(name)} is a whole number from {lowest}, found {getattr(self, name)}"
                )
        for name in ("tokens_per_second", "price_per_hour"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise BadInput(f"{flag(name)} is a finite number above 0, found {value}")

    @classmethod
    def only(cls) -> list[str]:
        """The settings that a scan does not have."""
        own = {f.name for f in fields(ScanSettings)}
        return [f.name for f in fields(cls) if f.name not in own]
