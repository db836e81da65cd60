"""The settings of `scan`, its conflict rule and its estimate."""

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from eaft_probe.errors import BadInput
from eaft_probe.settings.common import (
    DataSettings,
    ModelSettings,
    TokenizerSettings,
    TrainedSettings,
    WindowSettings,
)
from eaft_probe.settings.option import Panel, Settings, flag, option

QUANTIZED = ("load_in_4bit", "load_in_8bit")
GROUP_SIZES = ("tensor_parallel_size", "pipeline_parallel_size")  # of vLLM
MOST_PROCESSES = 1024  # or threads of one: torch crashes where the system gives no more of them


@dataclass(frozen=True, kw_only=True)
class RuleSettings(Settings):
    """The conflict rule. By default: entropy < 0.509 nats and prob < 0.2."""

    PANEL: ClassVar[Panel] = Panel.RULE

    entropy_below: float | None = option(
        "conflicts have entropy below this, in nats", unset="0.509"
    )
    prob_below: float | None = option("conflicts have a label probability below this", unset="0.2")
    quantile: float | None = option(
        "instead: conflicts are in this lowest share of both, over the whole scan"
    )
    surprise_above: float | None = option("conflicts have a surprise above this, instead of both")
    calibrate: str | None = option(
        "scan of the model's own rollouts that sets the threshold of surprise, or with "
        "--entropy-below that of probability, by --rate"
    )
    rate: float | None = option(
        "--calibrate: flag at most this share of those tokens", above=0, below=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quantile is not None and (self.entropy_below, self.prob_below) != (None, None):
            raise BadInput("give either --quantile or --entropy-below and --prob-below, not both")
        if (self.calibrate is None) != (self.rate is None):
            raise BadInput("--calibrate and --rate belong together: give both")
        pair = (self.entropy_below, self.prob_below, self.quantile)
        if self.surprise_above is not None and (*pair, self.calibrate) != (None,) * 4:
            raise BadInput(
                "--surprise-above is a rule of its own: remove --entropy-below, --prob-below, "
                "--quantile and --calibrate"
            )
        if self.calibrate is not None and (self.prob_below, self.quantile) != (None, None):
            raise BadInput("--calibrate sets the threshold: remove --prob-below and --quantile")

    @property
    def names_rule(self) -> bool:
        """Whether any rule is asked for."""
        return any(getattr(self, f.name) is not None for f in fields(RuleSettings))


@dataclass(frozen=True, kw_only=True)
class MachineSettings(Settings):
    """How the work is divided, in time and over machines."""

    PANEL: ClassVar[Panel] = Panel.MACHINES

    rows_per_unit: int = option("rows that are scored and resumed together", 256, at_least=1)
    tokens_per_batch: Literal["auto"] | int = option(
        "tokens of a batch, padding included: auto or a number", "auto", at_least=1
    )
    engine: str = option(
        "what runs the units: local, ray on a cluster, or vllm, which reads them in vLLM", "local"
    )
    engine_arg: dict[str, Any] = option(
        "arguments of vLLM, name=value,…, e.g. tensor_parallel_size=8", {}
    )
    workers: int | None = option(
        "processes that score, each with its own model",
        unset="one per GPU, or this one on a CPU",
        at_least=1,
        at_most=MOST_PROCESSES,
    )
    threads: int | None = option(
        "CPU threads of each worker, which change the last digits",
        unset="all, shared; ray: 1",
        at_least=1,
        at_most=MOST_PROCESSES,
    )
    address: str | None = option("running Ray cluster, host:port or auto", unset="start one")
    tp: bool = option("spread the model over the processes of torchrun (tensor parallel)", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tp and (self.workers not in (None, 1) or self.engine != "local"):
            raise BadInput("--tp uses the processes of torchrun: remove --workers and --engine")
        if self.address is not None and self.engine not in ("ray", "vllm"):
            raise BadInput("--address names a Ray cluster: add --engine ray or --engine vllm")
        if self.engine_arg and self.engine != "vllm":
            raise BadInput("--engine-arg is for vLLM: add --engine vllm")

    @property
    def gpus(self) -> int:
        """GPUs that one worker takes."""
        return math.prod(self.engine_arg.get(name, 1) for name in GROUP_SIZES)


@dataclass(frozen=True, kw_only=True)
class ScoringSettings(Settings):
    """How the model is held, and what it is compared with."""

    PANEL: ClassVar[Panel] = Panel.MODEL

    load_in_4bit: bool = option("quantize the weights to 4 bits (NF4) with bitsandbytes", False)
    load_in_8bit: bool = option("quantize the weights to 8 bits with bitsandbytes", False)
    reference: str | None = option(
        "model to measure KL(reference ‖ model) against, as column kl_reference"
    )


@dataclass(frozen=True, kw_only=True)
class ScanSettings(
    DataSettings, WindowSettings, ScoringSettings, ModelSettings, RuleSettings, MachineSettings
):
    """Everything a scan depends on."""

    statistics: list[str] = option("extra columns, see `list statistics`", [])
    keep: list[str] = option("columns of the data to copy to the examples", [])
    keep_tokens: str = option(
        "tokens to keep one by one: all, flagged, or sample:F for a random share F; sums count all",
        "all",
    )
    overwrite: bool = option("replace a scan made with other settings", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tp and (self.device_map, self.adapter) != (None, None):
            raise BadInput(
                "--tp distributes the model itself: remove --device-map, and merge an --adapter "
                "into the model first"
            )
        self._require_one_quantization()
        if len(set(self.keep)) < len(self.keep):
            raise BadInput("--keep names the same column twice")
        self._require_kept()
        if self.engine == "vllm":
            self._require_served()

    def _require_served(self) -> None:
        """Raises `BadInput` for what vLLM cannot do."""
        reasons = {
            "reference": "its logits and a reference's are never at hand together",
            "adapter": "it reads whole models; merge the adapter into the model first",
            "device_map": "it places the model itself, by --engine-arg tensor_parallel_size=N",
            "attn_implementation": "it has attention of its own",
        }
        for name, reason in reasons.items():
            if getattr(self, name) is not None:
                raise BadInput(f"{flag(name)} cannot be used with --engine vllm: {reason}")
        for name in GROUP_SIZES:
            size = self.engine_arg.get(name, 1)
            if not isinstance(size, int) or size < 1:
                raise BadInput(f"--engine-arg {name} should be a number of GPUs, found {size!r}")
        if "grad_hidden" in self.statistics:
            raise BadInput(
                "grad_hidden cannot be measured with --engine vllm, which splits the head's weights"
            )

    def identity(self) -> dict[str, object]:
        """The settings that the numbers of a scan may depend on: what a rerun must repeat.

        Not how the work is run or stopped, nor the rule, which flags a finished scan; where not
        all tokens are kept it says which, or what is counted.
        """
        free = ["engine", "workers", "threads", "address", "overwrite", "strict", "tp"]
        free += ["surprise_above", "calibrate", "rate"]
        free += [] if self.engine_arg else ["engine_arg"]
        free += [n for n in QUANTIZED if not getattr(self, n)]  # which older plans do not have
        if self.keep_tokens == "all":
            free += ["keep_tokens", *(f.name for f in fields(RuleSettings))]
        return self.identity_without(*free)

    def _require_one_quantization(self) -> None:
        if self.load_in_4bit and self.load_in_8bit:
            raise BadInput("give either --load-in-4bit or --load-in-8bit, not both")
        if (self.load_in_4bit or self.load_in_8bit) and (self.tp or self.engine == "vllm"):
            what = "--tp" if self.tp else "--engine vllm"
            raise BadInput(f"{what} cannot quantize a model with --load-in-4bit or --load-in-8bit")

    def _require_kept(self) -> None:
        share = kept_share(self.keep_tokens)
        if share is None and self.keep_tokens not in ("all", "flagged"):
            raise BadInput(
                f"--keep-tokens must be all, flagged or sample:F with F between 0 and 1, "
                f"found {self.keep_tokens!r}"
            )
        whole = {n: getattr(self, n) for n in ("quantile", "surprise_above", "calibrate")}
        asked = next((flag(n) for n, value in whole.items() if value is not None), None)
        if self.keep_tokens != "all" and "logprob_alone" in self.statistics:
            raise BadInput(
                "logprob_alone is for a row score, which takes every token: remove --keep-tokens"
            )
        if self.keep_tokens != "all" and asked:
            raise BadInput(
                f"{asked} needs every token of the finished scan, and --keep-tokens "
                f"drops some; give --entropy-below and --prob-below instead"
            )


def as_scan(settings: DataSettings) -> ScanSettings:
    """The same settings as a scan would have them: the same rows, tokens, mask and truncation."""
    names = {f.name for f in fields(ScanSettings)} - {"overwrite"}
    return ScanSettings(**{n: getattr(settings, n) for n in names if hasattr(settings, n)})


def kept_share(keep_tokens: str) -> float | None:
    """The F of sample:F if it lies between 0 and 1."""
    kind, _, number = keep_tokens.partition(":")
    try:
        share = float(number) if kind == "sample" else 0.0
    except ValueError:
        return None
    return share if 0 < share < 1 else None


@dataclass(frozen=True, kw_only=True)
class EstimateSettings(ScanSettings):
    """A scan, and what is known about the machines that would run it."""

    PANEL: ClassVar[Panel] = Panel.ESTIMATE

    dry_run: bool = option("estimate what the scan would take; write nothing", False)
    estimate_rows: int = option(
        "--dry-run: rows to tokenize for the estimate, drawn at random",
        1000,
        at_least=30,  # fewer have no normal interval
    )
    tokens_per_second: float | None = option(
        "--dry-run: scored tokens/s of one device",
        unset="measured on this machine",
        above=0,
        below=math.inf,
    )
    devices: int = option("--dry-run: devices that share the work", 1, at_least=1)
    price_per_hour: float | None = option(
        "--dry-run: price of one device for one hour", above=0, below=math.inf
    )


@dataclass(frozen=True, kw_only=True)
class RenderSettings(DataSettings, TrainedSettings, TokenizerSettings):
    """Which tokens of which rows are trained; no model is needed for that."""
