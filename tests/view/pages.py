"""Reports as a test reads them: their payload, and in a browser."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import scans_made

from eaft_probe import Scan

# WCAG contrast of every element with text of its own, its background looked up through parents.
CONTRAST = """
const light = (c) => { const v = c.map((x) => (x /= 255) <= .04045 ? x / 12.92
    : ((x + .055) / 1.055) ** 2.4); return .2126 * v[0] + .7152 * v[1] + .0722 * v[2]; };
const parts = (c) => c.match(/[\\d.]+/g).map(Number);
const behind = (e) => { for (; e; e = e.parentElement) {
    const c = parts(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c; }
    return [255, 255, 255]; };
return [...document.body.querySelectorAll("*")].filter((e) => e.checkVisibility() &&
    e.tagName !== "OPTION" && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))
  .map((e) => { const a = light(parts(getComputedStyle(e).color)), b = light(behind(e));
    return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.outerHTML.slice(0, 120)]; })
  .sort((a, b) => a[0] - b[0])[0];"""

# Of every axis' labels: the text, and whether it is under 11 pixels or closer than 2 to another.
LABELS = """
const axes = (item) => item.marktype && item.role === "axis-label"
    ? [item.items.filter((i) => i.opacity > 0)] : (item.items ?? []).flatMap(axes);
const near = (a, b) => a.x1 < b.x2 + 2 && b.x1 < a.x2 + 2 && a.y1 < b.y2 && b.y1 < a.y2;
return [...document.querySelectorAll("#main *")].filter((e) => e.view)
    .flatMap((e) => axes(e.view.scenegraph().root)).flatMap((labels) => labels.map((a) => [a.text,
        a.fontSize < 11 || labels.some((b) => a !== b && near(a.bounds, b.bounds))]));"""
# A number as the page writes it: "2.5%", "1.2×10⁻⁶".
DIGITS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


def value(text: str) -> float:
    return float(text.rstrip("%").translate(DIGITS).replace("×10", "e").replace(",", ""))


@contextmanager
def window(browser: Any, width: int) -> Iterator[None]:
    """As wide as that, in pixels."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        yield
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def media(browser: Any, scheme: str = "", kind: str = "") -> None:
    """Emulates a colour scheme, and paper where `kind` is print; neither as it was."""
    features = [{"name": "prefers-color-scheme", "value": scheme}] if scheme else []
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": kind, "features": features})


def require_fit(page: Any) -> None:
    """Nothing is wider than the window, and every label of an axis can be read."""
    from selenium.webdriver.support.ui import WebDriverWait

    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    WebDriverWait(page, 5).until(lambda _: page.execute_script(wide) <= 0)
    labels = page.execute_script(LABELS)
    assert len(labels) > 10
    assert not [text for text, crowded in labels if crowded]


def load(browser: Any, file: Path) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    for kind in ("browser", "performance"):
        browser.get_log(kind)  # what earlier pages left
    browser.get(file.as_uri())
    WebDriverWait(browser, 10).until(lambda b: b.find_elements("css selector", "#chart canvas"))
    return browser


def by_id(page: Any, name: str) -> Any:
    return page.find_element("id", name)


def requests(page: Any) -> list[str]:
    events = [json.loads(e["message"])["message"] for e in page.get_log("performance")]
    sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return [e["request"]["url"] for e in sent]


def payload(html: str) -> Any:
    found = re.search(r'<script id="payload" type="application/json">(.*?)</script>', html)
    assert found is not None
    return json.loads(found[1])


def without(done: Scan, folder: Path, columns: tuple[str, ...]) -> Scan:
    """A copy of the scan that lacks some columns."""
    shutil.copytree(done.path, folder)
    for file in Scan.open(folder).part_files("tokens"):
        pq.write_table(pq.read_table(file).drop_columns(columns), file)
    copied = Scan(folder, done.manifest)
    return scans_made.resealed(copied, columns=[c for c in done.columns if c not in columns])
