"""Every statistic against float64 loops, over distributions of every shape."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import reference
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from eaft_probe.columns import measure
from eaft_probe.columns.measure import Reference, TokenColumns, measure_states
from eaft_probe.columns.statistics import STATISTICS, chosen_statistics
from eaft_probe.errors import BadInput, UnknownName
from eaft_probe.model.head import Head

torch.set_num_threads(1)


@dataclass(frozen=True)
class Case:
    """N positions under a head and, as a reference, under another one."""

    head: Head
    hidden: torch.Tensor
    labels: torch.Tensor
    other_head: Head
    other_hidden: torch.Tensor

    def measured(self) -> TokenColumns:
        return measure_states(
            self.head,
            self.hidden,
            self.labels,
            tuple(STATISTICS.values()),
            Reference(self.other_head, self.other_hidden),
        )

    def position(self, n: int) -> reference.Position:
        label = int(self.labels[n])
        other = _position(self.other_head, self.other_hidden[n], label, None)
        return _position(self.head, self.hidden[n], label, other)


def _position(
    head: Head, hidden: torch.Tensor, label: int, other: reference.Position | None
) -> reference.Position:
    bias = None if head.bias is None else head.bias.double().numpy()
    weight = head.weight.double().numpy()
    return reference.Position(
        label, hidden.double().numpy(), weight, bias, head.scale, head.softcap, other
    )


def random_case(
    vocab: int,
    width: int = 16,
    rows: int = 7,
    spread: float = 1.0,
    scale: float = 1.0,
    softcap: float | None = None,
    bias: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Case:
    g = torch.Generator().manual_seed(vocab + rows)
    weight = (torch.randn(vocab, width, generator=g) * spread).to(dtype)
    hidden = torch.randn(rows, width, generator=g).to(dtype)
    other = torch.randn(vocab, width + 3, generator=g) * 0.5
    labels = torch.randint(vocab, (rows,), generator=g)
    if bias is not None:
        labels = torch.multinomial(bias.isfinite().float(), rows, generator=g, replacement=True)
    other_hidden = torch.randn(rows, width + 3, generator=g)
    # A reference that gives a token what the model never does would be infinitely far.
    other_bias = None if bias is None else torch.where(bias.isfinite(), 0.0, -math.inf)
    head = Head(weight, bias, scale, softcap)
    return Case(head, hidden, labels, Head(other, other_bias), other_hidden)


def exact_case(logits: torch.Tensor, labels: list[int]) -> Case:
    """Exactly these logits: the head is the identity."""
    rows, vocab = logits.shape
    g = torch.Generator().manual_seed(vocab)
    other_hidden = torch.randn(rows, 4, generator=g)
    other = Head(torch.randn(vocab, 4, generator=g), None)
    return Case(Head(torch.eye(vocab), None), logits, torch.tensor(labels), other, other_hidden)


def peaked(height: float, vocab: int = 30) -> Case:
    """The label stands `height` above (p ≈ 1) or below (p ≈ 0) one other or all tokens."""
    logits = torch.randn(4, vocab, generator=torch.Generator().manual_seed(3))
    logits[:, 5] = logits.amax(1) + height if height > 0 else logits.amin(1) + height
    return exact_case(logits, [5] * 4)


def one_hot(height: float) -> Case:
    """Another token than the label has nearly all probability."""
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(3))
    logits[:, 7] += height
    return exact_case(logits, [0, 8, 39])


def tied() -> Case:
    logits = torch.zeros(5, 200)
    logits[0, [3, 50, 199]] = 2.0  # the label among the likeliest
    logits[1, [3, 50]] = 2.0  # the label among the least likely
    logits[2, :100] = 1.0
    logits[3, 10:13], logits[3, 20] = 3.0, 4.0  # the label ties in the second place
    logits[4] = torch.arange(200) // 2 / 20
    return exact_case(logits, [199, 0, 57, 11, 198])


def tied_by_blocks() -> Case:
    """Where the k largest are looked for in columns: two likeliest tokens, in any two places."""
    logits = torch.zeros(5, 2613)
    places = [(1, 40), (40, 41), (39, 2599), (2600, 2612), (7, 2612)]
    for row, pair in zip(logits, places, strict=True):
        row[list(pair)] = 2.0
    return exact_case(logits, [40, 40, 5, 2612, 9])


def impossible(vocab: int, possible: int, scale: float = 1.0) -> Case:
    """All tokens but some have logit −∞."""
    bias = torch.full((vocab,), -math.inf)
    kept = torch.randperm(vocab, generator=torch.Generator().manual_seed(1))[:possible]
    bias[kept] = torch.linspace(-1, 1, possible)
    return random_case(vocab, bias=bias, scale=scale)


BIAS = torch.linspace(-3, 3, 120)
CASES: dict[str, Callable[[], Case]] = {
    "ordinary": lambda: random_case(120),
    "one row": lambda: random_case(120, rows=1),
    "two tokens": lambda: random_case(2),
    "fewer than 20 tokens": lambda: random_case(7),
    "20 tokens": lambda: random_case(20),
    "no multiple of 64": lambda: random_case(1037),
    "largest by blocks": lambda: random_case(64 * 45 + 13),
    "largest by blocks, no rest": lambda: random_case(64 * 40),
    "largest in one block": lambda: exact_case(torch.arange(2600.0).flip(0)[None] / 100, [2]),
    "largest behind the blocks": lambda: exact_case(torch.arange(2613.0)[None] / 100, [2600]),
    "ties by blocks": tied_by_blocks,
    "wide": lambda: random_case(300, spread=6.0),
    "label certain": lambda: peaked(12.0),
    "label more than certain": lambda: peaked(90.0),
    "label at 1e-30": lambda: peaked(-69.0),
    "label below float32": lambda: peaked(-300.0),
    "another certain": lambda: one_hot(25.0),
    "uniform": lambda: exact_case(torch.zeros(3, 50), [0, 20, 49]),
    "uniform by blocks": lambda: exact_case(torch.full((2, 2570), -7.0), [0, 2569]),
    "ties": tied,
    "some impossible": lambda: impossible(120, 80),
    "all but 6 impossible": lambda: impossible(120, 6),
    "all but one impossible": lambda: impossible(64, 1),
    "impossible by blocks": lambda: impossible(2900, 12, scale=0.5),
    "bias": lambda: random_case(120, bias=BIAS),
    "scale": lambda: random_case(120, scale=0.0625, spread=4.0),
    "scale above 1": lambda: random_case(120, scale=3.0, bias=BIAS),
    "soft-cap": lambda: random_case(120, softcap=30.0, spread=5.0),
    "soft-cap reached": lambda: random_case(120, softcap=5.0, spread=3.0),
    "soft-cap, scale, bias": lambda: random_case(120, 16, 7, 2.0, 0.5, 8.0, BIAS),
    "soft-cap by blocks": lambda: random_case(2900, softcap=8.0),
    "bfloat16": lambda: random_case(300, dtype=torch.bfloat16),
    "float16": lambda: random_case(5000, dtype=torch.float16),
}


@cache
def case_of(name: str) -> Case:
    return CASES[name]()


@cache
def measured(name: str) -> TokenColumns:
    return case_of(name).measured()


def close(found: torch.Tensor, wanted: list[float], tolerance: float) -> bool:
    truth = np.array(wanted, np.float64)
    off = np.abs(found.double().numpy() - truth) / np.maximum(1.0, np.abs(truth))
    return bool((off <= tolerance).all())  # false for NaN


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("case", CASES)
def test_statistic_equals_float64_loop(case: str, statistic: str) -> None:
    given = case_of(case)
    found = measured(case)[statistic]
    loop = reference.REFERENCE[statistic]
    wanted = [loop(given.position(n)) for n in range(len(given.labels))]
    assert found.dtype == getattr(torch, STATISTICS[statistic].dtype)
    tolerance = 1e-4 if found.dtype == torch.float32 else 0.0
    assert close(found, wanted, tolerance), f"{found.tolist()} != {wanted}"


@pytest.mark.parametrize("case", CASES)
def test_gradient_norms_equal_autograd(case: str) -> None:
    given = case_of(case)
    for n, label in enumerate(given.labels):
        h = given.hidden[n].double().requires_grad_()
        w = given.head.weight.double().requires_grad_()
        logits = w @ h if given.head.bias is None else w @ h + given.head.bias.double()
        logits = logits * given.head.scale
        if given.head.softcap is not None:
            logits = given.head.softcap * torch.tanh(logits / given.head.softcap)
        logits.retain_grad()
        (-logits.log_softmax(0)[label]).backward()
        for name, leaf in (("grad_logits", logits), ("grad_head", w), ("grad_hidden", h)):
            assert leaf.grad is not None
            wanted = float(leaf.grad.norm())
            assert close(measured(case)[name][n : n + 1], [wanted], 1e-4), (name, n)


def test_small_gradients_keep_their_digits() -> None:
    """Of a label with 1 − p ≈ 1e-5, 1 − 2p + ΣP² in float32 would leave nothing."""
    given = case_of("label certain")
    wanted = [reference.REFERENCE["grad_logits"](given.position(n)) for n in range(4)]
    np.testing.assert_allclose(measured("label certain")["grad_logits"], wanted, rtol=0.05)


@pytest.mark.parametrize("case", CASES)
def test_entropy_is_at_least_the_binary_entropy_of_p(case: str) -> None:
    """The default rule leans on it: below 0.509 nats, p is under 0.207 or over 0.793."""
    entropy, p = measured(case)["entropy"].double(), measured(case)["prob"].double()
    binary = -torch.xlogy(p, p) - torch.xlogy(1 - p, 1 - p)
    assert (entropy >= binary - 2e-6).all()


@pytest.mark.parametrize("case", CASES)
def test_columns_stay_in_their_ranges(case: str) -> None:
    m, vocab = measured(case), case_of(case).head.vocab_size
    assert all(m[name].isfinite().all() for name in STATISTICS)
    assert (m["logprob"] <= 0).all()
    assert (m["prob"] <= m["top1_prob"]).all()
    assert ((m["rank"] >= 0) & (m["rank"] < vocab)).all()
    for name in STATISTICS:
        assert name in ("logprob", "logprob_alone", "surprise") or (m[name] >= 0).all(), name
    assert ((m["rank"] == 0) == (m["top1_id"] == case_of(case).labels)).all()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("product_rows", "slice_rows"), [(1, 1), (3, 2), (5, 5), (4, 100)])
def test_chunks_change_nothing(
    case: str, product_rows: int, slice_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = case_of(case)
    row = 4 * given.head.vocab_size
    whole = measured(case)
    monkeypatch.setattr(measure, "PRODUCT_BYTES", {"cpu": product_rows * row})
    monkeypatch.setattr(measure, "SLICE_BYTES", {"cpu": slice_rows * row})
    pieces = given.measured()
    for name in STATISTICS:
        # Not less: a product of other rows may round logits of 20 by 2e-6.
        assert close(pieces[name], whole[name].tolist(), 1e-5), name


class Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // 4)
        return result


@pytest.mark.parametrize("softcap", [None, 8.0])
def test_no_tensor_grows_with_tokens_times_vocabulary(
    softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocab, at_once = 2700, 8
    monkeypatch.setattr(measure, "PRODUCT_BYTES", {"cpu": at_once * vocab * 4})
    monkeypatch.setattr(measure, "SLICE_BYTES", {"cpu": at_once * vocab * 4 // 2})
    largest = {}
    for rows in (32, 256):
        given = random_case(vocab, width=4, rows=rows, softcap=softcap)
        with Largest() as mode:
            given.measured()
        largest[rows] = mode.elements
    assert largest[32] == largest[256] == at_once * vocab


def test_inputs_survive() -> None:
    given = random_case(300, bias=torch.zeros(300), softcap=9.0)
    before = [t.clone() for t in (given.head.weight, given.hidden, given.labels)]
    given.measured()
    for old, new in zip(before, (given.head.weight, given.hidden, given.labels), strict=True):
        assert torch.equal(old, new)


def test_no_positions_give_empty_columns() -> None:
    head = Head(torch.ones(30, 4), None)
    made = measure_states(
        head, torch.empty(0, 4), torch.empty(0, dtype=torch.int64), chosen_statistics([], False)
    )
    assert all(len(column) == 0 for column in made.columns.values())


def test_token_columns_refuse_a_graph_and_uneven_lengths() -> None:
    with pytest.raises(AssertionError, match="graph"):
        TokenColumns({"prob": torch.ones(2, requires_grad=True)})
    with pytest.raises(AssertionError, match="length"):
        TokenColumns({"prob": torch.ones(2), "entropy": torch.ones(3)})


def test_chosen_statistics_are_the_defaults_and_the_extras_in_registry_order() -> None:
    names = [s.name for s in chosen_statistics(["entropy_top50", "grad_hidden"], False)]
    assert names == [n for n in STATISTICS if n in names]
    assert set(names) == {n for n, s in STATISTICS.items() if s.default} | {
        "entropy_top50",
        "grad_hidden",
    }
    assert "kl_reference" in [s.name for s in chosen_statistics([], True)]


def test_wrong_choices_say_what_helps() -> None:
    with pytest.raises(BadInput, match="--reference"):
        chosen_statistics(["kl_reference"], False)
    with pytest.raises(UnknownName, match="did you mean 'grad_hidden'"):
        chosen_statistics(["grad_hiden"], False)


def test_every_statistic_says_what_it_is() -> None:
    for name, statistic in STATISTICS.items():
        assert statistic.name == name
        assert statistic.meaning
        assert statistic.dtype in ("float32", "int32")
        assert name in reference.REFERENCE, f"write a float64 loop for {name} in reference.py"
