"""The pages in docs/ and the examples in docstrings say what the program does."""

import doctest
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
EXAMPLES = [
    p for p in sorted((ROOT / "eaft_probe").rglob("*.py")) if ">>> " in p.read_text("utf-8")
]


def test_the_examples_of_trained_tokens_are_what_is_trained() -> None:
    """`python docs/trained_tokens_examples.py --write` makes them anew."""
    pytest.importorskip("trl", reason="the templates of the examples are TRL's")
    spec = importlib.util.spec_from_file_location("made", DOCS / "trained_tokens_examples.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (DOCS / "trained-tokens.md").read_text(encoding="utf-8")
    assert module.page_part() in page
    assert page.count("<mark>") > 10


@pytest.mark.parametrize("page", [*DOCS.glob("*.md"), DOCS.parent / "README.md"], ids=str)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_the_examples_of_docstrings_give_what_they_show(path: Path) -> None:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted
    assert not found.failed
