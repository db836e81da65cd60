"""What is fed to the program, area by area: a strategy for inputs, and a property of each.

The property: it works, or an error of `eaft_probe.errors` comes out whose message is one printable
line, within SECONDS; and what is valid by construction is counted right.
"""

import bz2
import gc
import gzip
import io
import json
import lzma
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import scans_made
import tiny
import yaml
import zstandard
from hypothesis import strategies as st

from eaft_probe.analysis.aggregates import OfTotals
from eaft_probe.analysis.partial_aggregates import columns_of, sums_of, table_of
from eaft_probe.analysis.summary import summarize
from eaft_probe.data.files.readers import SUFFIXES
from eaft_probe.data.formats import FORMATS, Example, Message, RowFormat, infer_format
from eaft_probe.data.rendering import chat_template as templates
from eaft_probe.data.rendering.render import Renderer, RenderOptions
from eaft_probe.data.sources import open_source
from eaft_probe.data.units import Selection, UnitPlan
from eaft_probe.errors import ProbeError, RowError
from eaft_probe.scans.part_writer import TOTALS, sha256
from eaft_probe.scans.scan import Scan
from eaft_probe.settings import (
    CompareSettings,
    GradientSettings,
    PlotSettings,
    RolloutSettings,
    ScanSettings,
    TrainSettings,
    make_settings,
    read_config,
)
from eaft_probe.text import printable
from eaft_probe.view.labels import caption, names

SECONDS = 20  # that one input may take; on a quiet machine they take milliseconds


class Late(BaseException):
    """An input took longer than SECONDS. No Exception: nothing on the way may catch it."""


@dataclass
class Tally:
    """What came of an area's inputs."""

    inputs: int = 0
    refused: int = 0
    accepted: int = 0
    slowest: float = 0.0
    slow: str = field(default="", repr=False)


@dataclass(frozen=True)
class Area:
    """Inputs, and what the program does with one; it returns, or raises what `judged` allows."""

    inputs: st.SearchStrategy[Any]
    run: Callable[[Any], object]
    few: int  # inputs of the suite's; `benchmarks/fuzz.py` has more


AREAS: dict[str, Area] = {}


def area(
    inputs: st.SearchStrategy[Any], few: int = 60
) -> Callable[[Callable[[Any], object]], Callable[..., Any]]:
    def add(run: Callable[[Any], object]) -> Callable[[Any], object]:
        AREAS[run.__name__] = Area(inputs, run, few)
        return run

    return add


def judged(run: Callable[[Any], object], given: Any, tally: Tally) -> None:
    """Counts what came of an input. Any other exception than the program's own is a defect."""
    gc.callbacks.clear()  # hypothesis' own swallows what a time limit raises in it
    began = time.monotonic()
    try:
        with _within(SECONDS):
            run(given)
        tally.accepted += 1
    except (ProbeError, RowError) as error:
        require_one_line(error)
        tally.refused += 1
    finally:
        tally.inputs += 1
        tally.slowest = max(tally.slowest, time.monotonic() - began)


def require_one_line(error: Exception) -> None:
    said = str(error)
    assert said, type(error)
    assert printable(said) == said, repr(said)
    assert not set("\n\t") & set(said), repr(said)


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    def late(*_: object) -> None:
        raise Late(f"not done within {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@cache
def folder() -> Path:
    """Where files are written; gone with the process."""
    made = tempfile.TemporaryDirectory(prefix="eaft-probe-fuzz-")
    _kept.append(made)
    return Path(made.name)


_kept: list[Any] = []


@cache
def renderer(kind: str = "chat") -> Renderer:
    template = tiny.CHAT_TEMPLATE if kind != "plain" else None
    tool_calls = "inline" if kind == "inline" else "template"
    return Renderer(tiny.tokenizer(template), RenderOptions(tool_calls=tool_calls))  # type: ignore[arg-type]


# --- rows ---

texts = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        [
            "",
            " ",
            "\x1b[2J",
            "\ud800",
            "<|im_end|>",
            "\ue0f00\ue0f1",
            "a\x00b",
            "🙂",
            "{{ x }}",
            "{% for %}",
            "\u202e",
            "x" * 3000,
        ]
    ),
)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


