"""The settings of `train`."""

from dataclasses import dataclass
from typing import Any, Literal

from eaft_probe.errors import BadInput
from eaft_probe.settings.common import DataSettings, ModelSettings
from eaft_probe.settings.option import flag, option


@dataclass(frozen=True, kw_only=True)
class TrainSettings(DataSettings, ModelSettings):
    """A training run. Names and meanings of `transformers.TrainingArguments`; the paper's defaults.

    Source of the defaults: arXiv 2601.02151, appendix (AdamW, 1e-5, cosine, warm-up 3 %).
    """

    objective: str = option("see `list objectives`", "sft")
    set: dict[str, Any] = option("the objective's fields, name=value,…", {})
    compat: Literal["paper", "llamafactory", "axolotl"] | None = option(
        "eaft: divide the entropy as these do, by ln 20, 3.0 or nothing"
    )
    mask: str | None = option("finished scan that masked-sft, stm, flow or rho reads")
    base_scan: str | None = option("finished scan under the starting model, to group the log by")
    reference: str | None = option("model that an anchor pulls towards; default: the starting one")
    learning_rate: float = option("peak learning rate", 1e-5)
    lr_scheduler_type: str = option("schedule of the learning rate", "cosine")
    warmup_steps: float = option("steps of warm-up; below 1: a share of all", 0.03)
    num_train_epochs: float = option("passes over the data", 1.0)
    max_steps: int = option("optimizer steps, instead of epochs", -1)
    per_device_train_batch_size: int = option("rows of a micro-batch", 8)
    gradient_accumulation_steps: int = option("micro-batches of a step", 1)
    weight_decay: float = option("AdamW's", 0.0)
    max_grad_norm: float = option("gradients are clipped to this norm; 0: not at all", 1.0)
    optim: str = option("optimizer", "adamw_torch")
    bf16: bool = option("autocast in bfloat16", False)
    gradient_checkpointing: bool = option("recompute activations, to save memory", False)
    logging_steps: int = option("steps between lines of the log", 10)
    save_steps: int = option("steps between checkpoints", 500)
    save_total_limit: int = option("checkpoints kept", 2)
    eval_steps: int = option("steps between evaluations", 100)
    report_to: list[str] = option("trackers: tensorboard, wandb, trackio, …", [])
    eval_data: str | None = option("held-out data of the same kind: its nll is logged")
    retain_data: str | None = option("data that must not be forgotten: nll, and KL from the base")
    eval_tokens: int = option("tokens of each of the two that are read, from the start", 200_000)
    lora_r: int | None = option("train a LoRA adapter of this rank")
    lora_alpha: int = option("LoRA's scaling, over its rank", 16)
    lora_target: list[str] = option("modules that LoRA adapts; all linear ones but the head", [])
    seed: int = option("seed of --sample, of the rows' order, of dropout and new adapters", 0)
    load_in_4bit: bool = option("QLoRA: the frozen weights in 4 bits, with --lora-r", False)
    group_rows: int = option("rows whose tokens are grouped by the base model's entropy", 512)
    resume: bool = option("go on from the last checkpoint in --out", False)
    overwrite: bool = option("replace what --out holds", False)

    def __post_init__(self) -> None:
        self.require_readable()
        if self.resume and self.overwrite:
            raise BadInput("--resume goes on with a run, --overwrite replaces it; give one of them")
        if self.load_in_4bit and self.lora_r is None:
            raise BadInput("--load-in-4bit freezes the weights: give --lora-r")
        if self.lora_r is not None and self.adapter is not None:
            raise BadInput(
                "--lora-r trains an adapter for the base model, and --adapter would not "
                "be part of it; leave one of them out"
            )
        if self.lora_r is None and (self.lora_target or self.lora_alpha != 16):
            raise BadInput("--lora-target and --lora-alpha are LoRA's: give --lora-r")
        least = dict.fromkeys(
            (
                "per_device_train_batch_size",
                "gradient_accumulation_steps",
                "logging_steps",
                "save_steps",
                "save_total_limit",
                "eval_steps",
                "lora_r",
                "lora_alpha",
                "limit",
                "sample",
                "eval_tokens",
            ),
            1,
        )
        least |= dict.fromkeys(("group_rows", "warmup_steps", "weight_decay", "max_grad_norm"), 0)
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and not value >= lowest:
                raise BadInput(f"{flag(name)} is a number from {lowest}, found {value}")
        for name in ("learning_rate", "num_train_epochs"):
            if not 0 < getattr(self, name) < float("inf"):
                raise BadInput(f"{flag(name)} is a finite number above 0")
        if self.max_steps != -1 and self.max_steps < 1:
            raise BadInput(f"--max-steps is a whole number from 1, found {self.max_steps}")
