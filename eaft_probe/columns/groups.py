"""The groups of tokens in figures, tables and training logs, by columns of the base model."""

from collections.abc import Mapping
from typing import Any

from eaft_probe.columns.conflicts import ConflictRule

# The two groups of arXiv 2601.02151, Fig. 4.
HIGH_ENTROPY, LOW_ENTROPY = 2.0, 0.5  # nats
GROUP_COLUMNS = ("entropy", "prob", "rank")  # besides what the rule reads
GROUPS = {
    "conflict": "confident conflicts under the rule",
    "low": f"entropy ≤ {LOW_ENTROPY:g} nats",
    "high": f"entropy ≥ {HIGH_ENTROPY:g} nats",
    "agreeing": "rank 0: the label is what the model would say",
    "all": "every trained token",
}


def groups(columns: Mapping[str, Any], rule: ConflictRule) -> dict[str, Any]:
    """name → (N,) boolean mask. They overlap: a conflict is a low-entropy token as well."""
    entropy, agreeing = columns["entropy"], columns["rank"] == 0
    return {
        "conflict": rule(columns),
        "low": entropy <= LOW_ENTROPY,
        "high": entropy >= HIGH_ENTROPY,
        "agreeing": agreeing,
        "all": agreeing | ~agreeing,
    }
