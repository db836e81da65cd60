"""Writes docs/command-line.md from the commands and their settings.

python docs/command_line_page.py --write; a test compares the page with what this makes.
"""

import re
import sys
from pathlib import Path
from typing import Any

import typer
from rich.markup import render

from eaft_probe.cli import app
from eaft_probe.settings.option import Panel

PAGE = Path(__file__).with_name("command-line.md")
HEAD = """\
# Command line

<!-- Made by `python docs/command_line_page.py --write` from the settings in the code. -->

`eaft-probe COMMAND --help` prints the same options. Every option may be written with hyphens or
underscores. `eaft-probe --install-completion` makes your shell complete commands, options and their
choices.

* **`--config F.yaml`** reads options from a YAML file: `limit: 100`. The command line wins; an
  unknown key is an error.
* **Lists and mappings** are written with commas, or the option is repeated: `--objective
  sft,eaft`, `--columns role=from,content=value`.
* **Switches** such as `--strict` have an opposite, `--no-strict`, which overrides a config file.
* **`--json`** prints one JSON object on standard output. Progress and notes go to standard error.
* **`--fail-if 'key>number'`** compares a number of that object, for example
  `conflict_share>0.03`. Inner keys are joined by dots: `groups.agreeing.forgotten_share>0.02`.
  The operators are `<`, `<=`, `>`, `>=` and `==`.

| exit status | meaning |
|---|---|
| 0 | finished |
| 1 | something failed while working, for example a full disk or too little memory |
| 2 | the command, data, model or scan cannot be used; standard error says why in one line |
| 3 | the condition of `--fail-if` holds |
| 130 | interrupted; the same command continues, `train` with `--resume` |

`EAFT_PROBE_TRACEBACK=1` in the environment shows where an unexpected error was raised.
`HF_HUB_OFFLINE=1` keeps every command off the network.
"""


def page() -> str:
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    index = "\n".join(
        f"* [`{name}`](#{name}): {_first(command.help)}" for name, command in commands.items()
    )
    return "\n".join([HEAD, index, *(_section(n, c) for n, c in commands.items())]) + "\n"


def _first(text: str) -> str:
    return " ".join((text or "").split("\n\n")[0].split())


def _section(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    usage = " ".join(_usage(a) for a in arguments)
    lines = [f"\n## {name}\n", f"`eaft-probe {name} {usage} [OPTIONS]`\n", _prose(command.help)]
    lines += ["```sh", *command.epilog.split("\n\n")[1:], "```\n"]
    lines += [f"* `{a.metavar}`: {_cell(_help(a))}" for a in arguments if a.help]
    for panel in dict.fromkeys(getattr(o, "rich_help_panel", None) for o in options):
        shown = [o for o in options if getattr(o, "rich_help_panel", None) == panel]
        lines += [
            f"\n### {name}: {panel if panel == Panel.LORA else panel.lower()}" if panel else ""
        ]
        lines += ["\n| option | takes | default | meaning |", "|---|---|---|---|"]
        lines += [_row(o) for o in shown]
    return "\n".join(line for line in lines if line).replace("\n\n\n", "\n\n")


def _usage(argument: Any) -> str:
    name = argument.metavar + ("..." if argument.nargs != 1 else "")
    return name if argument.required else f"[{name}]"


def _prose(text: str) -> str:
    return "\n\n".join(" ".join(p.split()) for p in (text or "").split("\n\n")) + "\n"


def _row(option: Any) -> str:
    text, _, stated = _help(option).partition(" [default: ")
    value = stated.removesuffix("]") if stated else option.default
    default = "" if value in (None, False, [], (), "") else str(value)
    default = f"`{default}`" if default and " " not in default else default
    names = ", ".join(f"`{name}`" for name in option.opts)
    return f"| {names} | {_takes(option)} | {_cell(default)} | {_cell(text)} |"


def _help(parameter: Any) -> str:
    return render(parameter.help or "").plain


def _takes(option: Any) -> str:
    """What is written behind it."""
    words = [w for w in (option.metavar or "").split("|") if w]
    return ", ".join(f"`{word}`" for word in words)


def _cell(text: Any) -> str:
    """Text of a table's cell: no markup, no end of the cell."""
    escaped = re.sub(r"(?<!`)([<>*_|])(?!`)", r"\\\1", str(text)) if "`" not in str(text) else text
    return str(escaped)


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(page(), end="")
