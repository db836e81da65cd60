"""Gates against float64 loops, and what every objective of the registry promises."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
import reference
import scans_made
import torch
from numpy.typing import NDArray
from steps import Whole

from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.errors import BadInput, UnknownName
from eaft_probe.objectives.gates import (
    OBJECTIVES,
    Anchor,
    Columns,
    Objective,
    objective,
    settable,
)
from eaft_probe.objectives.objective import Step as WholeStep

Given = dict[str, Any]
FIELDS: list[tuple[str, Given]] = [
    *((name, {}) for name in OBJECTIVES),
    ("eaft", {"alpha": 0.5}),
    ("eaft", {"alpha": 3}),
    ("eaft", {"k": 5}),
    ("eaft", {"k": 50}),
    ("eaft", {"gate": "sigmoid"}),
    ("eaft", {"gate": "mask"}),
    ("eaft", {"entropy": "full"}),
    ("eaft", {"gate": "sigmoid", "sharpness": 8, "center": 0.4, "entropy": "full", "k": 10}),
    ("eaft", {"compat": "llamafactory", "alpha": 2}),
    ("eaft", {"compat": "llamafactory"}),
    ("eaft", {"compat": "axolotl", "k": 10}),
    ("eaft", {"compat": "axolotl", "alpha": 0.5}),
    ("masked-sft", {"entropy_below": 1.5, "prob_below": 0.03}),
    ("mile", {"gamma": 2}),
    ("masked-sft", {"conflicts": "scan"}),
    ("mile", {"gamma": 0.5}),
    ("qlog", {"q": 1}),
    ("qlog", {"q": 0.05}),
    ("cayley", {"floor": 0}),
    ("cayley", {"floor": 1}),
    ("talr", {"tau": 3, "floor": 0}),
    ("talr", {"tau": "0.5"}),
    ("talr", {"floor": 0.2}),
    ("focal", {"gamma": 2}),
    ("focal", {"gamma": 0.5}),
    ("profit", {"threshold": 0.6}),
    ("stm", {"threshold": 0.02}),
    ("flow", {"normalize": "mean1"}),
    ("rho", {"keep": 0.25}),
    ("rho", {"keep": 1}),
    ("rho", {"keep": 0.25, "rank": "example"}),
    ("rho", {"rank": "data"}),
    ("tail", {"drop": 0.3}),
    ("idft", {"detach": "gamma"}),
    ("idft", {"beta": 0.05, "least": 0.5, "most": 4, "lam": 0.7}),
    ("idft", {"lam": 0}),
    ("clip", {"c": 0.5}),
    ("clip", {"c": 0}),
    ("sft-kl", {"beta": 2}),
    ("asft", {"beta": 1, "direction": "reverse"}),
]
KINDS: dict[str, Callable[[Any], Any]] = {"numpy": lambda c: c, "torch": torch.from_numpy}


@cache
def tokens(count: int = 503) -> dict[str, NDArray[Any]]:
    """Every column there is, of real distributions; the last rows are the ends of the range."""
    frame = scans_made.measured(scans_made.places(count))
    base = scans_made.measured(frame, 2, follow=False)
    for column, ends in {
        "prob": (1, math.exp(-80)),
        "logprob": (0, -80),
        "entropy": (0, 12),
        "concentration": (1, 1e-6),
        "entropy_top20": (0, math.log(20)),
        "entropy_top5": (0, math.log(5)),
    }.items():
        frame.loc[frame.index[-2:], column] = np.float32(ends[:count])
    frame["base_prob"], frame["reference_logprob"] = base["prob"], base["logprob"]
    means = (-base["logprob"].astype(np.float64)).groupby(base["example"]).mean()
    frame["base_mean_nll"] = frame["example"].map(means).astype(np.float32)
    frame["base_logprob"] = base["logprob"]
    own = (-frame["logprob"].astype(np.float64)).groupby(frame["example"]).mean()
    frame["nll_fall"] = frame["example"].map(means - own).astype(np.float32)
    excess = base["logprob"].astype(np.float64) - frame["logprob"]
    above = [
        ((frame["example"] == e) & (excess > x)).sum() / (frame["example"] == e).sum()
        for e, x in zip(frame["example"], excess, strict=True)
    ]
    frame["excess_above"] = np.float32(above)
    frame["base_conflict"] = ((base["prob"] < 0.2) & (base["entropy"] < 1)).astype(np.float32)
    return {name: frame[name].to_numpy().copy() for name in frame}


@cache
def examples(count: int = 503) -> dict[str, NDArray[Any]]:
    """The mean nll of each example, under the model and under its base."""
    columns = tokens(count)
    known, first = np.unique(columns["example"], return_index=True)
    own = [-columns["logprob"][columns["example"] == e].astype(np.float64).mean() for e in known]
    return {
        "mean_nll": np.float32(own),
        "base_mean_nll": columns["base_mean_nll"][first],
        "nll_fall": columns["nll_fall"][first],
    }


class Declared(Mapping[str, Any]):
    """Columns of which only some may be read."""

    def __init__(self, columns: Columns, reads: Any) -> None:
        self.columns, self.reads = columns, tuple(reads)

    def __getitem__(self, name: str) -> Any:
        assert name in self.reads, f"reads {name!r}, which it does not declare"
        return self.columns[name]

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("goes through all columns")

    def __len__(self) -> int:
        raise AssertionError("counts the columns")


def resolved(wanted: Objective, kind: str = "numpy", count: int = 503) -> tuple[Objective, Columns]:
    """The objective under a step of those tokens, and the columns that it may read."""
    columns = tokens(count)
    cast = KINDS[kind]
    own = Declared({k: cast(v) for k, v in columns.items() if v.dtype == np.float32}, wanted.reads)
    means = Declared({k: cast(v) for k, v in examples(count).items()}, examples(count))
    return wanted.resolve(WholeStep(Whole(own), Whole(means))), own


def gates(name: str, given: Given, kind: str = "numpy", count: int = 503) -> Any:
    frozen, columns = resolved(objective(name, given), kind, count)
    return frozen(columns)


# --- truth ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "given"), FIELDS)
def test_gates_equal_a_float64_loop(name: str, given: Given, kind: str) -> None:
    columns = {k: np.float64(v).tolist() for k, v in tokens().items()}
    means = {k: np.float64(v).tolist() for k, v in examples().items()}
    wanted = reference.GATES[name](columns, means, **given)
    np.testing.assert_allclose(np.asarray(gates(name, given, kind)), wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_fields_and_defaults_are_the_tables(name: str) -> None:
    """DESIGN section 8, as the signatures of the reference loops have it."""
    parameters = inspect.signature(reference.GATES[name]).parameters.values()
    table = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    made = OBJECTIVES[name]()
    assert {f: getattr(made, f) for f in settable(OBJECTIVES[name])} == table


@pytest.mark.parametrize(
    ("entropy", "gate"), [(0.15, 0.05), (0.3, 0.1), (0.5, 0.167), (1, 0.334), (2, 0.668)]
)
def test_gate_values_of_the_paper(entropy: float, gate: float) -> None:
    found = objective("eaft")({"entropy_top20": np.float32([entropy])})
    assert found[0] == pytest.approx(gate, abs=5e-4)


@pytest.mark.parametrize(
    ("share", "gate"), [(0, 0.006), (0.1, 0.11), (0.17, 0.5), (0.25, 0.92), (0.33, 0.99)]
)
def test_sigmoid_values_of_the_paper(share: float, gate: float) -> None:
    entropy = np.float32([share * math.log(20)])
    found = objective("eaft", {"gate": "sigmoid"})({"entropy_top20": entropy})
    assert found[0] == pytest.approx(gate, abs=5e-3)


def test_the_full_entropy_is_cut_at_one() -> None:
    found = objective("eaft", {"entropy": "full"})({"entropy": np.float32([9.0, 1.5])})
    np.testing.assert_allclose(found, [1, 1.5 / math.log(20)], rtol=1e-6)


# --- what every objective promises ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("count", [1, 503])
def test_a_gate_is_a_finite_float32_from_0_for_each_token(name: str, kind: str, count: int) -> None:
    found = gates(name, {}, kind, count)
    assert isinstance(found, np.ndarray if kind == "numpy" else torch.Tensor)
    assert tuple(found.shape) == (count,)
    assert str(found.dtype).removeprefix("torch.") == "float32"
    assert np.isfinite(np.asarray(found)).all()
    assert np.asarray(found).min() >= 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_probability_that_float32_rounds_to_0_has_a_finite_gate(name: str, kind: str) -> None:
    frozen, columns = resolved(objective(name), kind)
    least = {"prob": 0.0, "logprob": -150.0, "entropy": 0.0, "concentration": 1.0}
    low = {c: columns[c][:1] * 0 + least.get(c, 0.0) for c in frozen.reads}
    assert 0 <= float(frozen(low)[0]) < math.inf


@pytest.mark.parametrize("name", OBJECTIVES)
def test_arrays_and_tensors_get_the_same_gates(name: str) -> None:
    pair = [np.asarray(gates(name, {}, kind)) for kind in KINDS]
    np.testing.assert_allclose(*pair, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_columns_stay_as_they_were(name: str) -> None:
    frozen, columns = resolved(objective(name))
    before = {c: columns[c].copy() for c in frozen.reads}
    frozen(columns)
    for column, values in before.items():
        np.testing.assert_array_equal(columns[column], values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_gate_of_no_token_is_empty(name: str, kind: str) -> None:
    frozen, columns = resolved(objective(name), kind)
    assert frozen({c: columns[c][:0] for c in frozen.reads}).shape == (0,)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_token_s_gate_depends_on_the_others_through_resolve_alone(name: str) -> None:
    frozen, columns = resolved(objective(name))
    part = {c: columns[c][100:200] for c in frozen.reads}
    np.testing.assert_array_equal(frozen(part), frozen(columns)[100:200])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_only_objectives_of_a_whole_change_when_resolved(name: str) -> None:
    wanted = objective(name)
    assert (resolved(wanted)[0] != wanted) == (wanted.of_step or wanted.of_scan)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_resolved_objective_has_the_same_name_and_fields(name: str) -> None:
    wanted = objective(name)
    frozen = resolved(wanted)[0]
    assert str(frozen) == str(wanted) == name == wanted.name
    assert repr(frozen) == repr(wanted)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_entry_says_what_it_is(name: str) -> None:
    assert OBJECTIVES[name].formula
    assert OBJECTIVES[name].__doc__


# --- oracles of METHODS section 7 ---


def test_eaft_with_alpha_0_is_sft() -> None:
    assert (gates("eaft", {"alpha": 0}) == gates("sft", {})).all()


def test_talr_with_tau_1_and_no_floor_is_dft() -> None:
    np.testing.assert_allclose(
        gates("talr", {"tau": 1, "floor": 0}), gates("dft", {}), rtol=1e-6, atol=0
    )


def test_talr_tends_to_sft_as_tau_grows() -> None:
    np.testing.assert_allclose(gates("talr", {"tau": 1e9}), 1, rtol=1e-6)


def test_qlog_goes_from_sft_to_dft() -> None:
    np.testing.assert_array_equal(gates("qlog", {"q": 1}), gates("dft", {}))
    np.testing.assert_array_equal(gates("qlog", {"q": 0}), gates("sft", {}))


def test_deft_is_dft_where_the_model_is_sure_of_one_token() -> None:
    columns = {"prob": np.float32([0.3, 1e-20]), "concentration": np.float32([1, 1])}
    np.testing.assert_array_equal(objective("deft")(columns), columns["prob"])


def test_idft_without_its_temperature_is_dft() -> None:
    np.testing.assert_allclose(gates("idft", {"lam": 0}), gates("dft", {}), rtol=1e-5, atol=0)


def test_idft_as_released_may_push_away() -> None:
    assert gates("idft", {"detach": "gamma"}).min() < -0.01


def test_clip_keeps_a_step_that_the_model_knows() -> None:
    known = {"logprob": np.float32([0, 0, 0, -2])}
    frozen = objective("clip").resolve(WholeStep(Whole(known), Whole(known)))
    assert frozen(known).tolist() == [1, 1, 1, 0]


def test_tail_drops_nothing_in_a_first_step() -> None:
    """Rounding alone does not count as a fall."""
    same = {"nll_fall": np.float32([2e-5, -1e-5, 3e-5, 0])}
    frozen = objective("tail").resolve(WholeStep(Whole(same), Whole(same)))
    assert frozen(same).tolist() == [1, 1, 1, 1]


def test_eaft_of_the_uniform_distribution_is_one() -> None:
    """Not the 0.99858 that a normaliser of 3.0 gives."""
    found = objective("eaft")({"entropy_top20": np.float32([math.log(20)])})
    assert found[0] == pytest.approx(1, abs=1e-6)


def test_mile_gates_have_mean_1() -> None:
    assert np.mean(gates("mile", {"gamma": 1.7}), dtype=np.float64) == pytest.approx(1, rel=1e-6)


def test_flow_of_the_median_example_is_1_over_e() -> None:
    frozen, _ = resolved(objective("flow"))
    median = np.float32([np.median(examples()["base_mean_nll"])])
    assert frozen({"base_mean_nll": median})[0] == pytest.approx(math.exp(-1), rel=1e-5)


def test_flow_normalised_has_weights_that_sum_to_the_examples() -> None:
    frozen, _ = resolved(objective("flow", {"normalize": "mean1"}))
    weights = frozen({"base_mean_nll": examples()["base_mean_nll"]})
    assert np.mean(weights, dtype=np.float64) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.6, 0.9, 1])
def test_rho_keeps_its_share(keep: float) -> None:
    assert gates("rho", {"keep": keep}).sum() == pytest.approx(keep * 503, abs=1)


def test_a_threshold_itself_is_kept() -> None:
    at = np.float32([0.1, np.nextafter(np.float32(0.1), np.float32(0))])
    assert objective("profit")({"prob": at}).tolist() == [1, 0]
    assert objective("stm", {"threshold": 0.1})({"base_prob": at}).tolist() == [1, 0]


def test_masked_sft_leaves_out_what_the_rule_flags() -> None:
    columns = tokens()
    flagged = ConflictRule()(columns)
    assert 0 < flagged.sum() < len(flagged)
    np.testing.assert_array_equal(gates("masked-sft", {}) == 0, flagged)


# --- gradients by autograd ---


@pytest.fixture
def logits() -> torch.Tensor:
    made = torch.randn(40, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (made * torch.linspace(0.1, 8, 40)[:, None]).requires_grad_()


def live(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """The columns of logits, without a graph."""
    logprobs = logits.detach().log_softmax(1)
    p = logprobs.exp()
    top = logprobs.topk(20).values.log_softmax(1)
    return {
        "prob": p.gather(1, labels[:, None])[:, 0],
        "entropy": -(p * logprobs).sum(1),
        "entropy_top20": -(top.exp() * top).sum(1),
        "concentration": (p**2).sum(1),
    }


@pytest.mark.parametrize(
    "name", ["sft", "eaft", "mile", "dft", "deft", "cayley", "masked-sft", "chord"]
)
def test_gradient_of_the_gated_loss_is_the_gate_times_the_error(
    name: str, logits: torch.Tensor
) -> None:
    labels = torch.arange(40) % 7
    columns = live(logits, labels)
    population = Whole(columns)
    gate = objective(name).resolve(WholeStep(population, population))(columns)
    nll = -logits.log_softmax(1).gather(1, labels[:, None])[:, 0]
    (gate * nll).sum().backward()
    error = logits.detach().softmax(1) - torch.nn.functional.one_hot(labels, 64)
    assert not gate.requires_grad
    torch.testing.assert_close(logits.grad, gate[:, None] * error)


@pytest.mark.parametrize("q", [0.2, 0.5, 1.0])
def test_qlog_has_the_gradient_of_its_paper_s_loss(q: float, logits: torch.Tensor) -> None:
    """Σ (1 − p^q) / q; with q = 1 the Σ (1 − p) that DFT stands for."""
    labels = torch.arange(40) % 7
    p = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    ((1 - p**q) / q).sum().backward()
    gate = objective("qlog", {"q": q})({"prob": p.detach()})
    error = logits.detach().softmax(1) - torch.nn.functional.one_hot(labels, 64)
    torch.testing.assert_close(logits.grad, gate[:, None] * error)


# --- fields ---


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("eaft", {"k": 1}, "k is at least 2"),
        ("eaft", {"k": "x"}, "eaft' k"),
        ("eaft", {"k": 2.5}, "eaft' k"),
        ("eaft", {"alpha": -1}, "alpha is at least 0"),
        ("eaft", {"alpha": "nan"}, "alpha is at least 0"),
        ("eaft", {"alpha": None}, "eaft' alpha"),
        ("eaft", {"gate": "Power"}, "'power', 'sigmoid' or 'mask'"),
        ("eaft", {"alhpa": 2}, r"no field 'alhpa' \(did you mean 'alpha'\?\)"),
        ("eaft", {"q": 2}, "it has: gate, alpha, sharpness, center, k, entropy"),
        ("sft", {"alpha": 2}, "it has: none"),
        ("mile", {"_mean": 2}, "no field '_mean'"),
        ("talr", {"tau": 0}, "tau is above 0"),
        ("talr", {"tau": "median"}, "talr' tau"),
        ("rho", {"keep": 0}, "keep is above 0"),
        ("rho", {"keep": 1.5}, "at most 1"),
        ("rho", {"rank": "row"}, "'step', 'example' or 'data'"),
        ("tail", {"drop": 1}, "drop is between 0 and 1"),
        ("idft", {"beta": 0}, "beta is above 0"),
        ("idft", {"least": 3}, "least is at most most, found 3 and 2"),
        ("asft", {"direction": "backward"}, "'forward' or 'reverse'"),
    ],
)
def test_a_field_that_cannot_be_is_refused(name: str, given: Given, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        objective(name, given)


def test_an_objective_that_is_none_is_named() -> None:
    with pytest.raises(UnknownName, match="did you mean 'eaft'"):
        objective("eaf")


def test_fields_come_as_text_from_the_command_line() -> None:
    made = objective("eaft", {"alpha": "0.5", "k": "50", "gate": "sigmoid"})
    assert made == objective("eaft", {"alpha": 0.5, "k": 50, "gate": "sigmoid"})
    assert objective("talr", {"tau": "2"}) == objective("talr", {"tau": 2.0})


@pytest.mark.parametrize(
    ("name", "given", "shown"),
    [
        ("eaft", {}, "eaft"),
        ("eaft", {"alpha": 1.0, "k": 20}, "eaft"),
        ("eaft", {"alpha": 2}, "eaft alpha=2"),
        ("eaft", {"gate": "mask", "center": 0.25}, "eaft gate=mask center=0.25"),
        ("talr", {"tau": 1}, "talr tau=1.0"),
        ("flow", {"normalize": "mean1"}, "flow normalize=mean1"),
    ],
)
def test_an_objective_is_shown_with_what_is_not_its_default(
    name: str, given: Given, shown: str
) -> None:
    assert str(objective(name, given)) == shown


def test_anchors_belong_to_the_two_that_pull() -> None:
    anchors = {n: objective(n).anchor for n in OBJECTIVES if objective(n).anchor}
    assert anchors == {"sft-kl": Anchor(0.5, "forward"), "asft": Anchor(0.05, "forward")}
    assert objective("asft", {"beta": 1, "direction": "reverse"}).anchor == Anchor(1, "reverse")


def test_eaft_reads_the_entropy_of_its_k() -> None:
    assert list(objective("eaft", {"k": 50}).reads) == ["entropy_top50"]
    assert list(objective("eaft", {"entropy": "full"}).reads) == ["entropy"]
