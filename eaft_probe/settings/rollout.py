"""The settings of `rollout`."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from eaft_probe.errors import BadInput
from eaft_probe.settings.common import DataSettings, ModelSettings, TemplateSettings
from eaft_probe.settings.option import Panel, Settings, option


@dataclass(frozen=True, kw_only=True)
class SamplingSettings(Settings):
    """How a model answers."""

    PANEL: ClassVar[Panel] = Panel.SAMPLING

    n: int = option("answers to each prompt", 1, at_least=1)
    temperature: float = option(
        "0: always the likeliest token; 1: the model's own distribution",
        1.0,
        at_least=0,
        below=math.inf,
    )
    top_p: float = option(
        "draw from the likeliest tokens that together have this probability",
        1.0,
        above=0,
        at_most=1,
    )
    max_new_tokens: int = option("tokens after which an answer is cut", 256, at_least=1)
    max_length: int | None = option(
        "longest conversation with its answer, in tokens", unset="the model's context", at_least=2
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n > 1 and self.temperature == 0:
            raise BadInput(f"--temperature 0 gives the same answer {self.n} times; lower --n to 1")


@dataclass(frozen=True, kw_only=True)
class AnswersAtOnceSettings(Settings):
    """How many answers are sampled together."""

    PANEL: ClassVar[Panel] = Panel.MACHINES

    batch_size: Literal["auto"] | int = option(
        "answers sampled at once: auto (32; 128 on a GPU) or a number", "auto", at_least=1
    )
    rows_per_unit: int = option("rows that are answered and resumed together", 64, at_least=1)
    engine: Literal["local", "vllm"] = option("what samples: transformers, or vLLM", "local")
    engine_arg: dict[str, Any] = option(
        "arguments of vLLM, name=value,…, e.g. tensor_parallel_size=8", {}
    )


@dataclass(frozen=True, kw_only=True)
class RolloutSettings(
    DataSettings, TemplateSettings, ModelSettings, SamplingSettings, AnswersAtOnceSettings
):
    """How a model answers the prompts of a data set, and what becomes of the answers."""

    seed: int = option("seed of --sample and of the answers", 0)
    then_scan: str | None = option("also score the answers under the same model, into this folder")
    overwrite: bool = option("replace a rollout made with other settings", False)

    def identity(self) -> dict[str, object]:
        """The settings that the answers depend on: what a rerun must repeat."""
        local = ("engine", "engine_arg") if self.engine == "local" else ()
        return self.identity_without("strict", "then_scan", "overwrite", *local)
