"""Conversations in short, and what is trained of their renderings."""

from typing import Any

import numpy as np
from tokenizers_made import byte_level

from eaft_probe.data.formats import Example, Message
from eaft_probe.data.rendering.render import Renderer, RenderOptions
from eaft_probe.data.rendering.rendered import Rendered

CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "Paris"}},
}
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Sky", "parameters": {"type": "object"}},
}


def user(content: str, **fields: Any) -> Message:
    return Message("user", content, **fields)


def said(content: str, **fields: Any) -> Message:
    """An assistant's message; names that `Message` has no field for are a template's to read."""
    own = {k: fields.pop(k) for k in ("trained", "tool_calls", "ends") if k in fields}
    return Message("assistant", content, **own, extra=fields)


def system(content: str) -> Message:
    return Message("system", content)


def tool(content: str) -> Message:
    return Message("tool", content, extra={"tool_call_id": "call00001", "name": "get_weather"})


def called(content: str = "", *cities: str, **fields: Any) -> Message:
    """A message that calls `get_weather`, once for each city."""
    calls = [
        {**CALL, "function": {"name": "get_weather", "arguments": {"city": c}}}
        for c in cities or ["Paris"]
    ]
    return said(content, tool_calls=calls, **fields)


CHAT = (user("What is 2+2?"), said("It is 4."), user("And 1+1?"), said("Two."))
TOOL_CHAT = (user("Weather?"), called(), tool("sunny"), said("It is sunny."))


def runs(tokenizer: Any, rendered: Rendered) -> list[str]:
    """Each unbroken run of trained tokens, decoded."""
    edges = np.flatnonzero(np.diff(np.r_[False, rendered.trained, False]))
    return [
        tokenizer.decode(rendered.ids[lo:hi], clean_up_tokenization_spaces=False)
        for lo, hi in edges.reshape(-1, 2)
    ]


def rendered(
    template: str | None, *messages: Message, maker: Any = byte_level, **how: Any
) -> Rendered:
    """A conversation, after checking what holds for every rendering. `names` and `stops` are the
    tokenizer's, `tools` the row's, all else are options."""
    tools, stops = how.pop("tools", None), how.pop("stops", ())
    tokenizer = maker(template, **how.pop("names", {}))
    tokenizer.stop_token_ids = tokenizer.convert_tokens_to_ids(list(stops))
    made = Renderer(tokenizer, RenderOptions(**how))(Example("", messages, tools=tools))
    check(made)
    return made


def trained(template: str | None, *messages: Message, **how: Any) -> list[str]:
    """What is trained of a conversation, as text, in runs without a gap."""
    return runs_of_text(rendered(template, *messages, **how))


def runs_of_text(made: Rendered) -> list[str]:
    found = list[list[int]]()
    for start, end in made.chars[made.trained].tolist():
        if found and found[-1][1] >= start:
            found[-1][1] = end
        else:
            found.append([start, end])
    return [made.text[a:b] for a, b in found]


def check(made: Rendered) -> None:
    starts, ends = made.chars.T
    assert (np.diff(starts) >= 0).all()
    assert (ends >= starts).all()
    assert ends[-1] == len(made.text)
    assert len(made.ids) == len(made.trained) == len(made.turn)
    assert (made.chars[made.trained, 1] > made.chars[made.trained, 0]).all()
