"""The settings of `rollout`."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from eaft_probe.errors import BadInput
from eaft_probe.settings.common import DataSettings, ModelSettings
from eaft_probe.settings.option import flag, option


@dataclass(frozen=True, kw_only=True)
class RolloutSettings(DataSettings, ModelSettings):
    """How a model answers the prompts of a data set."""

    n: int = option("answers to each prompt", 1)
    temperature: float = option("0: the likeliest token every time; 1: as the model has it", 1.0)
    top_p: float = option("draw from the likeliest tokens that have this probability", 1.0)
    max_new_tokens: int = option("tokens after which an answer is cut", 256)
    seed: int = option("seed of --sample and of the answers", 0)
    batch_size: Literal["auto"] | int = option(
        "answers sampled at once: auto (32; 128 on a GPU) or a number", "auto"
    )
    rows_per_unit: int = option("rows that are answered and resumed together", 64)
    then_scan: str | None = option("score the answers under the same model, into this folder")
    overwrite: bool = option("replace a rollout made with other settings", False)

    def __post_init__(self) -> None:
        self.require_readable()
        for name in (
            "n",
            "max_new_tokens",
            "batch_size",
            "rows_per_unit",
            "max_length",
            "limit",
            "sample",
        ):
            value, least = getattr(self, name), 2 if name == "max_length" else 1
            if value not in (None, "auto") and value < least:
                raise BadInput(f"{flag(name)} is a whole number from {least}, found {value}")
        if not 0 <= self.temperature < float("inf"):
            raise BadInput(f"--temperature is a number from 0, found {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise BadInput(f"--top-p lies above 0 and is at most 1, found {self.top_p}")
        if self.n > 1 and self.temperature == 0:
            raise BadInput(f"--temperature 0 gives the same answer {self.n} times; lower --n to 1")

    def identity(self) -> dict[str, Any]:
        """The settings that the answers depend on: what a rerun must repeat."""
        free = {"train_on", "turns", "stride", "strict", "then_scan", "overwrite"}
        return {k: v for k, v in asdict(self).items() if k not in free | self.as_ever()}
