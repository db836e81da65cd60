"""The report's section on a forecast: its words and numbers, and how a browser shows them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import scans_made
from pages import CONTRAST, by_id, load, media, require_fit, value, window

from eaft_probe import Scan
from eaft_probe.view.report.forecast import forecast, in_words
from eaft_probe.view.report.report import report

NAMES = ["sft", "eaft", "chord", "clip", "dft", "profit"]


@pytest.fixture(scope="module")
def made(a: Scan, tmp_path_factory: pytest.TempPathFactory) -> Scan:
    """A scan with words that would like to run, and a forecast."""
    return scans_made.forecast_of(a, tmp_path_factory.mktemp("forecast") / "f")


@pytest.fixture(scope="module")
def section(made: Scan) -> dict[str, Any]:
    found = forecast(made)
    assert found is not None
    return found


# --- words and numbers ---


def test_figures_are_those_of_the_table(made: Scan, section: dict[str, Any]) -> None:
    table = pandas.read_parquet(made.path / "forecast.parquet").set_index("objective")
    assert [o["name"] for o in section["objectives"]] == NAMES
    for found in section["objectives"]:
        for name in ("gain", "retain_nll_change", "retain_kl", "exchange_rate"):
            own = table.loc[found["name"], [name, f"{name}_low", f"{name}_high"]].tolist()
            assert found[name] == [None if pandas.isna(v) else v for v in own]


def test_what_each_objective_does_is_said_plainly(section: dict[str, Any]) -> None:
    words = {o["name"]: o["words"] for o in section["objectives"]}
    assert words["sft"].endswith("The others are compared with it.")
    assert words["eaft"] == (
        "The held-out nll falls, the retained nll may go either way. It pays more than sft for the "
        "same gain."
    )
    assert words["chord"].endswith(
        "Whether it pays more or less than sft for the same gain is open."
    )
    assert words["clip"].endswith("It pays less than sft for the same gain.")
    assert "The held-out nll may go either way" in words["dft"]
    assert words["dft"].endswith("It has no price, because it may gain nothing.")
    assert words["profit"] == "Does nothing: its gates are 0 on all tokens of the step."


def test_a_rise_and_a_note_are_said() -> None:
    anchor = "no rate: the interval reaches 0; the anchor does nothing"
    harm = scans_made.forecast_row("x", -0.002, 0.001, 1e-4, (None,) * 3, anchor)
    assert in_words(harm) == (
        "The held-out nll rises, the retained nll rises. "
        "It has no price, because it may gain nothing. Note: the anchor does nothing."
    )
    good = scans_made.forecast_row("tail", 0.002, -0.001, 1e-4, (1.0, 1.0, 1.0), "drops nothing")
    assert in_words(good) == (
        "The held-out nll falls, the retained nll falls. It pays what sft pays. "
        "Note: drops nothing."
    )


def test_the_headline(made: Scan, section: dict[str, Any]) -> None:
    cards = [f"{c['figure']} {c['label']}" for c in section["cards"]]
    tokens = made.tokens(["retain_alignment", "conflict"])
    against = (tokens["retain_alignment"] < 0).mean()
    assert cards[0] == "-0.002 nats is what one step of sft does to the held-out nll"
    assert cards[1] == "+3.0×10⁻⁴ nats is what the same step does to the retained nll"
    assert cards[2] == "0.7 times the KL of sft is what clip pays for the same gain"
    assert cards[3] == f"{100 * against:.3g}% of the tokens pull against the retained data"
    detail = section["cards"][3]["detail"]
    for kind, own in (("conflicts", tokens["conflict"]), ("other tokens", ~tokens["conflict"])):
        mean = tokens["retain_alignment"][own].astype(np.float64).mean()
        assert float(detail.split(f"{kind} ")[1].split(",")[0].rstrip(".")) == pytest.approx(
            mean, rel=0.01
        )


def test_cells_hold_every_token(made: Scan, section: dict[str, Any]) -> None:
    cells = pandas.DataFrame(section["plane"]["cells"])
    alignment = made.tokens(["retain_alignment"])["retain_alignment"].astype(np.float64)
    assert cells["tokens"].sum() == len(alignment)
    assert (cells["tokens"] * cells["alignment"]).sum() == pytest.approx(alignment.sum(), rel=1e-2)


def test_a_scan_without_a_finished_forecast_has_no_section(a: Scan, tmp_path: Path) -> None:
    """Nor one whose forecast was begun; its alignment colours and orders all the same."""
    assert forecast(a) is None
    begun = scans_made.forecast_of(a, tmp_path / "f")
    (begun.path / "forecast.parquet").unlink()
    assert forecast(begun) is None
    manifest = begun.path / "alignment" / "manifest.json"
    manifest.write_text(json.dumps({"made": None}))
    assert forecast(begun) is None


# --- in a browser ---


@pytest.fixture(scope="module")
def file(made: Scan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report([made], tmp_path_factory.mktemp("page") / "forecast.html")


@pytest.fixture
def page(browser: Any, file: Path) -> Any:
    pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    return load(browser, file)


def test_it_is_written_and_read_in_both_themes(page: Any) -> None:
    assert page.get_log("browser") == []
    assert by_id(page, "forecast").is_displayed()
    assert by_id(page, "forecast-link").is_displayed()
    assert "is under Forecast" in by_id(page, "short").text
    assert by_id(page, "forecast-made").text.startswith("A plain step of length 0.0123 on 1,500")
    names = page.find_elements("css selector", "#forecast-objectives td:first-child b")
    assert [n.text for n in names] == NAMES
    rates = page.find_elements("css selector", "#forecast-objectives td:last-child")
    assert [r.text.split("\n")[0] for r in rates] == ["1", "1.2", "0.8", "0.7", "–", "–"]
    for system in ("light", "dark"):
        media(page, system)
        worst, where = page.execute_script(CONTRAST)
        assert worst >= 4.5, where
    media(page)


def test_prices_and_cells_are_drawn(page: Any, section: dict[str, Any]) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    views = """return [...document.querySelectorAll("#forecast-figure .chart")].map((e) =>
        e.view && [e.view.scale("x").domain(), e.view.scale("y").domain()])"""
    WebDriverWait(page, 10).until(lambda _: all(page.execute_script(views)))
    plane, prices = page.execute_script(views)
    assert plane[0] == [0, 1]
    assert prices[1] == NAMES[:4]  # the others have no price
    assert prices[0][0] <= 0.5
    assert prices[0][1] >= 1.4
    assert "Without a price: dft, profit." in by_id(page, "forecast-figure").text


@pytest.mark.parametrize("width", [1360, 390])
def test_it_fits_the_window(browser: Any, file: Path, width: int) -> None:
    pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    with window(browser, width):
        require_fit(load(browser, file))


def choose(page: Any, name: str, chosen: str) -> None:
    """Where selenium's `Select` sends no input event."""
    script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
    page.execute_script(script, by_id(page, name), chosen)


