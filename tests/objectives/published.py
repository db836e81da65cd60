"""The published losses in float64, a token at a time, and the steps that are held against them.

Each has the paper's own form where it has one (METHODS section 3): 1 − p for DFT, a deformed
logarithm for DEFT, cross-entropy to a soft target for SFT-KL. Statistics of the step are plain
loops over its tokens.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import tiny
import torch
from steps import ROWS, Gradients, Keep, Other, Whole, build, collate, rows
from transformers import TrainingArguments

from eaft_probe.objectives.objective import Objective
from eaft_probe.objectives.objective import Step as WholeStep
from eaft_probe.objectives.trainer import GatedTrainer, gate

Row = dict[str, torch.Tensor]
STEPS = ("max_steps", "learning_rate", "adam_epsilon", "lr_scheduler_type")
BASE = ("base_prob", "base_mean_nll", "reference_logprob", "base_conflict", "base_logprob")
Given = tuple[tuple[str, Any], ...]  # an objective's fields; hashable, for the cache


@dataclass(frozen=True)
class Token:
    """A trained token of a step: the logits that should have predicted it, and its columns."""

    logits: torch.Tensor  # (V,) float64, with a graph
    label: int
    example: int
    theirs: torch.Tensor  # (V,) logits of the reference, no graph
    base_prob: float
    base_mean_nll: float
    reference_logprob: float
    base_conflict: float
    base_logprob: float

    @cached_property
    def nll(self) -> torch.Tensor:
        return -self.logits.log_softmax(0)[self.label]

    @cached_property
    def prob(self) -> torch.Tensor:
        return self.logits.softmax(0)[self.label]

    @cached_property
    def p(self) -> float:
        """The probability as a number, for what the papers detach."""
        return float(self.prob.detach())

    @cached_property
    def surprise(self) -> float:
        """The nll as a number."""
        return float(self.nll.detach())

    @cached_property
    def entropy(self) -> float:
        return entropy_of(self.logits)


Step = list[Token]


def entropy_of(logits: torch.Tensor) -> float:
    probs = logits.detach().softmax(0).tolist()
    return -math.fsum(p * math.log(p) for p in probs if p > 0)


def middle(values: list[float]) -> float:
    ordered, n = sorted(values), len(values)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def by_example(step: Step, of: Callable[[Token], float]) -> list[float]:
    """The mean over the trained tokens of each example that has some."""
    return [mean([of(t) for t in step if t.example == e]) for e in {t.example for t in step}]


def sft(t: Token, step: Step) -> torch.Tensor:
    return t.nll


def eaft(
    t: Token,
    step: Step,
    gate: str = "power",
    alpha: float = 1,
    entropy: str = "top",
    compat: str = "paper",
) -> torch.Tensor:
    """Eq. 2 and 3; the squared, sigmoid and hard gates of section 5.1; other programs' units."""
    top = t.logits.sort(descending=True).values[:20]
    unit = {"paper": math.log(20), "llamafactory": 3.0, "axolotl": 1.0}[compat]
    h = (t.entropy if entropy == "full" else entropy_of(top)) / unit
    h = min(h, 1.0) if entropy == "full" else h
    kinds = {
        "power": h**alpha,
        "sigmoid": 1 / (1 + math.exp(-30 * (h - 0.17))),
        "mask": float(h > 0.17),
    }
    return kinds[gate] * t.nll


def masked_sft(t: Token, step: Step, conflicts: str = "live") -> torch.Tensor:
    """Section 3.2: both rankings low. 0.17 ln 20 and a fifth as absolute thresholds."""
    live = t.entropy < 0.17 * math.log(20) and t.p < 0.2
    return t.nll * (1 - (live if conflicts == "live" else t.base_conflict))


def dft(t: Token, step: Step) -> torch.Tensor:
    return 1 - t.prob


def qlog(t: Token, step: Step) -> torch.Tensor:
    return (1 - t.prob**0.5) / 0.5


