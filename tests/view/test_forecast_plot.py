"""What the figure of a forecast shows, and what it is not drawn from."""

from pathlib import Path

import numpy as np
import pytest
import scans_made

from eaft_probe import plots
from eaft_probe.errors import BadInput
from eaft_probe.quantities import number
from eaft_probe.scans.scan import Scan


def test_cells_have_the_mean_alignment_and_objectives_their_rates(
    scan: Scan, tmp_path: Path
) -> None:
    made = scans_made.forecast_of(scan, tmp_path / "f")
    data = plots.forecast(made).data
    cells, rates = data[data["objective"].isna()], data[data["objective"].notna()]
    tokens = made.tokens(["prob", "entropy", "retain_alignment"])
    assert cells["tokens"].sum() == len(tokens)
    whole = (cells["tokens"] * cells["mean_retain_alignment"]).sum()
    assert whole == pytest.approx(tokens["retain_alignment"].astype(np.float64).sum(), rel=1e-6)
    cell = cells.loc[cells["tokens"].idxmax()]
    inside = tokens["prob"].between(cell["prob_from"], cell["prob_to"], "left")
    inside &= tokens["entropy"].between(cell["entropy_from"], cell["entropy_to"], "left")
    mean = tokens["retain_alignment"][inside].astype(np.float64).mean()
    assert cell["mean_retain_alignment"] == pytest.approx(mean, rel=1e-5)
    assert rates["objective"].tolist() == ["sft", "eaft", "chord", "clip", "dft", "profit"]


def test_an_objective_without_a_rate_is_named(scan: Scan, tmp_path: Path) -> None:
    right = plots.forecast(scans_made.forecast_of(scan, tmp_path / "f")).axes[1]
    assert [t.get_text() for t in right.get_yticklabels()] == ["sft", "eaft", "chord", "clip"]
    assert right.get_title(loc="left") == "no rate: dft, profit"
    assert [t.get_text() for t in right.texts] == [
        number(rate) for rate in plots.forecast(tmp_path / "f").data["exchange_rate"].dropna()
    ]


def test_a_scan_without_a_forecast_is_refused(scan: Scan) -> None:
    with pytest.raises(BadInput, match="holds no finished forecast"):
        plots.forecast(scan)
