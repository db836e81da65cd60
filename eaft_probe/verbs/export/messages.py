"""`--for axolotl|ms-swift|llamafactory`: conversations with a mask or weights on their messages.

What such a file cannot say is counted, never left out in silence. Read in the sources of axolotl
0.19, ms-swift 4.6 and LLaMA-Factory 0.9.5 (its v1).
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from eaft_probe.data.messages import REASONING
from eaft_probe.errors import ScanError
from eaft_probe.verbs.export.files import Lost, Row
from eaft_probe.verbs.export.renderings import Gates, Rendering
from eaft_probe.verbs.export.spans import TurnGates, turn_gates

Write = Callable[[TurnGates, Lost], list[Row]]  # a message → the messages of a trainer's file

NOT_FOUND = "message{s} whose content the chat template changes or repeats, trained as a whole"
HALVES = "part{s} of a character whose other parts have another gate"
END = "end{s} of a turn that the trainer weights by itself"
BEFORE = "token{s} of reasoning or headers that the trainer does not train so"
CALLS = "token{s} of tool calls that the trainer does not train so"
THOUGHTS = "message{s} with reasoning, which ms-swift reads only inside the content"
ROLES = "message{s} of other roles than assistant, which the trainer does not train"
NEGATIVE = "token{s} with a weight below 0, which the trainer does not train"
VARYING = "message{s} whose gate varies, written as its mean"


def conversation(
    rendering: Rendering, tools: Sequence[object] | None, trainer: str, lost: Lost
) -> Iterator[Row]:
    """One row of a trainer's file; none where nothing of it is trained.

    Raises `ScanError` where the messages of the scan cannot be read.
    """
    turns = [turn_gates(rendering, turn, m) for turn, m in enumerate(_messages(rendering))]
    if not any(turn.trained for turn in turns):
        lost["conversation{s} without a token that is still trained"] += 1
        return
    lost[NEGATIVE] += int((rendering.gates < 0).sum())
    row: Row = {"messages": [m for turn in turns for m in TRAINERS[trainer](turn, lost)]}
    if tools:
        row["tools"] = tools if trainer == "axolotl" else json.dumps(tools, ensure_ascii=False)
    yield row


def _messages(rendering: Rendering) -> list[Row]:
    """Up to the only trained turn, where there is one. Its own `train` has been followed."""
    try:
        read = json.loads(rendering.messages)
        messages = [{"content": "", **m} for m in read]
        ok = all(isinstance(m["role"], str) and isinstance(m["content"], str) for m in messages)
        if not ok:
            raise ValueError
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ScanError(
            f"the scan is damaged: the messages of example {rendering.example} cannot be read"
        ) from error
    past = len(messages) if rendering.turn is None else rendering.turn + 1
    return [{k: v for k, v in m.items() if k != "train"} for m in messages[:past]]


def axolotl(turn: TurnGates, lost: Lost) -> list[Row]:
    """`train`, and where only a part is trained `train_detail`, whose ends are inclusive."""
    message = {**turn.message, "train": turn.trained}
    if not turn.trained or turn.alike:
        return [message]
    _count_outside(turn, lost, of_end=1, elsewhere=0)
    if turn.found and len(turn.content):
        message["train_detail"] = [
            {"begin_offset": start, "end_offset": past - 1, "train": bool(gate)}
            for start, past, gate in turn.runs
        ]
    return [message]


def ms_swift(turn: TurnGates, lost: Lost) -> list[Row]:
    """`loss_scale`, the message split where it changes: consecutive ones are joined again."""
    message = dict(turn.message)
    if message["role"] != "assistant":
        lost[ROLES] += turn.trained
        return [message]
    if not turn.trained:
        return [{**message, "loss": False}]
    thoughts = [name for name in REASONING if message.pop(name, None)]
    lost[THOUGHTS] += bool(thoughts)
    # It trains an end behind what it trains, and forgets what it was to have otherwise.
    ends = len(turn.content) > 0 and turn.content[-1] != 0
    _count_outside(turn, lost, of_end=1 if ends else math.nan, elsewhere=1)
    if not turn.found or not len(turn.content):
        return [{**message, "loss_scale": _mean(turn.gates)}]
    *pieces, last = (
        {"role": "assistant", "content": message["content"][a:b], "loss_scale": gate}
        for a, b, gate in turn.runs
    )
    return [*pieces, {**message, **last}]


def llamafactory(turn: TurnGates, lost: Lost) -> list[Row]:
    """LLaMA-Factory's v1: contents as parts, and one `loss_weight` a message."""
    lost[VARYING] += turn.trained and not turn.alike
    message, parts = turn.message, list[Row]()
    for thought in filter(None, (message.get(name) for name in REASONING)):
        parts.append({"type": "reasoning", "value": str(thought)})
    if message["content"] or not (parts or message.get("tool_calls")):
        parts.append({"type": "text", "value": message["content"]})
    for call in message.get("tool_calls") or ():
        parts.append({"type": "tool_call", "value": _call(call)})
    return [{"role": message["role"], "content": parts, "loss_weight": _mean(turn.gates)}]


def _call(call: Mapping[str, Any]) -> str:
    function = {"name": "", "arguments": {}, **call.get("function", {})}
    return json.dumps({n: function[n] for n in ("name", "arguments")}, ensure_ascii=False)


def _mean(gates: Gates) -> float:
    return float(gates.mean(dtype=np.float64)) if len(gates) else 0.0


def _count_outside(turn: TurnGates, lost: Lost, of_end: float, elsewhere: float) -> None:
    """What is asked of the tokens around the content, where the trainer does something else: it
    gives the end of the turn the gate `of_end`, and the rest `elsewhere`."""
    calls = bool(turn.message.get("tool_calls"))
    after = CALLS if calls else END
    lost[NOT_FOUND] += not turn.found
    lost[HALVES] += turn.halves
    lost[BEFORE] += int((turn.before != elsewhere).sum())
    lost[after] += int((turn.after != (elsewhere if calls else of_end)).sum())


TRAINERS: Mapping[str, Write] = {
    "axolotl": axolotl,
    "ms-swift": ms_swift,
    "llamafactory": llamafactory,
}
