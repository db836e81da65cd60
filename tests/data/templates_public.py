"""Chat templates that models are published with, each with a tokenizer that has its tokens.

TRL ships some seventy, many with a twin `X_training` that marks what the assistant writes.
EAFT_PROBE_TEMPLATES names a folder with more: `*.jinja`, or model folders.
"""

import os
import re
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers_made import single_bytes

# Words in angle brackets that stand in the text of a template and are no tokens of the model.
NO_TOKENS = {
    f"<{slash}{word}>"
    for slash in ("", "/")
    for word in (
        "tools",
        "function",
        "parameter",
        "image",
        "name",
        "parameters",
        "type",
        "description",
        "enum",
        "required",
        "tool_calls",
        "tool_result",
        "available_tools",
        "thinking",
        "tool",
        "documents",
        "citations",
        "results",
        "reminder",
        "arguments",
        "result",
        "functions",
        "response",
        "co",
        "any",
        "video",
    )
}
# A pattern in the name or the source, the beginning and the end of text; the first that fits.
BOS_EOS = (
    (r"gpt-?oss", "<|startoftext|>", "<|return|>"),
    (r"<\|im_middle\|>", "[BOS]", "<|im_end|>"),
    (r"<\|im_end\|>", "<|endoftext|>", "<|im_end|>"),
    (r"<\|eot_id\|>|llama-?3", "<|begin_of_text|>", "<|eot_id|>"),
    (r"<\|eot\|>", "<|begin_of_text|>", "<|eot|>"),
    (r"gemma-?4|diffusion_gemma", "<bos>", "<turn|>"),
    (r"<end_of_turn>", "<bos>", "<eos>"),
    (r"｜end▁of▁sentence｜|deepseek", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    (r"<\|END_OF_TURN_TOKEN\|>", "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"),
    (r"phi", "<s>", "<|endoftext|>"),
    (r"glm", "[gMASK]", "<|endoftext|>"),
    (r"granite", "<|end_of_text|>", "<|end_of_text|>"),
)
TOKEN = re.compile(
    r"<[|｜][^<>\n'\"{} ]{1,40}[|｜]>|\[/?[A-Z_]{3,30}\]|</?[a-z_]{2,30}>|<\w+\|>|<\|\w+>|"
    r"<｜[^<>\n{}]{1,40}｜>|\[gMASK\]|\[\|[a-z]+\|\]"
)
MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Public:
    """A published template."""

    name: str
    source: str
    twin: str | None = None  # the same with generation marks

    @property
    def has_marks(self) -> bool:
        return bool(MARK.search(self.source))

    @cached_property
    def ends(self) -> tuple[str, str]:
        """The beginning and the end of text."""
        for pattern, bos, eos in BOS_EOS:
            if re.search(pattern, self.name, re.I) or re.search(pattern, self.source):
                return bos, eos
        return "<s>", "</s>"

    @cached_property
    def tokenizer(self) -> Any:
        """One token for each byte, and one for each that the template names: every boundary between
        characters is one between tokens."""
        bos, eos = self.ends
        named = sorted({bos, eos} | (set(TOKEN.findall(self.source)) - NO_TOKENS))
        return single_bytes(self.source, named, bos_token=bos, eos_token=eos)


def of_trl() -> list[Public]:
    """Those in the installed package; none where it is absent."""
    spec = find_spec("trl")
    if spec is None or spec.origin is None:
        return []
    return in_folder(Path(spec.origin).with_name("chat_templates"))


def of_environment() -> list[Public]:
    """Those in the folder that EAFT_PROBE_TEMPLATES names."""
    folder = os.environ.get("EAFT_PROBE_TEMPLATES")
    return in_folder(Path(folder)) if folder else []


def in_folder(folder: Path) -> list[Public]:
    files = {f.stem: f for f in sorted(folder.glob("*.jinja"))}
    files |= {f.parent.name: f for f in sorted(folder.glob("*/chat_template.jinja"))}
    sources = {name: file.read_text(encoding="utf-8") for name, file in files.items()}
    return [Public(n, s, sources.get(f"{n}_training")) for n, s in sources.items()]
