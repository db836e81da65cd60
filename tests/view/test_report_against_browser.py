"""A report of one scan against another in a real browser. Skips where there is none."""

from pathlib import Path
from typing import Any

import pytest
from hostile import ATTACKS
from pages import CONTRAST, by_id, load, media, requests, require_fit, value, window

from eaft_probe import Scan
from eaft_probe.verbs.compare import compare
from eaft_probe.view.report.largest_changes import MOST
from eaft_probe.view.report.report import report

pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait


def test_it_loads_in_silence_and_is_read_in_both_themes(browser: Any, either: Path) -> None:
    page = load(browser, either)
    assert page.get_log("browser") == []
    assert [u for u in requests(page) if u.startswith("file:")] == [either.as_uri()]
    assert by_id(page, "against-link").is_displayed()
    charts = page.find_elements(By.CSS_SELECTOR, "#against-figure canvas")
    assert len(charts) == (3 if either.name == "moved.html" else 2)
    pictures = []
    for system in ("light", "dark"):
        media(page, system)
        worst, where = page.execute_script(CONTRAST)
        assert worst >= 4.5, where
        WebDriverWait(page, 5).until(lambda _: drawn(page) not in pictures)
        pictures.append(drawn(page))
    media(page)


def drawn(page: Any) -> Any:
    """The colours of every chart's axes and cells: its own in each theme."""
    script = """return [...document.querySelectorAll("#against-figure .chart")].map(({ view }) =>
        [view.scale("color").range()].flat())"""
    return page.execute_script(script)


def test_markup_of_either_scan_is_text(browser: Any, either: Path) -> None:
    page = load(browser, either)
    inside = "#against script, #against img, #against svg, #against [onerror]"
    assert page.find_elements(By.CSS_SELECTOR, inside) == []
    assert page.execute_script("return window.hacked") is None
    assert (
        ATTACKS[2 if either.name == "moved.html" else 1].split()[0] in by_id(page, "against").text
    )


def test_the_page_shows_the_numbers_of_a_comparison(
    browser: Any, a: Scan, tuned: Scan, moved_page: Path
) -> None:
    page, found = load(browser, moved_page), compare(a, tuned).summary()
    assert "compared token by token" in by_id(page, "against-said").text
    counts, means, conflicts = cells(page)
    for row, mean, (name, group) in zip(counts, means, found["groups"].items(), strict=True):
        assert row[0].startswith(name)
        assert row[1] == f"{group['tokens']:,}"
        for shown, kind in zip(row[2:], ("learned", "unchanged", "forgotten"), strict=True):
            assert shown.split(" ")[0] == f"{group[kind]:,}"
            share = value(shown.split("(")[1].rstrip(")"))
            assert share == pytest.approx(100 * group[f"{kind}_share"], rel=0.01)
        wanted = [
            group[n.format(q)]
            for q in ("nll", "entropy", "prob")
            for n in ("mean_{}_a", "mean_{}_b", "{}_change")
        ]
        wanted.append(group["kl_reference"])
        assert [value(v) for v in mean[1:]] == pytest.approx(wanted, rel=0.01)
    names = ("a", "resolved", "remaining", "new", "b")
    assert conflicts == [[f"{found[f'conflicts_{n}']:,}" for n in names]]
    assert len(page.find_elements(By.CSS_SELECTOR, "#against-movers li")) == 2 * MOST


def test_the_page_shows_the_numbers_of_distributions(
    browser: Any, a: Scan, apart: Scan, apart_page: Path
) -> None:
    page, found = load(browser, apart_page), compare(a, apart).summary()
    assert "compared as distributions" in by_id(page, "against-said").text
    assert page.find_elements(By.CSS_SELECTOR, "#against-movers li") == []
    (rows,) = cells(page)
    for row, (name, wanted) in zip(rows, found["quantities"].items(), strict=True):
        assert row[0].startswith(name.replace("_", " "))
        scale = 100 if name.endswith("_share") else 1
        for i, (key, by) in enumerate(
            (("a", scale), ("b", scale), ("difference", scale), ("ratio", 1))
        ):
            assert value(row[2 * i + 1]) == pytest.approx(by * wanted[key], rel=0.01)
            ends = [value(v) for v in row[2 * i + 2].split(" to ")]
            both = [by * wanted[f"{key}_{end}"] for end in ("low", "high")]
            assert ends == pytest.approx(both, rel=0.01)


def cells(page: Any) -> list[list[list[str]]]:
    """The text of every cell of the comparison's tables."""
    script = """return [...document.querySelectorAll("#against-tables table")].map((t) =>
        [...t.tBodies[0].rows].map((r) => [...r.cells].map((c) => c.textContent)))"""
    found: list[list[list[str]]] = page.execute_script(script)
    return found


@pytest.mark.parametrize("width", [1360, 380])
def test_it_fits_the_window(browser: Any, either: Path, width: int) -> None:
    with window(browser, width):
        require_fit(load(browser, either))


def test_a_token_opens_in_its_example(browser: Any, moved_page: Path) -> None:
    page = load(browser, moved_page)
    link = page.find_element(By.CSS_SELECTOR, "#against-movers button")
    page.execute_script("arguments[0].click()", link)
    focused = page.switch_to.active_element
    assert focused.get_attribute("data-i") is not None


def test_a_report_of_one_scan_has_no_such_section(browser: Any, a: Scan, tmp_path: Path) -> None:
    page = load(browser, report([a], tmp_path / "r.html"))
    assert not by_id(page, "against").is_displayed()
    assert not by_id(page, "against-link").is_displayed()
    assert page.get_log("browser") == []
