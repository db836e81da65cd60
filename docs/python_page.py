"""Writes docs/python.md from the signatures and docstrings of what the package exports.

python docs/python_page.py --write; a test compares the page with what this makes.
"""

import inspect
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_type_hints

import eaft_probe
from eaft_probe import (
    GatedLoss,
    GatedLossMixin,
    Scan,
    compare,
    export,
    forecast,
    plots,
    rollout,
    scan,
    train,
)
from eaft_probe.settings import (
    CompareSettings,
    EstimateSettings,
    ExportSettings,
    ForecastSettings,
    GradientSettings,
    MergeSettings,
    RolloutSettings,
    ScanSettings,
    TrainSettings,
)
from eaft_probe.verbs.estimate.estimate import estimate
from eaft_probe.verbs.gradients.gradients import gradients
from eaft_probe.verbs.merge.merge import merge

PAGE = Path(__file__).with_name("python.md")
FUNCTIONS: list[tuple[Callable[..., Any], type[Any]]] = [
    (scan, ScanSettings),
    (rollout, RolloutSettings),
    (train, TrainSettings),
    (compare, CompareSettings),
    (export, ExportSettings),
    (forecast, ForecastSettings),
    (gradients, GradientSettings),
    (merge, MergeSettings),
    (estimate, EstimateSettings),
]
OF_SCAN = (
    *("open", "tokens", "tokens_table", "token_parts", "examples", "conflicts", "sql", "frame"),
    *("quantiles", "columns", "rule", "flag", "keep_tokens", "totals", "turns"),
    *("summary", "worst", "report", "to_dataset"),
)
COMMANDS = {"estimate": "scan"}  # `scan --dry-run`
HEAD = """\
# Python

<!-- Made by `python docs/python_page.py --write` from signatures and docstrings in the code. -->

```python
from eaft_probe import Scan, scan

done = scan("data.jsonl", "scan", model="smollm2")  # or Scan.open("scan"), which needs no torch
done.tokens(["token", "prob", "entropy", "conflict"])  # a pandas frame; tokens_table() for Arrow
done.sql.sql(
    "SELECT top1, count(*) FROM tokens WHERE conflict GROUP BY 1 ORDER BY 2 DESC"
)  # DuckDB
```

Keyword arguments are the options of the command of the same name, with underscores; [Command
line](command-line.md) says what each of them means. Every error is a subclass of
`eaft_probe.errors.ProbeError`; `BadInput` means that the data, an option, the model or a folder
cannot be used.

The package loads what it needs on first use: opening, comparing and drawing finished scans loads
no torch.

## In a notebook

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
from eaft_probe import scan

model = AutoModelForCausalLM.from_pretrained("org/name")
tokenizer = AutoTokenizer.from_pretrained("org/name")
rows = [{"prompt": "What is 2 + 2?", "completion": "It is five."}]

done = scan(rows, "my-scan", model=model, tokenizer=tokenizer)
done  # at the end of a cell: the summary, as `eaft-probe show` prints it
done.worst(3)  # the examples with the most conflicts, as a pandas frame
done.report()  # the page of `eaft-probe report`, below the cell
done.to_dataset("examples")  # a datasets.Dataset
```

* **Rows** are a list of dictionaries, a `datasets.Dataset`, a `DatasetDict` (with `split=`), a
  pandas frame or a generator. A generator is copied to a temporary file, so memory does not grow
  with it. The same rows continue an interrupted scan, whichever of these holds them, except that
  a `Dataset` has a fingerprint of its own.
* **A loaded model** may be quantized, have PEFT adapters, or be in the middle of training. It is
  scored in evaluation mode, with the same checks as a model from files, and is afterwards as it
  was, also after an error: modes, weights, buffers, gradients and hooks. The scan knows it by a
  hash over its parameters and buffers, so after one optimizer step it is another model, and the
  same folder needs `overwrite=True`. Such a scan can be compared with any other; `gradients` and
  `--base-scan`, which load the model again, refuse it.
* **A progress bar** appears below the cell, or on a terminal; `progress=` takes an object of your
  own instead.
"""


def page() -> str:
    exported = ", ".join(f"`{name}`" for name in sorted(eaft_probe.__all__, key=str.lower))
    sections = [HEAD, f"`from eaft_probe import …`: {exported}."]
    sections += [_function(function, settings) for function, settings in FUNCTIONS]
    sections += [_class(Scan, OF_SCAN), _plots(), _class(GatedLoss), _class(GatedLossMixin)]
    return "\n\n".join(s.strip() for s in sections) + "\n"


