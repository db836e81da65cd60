"""Windows and batches: every token predicted once, the budget held, prefixes shared at a gain."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch

from eaft_probe.data.batches import (
    WORTH_SHARING,
    Cost,
    TokenBatch,
    Window,
    batches,
    require_stride,
    shared_prefixes,
    window_start,
    windows,
    without_nested,
)
from eaft_probe.data.rendering.rendered import Rendered
from eaft_probe.errors import BadInput

COST = Cost(linear=1000.0, attention=1.0)


def rendered(length: int, plain: bool, trained: Sequence[int] | None = None) -> Rendered:
    mask = np.ones(length, np.bool_)
    if trained is not None:
        mask = np.isin(np.arange(length), trained)
    chars = np.stack([np.arange(length), np.arange(1, length + 1)], axis=1).astype(np.int32)
    ids = np.arange(100, 100 + length, dtype=np.int32)
    return Rendered("", "x" * length, (), plain, ids, mask, np.zeros(length, np.int16), chars, 0)


def window(ids: Sequence[int], first_trained: int, example: int = 0) -> Window:
    trained = np.arange(len(ids)) >= first_trained
    return Window(example, 0, np.asarray(ids, np.int32), trained)


def many(seed: int, count: int = 60) -> list[Window]:
    """Windows of all lengths; two thirds begin with one of three prefixes."""
    generator = np.random.default_rng(seed)
    prefixes = [generator.integers(1, 50, n).tolist() for n in (0, 30, 90)]
    made = []
    for example in range(count):
        ids = prefixes[example % 3] + generator.integers(1, 50, generator.integers(2, 40)).tolist()
        made.append(window(ids, int(generator.integers(1, len(ids))), example))
    return made


# --- windows ---


@pytest.mark.parametrize("length", [2, 3, 9, 10, 11, 18, 19, 20, 28, 29, 100])
def test_the_windows_of_a_text_predict_every_token_once(length: int) -> None:
    text = rendered(length, plain=True)
    made, cut = windows(3, text, max_length=10)
    assert cut == 0
    predicted = Counter(int(w.start + p) for w in made for p in np.flatnonzero(w.trained))
    assert predicted == Counter(range(1, length))
    for before, after in pairwise(made):
        assert after.start == before.start + len(before.ids) - 1
    for w in made:
        assert w.example == 3
        assert 2 <= len(w.ids) <= 10
        assert not w.trained[0]
        assert (w.ids == text.ids[w.start : w.start + len(w.ids)]).all()


@pytest.mark.parametrize("stride", [1, 3, 9])
@pytest.mark.parametrize("length", [2, 9, 10, 11, 28, 100])
def test_windows_that_overlap_predict_every_token_once(length: int, stride: int) -> None:
    text = rendered(length, plain=True)
    made, cut = windows(3, text, max_length=10, stride=stride)
    assert cut == 0
    predicted = Counter(int(w.start + p) for w in made for p in np.flatnonzero(w.trained))
    assert predicted == Counter(range(1, length))
    for w in made:
        assert len(w.ids) <= 10
        assert (w.ids == text.ids[w.start : w.start + len(w.ids)]).all()
        assert w.start == 0 or w.first_trained == stride  # so many tokens of context
        for p in np.flatnonzero(w.trained):
            assert window_start(w.start + int(p), 10, stride) == w.start
    whole, _ = windows(0, rendered(length, plain=False), max_length=10, stride=stride)
    assert [w.start for w in whole] == [0]


@pytest.mark.parametrize("stride", [-1, 0, 10, 11])
def test_a_stride_that_gets_nowhere_is_refused(stride: int) -> None:
    require_stride(9, 10)
    with pytest.raises(BadInput, match="--stride should be at least 1 and less than the 10 tokens"):
        require_stride(stride, 10)


def test_windows_with_nothing_to_predict_are_left_out() -> None:
    made, cut = windows(0, rendered(40, plain=True, trained=[25]), max_length=10)
    assert [(w.start, w.first_trained) for w in made] == [(18, 7)]
    assert cut == 0


def test_a_conversation_is_cut_and_the_cut_counted() -> None:
    made, cut = windows(0, rendered(25, plain=False), max_length=10)
    assert [(w.start, len(w.ids)) for w in made] == [(0, 10)]
    assert cut == 15
    assert windows(0, rendered(10, plain=False), max_length=10)[1] == 0


def test_a_conversation_trained_behind_the_cut_has_no_window() -> None:
    assert windows(0, rendered(25, plain=False, trained=[20]), max_length=10) == ([], 15)


def test_windows_leave_the_example_as_it_was() -> None:
    text = rendered(5, plain=True)
    windows(0, text, max_length=10)
    assert text.trained.all()


# --- batches ---


@pytest.mark.parametrize("cost", [None, COST])
@pytest.mark.parametrize("budget", [1, 64, 200, 1000])
@pytest.mark.parametrize("seed", range(4))
def test_every_trained_token_is_in_one_batch(seed: int, budget: int, cost: Cost | None) -> None:
    items = many(seed)
    seen = Counter[tuple[int, int, int]]()
    for batch in batches(items, budget, cost):
        rows, columns, labels = batch.targets()
        for row, column, label in zip(rows, columns, labels, strict=True):
            position = len(batch.prefix) + int(column) + 1
            seen[(batch.window[row].example, position, int(label))] += 1
    wanted = ((w.example, int(p), int(w.ids[p])) for w in items for p in np.flatnonzero(w.trained))
    assert seen == Counter(wanted)


@pytest.mark.parametrize("cost", [None, COST])
@pytest.mark.parametrize("budget", [64, 200, 1000])
def test_batches_hold_the_budget(budget: int, cost: Cost | None) -> None:
    for batch in batches(many(1), budget, cost):
        rows, length = batch.input_ids.shape
        assert rows == 1 or rows * (length + len(batch.prefix) // 4) <= budget
        assert rows == len(batch.window)


@pytest.mark.parametrize("cost", [None, COST])
def test_a_batch_is_its_windows_behind_its_prefix(cost: Cost | None) -> None:
    for batch in batches(many(2), 300, cost):
        for row, w in enumerate(batch.window):
            length = int(batch.attention_mask[row].sum())
            whole = [*batch.prefix.tolist(), *batch.input_ids[row, :length].tolist()]
            assert whole == w.ids.tolist()
            trained = [*[False] * len(batch.prefix), *batch.trained[row, :length].tolist()]
            assert trained == w.trained.tolist()
            assert not batch.trained[row, length:].any()
            assert not batch.attention_mask[row, length:].any()


def test_targets_are_the_shift_of_a_plain_loop() -> None:
    for batch in batches(many(3), 300, COST):
        wanted = [
            (row, column - 1, int(batch.input_ids[row, column]))
            for row in range(batch.input_ids.shape[0])
            for column in range(batch.input_ids.shape[1])
            if batch.trained[row, column]
        ]
        found = [tuple(int(x) for x in triple) for triple in zip(*batch.targets(), strict=True)]
        assert found == wanted
        assert all(column >= 0 for _, column, _ in found)


def test_types() -> None:
    (batch,) = batches([window([5, 6, 7], 1), window([5, 6], 1)], 100, None)
    assert batch.input_ids.tolist() == [[5, 6, 7], [5, 6, 0]]
    assert (batch.input_ids.dtype, batch.attention_mask.dtype) == (torch.int64, torch.int64)
    assert batch.trained.dtype == torch.bool


def test_without_a_cost_no_prefix_is_shared() -> None:
    assert all(len(b.prefix) == 0 for b in batches(many(0), 300, None))


def test_no_windows_are_no_batches() -> None:
    assert list(batches([], 300, None)) == []
    assert list(batches([], 300, COST)) == []


@pytest.mark.parametrize("cost", [None, COST])
def test_halves_are_the_batch(cost: Cost | None) -> None:
    batch: TokenBatch = max(batches(many(4), 2000, cost), key=lambda b: len(b.window))
    left, right = batch.halves()
    assert left.window + right.window == batch.window
    assert abs(len(left.window) - len(right.window)) <= 1
    for half in (left, right):
        assert half.prefix.tolist() == batch.prefix.tolist()
    labels = torch.cat([left.targets()[2], right.targets()[2]])
    assert labels.tolist() == batch.targets()[2].tolist()


# --- windows that begin with others ---


def turn(ids: Sequence[int], trained: range, example: int) -> Window:
    mask = np.isin(np.arange(len(ids)), trained)
    return Window(example, 0, np.asarray(ids, np.int32), mask)


def test_a_turn_is_read_in_the_pass_of_one_that_begins_with_it() -> None:
    first = turn([5, 6, 7, 8], range(2, 4), 0)
    second = turn([5, 6, 7, 8, 9, 10, 11], range(5, 7), 1)
    other = turn([5, 6, 1, 8, 9, 10, 11], range(5, 7), 2)  # an earlier token differs
    same = turn([5, 6, 7, 8, 9], range(2, 4), 3)  # the same tokens are trained
    kept = without_nested([second, other, first])
    assert {w.example for w in kept} == {1, 2}
    (whole,) = [w for w in kept if w.example == 1]
    assert np.flatnonzero(whole.trained).tolist() == [2, 3, 5, 6]
    examples, positions = whole.places()
    assert list(zip(examples, positions, strict=True)) == [(0, 2), (0, 3), (1, 5), (1, 6)]
    assert len(without_nested([first, same])) == 2


@pytest.mark.parametrize("seed", range(4))
def test_every_trained_token_of_each_turn_is_read_once(seed: int) -> None:
    generator = np.random.default_rng(seed)
    items = []
    for conversation in range(20):
        ids, past = generator.integers(1, 4, 30), 0
        for number in range(int(generator.integers(1, 5))):
            start = past + int(generator.integers(1, 4))
            past = start + int(generator.integers(1, 4))
            items.append(turn(ids[:past].tolist(), range(start, past), 10 * conversation + number))
    wanted = Counter((w.example, int(p)) for w in items for p in np.flatnonzero(w.trained))
    assert (
        Counter(
            (int(e), int(p))
            for w in without_nested(items)
            for e, p in zip(*w.places(), strict=True)
        )
        == wanted
    )
    for window in without_nested(items):
        assert window.trained.sum() == len(window.places()[0])


# --- shared prefixes ---


def saving(prefix: int, members: Sequence[Window], cost: Cost) -> tuple[float, float]:
    """What a group saves and what it would cost alone, from the formula."""
    whole = sum(len(w.ids) * cost.linear + len(w.ids) ** 2 / 2 * cost.attention for w in members)
    shared = prefix * cost.linear + prefix**2 / 2 * cost.attention
    for w in members:
        own = len(w.ids) - prefix
        shared += own * cost.linear + own * len(w.ids) * cost.attention
    return whole - shared, whole


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("attention", [0.0, 1.0, 1000.0])
def test_groups_are_common_safe_and_worthwhile(seed: int, attention: float) -> None:
    items, cost = many(seed), Cost(1000.0, attention)
    groups = shared_prefixes(items, cost)
    assert sorted(w.example for _, members in groups for w in members) == list(range(len(items)))
    for prefix, members in groups:
        if prefix == 0:
            continue
        first = members[0].ids[:prefix].tolist()
        assert all(w.ids[:prefix].tolist() == first for w in members)
        assert all(prefix <= w.first_trained - 1 for w in members)
        gain, whole = saving(prefix, members, cost)
        assert gain > WORTH_SHARING * whole


def test_a_long_prefix_of_many_is_shared() -> None:
    prompt = list(range(1, 101))
    items = [window([*prompt, 200 + i, 300 + i], 100, i) for i in range(8)]
    ((prefix, members),) = shared_prefixes(items, COST)
    assert prefix == 99  # the last prompt token predicts the first trained one
    assert len(members) == 8


def test_a_short_prefix_is_not() -> None:
    items = [window([1, 2, *range(10 * i, 10 * i + 60)], 30, i) for i in range(1, 9)]
    ((prefix, members),) = shared_prefixes(items, COST)
    assert (prefix, len(members)) == (0, 8)


def test_equal_windows_are_shared_up_to_what_predicts() -> None:
    items = [window(list(range(1, 51)), 40, i) for i in range(4)]
    ((prefix, members),) = shared_prefixes(items, COST)
    assert (prefix, len(members)) == (39, 4)


def test_a_window_trained_from_its_start_shares_nothing() -> None:
    items = [window(list(range(1, 51)), 1, i) for i in range(4)]
    assert [prefix for prefix, _ in shared_prefixes(items, COST)] == [0]


def test_thousands_of_windows_under_one_system_prompt() -> None:
    items = [window([1, 2, 3, 10 + i, 7], 4, i) for i in range(3000)]
    groups = shared_prefixes(items, COST)
    assert sum(len(members) for _, members in groups) == len(items)
    assert any(prefix == 3 for prefix, _ in groups)
