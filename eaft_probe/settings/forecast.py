"""The settings of `forecast`."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from eaft_probe.errors import BadInput
from eaft_probe.settings.option import Panel, Settings, option
from eaft_probe.settings.scan import ScanSettings
from eaft_probe.settings.train import LoraSettings


@dataclass(frozen=True, kw_only=True)
class FrontierSettings(Settings):
    """Which objectives are compared, and on what."""

    PANEL: ClassVar[Panel] = Panel.MEASURED

    objective: list[str] = option(
        "objectives to compare with sft, repeated or with commas; see `list objectives`",
        [],
        unset="those that need neither a reference nor an anchor",
    )
    set: dict[str, Any] = option("fields of the objectives, name=value,…", {})
    retain_data: str | None = option("data that must not be forgotten")
    eval_data: str | None = option(
        "held-out data of the same kind", unset="a tenth of DATA's rows, left out of the step"
    )
    eval_tokens: int = option(
        "tokens to read from the start of each of the two", 20_000, at_least=1
    )
    step_tokens: int = option("tokens of DATA that a step is taken on", 20_000, at_least=1)
    step: Literal["plain", "preconditioned"] = option(
        "direction of a step: the gradient, or as AdamW scales it, by its root mean square over 8 "
        "micro-batches",
        "plain",
    )
    checks: int = option(
        "tokens whose alignment is checked by an exact backward pass", 4, at_least=1
    )


@dataclass(frozen=True, kw_only=True)
class ForecastSettings(ScanSettings, LoraSettings, FrontierSettings):
    """A scan, and what a step on it would do."""

    scan: str | None = option(
        "finished scan or forecast of DATA under the model, whose parts are taken"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        bits = "4 bits" if self.load_in_4bit else "8 bits" if self.load_in_8bit else None
        if self.dtype not in ("float32", "auto") or bits:
            raise BadInput(
                f"a forecast takes differences of two passes, which in {bits or self.dtype} are "
                f"noise; give --dtype float32"
            )
        if self.engine == "vllm" or self.tp or self.device_map is not None:
            raise BadInput(
                "a forecast moves the model's weights, which --engine vllm, --tp and --device-map "
                "do not allow; remove them"
            )
        if self.scan is not None and self.overwrite:
            raise BadInput("--scan takes the parts of a finished scan: remove --overwrite")
        if self.adapter is not None:
            raise BadInput("a forecast moves the model's own weights: merge the --adapter first")
        if self.keep_tokens != "all":
            raise BadInput("a forecast needs every token: remove --keep-tokens")
