"""The settings of `train`."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from eaft_probe.errors import BadInput
from eaft_probe.settings.common import DataSettings, ModelSettings, WindowSettings
from eaft_probe.settings.option import Panel, Settings, option


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings(Settings):
    """What is minimised, and the scans and models that it reads."""

    PANEL: ClassVar[Panel] = Panel.OBJECTIVE

    objective: str = option("see `list objectives`", "sft")
    set: dict[str, Any] = option("the objective's fields, name=value,…", {})
    compat: Literal["paper", "llamafactory", "axolotl"] | None = option(
        "eaft: divide the entropy as these programs do, by ln 20, 3.0 or nothing"
    )
    mask: str | None = option("finished scan that masked-sft, stm, flow, rho or tail reads")
    reference: str | None = option("model that an anchor pulls towards", unset="the starting model")


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings(Settings):
    """The steps. Names and meanings of `transformers.TrainingArguments`.

    Source of the defaults: arXiv 2601.02151, appendix (AdamW, 1e-5, cosine, warm-up 3 %).
    """

    PANEL: ClassVar[Panel] = Panel.OPTIMIZER

    learning_rate: float = option("peak learning rate", 1e-5, above=0, below=math.inf)
    lr_scheduler_type: str = option("schedule of the learning rate", "cosine")
    warmup_steps: float = option(
        "steps of warm-up; below 1: a share of all steps", 0.03, at_least=0
    )
    num_train_epochs: float = option("passes over the data", 1.0, above=0, below=math.inf)
    max_steps: int = option(
        "optimizer steps, instead of epochs", -1, unset="as many as epochs take"
    )
    per_device_train_batch_size: int = option("rows of a micro-batch", 8, at_least=1)
    gradient_accumulation_steps: int = option("micro-batches of a step", 1, at_least=1)
    weight_decay: float = option("weight decay of AdamW", 0.0, at_least=0)
    max_grad_norm: float = option("clip gradients to this norm; 0: do not clip", 1.0, at_least=0)
    optim: str = option("optimizer", "adamw_torch")
    bf16: bool = option("autocast in bfloat16", False)
    gradient_checkpointing: bool = option("recompute activations to save memory", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_steps != -1 and self.max_steps < 1:
            raise BadInput(f"--max-steps must be at least 1, found {self.max_steps}")


@dataclass(frozen=True, kw_only=True)
class LoraSettings(Settings):
    """An adapter that is trained instead of the weights."""

    PANEL: ClassVar[Panel] = Panel.LORA

    lora_r: int | None = option("train a LoRA adapter of this rank", at_least=1)
    lora_alpha: int = option("scaling of LoRA, divided by its rank", 16, at_least=1)
    lora_target: list[str] = option(
        "modules that LoRA adapts", [], unset="all linear ones except the head"
    )
    load_in_4bit: bool = option("QLoRA: keep the frozen weights in 4 bits, with --lora-r", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.load_in_4bit and self.lora_r is None:
            raise BadInput("--load-in-4bit freezes the weights: add --lora-r")
        if self.lora_r is None and (given := self.changed("lora_alpha", "lora_target")):
            raise BadInput(f"{given[0]} is a setting of LoRA: add --lora-r")


@dataclass(frozen=True, kw_only=True)
class MeasuredSettings(Settings):
    """What is measured on the way, and logged."""

    PANEL: ClassVar[Panel] = Panel.MEASURED

    logging_steps: int = option("steps between lines of the log", 10, at_least=1)
    report_to: list[str] = option("trackers: tensorboard, wandb, trackio, …", [])
    base_scan: str | None = option(
        "finished scan under the starting model, for the groups of the log"
    )
    group_rows: int = option(
        "rows whose tokens are grouped by the base model's entropy, without --base-scan",
        512,
        at_least=0,
    )
    eval_data: str | None = option("held-out data of the same kind; the log has its nll")
    retain_data: str | None = option(
        "data that must not be forgotten; the log has its nll and KL from the base"
    )
    eval_tokens: int = option(
        "tokens to read from the start of each of the two", 200_000, at_least=1
    )
    eval_steps: int = option("steps between measurements of the two", 100, at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        measured = (self.eval_data, self.retain_data) != (None, None)
        if not measured and (given := self.changed("eval_tokens", "eval_steps")):
            raise BadInput(f"{given[0]} has nothing to measure: add --eval-data or --retain-data")
        if self.base_scan is not None and self.changed("group_rows"):
            raise BadInput("--base-scan has the groups of all rows: remove --group-rows")


@dataclass(frozen=True, kw_only=True)
class TrainSettings(
    DataSettings,
    WindowSettings,
    ModelSettings,
    ObjectiveSettings,
    OptimizerSettings,
    LoraSettings,
    MeasuredSettings,
):
    """A training run."""

    seed: int = option("seed of --sample, the order of rows, dropout and new adapters", 0)
    save_steps: int = option("steps between checkpoints", 500, at_least=1)
    save_total_limit: int = option("checkpoints to keep", 2, at_least=1)
    resume: bool = option("continue from the last checkpoint in --out", False)
    overwrite: bool = option("replace what --out holds", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resume and self.overwrite:
            raise BadInput(
                "--resume continues a run and --overwrite replaces it: give only one of them"
            )
        if self.lora_r is not None and self.adapter is not None:
            raise BadInput(
                "--lora-r trains an adapter for the base model, which --adapter is not part of: "
                "remove one of them"
            )
