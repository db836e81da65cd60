"""The settings that several verbs share: of the data and of the model."""

from dataclasses import asdict, dataclass, fields
from datetime import date
from typing import Any, ClassVar, Literal

from eaft_probe.errors import BadInput
from eaft_probe.settings.option import Panel, Settings, option

TAB = ("tab", "\\t", "\t")  # how people write it


def require_delimiter(delimiter: str | None) -> None:
    """Raises `BadInput` for what cannot separate fields."""
    if delimiter in (None, *TAB) or (len(delimiter) == 1 and delimiter not in '"\r\n'):
        return
    raise BadInput(f"--delimiter must be one character, or tab, found {delimiter!r}")


def require_encoding(encoding: str | None) -> None:
    """Raises `BadInput` for the name of no encoding."""
    try:
        "".encode(encoding or "utf-8")
    except (LookupError, ValueError) as error:
        raise BadInput(
            f"--encoding: {encoding!r} is unknown; common ones are utf-8, utf-16, cp1252, "
            f"shift_jis and gb18030"
        ) from error


@dataclass(frozen=True, kw_only=True)
class DataSettings(Settings):
    """Which rows are read."""

    PANEL: ClassVar[Panel] = Panel.DATA

    config_name: str | None = option("configuration of a hub data set")
    split: str = option("split of a hub or saved data set, a folder or a JSON file", "train")
    data_revision: str | None = option("revision of a hub data set", unset="--revision")
    delimiter: str | None = option(
        "what separates the fields of CSV, e.g. ';' or tab", unset="told from the first rows"
    )
    encoding: str | None = option("encoding of text files, e.g. cp1252", unset="utf-8")
    format: str | None = option("row format, if the columns leave it open; see `list formats`")
    columns: dict[str, str] = option(
        "names of the data's columns, ours=theirs,…, e.g. question=prompt or messages=data.chat", {}
    )
    roles: dict[str, str] = option(
        "names of the data's roles, theirs=ours,…, e.g. bot=assistant", {}
    )
    limit: int | None = option("read only the first N rows", at_least=1)
    sample: int | None = option("read only N rows, drawn at random with --seed", at_least=1)
    seed: int = option("seed of --sample", 0)
    strict: bool = option("stop at the first row that cannot be used", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_delimiter(self.delimiter)
        require_encoding(self.encoding)

    def require_sample(self) -> None:
        """Raises `BadInput` for a seed that nothing is drawn by."""
        if self.sample is None and self.changed("seed"):
            raise BadInput("--seed draws the rows of --sample: add --sample N")

    def identity_without(self, *names: str) -> dict[str, object]:
        """All settings but those, for a plan.

        Without those either that older plans do not have, where their value is what was always
        done, and the template and its date, which a plan has under other names.
        """
        later: dict[str, object] = {
            "turns": "together",
            "template_arg": {},
            "stride": 1,
            "roles": {},
            "delimiter": None,
            "encoding": None,
        }
        left_out = {*names, "chat_template", "today"}
        settings = ((k, v) for k, v in asdict(self).items() if k not in left_out)
        return {k: v for k, v in settings if k not in later or v != later[k]}


@dataclass(frozen=True, kw_only=True)
class TemplateSettings(Settings):
    """How a conversation becomes text."""

    PANEL: ClassVar[Panel] = Panel.TEMPLATE

    tool_calls: Literal["template", "inline"] = option(
        "write tool calls with the chat template, or inline as JSON text", "template"
    )
    chat_template: str | None = option("file with a chat template", unset="the tokenizer's")
    template_arg: dict[str, Any] = option(
        "more values for the chat template, name=value,…, e.g. enable_thinking=false", {}
    )
    today: str | None = option(
        "date that the chat template sees, YYYY-MM-DD", unset="today, kept when a run resumes"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            date.fromisoformat(self.today or "2026-01-01")
        except ValueError as error:
            raise BadInput(
                f"--today must be a date such as 2026-01-31, found {self.today!r}"
            ) from error


@dataclass(frozen=True, kw_only=True)
class TrainedSettings(TemplateSettings):
    """Which tokens of a text are trained."""

    PANEL: ClassVar[Panel] = Panel.TRAINED

    train_on: Literal["assistant", "last", "all"] = option("messages to train on", "assistant")
    turns: Literal["together", "each"] = option(
        "render a conversation once, or each trained turn separately, as at inference",
        "together",
    )


@dataclass(frozen=True, kw_only=True)
class WindowSettings(TrainedSettings):
    """How much of a text a model reads at once."""

    PANEL: ClassVar[Panel] = Panel.TRAINED

    max_length: int | None = option(
        "longest conversation, in tokens", unset="the model's context", at_least=2
    )
    stride: int = option(
        "tokens shared by consecutive windows of plain text longer than --max-length",
        1,
        at_least=1,
    )


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings(Settings):
    """Whose tokens."""

    PANEL: ClassVar[Panel] = Panel.MODEL

    model: str = option("hub id, folder, .gguf file, or smollm2 (bundled)", "smollm2")
    adapter: str | None = option("folder of a PEFT adapter")
    revision: str | None = option("revision of a hub model or data set")
    trust_remote_code: bool = option("run code that comes with the model", False)


@dataclass(frozen=True, kw_only=True)
class ModelSettings(TokenizerSettings):
    """Which model, and how it is loaded."""

    PANEL: ClassVar[Panel] = Panel.MODEL

    dtype: str = option("auto, float32, bfloat16 or float16", "auto")
    device: str = option("auto, cpu, cuda, cuda:1, …", "auto")
    device_map: str | None = option("spread the model over devices: auto, balanced, …")
    attn_implementation: str | None = option("sdpa, eager, flash_attention_2, …")
    allow_pickle: bool = option("load pickled weights, which can run code", False)

    def loading(self) -> dict[str, Any]:
        """What `load_model` takes besides the name."""
        return {f.name: getattr(self, f.name) for f in fields(ModelSettings) if f.name != "model"}