def deft(t: Token, step: Step) -> torch.Tensor:
    """The deformed logarithm with Σ P² as its exponent, which has no gradient."""
    a = float((t.logits.detach().softmax(0) ** 2).sum())
    return (1 - t.prob**a) / a


def cayley(t: Token, step: Step) -> torch.Tensor:
    missed, least = 1 - t.p, 0.5 * mean([s.p for s in step])
    a = min(max(least + (1 - least) * (1 - missed) / (1 + missed), 1e-3), 1.0)
    return (1 - t.prob**a) / a


def talr(t: Token, step: Step) -> torch.Tensor:
    tau = max(middle(by_example(step, lambda s: s.surprise)), 1e-6)
    return max(t.p ** (1 / tau), 0.01) * t.nll


def mile(t: Token, step: Step) -> torch.Tensor:
    return (1 + t.entropy) / mean([1 + s.entropy for s in step]) * t.nll


def focal(t: Token, step: Step) -> torch.Tensor:
    return (1 - t.p) * t.nll


def profit(t: Token, step: Step) -> torch.Tensor:
    return (t.p >= 0.1) * t.nll


def stm(t: Token, step: Step) -> torch.Tensor:
    return (t.base_prob >= 1 / 2.5) * t.nll


def flow(t: Token, step: Step, normalize: str = "none") -> torch.Tensor:
    losses = by_example(step, lambda s: s.base_mean_nll)
    tau = middle(losses)
    total = mean([math.exp(-f / tau) for f in losses]) if normalize == "mean1" else 1.0
    return math.exp(-t.base_mean_nll / tau) / total * t.nll


def rho(t: Token, step: Step, rank: str = "step") -> torch.Tensor:
    """The 60 % with the largest excess over the reference; of an example 0.6 of one more."""
    if rank == "example":
        among = [s for s in step if s.example == t.example]
        return (sum(excess(s) > excess(t) for s in among) < 0.6 * len(among)) * t.nll
    larger = sum(excess(s) > excess(t) for s in step)
    return (larger < round(0.6 * len(step))) * t.nll


def excess(t: Token) -> float:
    return t.surprise + t.reference_logprob


def tail(t: Token, step: Step, drop: float = 0.1) -> torch.Tensor:
    """Examples that fell further below the base than all but a tenth of them, linearly between."""
    fall = {e: mean([fallen(s) for s in step if s.example == e]) for e in {s.example for s in step}}
    ordered = sorted(fall.values())
    at = (1 - drop) * (len(ordered) - 1)
    low, high = ordered[math.floor(at)], ordered[math.ceil(at)]
    dropped = fall[t.example] > max(low + (high - low) * (at % 1), 1e-4)
    return (not dropped) * t.nll


def fallen(t: Token) -> float:
    return -t.base_logprob - t.surprise


def idft(t: Token, step: Step, detach: str = "all") -> torch.Tensor:
    """The released loss is −p^γ ln p with γ a number; the paper's text has p^γ a number, too."""
    gamma = min(max(math.exp(-(math.log(t.p) + t.entropy)), 0.1), 2.0)
    return (t.p if detach == "all" else t.prob) ** gamma * t.nll


def chord(t: Token, step: Step) -> torch.Tensor:
    return t.p * (1 - t.p) * t.nll


def clip(t: Token, step: Step) -> torch.Tensor:
    return min(1.0, 3 * middle([s.surprise for s in step]) / t.surprise) * t.nll


def kl(t: Token, direction: str) -> torch.Tensor:
    p, q = t.logits.log_softmax(0), t.theirs.log_softmax(0)
    a, b = (q, p) if direction == "forward" else (p, q)
    return (a.exp() * (a - b)).sum()


def sft_kl(t: Token, step: Step, direction: str = "forward") -> torch.Tensor:
    """Forward as 1 + β times the cross-entropy to (onehot + β q) / (1 + β)."""
    beta = 0.5
    if direction == "reverse":
        return t.nll + beta * kl(t, "reverse")
    target = beta * t.theirs.softmax(0)
    target[t.label] += 1
    return -(1 + beta) * (target / (1 + beta) * t.logits.log_softmax(0)).sum()


