"""Columns → gate: the OBJECTIVES that a run can be trained with and a figure drawn for.

An objective is a pure function of columns with its parameters as fields; the loss is Σ gate · nll
/ N and the gate is detached, so the gradient in the logits is gate · (P − onehot). Only operators
and methods that NumPy arrays and tensors share are used, so these files import no torch.
Notation: p the label's probability, H the entropy in nats, N the trained tokens of a step.
Formulas and defaults are those of the papers named in each docstring. One more objective is one
class more, in the file of what its gate sees.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches

from eaft_probe.errors import BadInput

# In the order in which the objectives are listed and drawn; a class enters OBJECTIVES when read.
from eaft_probe.objectives.gates import by_entropy, by_probability, by_scan, with_anchor  # noqa: F401
from eaft_probe.objectives.gates.entry import OBJECTIVES
from eaft_probe.objectives.objective import Anchor, Columns, Objective

__all__ = [
    "OBJECTIVES",
    "Anchor",
    "Columns",
    "Objective",
    "chosen_objectives",
    "objective",
    "settable",
]


def objective(name: str, values: Mapping[str, object] | None = None) -> Objective:
    """The objective of that name with its fields set. Raises `UnknownName` and `BadInput`.

    >>> objective("qlog", {"q": "0.25"})
    Qlog(q=0.25)
    """
    from pydantic import TypeAdapter, ValidationError

    kind, values = OBJECTIVES[name], values or {}
    names = settable(kind)
    for key in values:
        if key not in names:
            near = get_close_matches(key, names, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise BadInput(
                f"objective {name!r} has no field {key!r}{hint}; "
                f"it has: {', '.join(names) or 'none'}"
            )
    try:
        objective: Objective = TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        where = f" {first['loc'][0]}" if first["loc"] else ""
        raise BadInput(f"objective {name!r}{where}: {first['msg']}") from error
    for key in names:
        value = getattr(objective, key)
        if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
            raise BadInput(f"objective {name!r}: {key} is a finite number from 0, found {value:g}")
    return objective


def chosen_objectives(
    names: Sequence[str | Objective], values: Mapping[str, object] | None = None
) -> list[Objective]:
    """The objectives of those names, each with those of the values that are fields of it.

    Raises `UnknownName` and `BadInput`, also for a value that is no field of any.
    """
    names, values = [names] if isinstance(names, str) else names, values or {}
    of_name = {n: settable(OBJECTIVES[n]) for n in names if isinstance(n, str)}
    known = {field for of_one in of_name.values() for field in of_one}
    for key in values:
        if key not in known:
            raise BadInput(
                f"--set {key}: no objective here has that field; they have "
                f"{', '.join(sorted(known)) or 'none'}"
            )
    return [
        objective(n, {k: v for k, v in values.items() if k in of_name[n]})
        if isinstance(n, str)
        else n
        for n in names
    ]


def settable(kind: type[Objective]) -> list[str]:
    """The names that `--set` takes."""
    return [f.name for f in fields(kind) if not f.name.startswith("_")]
