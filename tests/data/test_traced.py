"""Strings that remember their origin: the same text as `str`, and pieces that hold the source."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eaft_probe.data.rendering.traced import (
    DERIVED,
    TEMPLATE,
    Html,
    Piece,
    Traced,
    as_json,
    derived,
    joined,
    pieces_of,
    put_in,
)

SOURCES = ["  Paris\n\nrome é😀 ", "x<think>\ta</think>x", "{'k': 1}\r\nab ab"]


def source(number: int) -> Traced:
    text = SOURCES[number]
    return Traced(text, (Piece(len(text), number),))


# Mixed texts: cuts of the sources and words of a template, one behind the other.
CUTS = st.tuples(st.integers(0, 2), st.integers(0, 18), st.integers(0, 18)).map(
    lambda cut: source(cut[0])[min(cut[1:]) : max(cut[1:])]
)
WORDS = st.text(st.sampled_from("ab<> \n\té😀x"), max_size=4)
TEXTS = st.lists(st.one_of(CUTS, WORDS), max_size=5).map(joined)


def check(made: Any, text: str) -> None:
    """The text is `str`'s, and its pieces add up."""
    assert isinstance(made, Traced)
    assert str.__str__(made) == text
    assert sum(p.length for p in made._pieces) == len(text)


def cut_out(made: Traced) -> None:
    """Each piece with a place in a source is the source's text there, unless it was respelt."""
    at = 0
    for piece in made._pieces:
        if piece.source != TEMPLATE and piece.offset != DERIVED:
            source = SOURCES[piece.source][piece.offset : piece.offset + piece.length]
            assert source == str.__str__(made)[at : at + piece.length]
        at += piece.length


# method → the arguments that it is tried with; what it gives is cut out of its text
CUTTING: dict[str, list[tuple[Any, ...]]] = {
    "strip": [(), (None,), ("x ",), ("<",)],
    "lstrip": [(), ("x ",)],
    "rstrip": [(), ("x ",)],
    "removeprefix": [("x",), ("",), ("  ",)],
    "removesuffix": [("x",), ("",), (" ",)],
    "split": [(), (None, 1), ("a",), ("a", 1), ("\n",), ("</think>",), (" ", 0)],
    "rsplit": [(), (None, 1), ("a",), ("a", 1)],
    "splitlines": [(), (True,)],
    "partition": [("a",), ("\n",)],
    "rpartition": [("a",), ("\n",)],
}
# These give other letters, or fill up.
RESPELLING: dict[str, list[tuple[Any, ...]]] = {
    "upper": [()],
    "lower": [()],
    "title": [()],
    "capitalize": [()],
    "swapcase": [()],
    "casefold": [()],
    "zfill": [(9,), (40,)],
    "center": [(9,), (40, "*")],
    "ljust": [(40,)],
    "rjust": [(40,)],
    "expandtabs": [(), (2,)],
    "translate": [({97: "b"},), ({97: None},)],
}
# These tell something about it.
TELLING: dict[str, list[tuple[Any, ...]]] = {
    "count": [("a",)],
    "find": [("a",), ("zz",)],
    "rfind": [("a",)],
    "startswith": [("x",), ("",)],
    "endswith": [("x",), (("a", " "),)],
    "isspace": [()],
    "isalpha": [()],
    "isdigit": [()],
    "isupper": [()],
    "islower": [()],
    "isalnum": [()],
    "encode": [()],
    "__len__": [()],
    "__contains__": [("a",)],
    "__hash__": [()],
    "__eq__": [("a",)],
    "__lt__": [("a",)],
}


@settings(deadline=None, max_examples=50)
@given(text=TEXTS)
@pytest.mark.parametrize(("name", "arguments"), [(n, a) for n, all in CUTTING.items() for a in all])
def test_what_is_cut_out_keeps_its_place(name: str, arguments: Any, text: Traced) -> None:
    check(text, str.__str__(text))
    made, wanted = getattr(text, name)(*arguments), getattr(str.__str__(text), name)(*arguments)
    if isinstance(wanted, str):
        made, wanted = [made], [wanted]
    assert len(made) == len(wanted)
    for one, other in zip(made, wanted, strict=True):
        check(one, other)
        cut_out(one)


@settings(deadline=None, max_examples=50)
@given(text=TEXTS)
@pytest.mark.parametrize(
    ("name", "arguments"), [(n, a) for n, all in RESPELLING.items() for a in all]
)
def test_what_is_respelt_is_still_of_its_source(name: str, arguments: Any, text: Traced) -> None:
    made, wanted = getattr(text, name)(*arguments), getattr(str.__str__(text), name)(*arguments)
    check(made, wanted)
    if wanted:
        sources = {p.source for p in text._pieces} - {TEMPLATE}
        assert {p.source for p in made._pieces} - {TEMPLATE} == sources