def asft(t: Token, step: Step, direction: str = "forward") -> torch.Tensor:
    return 1 - t.prob + 0.05 * kl(t, direction)


LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    f.__name__.replace("_", "-"): f
    for f in (
        sft,
        eaft,
        masked_sft,
        dft,
        qlog,
        deft,
        cayley,
        talr,
        mile,
        focal,
        profit,
        stm,
        flow,
        rho,
        tail,
        idft,
        chord,
        clip,
        sft_kl,
        asft,
    )
}


def loss_of(name: str, given: Given, step: Step, count: int) -> torch.Tensor:
    return torch.stack([LOSSES[name](t, step, **dict(given)) for t in step]).sum() / count


def sure(architecture: str = "llama") -> Any:
    """The tiny model with its logits three times as far apart: entropies from 0 to 2 nats."""
    model = build() if architecture == "llama" else tiny.build(architecture)
    if architecture == "llama":
        with torch.no_grad():
            model.lm_head.weight *= 3
    return model


@cache
def told() -> tuple[Row, ...]:
    """The rows with a third of the labels what the model would say, a third its second choice.

    Under random labels nothing has p ≥ 0.1, and half of the gates would be the same for all.
    """
    model, made, count = sure(), [], 0
    for row in rows():
        ids = row["input_ids"].clone()
        for at in row["trained"].nonzero()[:, 0].tolist():
            with torch.no_grad():
                likely = model(input_ids=ids[None]).logits[0, at - 1].topk(2).indices
            ids[at] = [*likely.tolist(), int(ids[at])][count % 3]
            count += 1
        flagged = (row["base_prob"] < 0.3).float()
        made.append(row | {"input_ids": ids, "base_conflict": flagged})
    return tuple(made)


@cache
def true_tokens(architecture: str = "llama") -> tuple[Any, Step, list[torch.Tensor]]:
    """The model in float64, the tokens of the step, and each row's hidden states (1, T, D)."""
    model, other = sure(architecture).double(), Other().model.double()
    states, step = [], Step()
    for example, row in enumerate(told()):
        ids = row["input_ids"][None]
        states.append(model.base_model(input_ids=ids)[0])
        logits, theirs = as_logits(model, states[-1])[0], other(input_ids=ids).logits[0].detach()
        for at in row["trained"].nonzero()[:, 0].tolist():
            base = [float(row[n][at]) for n in BASE]
            step.append(Token(logits[at - 1], int(ids[0, at]), example, theirs[at - 1], *base))
    return model, step, states


@cache
def true_step(name: str, given: Given, architecture: str = "llama") -> Gradients:
    """By autograd; `hidden i` are the states of row i."""
    model, step, states = true_tokens(architecture)
    of = dict(model.named_parameters()) | {f"hidden {i}": s for i, s in enumerate(states)}
    loss = loss_of(name, given, step, len(step))
    found = torch.autograd.grad(loss, list(of.values()), retain_graph=True, materialize_grads=True)
    return dict(zip(of, found, strict=True))


def as_logits(model: Any, states: torch.Tensor) -> torch.Tensor:
    """The head with the scale and the soft-cap of the architectures used here."""
    logits = model.lm_head(states) * getattr(model.config, "logit_scale", 1.0)
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def trainer_of(
    folder: Path, model: Any, chosen: Objective, each: int = 4, **others: Any
) -> GatedTrainer:
    """Steps over all rows, `each` in a micro-batch; what is of a scan is of these rows."""
    steps = {"max_steps": 1} | {n: others.pop(n) for n in STEPS if n in others}
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=each,
        gradient_accumulation_steps=ROWS // each,
        max_grad_norm=0,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
        **steps,
    )
    others = {"train_dataset": list(told()), "data_collator": collate} | others
    if chosen.of_scan:
        chosen = chosen.resolve(as_step(true_tokens()[1]))
    if chosen.anchor and "reference" not in others:
        others["reference"] = Other()
    return GatedTrainer(gate(model), arguments, objective=chosen, **others)


