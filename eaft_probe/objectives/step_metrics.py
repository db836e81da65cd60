"""What a training step did, as sums that micro-batches and ranks add up, and the log's figures."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from eaft_probe.columns.measure import TokenColumns
from eaft_probe.scans.training_log import LOG_GROUPS

GROUP_BITS = {"high": 1, "low": 2, "conflict": 4}  # of the batch column `group`
OTHER, UNKNOWN = 0, 128


def group_bits(masks: Mapping[str, Any]) -> Any:
    """(N,) bits of GROUP_BITS, from boolean arrays or tensors."""
    return sum(masks[name] * bit for name, bit in GROUP_BITS.items())


LOGGED = LOG_GROUPS[1:]
SUMS = ("count", "loss", "nll", "gated", "gate")
TALLY = (*SUMS, *(f"{g}_{x}" for g in LOGGED for x in ("count", "nll")))


def tally(
    columns: TokenColumns, inputs: dict[str, torch.Tensor], loss: torch.Tensor
) -> torch.Tensor:
    """(len(TALLY),) float64 sums over the batch's trained tokens. loss: what is trained, so with
    an anchor's part and a router's, times the step's count."""
    nll, gate = -columns["logprob"].double(), columns["gate"].double()
    sums = [torch.ones_like(nll).sum(), loss.detach().double()]
    sums += [nll.sum(), (gate * nll).sum(), gate.sum()]
    unknown = torch.full(inputs["trained"].shape, UNKNOWN, dtype=torch.uint8, device=nll.device)
    group = inputs.get("group", unknown)[inputs["trained"]]
    for name in LOGGED:
        in_group = group == OTHER if name == "other" else group & GROUP_BITS[name] > 0
        sums += [in_group.double().sum(), (in_group * nll).sum()]
    return torch.stack(sums)


def averages(sums: Sequence[float]) -> dict[str, float]:
    """loss (nats a token, with gates, anchor and router) and nll (without them), gate_mean,
    mass_gated (the share of Σ nll that the gates take away), count; nll and count of each group
    that has tokens."""
    s = dict(zip(TALLY, sums, strict=True))
    count, nll = max(s["count"], 1.0), s["nll"]
    figures = {
        "loss": s["loss"] / count,
        "nll": nll / count,
        "gate_mean": s["gate"] / count,
        "mass_gated": 1 - s["gated"] / nll if nll else 0.0,
        "count": s["count"],
    }
    for name in LOGGED:
        if tokens := s[f"{name}_count"]:
            figures |= {f"{name}_nll": s[f"{name}_nll"] / tokens, f"{name}_count": tokens}
    return figures
