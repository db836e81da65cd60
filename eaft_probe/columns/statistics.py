"""One position's next-token distribution → one number: the STATISTICS that a scan can write.

An entry is a function of a `LogitSlice` (see `measure.py`) with a unit and a meaning, which
ride along in the parquet files. Only tensor methods are used, so this file imports no torch.
Notation: P is the model's distribution over V tokens, y the label, p = P[y], h the hidden state.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import methodcaller
from typing import TYPE_CHECKING

from eaft_probe.errors import BadInput
from eaft_probe.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from eaft_probe.columns.measure import LogitSlice

TOP_K = (5, 10, 50, 100, 200, 500, 1000, 2000)  # the K of arXiv 2601.02151, Fig. 6, besides 20
LEAST_VARENTROPY = 1e-6  # nats²: below it float32 keeps few digits of the two sums


@dataclass(frozen=True, slots=True)
class Statistic:
    """A column: its kernel, its parquet type, its unit and what it means."""

    name: str
    unit: str
    meaning: str
    compute: Callable[["LogitSlice"], "Tensor"]
    dtype: str = "float32"  # or "int32"
    default: bool = True
    alone: bool = False  # of another pass, in which the answer stands without its prompt


def grad_logits(d: "LogitSlice") -> "Tensor":
    """‖P − onehot(y)‖₂ = √((1 − p)² + Σ_{v≠y} P²). The plain 1 − 2p + ΣP² loses half its digits."""
    return (d.logprob.expm1() ** 2 + d.others_squared) ** 0.5


def concentration(d: "LogitSlice") -> "Tensor":
    """Σ P²."""
    return d.others_squared + (2 * d.logprob).exp()


def surprise(d: "LogitSlice") -> "Tensor":
    """(−ln p − H) / √varentropy: by how many standard deviations the label is less likely than the
    model expects of its own choice. arXiv 2602.12222 has −ln p − H."""
    return -(d.logprob + d.entropy) / d.varentropy.clamp(min=LEAST_VARENTROPY) ** 0.5


STATISTICS = Registry[Statistic]("statistic")
for _statistic in (
    Statistic("logprob", "nats", "ln p of the label", lambda d: d.logprob),
    Statistic("prob", "", "p of the label", lambda d: d.logprob.exp()),
    Statistic("entropy", "nats", "−Σ P ln P over the whole vocabulary", lambda d: d.entropy),
    Statistic(
        "entropy_top20",
        "nats",
        "entropy of the renormalised 20 largest probabilities",
        lambda d: d.entropy_top(20),
    ),
    Statistic("varentropy", "nats²", "Σ P ln² P − entropy²", lambda d: d.varentropy),
    Statistic("surprise", "", "(−ln p − entropy) / √max(varentropy, 1e-6)", surprise),
    Statistic("concentration", "", "Σ P²", concentration),
    Statistic(
        "rank", "tokens", "how many tokens are likelier than the label", lambda d: d.rank, "int32"
    ),
    Statistic(
        "top1_id", "", "the likeliest token; the label where it ties", lambda d: d.top1_id, "int32"
    ),
    Statistic("top1_prob", "", "p of the likeliest token", lambda d: d.top1_logprob.exp()),
    Statistic("grad_logits", "", "‖P − onehot‖₂: norm of d nll / d logits", grad_logits),
    Statistic(
        "grad_head",
        "",
        "norm of d nll / d W_head = norm in the head's output × ‖h‖",
        lambda d: d.head_gradient_norm() * d.hidden_norm,
    ),
    Statistic(
        "grad_hidden",
        "",
        "‖Wᵀ(P − onehot)‖₂: norm of d nll / d h",
        lambda d: d.hidden_gradient_norm(),
        default=False,
    ),
    Statistic(
        "kl_reference",
        "nats",
        "KL(reference ‖ model) over the whole vocabulary",
        lambda d: d.kl_reference(),
        default=False,
    ),
    Statistic(
        "logprob_alone",
        "nats",
        "ln p of the label where the answer is read without its prompt",
        lambda d: d.logprob,
        default=False,
        alone=True,
    ),
    *(
        Statistic(
            f"entropy_top{k}",
            "nats",
            f"entropy of the renormalised {k} largest probabilities",
            methodcaller("entropy_top", k),
            default=False,
        )
        for k in TOP_K
    ),
):
    STATISTICS.add(_statistic.name, _statistic)


def chosen_statistics(extra: Sequence[str], reference: bool) -> tuple[Statistic, ...]:
    """The default columns and the `extra` ones, in registry order. Raises `UnknownName`."""
    wanted = {STATISTICS[name].name for name in extra}
    if reference:
        wanted.add("kl_reference")
    elif "kl_reference" in wanted:
        raise BadInput("statistic kl_reference needs a reference model; give --reference M")
    return tuple(s for s in STATISTICS.values() if s.default or s.name in wanted)
