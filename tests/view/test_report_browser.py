"""The report in a real browser: Debian's chromium, driven by selenium. Skips where they are not."""

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import scans_made
from hostile import ATTACKS, hostile_scan
from pages import (
    CONTRAST,
    by_id,
    load,
    media,
    payload,
    requests,
    require_fit,
    value,
    window,
    without,
)

from eaft_probe import Scan, scan
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.text import printable
from eaft_probe.view.report.report import report

pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, model_folder: str) -> Scan:
    return hostile_scan(tmp_path_factory.mktemp("browser") / "scan", model_folder)


@pytest.fixture(scope="module")
def file(done: Scan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report([done], tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture
def page(browser: Any, file: Path) -> Any:
    return load(browser, file)


def show(page: Any, element: Any) -> None:
    centred = "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})"
    page.execute_script(centred, element)


def settled(page: Any, before: str) -> str:
    """The line of counts once it says something new."""
    WebDriverWait(page, 5).until(lambda _: by_id(page, "count").text != before)
    return str(by_id(page, "count").text)


def bounds(page: Any) -> list[float]:
    names = ("prob-from", "prob-to", "entropy-from", "entropy-to")
    return [float(by_id(page, n).get_attribute("value")) for n in names]


def counted(done: Scan, prob: tuple[float, float], entropy: tuple[float, float]) -> tuple[int, int]:
    """Tokens and conflicts in the cells from bound to bound, counted from the scan's columns."""
    table = done.tokens(["prob", "entropy", "conflict"])
    inside = np.ones(len(table), bool)
    for values, scale, (low, high) in ((table.prob, 256, prob), (table.entropy, 32, entropy)):
        cells = np.floor(values * scale)
        inside &= (cells >= round(low * scale)) & (cells < round(high * scale))
    return int(inside.sum()), int((inside & table.conflict).sum())


def said(counts: tuple[int, int], of: int) -> str:
    share = f"{100 * counts[0] / of:.3g}%"
    some = "none of them a conflict" if not counts[1] else f"{counts[1]:,} of them "
    return f"{counts[0]:,} of {of:,} tokens ({share}), {some}"


def test_loads_in_silence(page: Any, file: Path, browser: Any) -> None:
    assert page.get_log("browser") == []
    urls = requests(page)
    assert file.as_uri() in urls  # the log does record what is asked for
    assert all(u.startswith(("file:", "data:", "blob:")) for u in urls)
    assert [u for u in urls if u.startswith("file:")] == [file.as_uri()]
    assert len(page.find_elements(By.CSS_SELECTOR, "#headline li")) == 4


def test_dragging_lists_the_region(page: Any, done: Scan) -> None:
    before, listed = by_id(page, "count").text, by_id(page, "tokens").text
    canvas = page.find_element(By.CSS_SELECTOR, "#chart canvas")
    show(page, canvas)
    drag = ActionChains(page).move_to_element_with_offset(canvas, -180, 60).click_and_hold()
    drag.move_by_offset(60, 30).move_by_offset(60, 40).release().perform()
    text, found = settled(page, before), bounds(page)
    assert found != [0, 1, 0, 16]
    assert text.startswith(said(counted(done, found[:2], found[2:]), len(done.tokens())))
    assert by_id(page, "tokens").text != listed
    items = page.find_elements(By.CSS_SELECTOR, "#tokens .numbers")
    assert items
    probs = [value(i.text.split("prob ")[1].split(" ")[0]) for i in items]
    assert found[0] - 0.001 <= min(probs) <= max(probs) <= found[1] + 0.001


def test_bounds_and_presets_by_keyboard(page: Any, done: Scan) -> None:
    before, total = by_id(page, "count").text, len(done.tokens())
    field = by_id(page, "prob-to")
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys("0.25", Keys.TAB)
    typed = settled(page, before)
    assert typed.startswith(said(counted(done, (0, 0.25), (0, 16)), total))
    preset = page.find_element(By.CSS_SELECTOR, "#presets button")
    preset.send_keys(Keys.ENTER)
    text = settled(page, typed)
    conflicts = len(done.conflicts())
    assert text.startswith(
        f"{conflicts} conflicts of {total} tokens ({100 * conflicts / total:.3g}%)"
    )
    assert by_id(page, "listed").text.startswith(f"{conflicts} conflicts, the least likely first.")
    assert by_id(page, "preset").text == "The model was sure of something else."
    WebDriverWait(page, 5).until(lambda _: by_id(page, "live").get_attribute("textContent") == text)


def test_presets_hold_what_their_names_say(page: Any, done: Scan) -> None:
    table, buttons = done.tokens(), page.find_elements(By.CSS_SELECTOR, "#presets button")
    wanted = {
        "Confident conflicts": table.conflict,
        "Sure and right": (table.prob >= 0.5) & (table.entropy < 1),
        "At a loss": (table.prob < 0.3) & (table.entropy >= 3),
        "Everything": table.prob >= 0,
    }
    assert [button.text for button in buttons] == [*wanted]
    for button, tokens in zip(buttons, wanted.values(), strict=True):
        page.execute_script("arguments[0].click()", button)
        found = int(by_id(page, "count").text.split(" ")[0].replace(",", ""))
        low, high, least, most = bounds(page)
        # Bounds lie on cells: a little more than the rule, never less.
        near = (table.prob >= low) & (table.prob <= high)
        near &= (table.entropy >= least) & (table.entropy <= most)
        assert found == (tokens & near).sum() == tokens.sum() or (
            button.text in ("Sure and right", "At a loss") and found == near.sum()
        )


def test_search_results_are_sentences(page: Any, file: Path) -> None:
    listed = payload(file.read_text("utf-8"))["scans"][0]["tokens"]
    tokens = [dict(zip(listed["names"], row, strict=True)) for row in listed["rows"]]
    texts = [(t["before"] + t["token"] + t["after"]).lower() for t in tokens if t["conflict"]]
    page.find_element(By.CSS_SELECTOR, "#presets button").click()
    field = by_id(page, "token-search")

    def found(text: str) -> str:
        field.clear()
        field.send_keys(text)
        return str(by_id(page, "listed").text)

    count = sum("dog" in t for t in texts)
    assert 1 < count < len(texts)
    contain = f"{count} of {len(texts)} conflicts contain “DOG”, the least likely first."
    assert found("DOG").startswith(contain)
    rare = next(w for t in texts for w in t.split() if sum(w in other for other in texts) == 1)
    assert found(rare) == f"1 of {len(texts)} conflicts contains “{rare}”."
    assert found("monoxide") == f"None of {len(texts)} conflicts contains “monoxide”."


def test_numbers_on_hover_and_focus(page: Any, done: Scan) -> None:
    span = page.find_element(By.CSS_SELECTOR, "#cards .conflict")
    show(page, span)
    tip, heading = by_id(page, "tip"), page.find_element(By.CSS_SELECTOR, "#cards h3")

    def shows_tip(_: Any) -> bool:  # a busy browser may miss that the mouse has moved
        ActionChains(page).move_to_element(heading).move_to_element(span).perform()
        return bool(tip.is_displayed())

    WebDriverWait(page, 10).until(shows_tip)
    hovered = dict(zip(*(facts(tip, tag) for tag in ("dt", "dd")), strict=True))
    example = int(heading.text.split()[1])
    table = done.tokens()
    first = table[(table.example == example) & table.conflict].iloc[0]
    assert value(hovered["prob"]) == pytest.approx(first.prob, rel=0.05)
    assert value(hovered["top1_prob"]) == pytest.approx(first.top1_prob, rel=0.01)
    assert value(hovered["entropy"].split()[0]) == pytest.approx(first.entropy, rel=0.01)
    assert hovered["rank"] == f"{first['rank']:,}"
    page.find_element(By.TAG_NAME, "body").send_keys(Keys.ESCAPE)
    assert not tip.is_displayed()
    page.execute_script("arguments[0].focus()", span)
    assert tip.is_displayed()
    span.send_keys(Keys.ARROW_RIGHT)
    focused = page.switch_to.active_element
    assert focused.get_attribute("data-i") == str(int(span.get_attribute("data-i")) + 1)
    assert focused.get_attribute("aria-describedby") == "tip"
    assert len(page.find_elements(By.CSS_SELECTOR, "#cards .text [tabindex='0']")) == len(
        page.find_elements(By.CSS_SELECTOR, "#cards .text")
    )


def facts(tip: Any, tag: str) -> list[str]:
    return [e.text for e in tip.find_elements(By.TAG_NAME, tag)]


def test_markup_in_the_data_is_text(page: Any) -> None:
    text = by_id(page, "main").text
    for attack in ATTACKS:
        assert " ".join(printable(attack).split()[:3]) in " ".join(text.split())
    inside = "main script, main img, main svg[onload], main a[href^=javascript], main [onerror]"
    assert page.find_elements(By.CSS_SELECTOR, inside) == []
    assert page.execute_script("return window.hacked") is None
    assert page.get_log("browser") == []


def test_policy_stops_what_is_injected_all_the_same(page: Any) -> None:
    page.execute_script("""
        const made = document.createElement("script");
        made.textContent = "window.hacked = 7";
        document.body.append(made, document.createElement("i"));
        document.querySelector("body > i").setAttribute("onclick", "window.hacked = 8");
        document.querySelector("body > i").click();
        const image = document.createElement("img");
        image.src = "https://example.org/x.png";
        document.body.append(image);""")
    assert page.execute_script("return window.hacked") is None
    assert any("Content Security Policy" in entry["message"] for entry in page.get_log("browser"))


def test_filter_search_and_colour(page: Any) -> None:
    field = by_id(page, "example-search")
    field.send_keys("window.hacked = 3")
    assert by_id(page, "matching").text == "1 of 10 examples matches."
    shades = "return [...document.querySelectorAll('#cards [data-i]')].map((e) => e.dataset.shade)"
    by_prob = page.execute_script(shades)
    by_id(page, "colour").send_keys("grad_head")
    assert "norm" in by_id(page, "legend").text
    assert page.execute_script(shades) != by_prob
    field.clear()
    field.send_keys("no such text")
    assert by_id(page, "matching").text == "No example matches."


def test_both_themes_can_be_read(page: Any, tmp_path: Path) -> None:
    body, seen = page.find_element(By.TAG_NAME, "body"), []
    for system in ("light", "dark"):
        media(page, system)
        seen.append(body.value_of_css_property("background-color"))
        worst, where = page.execute_script(CONTRAST)
        assert worst >= 4.5, where
        assert page.save_screenshot(str(tmp_path / f"{system}.png"))
    assert seen[0] != seen[1]
    assert (tmp_path / "light.png").read_bytes() != (tmp_path / "dark.png").read_bytes()
    by_id(page, "theme").click()  # the reader's choice goes before the system's
    assert body.value_of_css_property("background-color") == seen[0]
    media(page)


# The colour of one token in the landscape, and as what it is drawn.
DRAWN = """const { view } = document.getElementById("chart");
return [view.scale("color")(1), document.querySelector("#chart :is(canvas, svg)").tagName];"""


def test_paper_is_light_and_cuts_nothing_off(page: Any) -> None:
    light = page.execute_script(DRAWN)
    media(page, "dark")
    WebDriverWait(page, 5).until(lambda _: page.execute_script(DRAWN)[0] != light[0])
    # What is drawn by the end of the microtasks after the event is what is printed.
    script = f"""const done = arguments[0];
        dispatchEvent(new Event("beforeprint"));
        setTimeout(() => done((() => {{ {DRAWN} }})()), 0);"""
    assert page.execute_async_script(script) == [light[0], "svg"]
    media(page, "dark", "print")
    style = "return getComputedStyle(document.documentElement).colorScheme"
    assert page.execute_script(style) == "light"
    for control in page.find_elements(By.CSS_SELECTOR, "nav, form, .more, #theme"):
        assert not control.is_displayed()
    cut = """return [...document.querySelectorAll("#main *")].filter((e) =>
        e.scrollHeight > e.clientHeight + 1 && getComputedStyle(e).overflowY !== "visible" &&
        e.checkVisibility()).map((e) => e.id || e.className)"""
    assert page.execute_script(cut) == []
    assert by_id(page, "tokens").find_elements(By.CSS_SELECTOR, "button.link")[0].is_displayed()
    media(page, "dark")
    page.execute_script('dispatchEvent(new Event("afterprint"))')
    WebDriverWait(page, 5).until(lambda _: page.execute_script(DRAWN)[0] != light[0])
    media(page)


def test_it_is_printed(page: Any) -> None:
    printed = page.execute_cdp_cmd("Page.printToPDF", {})["data"]
    assert base64.b64decode(printed).startswith(b"%PDF")
    assert page.execute_script("return document.documentElement.dataset.printing") is None


@pytest.mark.parametrize("width", [1360, 380])
def test_it_fits_the_window(browser: Any, file: Path, width: int) -> None:
    with window(browser, width):
        require_fit(load(browser, file))


def test_a_bare_scan_loads_as_well(done: Scan, browser: Any, tmp_path: Path) -> None:
    calm = without(done, tmp_path / "calm", ()).flag(ConflictRule(0.0, 0.0))
    bare = without(calm, tmp_path / "bare", ("rank", "top1", "top1_prob", "grad_head"))
    page = load(browser, report([bare], tmp_path / "bare.html"))
    assert page.get_log("browser") == []
    assert "No token of this scan" in by_id(page, "pairs-note").text
    page.find_element(By.CSS_SELECTOR, "#presets button").click()
    total = len(bare.tokens())
    assert by_id(page, "count").text.startswith(f"0 conflicts of {total} tokens (0%)")
    assert by_id(page, "listed").text == "No conflict here."
    assert len(page.find_elements(By.CSS_SELECTOR, "#cards article")) == 10


def test_conflicts_by_surprise_are_all_counted(
    labels: pandas.DataFrame, browser: Any, tmp_path: Path
) -> None:
    """They lie in no box of the landscape."""
    rule = ConflictRule(surprise_above=2.5)
    surprising = scans_made.write(tmp_path / "s", labels, 1, rule)
    page = load(browser, report([surprising], tmp_path / "r.html"))
    page.find_element(By.CSS_SELECTOR, "#presets button").click()
    conflicts = int((labels["surprise"] > 2.5).sum())
    assert by_id(page, "count").text.startswith(f"{conflicts} conflicts of 1,500 tokens")
    assert by_id(page, "rule").text == f"Confident conflict: {rule}"
    assert "Box" not in by_id(page, "caption").text
    assert page.get_log("browser") == []


def test_a_scan_that_kept_a_sample(browser: Any, model_folder: str, tmp_path: Path) -> None:
    """The whole page is there, although most pairs of conflicts have no place to show."""
    rows = [
        {"question": f"what is {i}", "answer": " ".join("abcdefgh"[i % 5 :])} for i in range(40)
    ]
    kept = scan(
        rows,
        tmp_path / "scan",
        model=model_folder,
        keep_tokens="sample:0.02",
        entropy_below=9,
        prob_below=0.9,
    )
    page = load(browser, report([kept], tmp_path / "report.html"))
    assert "--keep-tokens sample:0.02" in by_id(page, "notices").text
    assert "none of these tokens was kept" in by_id(page, "pairs").text
    total = kept.manifest["counts"]["trained_tokens"]
    assert f"{total:,} of {total:,} tokens" in by_id(page, "count").text
    assert by_id(page, "sources").find_elements(By.TAG_NAME, "dt")
