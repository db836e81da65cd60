"""The passes of a forecast: rows as windows, sums by row, and gradients."""

import ctypes
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from eaft_probe.analysis.bootstrap import FEWEST
from eaft_probe.columns.measure import TokenColumns, measure
from eaft_probe.columns.statistics import STATISTICS
from eaft_probe.data.batches import Window, batches
from eaft_probe.data.opening import open_data
from eaft_probe.errors import BadInput, DataError, NonFinite
from eaft_probe.model.lengths import regimes
from eaft_probe.model.loading import CausalLM
from eaft_probe.objectives.forward import gate
from eaft_probe.objectives.objective import Column, Columns, Objective
from eaft_probe.settings import ScanSettings
from eaft_probe.verbs.scan.plan import auto_tokens
from eaft_probe.verbs.train.dataset import Lost, read_windows

Gradient = dict[str, torch.Tensor]  # by the parameter's name
Floats = NDArray[np.float64]

MICRO_BATCHES, ADAM_EPSILON = 8, 1e-8  # of a preconditioned step
BACKWARD_TOKENS = 512  # in one pass; 2048 took 250 MB more under SmolLM2


@dataclass(frozen=True)
class Given(Objective):
    """Gates that were computed before, from a scan."""

    name, formula = "given", "the column gate"
    reads = ("gate",)

    def __call__(self, columns: Columns) -> Column:
        return columns["gate"]


@dataclass(frozen=True)
class Rows:
    """Some rows of a data set as windows; `example` of a window is its row."""

    windows: Sequence[Window]
    turns: Sequence[int | None]  # of each window, under --turns each
    lost: Sequence[str] = ()  # sentences on what was left out

    @property
    def tokens(self) -> int:
        """Trained ones."""
        return sum(int(w.trained.sum()) for w in self.windows)

    @property
    def numbers(self) -> NDArray[np.int64]:
        """(E,) the rows, rising."""
        return np.unique([w.example for w in self.windows])

    @property
    def fingerprint(self) -> str:
        """sha256 over ids and trained marks."""
        content = hashlib.sha256()
        for w in self.windows:
            content.update(np.asarray(w.ids, np.int32).tobytes() + w.trained.tobytes())
        return content.hexdigest()


def read_rows(
    data: Any,
    settings: ScanSettings,
    model: CausalLM,
    most: int,
    keep: Callable[[int], bool] = lambda row: True,
) -> Rows:
    """The first rows for which `keep` holds, of at most `most` tokens. Raises `DataError`."""
    lost, windows, turns, tokens = Lost(), list[Window](), list[int | None](), 0
    source = open_data(data, settings)  # what of it is not read was said when the run was planned
    for rendered, window in read_windows(source, settings, model, lost, keep):
        tokens += len(window.ids)
        if windows and tokens > most:
            break
        windows.append(window)
        turns.append(rendered.of_turn)
    source.require_unchanged()
    if not windows:
        raise DataError(
            f"{source.name}: no row has a token that is scored; `eaft-probe render` shows why"
        )
    return Rows(windows, turns, lost.sentences())


def require_many(rows: Rows, what: str) -> None:
    """Raises `BadInput` where an interval over rows would say nothing."""
    count = len(rows.numbers)
    if count < FEWEST:
        raise BadInput(
            f"{what} has {count} row{'s' * (count != 1)} with a scored token within --eval-tokens, "
            f"and an interval over rows takes at least {FEWEST}; give more rows, or raise "
            f"--eval-tokens"
        )


def sums_by_row(model: CausalLM, rows: Rows, reference: CausalLM | None = None) -> Floats:
    """(E, 3) of each row its scored tokens, Σ nll, and Σ KL(reference ‖ model) or 0."""
    names = ["logprob", *(["kl_reference"] if reference else [])]
    statistics, numbers = [STATISTICS[n] for n in names], rows.numbers
    sums = np.zeros((len(numbers), 3))
    budget, regime = auto_tokens(model.device.type), regimes(model.borders)
    for batch in batches(rows.windows, budget, None, regime):
        columns = measure(model, batch, statistics, reference)
        row = np.searchsorted(numbers, np.concatenate([w.places()[0] for w in batch.window]))
        values = [torch.ones(len(row)), -columns["logprob"], *(columns[n] for n in names[1:])]
        for i, value in enumerate(values):
            sums[:, i] += np.bincount(row, value.double().cpu().numpy(), len(numbers))
    return sums