def _function(function: Callable[..., Any], settings: type[Any]) -> str:
    name = function.__name__
    parameters = inspect.signature(function).parameters.values()
    positional = [_stripped(p) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    types, hints = get_type_hints(settings), get_type_hints(function)
    own = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name in hints]
    given = [_stripped(p) for p in own if p.name != "progress"]
    given += [
        f"{f.name}: {_type(types[f.name])} = {_default(f)}"
        for f in fields(settings)
        if f.name not in hints
    ]
    lines = "\n".join(f"    {text}," for text in [*positional, "*", *given])
    returns = _type(hints["return"])
    where = "" if name in eaft_probe.__all__ else f"\n`from {function.__module__} import {name}`\n"
    command = COMMANDS.get(name, name)
    return (
        f"## {name}\n{where}\n{_prose(function)}\n\n"
        f"Options: [command line](command-line.md#{command}).\n\n"
        f"```text\n{name}(\n{lines}\n) -> {returns}\n```"
    )


def _class(kind: type[Any], members: Sequence[str] = ()) -> str:
    parts = [f"## The class {kind.__name__}", _prose(kind)]
    for name in members:
        member = inspect.getattr_static(kind, name)
        value = next(
            (v for n in ("__func__", "fget", "func") if (v := getattr(member, n, None))), member
        )
        called = f"({_arguments(value)})" if inspect.isroutine(getattr(kind, name)) else ""
        parts.append(f"### Scan.{name}\n\n`{kind.__name__}.{name}{called}`\n\n{_prose(value)}")
    return "\n\n".join(parts)


def _plots() -> str:
    parts = [
        "## plots",
        "Figures of finished scans; the [gallery](plots.md) shows each of them. A figure is a "
        "matplotlib `Figure` with the frame that it was drawn from as `data`; `write(path)` and "
        "`write_data(path)` save them, `savefig` at 300 dots an inch too. `labelled(title)` puts a "
        "line above it, `labelled(caption=False)` leaves out the caption.",
        "```python\nfrom eaft_probe import plots\n\n"
        'plots.landscape("scan", style="scatter").data\n```',
    ]
    for name, function in plots.PLOTS.items():
        parts.append(
            f"### plots.{name}\n\n`plots.{name}({_arguments(function)})`\n\n{_prose(function)}"
        )
    return "\n\n".join(parts)


def _arguments(function: Callable[..., Any]) -> str:
    given = inspect.signature(function).parameters.values()
    return ", ".join(
        str(p.replace(annotation=p.empty)) for p in given if p.name not in ("self", "cls")
    )


def _stripped(parameter: inspect.Parameter) -> str:
    kind = parameter.annotation
    text = str(parameter.replace(annotation=parameter.empty))
    name, _, default = text.partition("=")
    return f"{name}: {_type(kind)}" + (f" = {default}" if default else "")


def _type(kind: Any) -> str:
    text = kind if isinstance(kind, str) else inspect.formatannotation(kind)
    return re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Za-z])", "", text)


def _default(setting: Any) -> str:
    if setting.default is not MISSING:
        return repr(setting.default)
    return repr(setting.default_factory()) if setting.default_factory is not MISSING else "…"


def _prose(thing: Any) -> str:
    """The docstring, its paragraphs unwrapped; explanations of parameters become a list."""
    names = () if isinstance(thing, type) else inspect.signature(thing).parameters
    paragraphs = [p for p in (inspect.getdoc(thing) or "").split("\n\n") if ">>>" not in p]
    return "\n\n".join(_paragraph(p, [*names]) for p in paragraphs)


def _paragraph(text: str, names: Sequence[str]) -> str:
    lines = text.split("\n")
    named = [re.match(r"`?(\w+)`?: ", line) for line in lines]
    starts = [i for i, found in enumerate(named) if found and found[1] in names]
    if not starts or starts[0]:
        return _escaped(text)
    listed = []
    for i, j in zip(starts, [*starts[1:], len(lines)], strict=True):
        meaning = "\n".join(lines[i:j]).split(": ", 1)[1]
        listed.append(f"* `{lines[i].split(':')[0].strip('`')}`: {_escaped(meaning)}")
    return "\n".join(listed)


def _escaped(text: str) -> str:
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(p if p.startswith("`") else re.sub(r"([<>*_])", r"\\\1", p) for p in parts)


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(page(), end="")
