"""Whether an adapter's regular expressions end: they are tried where they can be ended.

PEFT matches them with every module's name in this process, in one step that nothing interrupts.
"""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from eaft_probe.errors import ModelError

SECONDS = 10.0  # that all of them may take with all names; they take milliseconds
TRY = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    for name in names:
        re.fullmatch(pattern, name)
        re.match(rf"(.*\\.)?({pattern})$", name)
"""


def require_quick(adapter: str, names: Iterable[str]) -> None:
    """Raises `ModelError` where a pattern of the adapter is not a regular expression, or its
    matching does not end."""
    config = json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8"))
    strings = (string for value in config.values() for string in _strings(value))
    patterns = [s for s in strings if any(c in s for c in "*+{?")]  # without these they end
    if not patterns:
        return
    try:
        subprocess.run(
            [sys.executable, "-I", "-c", TRY],
            input=json.dumps([patterns, list(names)]),
            text=True,
            capture_output=True,
            check=True,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"--adapter {adapter}: matching a pattern of its adapter_config.json takes more than "
            f"{SECONDS:g} s; list the modules instead"
        ) from error
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ModelError(
            f"--adapter {adapter}: adapter_config.json holds a pattern that is not a regular "
            f"expression: {reason}; list the modules instead"
        ) from error


def _strings(value: object) -> list[str]:
    """Strings, and keys such as those of `rank_pattern`: any of them may be a pattern."""
    if isinstance(value, str):
        return [value]
    return [str(v) for v in value] if isinstance(value, list | dict) else []
