"""The examples of trained-tokens.md: prints them, or writes them into the page with --write.

python docs/trained_tokens_examples.py --write

The chat templates are those that TRL ships for six families of models.
"""

import argparse
import re
from datetime import date
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from eaft_probe.data.messages import Message, read_messages
from eaft_probe.data.rendering.chat_template import ChatTemplate
from eaft_probe.data.rendering.spans import Located, Locator

PAGE = Path(__file__).parent / "trained-tokens.md"
BEGIN, END = "<!-- examples: made by trained_tokens_examples.py -->", "<!-- end of examples -->"
TOKEN = re.compile(
    r"<[|｜][^<>\n'\"{} ]{1,40}[|｜]>|</?(?:think|tool_call|tool_response)>|<\w+\|>|<\|\w+>"
)

THINKING = [
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "4", "reasoning_content": "Two and two."},
    {"role": "user", "content": "And 3 more?"},
    {"role": "assistant", "content": "7", "reasoning_content": "4 + 3."},
]
CALL = {"type": "function", "id": "call00001",
        "function": {"name": "weather", "arguments": {"city": "Rome"}}}  # fmt: skip
TOOLS = [
    {"role": "user", "content": "Weather in Rome?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "name": "weather", "tool_call_id": "call00001", "content": "sunny"},
    {"role": "assistant", "content": "It is sunny."},
]


class Family(NamedTuple):
    """A template, the conversation shown under it, and what there is to see."""

    title: str
    template: str
    messages: list[dict[str, Any]]
    eos: str
    says: str


FAMILIES = (
    Family("Qwen3", "qwen3", THINKING, "<|im_end|>",
           "The reasoning is trained with both of its tags. The template drops the first turn's "
           "when a later question follows, so it is counted as left out; `--turns each` trains it, "
           "in a rendering of its own."),
    Family("DeepSeek-R1, distilled", "deepseek_r1_distill", THINKING, "<｜end▁of▁sentence｜>",
           "The generation prompt ends in `<think>`, and the template shows no reasoning: it is "
           "counted as left out."),
    Family("Llama 3.1", "llama3_1", TOOLS, "<|eot_id|>",
           "A call is what the model says, the result is not."),
    Family("gpt-oss", "gptoss", TOOLS, "<|return|>",
           "The model writes recipient and channel itself; a call ends with `<|call|>`, an answer "
           "with `<|return|>`, or `<|end|>` where another turn follows."),
    Family("GLM-4.5", "glm4moe", TOOLS, "<|endoftext|>",
           "The template writes no end of turn: the next role's token ends it, and a last turn "
           "gets the one that ends others. The empty thought is the template's."),
    Family("Gemma 4", "gemma4", TOOLS, "<turn|>",
           "The tool's result stands within the turn of the call and is cut out; its first token "
           "is where the model stops."),
)  # fmt: skip


def located(family: Family) -> Located:
    folder = Path(str(find_spec("trl").origin)).parent / "chat_templates"  # type: ignore[union-attr]
    source = (folder / f"{family.template}.jinja").read_text(encoding="utf-8")
    values = {"bos_token": "", "eos_token": family.eos}
    added = tuple(sorted({*TOKEN.findall(source), family.eos}, key=len, reverse=True))
    template = ChatTemplate(source, values, date(2026, 1, 31))
    messages: tuple[Message, ...] = read_messages(family.messages)
    turns = [i for i, m in enumerate(messages) if m.role == "assistant"]
    return Locator(template, frozenset({family.eos}), added).locate(messages, turns, None)


def marked(found: Located) -> str:
    """The text from the first question on, as HTML, with the trained spans marked."""
    question = next(m.content for m in found.messages if m.role == "user")
    at = found.text.index(question)
    at = max(found.text.rfind("\n", 0, at - 1) + 1, at - 40)
    parts = []
    for start, end in sorted(s for spans in found.spans.values() for s in spans):
        parts += [escape(found.text[at:start]), f"<mark>{escape(found.text[start:end])}</mark>"]
        at = end
    return "".join(parts) + escape(found.text[at:])


def page_part() -> str:
    told = []
    for family in FAMILIES:
        found = located(family)
        left = ", ".join(f"{n} characters of `{what}`" for what, n in found.left_out.items())
        says = f"{family.says} Left out: {left}." if left else family.says
        told.append(f"### {family.title}\n\n{says}\n\n<pre>{marked(found).rstrip()}</pre>\n")
    return "\n".join([BEGIN, "", *told, END])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    if not parser.parse_args().write:
        print(page_part())
        return
    page = PAGE.read_text(encoding="utf-8")
    head, tail = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(head + page_part() + tail, encoding="utf-8")


if __name__ == "__main__":
    main()
