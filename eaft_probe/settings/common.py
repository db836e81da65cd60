"""The settings that several verbs share: of the data and of the model."""

from dataclasses import dataclass, fields
from typing import Any, Literal

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
    max_length: int | None = option("tokens of a conversation; default: the model's context")
    limit: int | None = option("only the first rows")
    sample: int | None = option("only this many rows, drawn at random with --seed")
    seed: int = option("seed of --sample", 0)
    strict: bool = option("stop at the first row that cannot be used", False)


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
