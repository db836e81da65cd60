"""Registries: order kept, misses suggest the nearest name."""

import pytest

from eaft_probe.errors import UnknownName
from eaft_probe.registry import Registry


def _colours() -> Registry[int]:
    colours = Registry[int]("colour")
    for value, name in enumerate(("red", "green", "blue")):
        colours.add(name, value)
    return colours


def test_entries_keep_their_order() -> None:
    assert list(_colours().items()) == [("red", 0), ("green", 1), ("blue", 2)]


def test_a_near_miss_names_what_was_meant() -> None:
    with pytest.raises(UnknownName, match=r"unknown colour 'gren' \(did you mean 'green'\?\)"):
        _colours()["gren"]


def test_a_far_miss_lists_what_there_is() -> None:
    with pytest.raises(UnknownName) as caught:
        _colours()["ultraviolet-42"]
    assert str(caught.value) == "unknown colour 'ultraviolet-42'; known: red, green, blue"


def test_get_and_in_do_not_raise() -> None:
    assert _colours().get("blue") == 2
    assert "mauve" not in _colours()


def test_a_name_is_taken_once() -> None:
    with pytest.raises(AssertionError, match="twice"):
        _colours().add("red", 5)
