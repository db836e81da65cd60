"""What a user can set: one field each, which is a flag, a key of `--config` and an argument.

The fields' help texts are the documentation of all three. No torch here: `--help` must be quick.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import yaml

from eaft_probe.errors import BadInput, one_line

LEAST_DELTA = 1e-4  # nats: one model's float32 log-probabilities differ by less between two runs


def _option(help: str, default: Any = None) -> Any:
    if isinstance(default, dict | list):
        return field(default_factory=type(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which rows, and how they become tokens."""

    config_name: str | None = _option("configuration of a hub data set")
    split: str = _option("split of a hub or saved data set", "train")
    data_revision: str | None = _option("revision of a hub data set; --revision where not given")
    format: str | None = _option("row format, where the columns do not tell it")
    columns: dict[str, str] = _option(
        "names of the data's columns, ours=theirs,…: question=prompt", {}
    )
    train_on: Literal["assistant", "last", "all"] = _option("messages to train", "assistant")
    tool_calls: Literal["template", "inline"] = _option(
        "tool calls by the chat template, or inline as JSON text", "template"
    )
    max_length: int | None = _option("tokens of a conversation; default: the model's context")
    limit: int | None = _option("only the first rows")
    sample: int | None = _option("only this many rows, drawn at random with --seed")
    seed: int = _option("seed of --sample", 0)
    strict: bool = _option("stop at the first row that cannot be used", False)


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which model, and how it is loaded."""

    model: str = _option("hub id, folder, .gguf file, or smollm2 (bundled)", "smollm2")
    adapter: str | None = _option("folder of a PEFT adapter")
    revision: str | None = _option("revision of a hub model or data set")
    dtype: str = _option("auto, float32, bfloat16 or float16", "auto")
    device: str = _option("auto, cpu, cuda, cuda:1, …", "auto")
    device_map: str | None = _option("spread the model: auto, balanced, …")
    attn_implementation: str | None = _option("sdpa, eager, flash_attention_2, …")
    trust_remote_code: bool = _option("run code that comes with the model", False)
    allow_pickle: bool = _option("load pickled weights, which can run code", False)

    def loading(self) -> dict[str, Any]:
        """What `load_model` takes besides the name."""
        return {f.name: getattr(self, f.name) for f in fields(ModelSettings) if f.name != "model"}


@dataclass(frozen=True, kw_only=True)
class RuleSettings:
    """The conflict rule. Without any of these: entropy < 0.509 nats and prob < 0.2."""

    entropy_below: float | None = _option("conflicts have entropy below this, in nats")
    prob_below: float | None = _option("conflicts have a label probability below this")
    quantile: float | None = _option("conflicts are in this lowest part of both, over the scan")

    def __post_init__(self) -> None:
        if self.quantile is not None and (self.entropy_below, self.prob_below) != (None, None):
            raise BadInput("give --quantile, or --entropy-below and --prob-below, not both")


@dataclass(frozen=True, kw_only=True)
class ScanSettings(DataSettings, ModelSettings, RuleSettings):
    """Everything a scan depends on."""

    reference: str | None = _option("a model whose KL to the model is written: kl_reference")
    statistics: list[str] = _option("extra columns, see `list statistics`", [])
    keep: list[str] = _option("columns of the data passed through to the examples", [])
    keep_tokens: str = _option(
        "tokens kept row by row: all, flagged or sample:F, a random part F; sums are of all", "all"
    )
    rows_per_unit: int = _option("rows that are scored and resumed together", 256)
    tokens_per_batch: Literal["auto"] | int = _option(
        "tokens of a batch, padding counted; auto or a number", "auto"
    )
    engine: str = _option("who runs the units: local, or ray on a cluster", "local")
    workers: int | None = _option(
        "processes that score, each with the model; default: one a GPU, on a CPU this one"
    )
    threads: int | None = _option(
        "CPU threads of each of them; the last digits depend on it. default: all, shared; ray: 1"
    )
    address: str | None = _option("of a running Ray cluster, host:port or auto; default: its own")
    tp: bool = _option("spread the model over the processes of torchrun (tensor parallel)", False)
    overwrite: bool = _option("replace a scan made with other settings", False)

    def __post_init__(self) -> None:
        RuleSettings.__post_init__(self)
        if self.tp and (self.device_map, self.adapter) != (None, None):
            raise BadInput("--tp spreads a model by its own plan: leave out --device-map, and "
                           "merge an --adapter into the model before")  # fmt: skip
        if len(set(self.keep)) < len(self.keep):
            raise BadInput("--keep names a column twice")
        self._require_kept()
        if self.tp and (self.workers not in (None, 1) or self.engine != "local"):
            raise BadInput("--tp works with the processes of torchrun: leave out --workers and "
                           "--engine")  # fmt: skip
        if self.address is not None and self.engine != "ray":
            raise BadInput("--address is that of a Ray cluster: give --engine ray too")
        for name in ("rows_per_unit", "max_length", "limit", "sample", "tokens_per_batch",
                     "workers", "threads"):  # fmt: skip
            value, least = getattr(self, name), 2 if name == "max_length" else 1
            if value not in (None, "auto") and value < least:
                raise BadInput(f"{_flag(name)} is a whole number from {least}, found {value}")

    def identity(self) -> dict[str, Any]:
        """The settings that the numbers of a scan may depend on: what a rerun must repeat.

        Not how the work is run or stopped, nor the rule, which flags a finished scan; where not
        all tokens are kept it says which, or what is counted.
        """
        free = {"engine", "workers", "threads", "address", "overwrite", "strict", "tp"}
        if self.keep_tokens == "all":
            free |= {f.name for f in fields(RuleSettings)} | {"keep_tokens"}
        return {k: v for k, v in asdict(self).items() if k not in free}

    def _require_kept(self) -> None:
        share = kept_share(self.keep_tokens)
        if share is None and self.keep_tokens not in ("all", "flagged"):
            raise BadInput(f"--keep-tokens is all, flagged or sample:F with F between 0 and 1, "
                           f"found {self.keep_tokens!r}")  # fmt: skip
        if self.keep_tokens != "all" and self.quantile is not None:
            raise BadInput("--quantile needs every token of the finished scan, and --keep-tokens "
                           "drops them before; give --entropy-below and --prob-below")  # fmt: skip


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

    dry_run: bool = _option("say what the scan would take, and write nothing", False)
    estimate_rows: int = _option("--dry-run: rows tokenized to estimate by, drawn at random", 1000)
    tokens_per_second: float | None = _option("--dry-run: scored tokens/s that a device reaches")
    device_flops: float | None = _option("--dry-run: or FLOP/s that a device reaches in a scan")
    devices: int = _option("--dry-run: devices that share the work", 1)
    price_per_hour: float | None = _option("--dry-run: price of a device's hour")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens_per_second is not None and self.device_flops is not None:
            raise BadInput("give --tokens-per-second or --device-flops, not both")
        least = {"estimate_rows": 30, "devices": 1}  # rows: fewer have no normal interval
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise BadInput(f"{_flag(name)} is a whole number from {lowest}, found "
                               f"{getattr(self, name)}")  # fmt: skip
        for name in ("tokens_per_second", "device_flops", "price_per_hour"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise BadInput(f"{_flag(name)} is a finite number above 0, found {value}")

    @classmethod
    def only(cls) -> list[str]:
        """The settings that a scan does not have."""
        own = {f.name for f in fields(ScanSettings)}
        return [f.name for f in fields(cls) if f.name not in own]


@dataclass(frozen=True, kw_only=True)
class TrainSettings(DataSettings, ModelSettings):
    """A training run. Names and meanings of `transformers.TrainingArguments`; the paper's defaults.

    Source of the defaults: arXiv 2601.02151, appendix (AdamW, 1e-5, cosine, warm-up 3 %).
    """

    objective: str = _option("see `list objectives`", "sft")
    set: dict[str, Any] = _option("the objective's fields, name=value,…", {})
    compat: Literal["paper", "llamafactory", "axolotl"] | None = _option(
        "eaft: divide the entropy as these do, by ln 20, 3.0 or nothing"
    )
    mask: str | None = _option("finished scan that masked-sft, stm, flow or rho reads")
    base_scan: str | None = _option("finished scan under the starting model, to group the log by")
    reference: str | None = _option("model that an anchor pulls towards; default: the starting one")
    learning_rate: float = _option("peak learning rate", 1e-5)
    lr_scheduler_type: str = _option("schedule of the learning rate", "cosine")
    warmup_steps: float = _option("steps of warm-up; below 1: a share of all", 0.03)
    num_train_epochs: float = _option("passes over the data", 1.0)
    max_steps: int = _option("optimizer steps, instead of epochs", -1)
    per_device_train_batch_size: int = _option("rows of a micro-batch", 8)
    gradient_accumulation_steps: int = _option("micro-batches of a step", 1)
    weight_decay: float = _option("AdamW's", 0.0)
    max_grad_norm: float = _option("gradients are clipped to this norm; 0: not at all", 1.0)
    optim: str = _option("optimizer", "adamw_torch")
    bf16: bool = _option("autocast in bfloat16", False)
    gradient_checkpointing: bool = _option("recompute activations, to save memory", False)
    logging_steps: int = _option("steps between lines of the log", 10)
    save_steps: int = _option("steps between checkpoints", 500)
    save_total_limit: int = _option("checkpoints kept", 2)
    eval_steps: int = _option("steps between evaluations", 100)
    report_to: list[str] = _option("trackers: tensorboard, wandb, trackio, …", [])
    eval_data: str | None = _option("held-out data of the same kind: its nll is logged")
    retain_data: str | None = _option("data that must not be forgotten: nll, and KL from the base")
    eval_tokens: int = _option("tokens of each of the two that are read, from the start", 200_000)
    lora_r: int | None = _option("train a LoRA adapter of this rank")
    lora_alpha: int = _option("LoRA's scaling, over its rank", 16)
    lora_target: list[str] = _option("modules that LoRA adapts; all linear ones but the head", [])
    seed: int = _option("seed of --sample, of the rows' order, of dropout and new adapters", 0)
    load_in_4bit: bool = _option("QLoRA: the frozen weights in 4 bits, with --lora-r", False)
    group_rows: int = _option("rows whose tokens are grouped by the base model's entropy", 512)
    resume: bool = _option("go on from the last checkpoint in --out", False)
    overwrite: bool = _option("replace what --out holds", False)

    def __post_init__(self) -> None:
        if self.resume and self.overwrite:
            raise BadInput("--resume goes on with a run, --overwrite replaces it; give one of them")
        if self.load_in_4bit and self.lora_r is None:
            raise BadInput("--load-in-4bit freezes the weights: give --lora-r")
        if self.lora_r is not None and self.adapter is not None:
            raise BadInput("--lora-r trains an adapter for the base model, and --adapter would not "
                           "be part of it; leave one of them out")  # fmt: skip
        if self.lora_r is None and (self.lora_target or self.lora_alpha != 16):
            raise BadInput("--lora-target and --lora-alpha are LoRA's: give --lora-r")
        least = dict.fromkeys(("per_device_train_batch_size", "gradient_accumulation_steps",
                               "logging_steps", "save_steps", "save_total_limit", "eval_steps",
                               "lora_r", "lora_alpha", "limit", "sample",
                               "eval_tokens"), 1)  # fmt: skip
        least |= dict.fromkeys(("group_rows", "warmup_steps", "weight_decay", "max_grad_norm"), 0)
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and not value >= lowest:
                raise BadInput(f"{_flag(name)} is a number from {lowest}, found {value}")
        for name in ("learning_rate", "num_train_epochs"):
            if not 0 < getattr(self, name) < float("inf"):
                raise BadInput(f"{_flag(name)} is a finite number above 0")
        if self.max_steps != -1 and self.max_steps < 1:
            raise BadInput(f"--max-steps is a whole number from 1, found {self.max_steps}")


@dataclass(frozen=True, kw_only=True)
class RolloutSettings(DataSettings, ModelSettings):
    """How a model answers the prompts of a data set."""

    n: int = _option("answers to each prompt", 1)
    temperature: float = _option("0: the likeliest token every time; 1: as the model has it", 1.0)
    top_p: float = _option("draw from the likeliest tokens that have this probability", 1.0)
    max_new_tokens: int = _option("tokens after which an answer is cut", 256)
    seed: int = _option("seed of --sample and of the answers", 0)
    batch_size: Literal["auto"] | int = _option(
        "answers sampled at once: auto (32; 128 on a GPU) or a number", "auto"
    )
    rows_per_unit: int = _option("rows that are answered and resumed together", 64)
    engine: Literal["transformers", "continuous", "vllm"] = _option(
        "who samples: transformers in batches or, for a GPU, continuously; vllm where installed",
        "transformers",
    )
    then_scan: str | None = _option("score the answers under the same model, into this folder")
    overwrite: bool = _option("replace a rollout made with other settings", False)

    def __post_init__(self) -> None:
        for name in ("n", "max_new_tokens", "batch_size", "rows_per_unit", "max_length", "limit",
                     "sample"):  # fmt: skip
            value, least = getattr(self, name), 2 if name == "max_length" else 1
            if value not in (None, "auto") and value < least:
                raise BadInput(f"{_flag(name)} is a whole number from {least}, found {value}")
        if not 0 <= self.temperature < float("inf"):
            raise BadInput(f"--temperature is a number from 0, found {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise BadInput(f"--top-p lies above 0 and is at most 1, found {self.top_p}")
        if self.n > 1 and self.temperature == 0:
            raise BadInput(f"--temperature 0 gives the same answer {self.n} times; lower --n to 1")
        if self.engine == "vllm" and self.adapter is not None:
            raise BadInput("--engine vllm takes no --adapter; merge it into the model before")

    def identity(self) -> dict[str, Any]:
        """The settings that the answers depend on: what a rerun must repeat."""
        free = {"train_on", "strict", "then_scan", "overwrite"}
        return {k: v for k, v in asdict(self).items() if k not in free}


@dataclass(frozen=True, kw_only=True)
class ShowSettings:
    """What `show` prints of a finished scan."""

    example: int | None = _option("one example, coloured")
    worst: int = _option("how many of the worst examples", 3)
    export: str | None = _option("write the rows with their loss to F.jsonl")
    verify: bool = _option("read every part and compare its sha256, however large the scan", False)

    def __post_init__(self) -> None:
        if self.worst < 0:
            raise BadInput(f"--worst is a whole number from 0, found {self.worst}")


@dataclass(frozen=True, kw_only=True)
class MergeSettings:
    """How finished scans are joined."""

    overwrite: bool = _option("replace a scan made from others", False)


@dataclass(frozen=True, kw_only=True)
class CompareSettings:
    """How two finished scans are compared."""

    delta: float = _option(
        "nats by which a learned label's log-probability rises, a forgotten one's falls; ln 2",
        math.log(2),
    )
    by: Literal["tokens", "distributions"] | None = _option(
        "what to compare; default: tokens where the data's fingerprints agree"
    )
    seed: int = _option("seed of the bootstrap", 0)

    def __post_init__(self) -> None:
        require_delta(self.delta)
        if self.seed < 0:
            raise BadInput(f"--seed is a whole number from 0, found {self.seed}")


def require_delta(delta: float) -> None:
    """Raises `BadInput` for a threshold that counts float noise, or nothing, as a change."""
    if not LEAST_DELTA <= delta < float("inf"):
        raise BadInput(f"--delta is a finite number from {LEAST_DELTA} nats, by which two runs of "
                       f"one model differ, found {delta}")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GradientSettings(ModelSettings):
    """Of how many tokens of a scan the exact gradient is taken, and under which model."""

    # None: the one that the manifest names.
    model: str | None = _option(  # type: ignore[assignment]
        "the scan's model, where it lies elsewhere now"
    )
    dtype: str = _option("float32, or what does not fit the memory otherwise", "float32")
    sample: int = _option("tokens, drawn evenly over cells, tokens and conflicts", 512)
    seed: int = _option("seed of the draw", 0)
    overwrite: bool = _option("replace the norms of another seed", False)

    def __post_init__(self) -> None:
        if self.sample < 1:
            raise BadInput(f"--sample is a whole number from 1, found {self.sample}")


@dataclass(frozen=True, kw_only=True)
class PlotSettings:
    """What a figure shows. Each kind takes some of these; see `eaft_probe.plots`."""

    style: Literal["density", "scatter"] = _option("landscape: density or scatter", "density")
    difference: bool = _option("landscape: of two scans, the ratio of their densities", False)
    norm: Literal["grad_logits", "grad_head", "grad_hidden", "full"] = _option(
        "gradients: whose norm; full: the exact ones beside the closed forms", "grad_logits"
    )
    objective: list[str] = _option(
        "gradients, gates: objectives, repeated or with commas; sft and eaft", []
    )
    set: dict[str, Any] = _option("gradients, gates: the objectives' fields, name=value,…", {})
    base_scan: str | None = _option("gradients, gates: a scan of the same tokens to compare with")
    delta: float = _option("compare: nats of change from which on a token moved; ln 2", math.log(2))
    by: Literal["tokens", "distributions"] | None = _option(
        "compare: tokens, where the fingerprints of the same data differ"
    )


@dataclass(frozen=True, kw_only=True)
class ReportSettings(CompareSettings):
    """Where the page goes, and what else is on it: a comparison takes the settings of `compare`."""

    out: str = _option("the HTML file", "report.html")
    against: str | None = _option("another finished scan, compared with this one on the page")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.against is None and self.comparing() != asdict(CompareSettings()):
            raise BadInput("--delta, --by and --seed say how to compare; give --against B too")

    def comparing(self) -> dict[str, Any]:
        """The settings of the comparison alone."""
        return {f.name: getattr(self, f.name) for f in fields(CompareSettings)}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def make_settings(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """`kind(**values)`, hyphens accepted. Raises `BadInput` for an unknown name or a wrong type."""
    from pydantic import TypeAdapter, ValidationError

    values = {k.replace("-", "_"): v for k, v in values.items()}
    known = [f.name for f in fields(kind)]
    for name in values:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise BadInput(f"unknown setting {name!r}{hint}")
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = _flag(str(first["loc"][0]))
        raise BadInput(f"{name}: {first['msg']}, found {first['input']!r}") from error


class _Plain(yaml.SafeLoader):
    """YAML without `*aliases`, of which thirty lines can stand for billions of values."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("a setting is written out; *aliases are not read")
        return super().compose_node(parent, index)


def read_config(path: str | Path) -> dict[str, Any]:
    """The settings of a YAML file. Raises `BadInput`."""
    try:
        loaded = yaml.load(Path(path).read_text(), _Plain)
    except Exception as error:  # `!!bool x` is a KeyError, deep nesting a RecursionError, …
        raise BadInput(f"cannot read --config {path}: {one_line(error)}") from error
    if not isinstance(loaded, dict):
        raise BadInput(f"--config {path} should hold a mapping of settings")
    return {str(k).replace("-", "_"): v for k, v in loaded.items()}