def deep(levels: int) -> Any:
    made: Any = "x"
    for _ in range(levels):
        made = [made]
    return made


anything = st.one_of(values, st.sampled_from([50, 300]).map(deep))
roles = st.sampled_from(["user", "assistant", "system", "tool", "human", "gpt", "x", "", None, 3])
messages = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {"role": roles, "content": texts | anything},
            optional={
                "tool_calls": anything,
                "train": anything,
                "weight": anything,
                "name": anything,
                "from": roles,
                "value": texts,
            },
        ),
        st.fixed_dictionaries({"role": roles, "content": texts}),
        anything,
    ),
    max_size=4,
)
columns = sorted(
    {c for f in FORMATS.values() for c in f.columns} | {"tools", "system", "input", "finish", "id"}
)
rows = st.one_of(
    st.fixed_dictionaries({"messages": messages}, optional={"tools": anything, "id": anything}),
    st.fixed_dictionaries({"conversations": messages}, optional={"system": anything}),
    st.fixed_dictionaries({"prompt": texts | messages, "completion": texts | messages}),
    st.fixed_dictionaries(
        {
            "input_ids": st.lists(st.integers(-5, 400) | anything, max_size=6),
            "labels": st.lists(st.integers(-100, 400) | anything, max_size=6),
        }
    ),
    st.dictionaries(st.sampled_from(columns), texts | anything, max_size=4),
)


@area(st.tuples(rows, st.sampled_from(["chat", "plain", "inline"])))
def row(given: tuple[dict[str, Any], str]) -> None:
    """One row: its format, its messages, its tokens."""
    found, kind = given
    rendered = renderer(kind)(infer_format([found], {})(found))
    size = len(rendered.ids)
    assert size == len(rendered.trained) == len(rendered.turn) == len(rendered.chars)
    assert rendered.trained[1:].any()
    assert (rendered.chars >= 0).all()
    assert (rendered.chars <= len(rendered.text)).all()


said = st.text("ab cé🙂\n<>{}", min_size=1, max_size=12).filter(str.strip)


@area(st.lists(st.tuples(said, said), min_size=1, max_size=3))
def sound_row(given: list[tuple[str, str]]) -> None:
    """Conversations valid by construction: the answers are trained, each with its end, no more."""
    roles = ("user", "assistant")
    turns = [{"role": r, "content": c} for pair in given for r, c in zip(roles, pair, strict=True)]
    found = renderer()(RowFormat("messages")({"messages": turns}))
    ids = found.ids[found.trained].tolist()
    trained = renderer().tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert trained == "".join(f"{answer}<|im_end|>" for _, answer in given)
    assert all(found.text[a:b] for a, b in found.chars[found.trained])


# --- files ---

json_rows = st.lists(st.one_of(rows, anything), max_size=4)
plain_rows = st.lists(
    st.fixed_dictionaries(
        {
            "prompt": st.text("ab c,\n\"'é", min_size=1, max_size=9),
            "completion": st.text("ab", min_size=1, max_size=9),
        }
    ),
    min_size=1,
    max_size=6,
)


def _lines(found: Any) -> bytes:
    return "\n".join(map(_json, found)).encode("utf-8", "surrogatepass")


def _json(value: Any) -> str:
    try:
        return json.dumps(value)
    except RecursionError:
        return "[" * 5000 + "]" * 5000