def gradient(
    model: CausalLM,
    parameters: Mapping[str, torch.nn.Parameter],
    rows: Rows,
    gates: Sequence[NDArray[np.float32]] | None = None,
    count: int | None = None,
) -> Gradient:
    """Of Σ gate · nll / N in the parameters, N the rows' trained tokens or `count`, never 0.

    `gates`: (T,) of each window; all 1 where there are none. Raises `NonFinite`.
    """
    whole: PreTrainedModel = gate(model.whole)
    every = gates or [np.ones(len(w.ids), np.float32) for w in rows.windows]
    numbered = [replace(w, example=i) for i, w in enumerate(rows.windows)]
    device = model.device
    for batch in batches(numbered, BACKWARD_TOKENS, None, regimes(model.borders)):
        shape = batch.input_ids.shape
        gate_column = torch.zeros(shape)
        for line, window in zip(gate_column, batch.window, strict=True):
            line[: len(window.ids)] = torch.from_numpy(every[window.example])
        with recomputed(whole):
            output = whole(
                input_ids=batch.input_ids.to(device),
                attention_mask=batch.attention_mask.to(device),
                trained=batch.trained.to(device),
                objective=Given(),
                count=count or rows.tokens,
                base=TokenColumns({"gate": gate_column.to(device)}),
            )
            output["loss"].backward()
    found = {n: p.grad for n, p in parameters.items() if p.grad is not None}
    for parameter in parameters.values():
        parameter.grad = None
    return_freed_memory()
    if not all(bool(g.isfinite().all()) for g in found.values()):
        raise NonFinite("a gradient is not finite; check the weights")
    return {n: found.get(n, torch.zeros_like(p)) for n, p in parameters.items()}


@contextmanager
def recomputed(model: torch.nn.Module) -> Iterator[None]:
    """A backward pass computes each layer anew instead of keeping its activations, which under
    SmolLM2 are 2.4 MB a token, and a row may be long. Training mode, in which `transformers` does
    so, would let dropout in."""
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    before = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            del layer.forward
            if forward is not None:  # of a hook
                layer.forward = forward


def return_freed_memory() -> None:
    """To the system. glibc keeps what autograd's thread has freed, where no other thread can use
    it: 0.5 to 1 GB after a gradient of SmolLM2."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def preconditioned(
    model: CausalLM,
    parameters: Mapping[str, torch.nn.Parameter],
    rows: Rows,
    gates: Sequence[NDArray[np.float32]],
) -> Gradient:
    """The gradient over the root of its mean square, as AdamW divides: each entry by that of
    MICRO_BATCHES parts of the same windows. Memory: two gradients more. Raises `NonFinite`."""
    parts = min(MICRO_BATCHES, len(rows.windows))
    total = {n: torch.zeros_like(p) for n, p in parameters.items()}
    squares = {n: torch.zeros_like(p) for n, p in parameters.items()}
    for i in range(parts):
        own = Rows(rows.windows[i::parts], rows.turns[i::parts])
        for n, g in gradient(model, parameters, own, gates[i::parts], rows.tokens).items():
            total[n] += g
            squares[n].addcmul_(g, g, value=parts)  # the mean of (parts · g)²
    for n, square in squares.items():
        total[n] /= square.sqrt_() + ADAM_EPSILON
    return total


DIRECTIONS = {"plain": gradient, "preconditioned": preconditioned}  # of a step


def norm(of: Gradient) -> float:
    """‖g‖ over all parameters."""
    return float(sum(inner(g, g) for g in of.values()) ** 0.5)


def inner(a: torch.Tensor, b: torch.Tensor) -> float:
    """⟨a, b⟩ in float64, a million entries at a time."""
    pieces = (torch.split(x.flatten(), 1_000_000) for x in (a, b))
    return sum(float(x.double() @ y.double()) for x, y in zip(*pieces, strict=True))