def test_a_score_orders_the_examples(page: Any, made: Scan) -> None:
    rows = made.tokens().groupby("example")
    scores = {
        "max_surprise": rows["surprise"].max().sort_values(ascending=False),
        "retain_alignment": rows["retain_alignment"].sum().sort_values(),
    }
    for name, wanted in scores.items():
        choose(page, "sort", name)
        cards = page.find_elements("css selector", "#cards article")
        assert len(cards) == 10
        for card, figure in zip(cards, wanted, strict=False):
            shown = value(card.text.split(f"{name} ")[1].split()[0])
            assert shown == pytest.approx(figure, rel=0.01)
        assert by_id(page, "sorting").text.startswith(f"Sorted by {name}: ")
    choose(page, "colour", "retain_alignment")
    assert "d mean nll of the retained data" in by_id(page, "legend").text


def test_of_several_scans_those_with_a_forecast_show_it(
    browser: Any, made: Scan, apart: Scan, tmp_path: Path
) -> None:
    pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.support.ui import Select

    page = load(browser, report([apart, made], tmp_path / "two.html"))
    assert not by_id(page, "forecast").is_displayed()
    assert "is not measured here" in by_id(page, "short").text
    Select(by_id(page, "chosen")).select_by_index(1)
    assert by_id(page, "forecast").is_displayed()
    assert page.get_log("browser") == []