@settings(deadline=None, max_examples=20)
@given(text=TEXTS)
@pytest.mark.parametrize(("name", "arguments"), [(n, a) for n, all in TELLING.items() for a in all])
def test_what_is_told_about_it_is_strs(name: str, arguments: Any, text: Traced) -> None:
    assert getattr(text, name)(*arguments) == getattr(str.__str__(text), name)(*arguments)


@settings(deadline=None)
@given(
    a=TEXTS,
    b=TEXTS,
    start=st.integers(-30, 30),
    stop=st.integers(-30, 30),
    step=st.sampled_from([1, 2, -1, None]),
    times=st.integers(-1, 3),
)
def test_put_together_and_sliced(
    a: Traced, b: Traced, start: int, stop: int, step: int | None, times: int
) -> None:
    one, other = str.__str__(a), str.__str__(b)
    for made, text in (
        (a + b, one + other),
        (a + "x", one + "x"),
        ("x" + a, "x" + one),
        (a * times, one * times),
        (times * a, times * one),
        (a.join([b, "x", b]), one.join([other, "x", other])),
        (a.join([]), ""),
        (a[start:stop:step], one[start:stop:step]),
        (a[:stop], one[:stop]),
        (joined(a), one),
        (joined(reversed(a)), one[::-1]),
    ):
        check(made, text)
        cut_out(made)


def test_one_character_and_none() -> None:
    text = source(0)
    assert (text[2], text[-2]) == ("P", "😀")
    cut_out(text[-2])
    with pytest.raises(IndexError):
        text[99]
    with pytest.raises(TypeError, match="indices must be integers"):
        text["role"]


@settings(deadline=None, max_examples=200)
@given(
    text=TEXTS,
    old=st.sampled_from(["a", "x", "  ", "<think>", "zz", ""]),
    new=WORDS,
    count=st.sampled_from([-1, 0, 1, 2]),
)
def test_replaced(text: Traced, old: str, new: str, count: int) -> None:
    wanted = str.__str__(text).replace(old, new, count)
    check(text.replace(old, new, count), wanted)


def test_what_is_put_in_is_of_the_source_of_what_it_replaces() -> None:
    text = source(0).replace("rome", "ROME!")
    assert [(p.source, p.length) for p in text._pieces] == [(0, 9), (0, 5), (0, 4)]
    own = source(0).replace("rome", source(1)[1:8])
    assert [p.source for p in own._pieces] == [0, 1, 0]
    assert put_in("a", Traced("")) == "a"


def test_formatted_is_made_of_all_and_shows_each() -> None:
    for made, text in (
        (Traced("{}-{b}").format(source(0), b=source(1)), f"{SOURCES[0]}-{SOURCES[1]}"),
        (Traced("%s-%s") % (source(0), source(1)), f"{SOURCES[0]}-{SOURCES[1]}"),
        (derived("ab", [source(0), {source(1): 3}]), "ab"),
    ):
        check(made, text)
        assert {p.source for p in made._pieces} == {0, 1}
        assert all(p.offset == DERIVED for p in made._pieces)
    assert pieces_of("ab") == (Piece(2),)
    assert pieces_of("") == ()


def test_it_is_its_text_to_everybody_else() -> None:
    text = source(0)
    assert text == SOURCES[0]
    assert {text: 1}[SOURCES[0]] == 1
    assert json.dumps({"a": text}) == json.dumps({"a": SOURCES[0]})
    assert str(text) is text
    assert f"{text}" == SOURCES[0]


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-9, 9),
        st.floats(allow_nan=False),
        TEXTS,
        st.sampled_from(["\x01", "\x010\x02", '"\\', "\\u0001"]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)
STYLES: list[dict[str, Any]] = [
    {},
    {"ensure_ascii": True},
    {"indent": 2},
    {"sort_keys": True},
    {"separators": (",", ":"), "ensure_ascii": False},
    {"indent": 4, "sort_keys": True},
]


@settings(deadline=None, max_examples=50)
@given(value=VALUES)
@pytest.mark.parametrize("style", STYLES, ids=str)
def test_json_is_the_same_and_keeps_the_history(style: dict[str, Any], value: Any) -> None:
    check(as_json(value, **style), json.dumps(value, **{"ensure_ascii": False, **style}))


def test_a_string_in_json_keeps_its_place() -> None:
    made = as_json({"city": source(0)[2:7]})
    own = [p for p in made._pieces if p.source != TEMPLATE]
    assert (made, own) == ('{"city": "Paris"}', [Piece(5, 0, 2)])
    assert sum(p.length for p in made._pieces[: made._pieces.index(own[0])]) == 10


def test_what_is_marked_as_safe_has_the_rest_escaped() -> None:
    safe = Html("<b>", pieces_of(source(1))[:0])
    for made, text in (
        (safe + source(1), "<b>x&lt;think&gt;\ta&lt;/think&gt;x"),
        ("\"'&" + safe, "&#34;&#39;&amp;<b>"),
        (source(1) + safe, "x&lt;think&gt;\ta&lt;/think&gt;x<b>"),
        (safe + safe, "<b><b>"),
    ):
        assert isinstance(made, Html)
        assert made == text
