"""The settings that several verbs share: of the data and of the model."""

from dataclasses import dataclass, fields
from datetime import date
from typing import Any, Literal

from eaft_probe.errors import BadInput
from eaft_probe.settings.option import option


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which rows, and how they become tokens."""

    config_name: str | None = option("configuration of a hub data set")
    split: str = option("split of a hub or saved data set", "train")
    data_revision: str | None = option("revision of a hub data set; --revision where not given")
    format: str | None = option("row format, where the columns do not tell it")
    columns: dict[str, str] = option(
        "names of the data's columns, ours=theirs,…: question=prompt", {}
    )
    train_on: Literal["assistant", "last", "all"] = option("messages to train", "assistant")
    tool_calls: Literal["template", "inline"] = option(
        "tool calls by the chat template, or inline as JSON text", "template"
    )
    turns: Literal["together", "each"] = option(
        "a conversation in one rendering, or each trained turn in one of its own, as at inference",
        "together",
    )
    chat_template: str | None = option("file with the chat template, instead of the tokenizer's")
    template_arg: dict[str, Any] = option(
        "what the chat template is given besides, name=value,…: enable_thinking=false", {}
    )
    today: str | None = option(
        "date that the chat template is told, YYYY-MM-DD; default: this day, kept by what goes on"
    )
    max_length: int | None = option("tokens of a conversation; default: the model's context")
    stride: int = option("plain text longer than that: tokens that windows have in common", 1)
    limit: int | None = option("only the first rows")
    sample: int | None = option("only this many rows, drawn at random with --seed")
    seed: int = option("seed of --sample", 0)
    strict: bool = option("stop at the first row that cannot be used", False)

    def require_readable(self) -> None:
        """Raises `BadInput` for a date or a stride that is none."""
        if self.stride < 1:
            raise BadInput(f"--stride is a whole number from 1, found {self.stride}")
        try:
            date.fromisoformat(self.today or "2026-01-01")
        except ValueError as error:
            raise BadInput(f"--today is a date as 2026-01-31, found {self.today!r}") from error

    def as_ever(self) -> set[str]:
        """Settings that older plans do not know, where they say what was always done; and those
        that a plan has by other names, the template and its date."""
        later = {"turns": "together", "template_arg": {}, "stride": 1}
        known = {n for n, old in later.items() if getattr(self, n) == old}
        return known | {"chat_template", "today"}


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which model, and how it is loaded."""

    model: str = option("hub id, folder, .gguf file, or smollm2 (bundled)", "smollm2")
    adapter: str | None = option("folder of a PEFT adapter")
    revision: str | None = option("revision of a hub model or data set")
    dtype: str = option("auto, float32, bfloat16 or float16", "auto")
    device: str = option("auto, cpu, cuda, cuda:1, …", "auto")
    device_map: str | None = option("spread the model: auto, balanced, …")
    attn_implementation: str | None = option("sdpa, eager, flash_attention_2, …")
    trust_remote_code: bool = option("run code that comes with the model", False)
    allow_pickle: bool = option("load pickled weights, which can run code", False)

    def loading(self) -> dict[str, Any]:
        """What `load_model` takes besides the name."""
        return {f.name: getattr(self, f.name) for f in fields(ModelSettings) if f.name != "model"}
