"""A report of several scans in a real browser. Skips where there is none."""

from pathlib import Path
from typing import Any

import pytest
from hostile import ATTACKS
from pages import CONTRAST, by_id, load, media, requests, require_fit, value, window

from eaft_probe import Scan
from eaft_probe.text import printable
from eaft_probe.view.report.data_sets import side_by_side
from eaft_probe.view.report.report import report

pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait


@pytest.fixture(scope="module")
def file(a: Scan, apart: Scan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report([a, apart], tmp_path_factory.mktemp("page") / "several.html")


@pytest.fixture
def page(browser: Any, file: Path) -> Any:
    return load(browser, file)


def test_it_loads_in_silence_and_is_read_in_both_themes(page: Any, file: Path) -> None:
    assert page.get_log("browser") == []
    assert [u for u in requests(page) if u.startswith("file:")] == [file.as_uri()]
    assert by_id(page, "title").text == "2 data sets under made"
    for system in ("light", "dark"):
        media(page, system)
        worst, where = page.execute_script(CONTRAST)
        assert worst >= 4.5, where
    media(page)


def test_markup_of_every_scan_is_text(page: Any) -> None:
    inside = "#sets script, #sets img, #sets [onerror]"
    assert page.find_elements(By.CSS_SELECTOR, inside) == []
    names = [b.text for b in page.find_elements(By.CSS_SELECTOR, "#sets-shares button")]
    assert names == ["script>", printable(ATTACKS[1])]
    assert page.execute_script("return window.hacked") is None


def test_shares_and_intervals_are_written_and_drawn(page: Any, a: Scan, apart: Scan) -> None:
    wanted = [found["quantities"] for found in side_by_side([a, apart], 0)["sets"]]
    most = max(row["conflict_share"][2] for row in wanted)
    rows = page.find_elements(By.CSS_SELECTOR, "#sets-shares tbody tr")
    for row, found in zip(rows, wanted, strict=True):
        share, low, high = found["conflict_share"]
        text = row.find_element(By.CSS_SELECTOR, ".value").text.split()
        numbers = [value(word) / 100 for word in text if word != "to"]
        assert numbers == pytest.approx([share, low, high], rel=0.01)
        track, dot, line = (
            row.find_element(By.CSS_SELECTOR, f".{name}").rect
            for name in ("track", "dot", "interval")
        )
        middle = dot["x"] + dot["width"] / 2 - track["x"]
        assert middle == pytest.approx(track["width"] * share / most, abs=1)
        assert line["x"] - track["x"] == pytest.approx(track["width"] * low / most, abs=1)
        assert line["width"] == pytest.approx(track["width"] * (high - low) / most, abs=1)
    cells = page.find_elements(By.CSS_SELECTOR, "#sets-table tbody b")
    shown = [value(cell.text) / (100 if "%" in cell.text else 1) for cell in cells]
    others = [row[n][0] for row in wanted for n in row if n != "conflict_share"]
    assert shown == pytest.approx(others, rel=0.01)


def test_landscapes_are_on_one_scale(page: Any, a: Scan, apart: Scan) -> None:
    script = """return [...document.querySelectorAll("#sets-planes .chart")].map(({ view }) =>
        ["x", "y", "color"].map((name) => view.scale(name).domain()))"""
    first, second = page.execute_script(script)
    assert first == second
    across, up, share = first
    assert across == [0, 1]
    highest = max(scan.tokens(["entropy"]).entropy.max() for scan in (a, apart))
    assert highest < up[1] < highest + 1.2
    assert share[0] == pytest.approx(1 / 1500)


def test_a_chosen_data_set_fills_the_sections_below(page: Any, a: Scan, apart: Scan) -> None:
    def shown() -> list[str]:
        names = ("short-title", "headline", "count", "tokens", "pairs", "cards", "sources")
        return [by_id(page, name).text for name in names]

    before, wanted = shown(), len(apart.tokens())
    Select(by_id(page, "chosen")).select_by_index(1)
    after = shown()
    assert [x[:60] for x, y in zip(before, after, strict=True) if x == y] == []
    assert after[0] == f"In short: {printable(ATTACKS[1])} under made"
    assert after[2].startswith(f"{wanted} of {wanted} tokens")
    page.find_elements(By.CSS_SELECTOR, "#sets-planes button")[0].click()
    assert shown() == before
    assert Select(by_id(page, "chosen")).first_selected_option.text == "script>"
    top = "return document.getElementById('short').getBoundingClientRect().top"
    WebDriverWait(page, 5).until(lambda _: 0 <= page.execute_script(top) < 200)
    assert page.get_log("browser") == []


@pytest.mark.parametrize("width", [1360, 380])
def test_it_fits_the_window(browser: Any, file: Path, width: int) -> None:
    with window(browser, width):
        require_fit(load(browser, file))