def trainers_step(
    folder: Path, chosen: Objective, each: int, model: Any = None, **others: Any
) -> Gradients:
    """What the optimizer is about to see, and the hidden states' gradients, padding and all."""
    model, keep, found = model or sure(), Keep(), list[torch.Tensor]()

    def watch(module: Any, args: Any, output: Any) -> None:
        if output[0].requires_grad:  # not in the sweep of `resolve`
            output[0].register_hook(lambda gradient: found.extend(gradient))

    model.base_model.register_forward_hook(watch)
    trainer_of(folder, model, chosen, each, callbacks=[keep], **others).train()
    return keep.gradients | {f"hidden {i}": g for i, g in enumerate(found)}


N, V, D, COUNT = 37, 101, 16, 50
HEADS = {
    "plain": (False, 1.0, None),
    "bias": (True, 1.0, None),
    "bias, scale": (True, 0.5, None),
    "bias, scale, soft-cap": (True, 2.0, 6.0),
}


class Problem:
    """Random float32 states under a head, and what the objectives read beside them."""

    def __init__(self, head: str) -> None:
        bias, self.scale, self.softcap = HEADS[head]
        g = torch.Generator().manual_seed(0)
        self.inputs = {
            "hidden": torch.randn(N, D, generator=g),
            "weight": torch.randn(V, D, generator=g),
        }
        if bias:
            self.inputs["bias"] = torch.randn(V, generator=g)
        logprob = -2 * torch.rand(N, generator=g)
        means = torch.arange(N) // 5 * 0.3 + 0.4  # examples of 5 tokens
        # Below the labels' own by a third of the examples.
        lower = logprob - 3 * (torch.arange(N) // 5 % 3)
        given = (logprob.exp(), means, logprob, torch.arange(N) % 2, lower)
        self.base = dict(zip(BASE, given, strict=True))
        self.other = [torch.randn(V, D, generator=g), torch.randn(N, D, generator=g)]
        likely = self.logits(self.inputs).argsort(descending=True)
        kept = torch.randint(2, V, (N,), generator=g)  # as in `told`
        self.labels = [int(likely[i, (0, 1, kept[i])[i % 3]]) for i in range(N)]

    def logits(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        made = inputs["hidden"] @ inputs["weight"].T + inputs.get("bias", 0)
        made = made * self.scale
        return made if self.softcap is None else self.softcap * torch.tanh(made / self.softcap)

    def step(self, inputs: dict[str, torch.Tensor]) -> Step:
        logits, theirs = self.logits(inputs), self.other[1].double() @ self.other[0].double().T
        base = zip(*(self.base[n].tolist() for n in BASE), strict=True)
        return [Token(logits[i], self.labels[i], i // 5, theirs[i], *b) for i, b in enumerate(base)]

    def of_examples(self) -> dict[str, torch.Tensor]:
        """The columns that take a whole example."""
        step = self.step({n: t.double() for n, t in self.inputs.items()})
        means = {
            e: mean([fallen(t) for t in step if t.example == e]) for e in range(N)[: N // 5 + 1]
        }
        above = [
            mean([float(excess(s) > excess(t)) for s in step if s.example == t.example])
            for t in step
        ]
        falls = [means[t.example] for t in step]
        return {"nll_fall": torch.tensor(falls), "excess_above": torch.tensor(above)}


def as_step(step: Step) -> WholeStep:
    """The written-out tokens as what `resolve` asks."""
    tokens = {
        "prob": [t.p for t in step],
        "entropy": [t.entropy for t in step],
        "logprob": [-t.surprise for t in step],
        "reference_logprob": [t.reference_logprob for t in step],
        "base_logprob": [t.base_logprob for t in step],
    }
    examples = {
        "mean_nll": by_example(step, lambda t: t.surprise),
        "base_mean_nll": by_example(step, lambda t: t.base_mean_nll),
        "nll_fall": by_example(step, fallen),
    }
    made = ({n: torch.tensor(c).double() for n, c in cs.items()} for cs in (tokens, examples))
    return WholeStep(*(Whole(columns) for columns in made))