def _csv(found: list[dict[str, str]], delimiter: str = ",") -> bytes:
    import csv

    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(found[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(found)
    return text.getvalue().encode()


def _parquet(found: list[dict[str, str]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(found), sink)
    return sink.getvalue()


def _arrow(found: list[dict[str, str]]) -> bytes:
    sink, made = io.BytesIO(), pa.Table.from_pylist(found)
    with pa.ipc.new_stream(sink, made.schema) as writer:
        writer.write_table(made)
    return sink.getvalue()


def _array(found: list[Any]) -> bytes:
    return ("[" + ",".join(map(_json, found)) + "]").encode()


JSON_WRITERS = (_lines, _array)
WRITERS: dict[str, Callable[[Any], bytes]] = {
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonlines"), _lines),
    ".json": _array,
    ".csv": _csv,
    ".tsv": partial(_csv, delimiter="\t"),
    ".parquet": _parquet,
    ".arrow": _arrow,
}
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".zst": lambda content: zstandard.compress(content),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
suffixes, packings = st.sampled_from(sorted(WRITERS)), st.sampled_from(sorted(PACKED))


@area(st.tuples(plain_rows, suffixes, packings, st.integers(1, 4)))
def sound_file(given: tuple[list[dict[str, str]], str, str, int]) -> None:
    """Files valid by construction: every row comes back as it was, and is in one unit."""
    wanted, suffix, packed, per_unit = given
    path = folder() / f"sound{suffix}{packed}"
    path.write_bytes(PACKED[packed](WRITERS[suffix](wanted)))
    source = open_source(path)
    assert [r.parse() for r in source.records()] == wanted
    plan = UnitPlan.of(source, Selection(), per_unit)
    assert plan.rows == len(wanted)
    assert [r.row for unit in plan.units() for r in unit.records] == list(range(len(wanted)))


@st.composite
def damaged(draw: Callable[..., Any], contents: st.SearchStrategy[bytes]) -> bytes:
    """Bytes cut, turned and stuffed here and there."""
    content = bytearray(draw(contents))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        what = draw(st.sampled_from(["turn", "cut", "stuff", "double"]))
        if what == "turn" and content:
            content[at] = draw(st.integers(0, 255))
        elif what == "cut":
            del content[at : at + draw(st.integers(1, 40))]
        elif what == "stuff":
            content[at:at] = draw(st.binary(min_size=1, max_size=8))
        else:
            content[at:at] = content[: at + 1]
    return bytes(content)


@st.composite
def files(draw: Callable[..., Any]) -> tuple[str, bytes]:
    suffix, packed = draw(st.sampled_from(SUFFIXES)), draw(packings)
    if WRITERS.get(suffix) in JSON_WRITERS:
        content = WRITERS[suffix](draw(json_rows))
    elif suffix == ".txt":
        content = draw(texts).encode("utf-8", "surrogatepass")
    else:
        content = WRITERS[suffix](draw(plain_rows))
    if draw(st.booleans()):
        return suffix + packed, PACKED[packed](draw(damaged(st.just(content))))
    return suffix + packed, draw(damaged(st.just(PACKED[packed](content))))


@area(files())
def file(given: tuple[str, bytes]) -> None:
    """Damaged files of every kind: read, parsed, planned and fingerprinted."""
    suffix, content = given
    path = folder() / f"file{suffix}"
    path.write_bytes(content)
    source = open_source(path)
    plan = UnitPlan.of(source, Selection(), 3)
    source.fingerprint()
    counted = 0
    for unit in plan.units():
        for record in unit.records:
            counted += 1
            try:
                found = record.parse()
                renderer()(infer_format([found], {})(found))
            except (ProbeError, RowError) as error:
                require_one_line(error)
    assert counted == plan.rows


kinds = st.sampled_from(
    [
        pa.string(),
        pa.large_string(),
        pa.binary(),
        pa.int8(),
        pa.uint64(),
        pa.float16(),
        pa.bool_(),
        pa.timestamp("s"),
        pa.timestamp("ns"),
        pa.timestamp("us", "Nowhere/Land"),
        pa.date32(),
        pa.date64(),
        pa.time64("ns"),
        pa.duration("s"),
        pa.decimal128(10, 2),
        pa.list_(pa.string()),
        pa.struct([("role", pa.string()), ("content", pa.string())]),
        pa.map_(pa.string(), pa.int32()),
        pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
        pa.null(),
        pa.dictionary(pa.int8(), pa.string()),
    ]
)


@area(
    st.tuples(
        st.lists(
            st.tuples(st.sampled_from([*columns, "text", "x\ny"]), kinds), min_size=1, max_size=3
        ),
        st.integers(0, 2**62),
        st.integers(1, 3),
    )
)
def typed_file(given: tuple[list[tuple[str, pa.DataType]], int, int]) -> None:
    """Parquet files with columns of every type, from numbers taken as that type."""
    chosen, number, count = given
    arrays = [_of_type(kind, number, count) for _, kind in chosen]
    made = pa.Table.from_arrays(arrays, names=[name for name, _ in chosen])
    path = folder() / "typed.parquet"
    try:
        pq.write_table(made, path)
    except pa.ArrowException:
        return
    source = open_source(path)
    for record in source.records():
        _ = record.size
        found = record.parse()
        renderer()(infer_format([found], {})(found))


def _of_type(kind: pa.DataType, number: int, count: int) -> pa.Array:
    for value in (number, str(number), str(number).encode(), [str(number)], number % 100, True):
        first = pa.int64() if value is number else kind  # a time of that many seconds
        try:
            return pa.array([value] * count, first).cast(kind)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            continue
    return pa.nulls(count, kind)


@area(
    st.one_of(
        st.text(max_size=20),
        st.sampled_from(
            [
                "~nobody/x.jsonl",
                "\0",
                "no*",
                "[",
                "?" * 300,
                "a/b/c",
                "-x",
                ".",
                "/",
                "x" * 5000,
                "//",
                "a\nb",
            ]
        ),
    )
)
def place(given: str) -> None:
    """Whatever may be given as DATA. No hub is asked: what looks like one of its names is left."""
    if "/" in given and not any(c in given for c in "*?[") and given.count("/") == 1:
        return
    if given == "-" or os.path.isdir(
        given.replace("\0", "")
    ):  # reads standard input, or whatever lies there
        return
    next(iter(open_source(given).records()), None)


# --- templates ---

PIECES = [
    "{{ messages[0].content }}",
    "{{ messages[0]['role'] }}",
    "{% for m in messages %}",
    "{% endfor %}",
    "{{ m.content }}",
    "{{ m.content | trim }}",
    "{% if m.role == 'user' %}",
    "{% endif %}",
    "<|im_start|>",
    "<|im_end|>\n",
    "{% generation %}",
    "{% endgeneration %}",
    "{{ raise_exception('no\x1b[2J') }}",
    "{{ range(10**9) | list }}",
    "{{ 'a' * 10**3 }}",
    "{{ messages | length }}",
    "{% set x = x * 2 %}",
    "{{ '\\ud800' }}",
    "{{ undefined.y }}",
    "{{ 1 / 0 }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ messages[99].content }}",
    "{{",
    "%}",
    "{{ ''.__class__.__mro__ }}",
    "{{ tools | tojson }}",
    "{% break %}",
    "{{ m.content[::-1] }}",
    "{{ eos_token }}",
    "{{ m.content | upper }}",
    "\ue0f00\ue0f1",
    "{% include 'x' %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
]
conversation = st.lists(
    st.builds(Message, st.sampled_from(["user", "assistant", "system", "tool"]), texts),
    min_size=1,
    max_size=4,
)


HEAD, TURN, TAIL = tiny.CHAT_TEMPLATE.partition("{{ message['content'] }}")
pieces = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=7).map("".join)
sources = st.one_of(
    pieces,
    st.sampled_from(PIECES).map(lambda piece: HEAD + piece + TURN + TAIL),
    st.sampled_from(PIECES).map(lambda piece: HEAD + TURN + piece + TAIL),
    st.sampled_from([" | trim", " ~ 'x'", " | upper", "[:3]", " * 2", " | tojson"]).map(
        lambda more: HEAD + TURN.replace(" }}", more + " }}") + TAIL
    ),
)


@area(st.tuples(sources, conversation))
def template(given: tuple[str, list[Message]]) -> None:
    """Chat templates put together of pieces, endless loops among them."""
    source, turns = given
    with patch.object(templates, "SECONDS", 0.3):  # some of the pieces are loops without an end
        found = Renderer(tiny.tokenizer(source or None))(Example("", tuple(turns)))
    assert len(found.ids) == len(found.trained)
    assert (found.chars <= len(found.text)).all()


# --- configs ---

SETTINGS = (
    ScanSettings,
    TrainSettings,
    RolloutSettings,
    CompareSettings,
    GradientSettings,
    PlotSettings,
)
keys = st.sampled_from(sorted({f for kind in SETTINGS for f in kind.__dataclass_fields__}))
yamls = st.one_of(
    st.dictionaries(keys, anything, max_size=3).map(lambda v: _yaml(v)),
    st.tuples(
        keys,
        st.sampled_from(
            [
                "!!int ''",
                "!!bool x",
                "!!timestamp x",
                "!!float ''",
                "!!binary x",
                "!!python/object:x {}",
                "2001-99-99",
                "1:99:99",
                "0x",
                "&a [*a]",
                "[" * 3000,
                "{" * 3000,
                "? [a]",
                "!!set {x}",
                "*unknown",
                "%YAML 9",
                "\t",
                "1e999",
                ".nan",
                "-.inf",
                "1_0",
                "!!int 0b",
                "!!omap [x]",
            ]
        ),
    ).map(": ".join),
    st.text(max_size=40),
    st.integers(5, 30).map(
        lambda n: (
            "a0: &a0 [x,x]\n"
            + "".join(f"a{i}: &a{i} [*a{i - 1},*a{i - 1},*a{i - 1}]\n" for i in range(1, n))
            + f"set: *a{n - 1}"
        )
    ),
    st.integers(5, 30).map(
        lambda n: (
            "columns:\n - &a0 [x,x]\n"
            + "".join(f" - &a{i} [*a{i - 1},*a{i - 1},*a{i - 1}]\n" for i in range(1, n))
        )
    ),
)


def _yaml(value: Any) -> str:
    try:
        return str(yaml.safe_dump(value))
    except (RecursionError, yaml.YAMLError):
        return "- " * 2000


@area(st.tuples(yamls, st.sampled_from(SETTINGS)))
def config(given: tuple[str, type[Any]]) -> None:
    """--config files."""
    text, kind = given
    path = folder() / "c.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    make_settings(kind, read_config(path))


# --- scans ---


@cache
def sound_scan() -> Path:
    made = scans_made.measured(scans_made.places(60))
    return scans_made.write(folder() / "scan", made, parts=2).path


@cache
def manifest() -> str:
    return (sound_scan() / "manifest.json").read_text()


@st.composite
def manifests(draw: Callable[..., Any]) -> bytes:
    """The sound one with values put elsewhere, or its bytes damaged."""
    if draw(st.booleans()):
        return draw(damaged(st.just(manifest().encode())))
    found = json.loads(manifest())
    for _ in range(draw(st.integers(1, 3))):
        inner, key = found, draw(st.sampled_from(sorted(found)))
        while isinstance(inner[key], dict | list) and inner[key] and draw(st.booleans()):
            inner = inner[key]
            names_ = sorted(inner) if isinstance(inner, dict) else list(range(len(inner)))
            key = draw(st.sampled_from(names_))
        inner[key] = draw(st.one_of(anything, st.just(10**18), st.just(-1), st.just(float("nan"))))
    return _json(found).encode("utf-8", "surrogatepass")


@area(st.deferred(manifests))
def manifest_file(given: bytes) -> None:
    """Manifests."""
    path = sound_scan() / "manifest.json"
    path.write_bytes(given)
    try:
        found = Scan.open(sound_scan())
        names([found])
        caption([found])
        assert summarize(found)["trained_tokens"] == 60
    finally:
        path.write_text(manifest())


@st.composite
def parts(draw: Callable[..., Any]) -> tuple[str, bytes]:
    name = draw(
        st.sampled_from(
            [
                "tokens/part-00000.parquet",
                "examples/part-00001.parquet",
                "conflicts.parquet",
                "rule.json",
            ]
        )
    )
    return name, draw(damaged(st.just(_content(name))))


@cache
def _content(name: str) -> bytes:
    return (sound_scan() / name).read_bytes()


@area(st.deferred(parts))
def part(given: tuple[str, bytes]) -> None:
    """Damaged parquet parts whose sha256 the manifest has, and the rule with what it flags."""
    name, content = given
    path = sound_scan() / name
    before = _content(name)
    path.write_bytes(content)
    try:
        found = json.loads(manifest())
        for index, listed in enumerate(found["parts"]):
            listed |= scans_made.part_facts(sound_scan(), index, listed["rows"])
        (sound_scan() / "manifest.json").write_text(json.dumps(found))
        opened = Scan.open(sound_scan())
        assert summarize(opened)["trained_tokens"] == 60
        opened.examples()
        opened.conflicts()
    finally:
        path.write_bytes(before)
        (sound_scan() / "manifest.json").write_text(manifest())


@cache
def kept_scan() -> Path:
    return scans_made.keeping(Scan.open(sound_scan()), folder() / "kept").path


@cache
def totals() -> bytes:
    return (kept_scan() / TOTALS).read_bytes()


@st.composite
def other_totals(draw: Callable[..., Any]) -> bytes:
    """The sound ones with keys and values put elsewhere, or their bytes damaged."""
    if draw(st.booleans()):
        return draw(damaged(st.just(totals())))
    table = pq.read_table(io.BytesIO(totals()))
    found = {n: ([*k], v.copy()) for n, (k, v) in sums_of(table).items()}
    for _ in range(draw(st.integers(1, 3))):
        keys, values = found[draw(st.sampled_from(sorted(found)))]
        at = draw(st.integers(0, len(keys) - 1))
        if draw(st.booleans()):
            keys[at] = draw(st.one_of(st.text(max_size=5), st.integers().map(str)))
        else:
            values[at, draw(st.integers(0, values.shape[1] - 1))] = draw(st.floats())
    buffer = io.BytesIO()
    pq.write_table(table_of(found, columns_of(table)), buffer)
    return buffer.getvalue()


@area(st.deferred(other_totals))
def totals_file(given: bytes) -> None:
    """Totals whose sha256 the manifest has."""
    path, before = kept_scan() / TOTALS, json.loads((kept_scan() / "manifest.json").read_text())
    path.write_bytes(given)
    try:
        found = {**before, "totals": sha256(path)}
        (kept_scan() / "manifest.json").write_text(json.dumps(found))
        opened = Scan.open(kept_scan())
        assert summarize(opened)["trained_tokens"] == 60
        whole = OfTotals(opened)
        assert whole.plane().counts.sum() == 60
        assert whole.by_position()["counts"].sum() == 60
        assert len(whole.pairs(5)) <= 5
    finally:
        path.write_bytes(totals())
        (kept_scan() / "manifest.json").write_text(json.dumps(before))


FORMAT_NAMES = tuple(FORMATS)


@area(
    st.tuples(
        st.sampled_from(FORMAT_NAMES),
        rows,
        st.dictionaries(
            st.sampled_from([*columns, "role", "content"]),
            st.sampled_from([*columns, "x"]),
            max_size=2,
        ),
    )
)
def named_format(given: tuple[str, dict[str, Any], dict[str, str]]) -> None:
    """A row under a format that the user named, with mapped columns."""
    name, found, mapped = given
    renderer()(RowFormat(name, mapped)(found))
