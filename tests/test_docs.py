"""The README and the pages of docs/ say what the program does, and lead to one another."""

import ast
import doctest
import importlib
import importlib.util
import re
import tomllib
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), *sorted(ROOT.glob("*.md"))]
EXAMPLES = [
    p for p in sorted((ROOT / "eaft_probe").rglob("*.py")) if ">>> " in p.read_text("utf-8")
]


def script(name: str) -> ModuleType:
    """A script of docs/."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


# --- what is made from the code ---


def test_the_examples_of_trained_tokens_are_what_is_trained() -> None:
    """`python docs/trained_tokens_examples.py --write` makes them anew."""
    pytest.importorskip("trl", reason="the templates of the examples are TRL's")
    page = text(DOCS / "trained-tokens.md")
    assert script("trained_tokens_examples").page_part() in page
    assert page.count("<mark>") > 10


@pytest.mark.parametrize("name", ["command_line_page", "python_page"])
def test_pages_made_from_the_code_are_those_that_lie_there(name: str) -> None:
    """`python docs/command_line_page.py --write`, `python docs/python_page.py --write`."""
    made = script(name)
    assert made.page() == text(made.PAGE)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_the_examples_of_docstrings_give_what_they_show(path: Path) -> None:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted
    assert not found.failed


# --- messages ---


@cache
def strings_of_the_code() -> list[str]:
    """Every text in the package, `…` where a value is put in."""
    found = []
    for path in (ROOT / "eaft_probe").rglob("*.py"):
        for node in ast.walk(ast.parse(text(path))):
            if isinstance(node, ast.JoinedStr):
                parts = (v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


MESSAGES = [
    message
    for heading in re.findall(r"^### (.*)$", text(DOCS / "troubleshooting.md"), re.MULTILINE)
    for message in re.findall(r"`([^`]+)`", heading)
]


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_of_the_troubleshooting_page_are_the_codes(message: str) -> None:
    pieces = [re.escape(piece.strip()) for piece in message.split("…") if piece.strip()]
    pattern = re.compile(".*".join(pieces), re.DOTALL)
    assert any(pattern.search(string) for string in strings_of_the_code())


# --- links ---


def anchors(page: Path) -> set[str]:
    """What its headings are called, by GitHub and by the site, which agree on those linked to."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text(page), flags=re.S), re.M)
    return {re.sub(r"[^\w\s-]", "", h).strip().lower().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)]*))?\)", text(page)):
        other = page.parent / target if target else page
        assert other.exists(), target
        assert not anchor or anchor in anchors(other), f"{target}#{anchor}"
        if page.parent == DOCS:  # the site holds nothing else
            assert other.resolve().is_relative_to(DOCS), target


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    settings = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    assert tomllib.loads(settings)["project"]["theme"]["font"] is False
    assert sorted(re.findall(r'"([\w-]+\.md)"', settings)) == [
        p.name for p in sorted(DOCS.glob("*.md"))
    ]


def test_the_readme_leads_to_every_page() -> None:
    linked = set(re.findall(r"docs/([\w-]+)\.md", text(ROOT / "README.md")))
    assert linked | {"index"} == {page.stem for page in DOCS.glob("*.md")}


def test_every_word_of_the_glossary_is_linked_to() -> None:
    words = re.findall(r"^## (.*)$", text(DOCS / "glossary.md"), re.MULTILINE)
    linked = "\n".join(text(page) for page in DOCS.glob("*.md"))
    for word in words:
        assert f"glossary.md#{word.lower().replace(' ', '-')})" in linked, word


def test_the_licence_and_the_version_agree() -> None:
    project = tomllib.loads(text(ROOT / "pyproject.toml"))["project"]
    assert project["license-files"] == ["LICENSE"]
    assert "Apache License" in text(ROOT / "LICENSE")
    assert f"version: {project['version']}\n" in text(ROOT / "CITATION.cff")
    assert f"\n## {project['version']}" in text(ROOT / "CHANGELOG.md")
