"""Scans, figures and pages that many tests look at and none changes; a browser."""

import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pandas
import pytest
import scans_made
from figures import RULE, Charts, Subjects, logged, nudged, subject
from hostile import ATTACKS, THEIRS

from eaft_probe import Scan
from eaft_probe.view.plots import PLOTS
from eaft_probe.view.report.report import report

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--window-size=1360,1000",
)


# --- figures ---


@pytest.fixture(scope="session")
def tokens() -> pandas.DataFrame:
    return scans_made.measured(scans_made.places(2000))


@pytest.fixture(scope="session")
def few(tokens: pandas.DataFrame) -> pandas.DataFrame:
    return tokens[:300]


@pytest.fixture(scope="session")
def scan(tmp_path_factory: pytest.TempPathFactory, tokens: pandas.DataFrame) -> Scan:
    return scans_made.write(tmp_path_factory.mktemp("made") / "s", tokens, rule=RULE)


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Scan:
    """Other tokens of other data under the same model."""
    folder = tmp_path_factory.mktemp("other") / "s"
    made = scans_made.measured(scans_made.places(900, 3), 4)
    return scans_made.write(folder, made, parts=2, rule=RULE, source="others.jsonl")


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return logged(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def subjects(scan: Scan, run: Path) -> Subjects:
    """What a figure of that name is drawn from: a finished scan, or a training run."""
    return lambda name: subject(name, scan, run)


@pytest.fixture(scope="session")
def charts(subjects: Subjects) -> Charts:
    """A figure of that name, drawn once for all tests that only look at it."""
    return cache(lambda name: PLOTS[name](*subjects(name)))


# --- one scan against another ---


@pytest.fixture(scope="session")
def labels() -> pandas.DataFrame:
    return scans_made.measured(scans_made.places(1500))


@pytest.fixture(scope="session")
def a(tmp_path_factory: pytest.TempPathFactory, labels: pandas.DataFrame) -> Scan:
    folder = tmp_path_factory.mktemp("against") / "a"
    return scans_made.write(folder, labels, rule=RULE, words=ATTACKS, source=ATTACKS[0])


@pytest.fixture(scope="session")
def tuned(tmp_path_factory: pytest.TempPathFactory, labels: pandas.DataFrame) -> Scan:
    """The same labels, under a model with other words of its own."""
    folder = tmp_path_factory.mktemp("against") / "b"
    return scans_made.write(
        folder, nudged(labels), 4, RULE, 70, model=ATTACKS[2], words=THEIRS, source=ATTACKS[0]
    )


@pytest.fixture(scope="session")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Scan:
    frame = scans_made.measured(scans_made.places(700, 3), 4)
    folder = tmp_path_factory.mktemp("against") / "c"
    return scans_made.write(folder, frame, rule=RULE, words=THEIRS, source=ATTACKS[1])


@pytest.fixture(scope="session")
def moved_page(a: Scan, tuned: Scan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report([a], tmp_path_factory.mktemp("page") / "moved.html", tuned)


@pytest.fixture(scope="session")
def apart_page(a: Scan, apart: Scan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report([a], tmp_path_factory.mktemp("page") / "apart.html", apart.path)


@pytest.fixture(params=["moved_page", "apart_page"])
def either(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


# --- a browser ---


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no chromium: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    with webdriver.Chrome(options=options, service=service) as opened:
        yield opened
