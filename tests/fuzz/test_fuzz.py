"""The areas of `areas.py` with the same few inputs on every run; `benchmarks/fuzz.py` has more."""

import gzip
import threading
import time
from contextlib import suppress
from pathlib import Path

import hostile_areas  # noqa: F401, which adds to AREAS
import pyarrow as pa
import pytest
import tiny
from areas import AREAS, Tally, judged
from hypothesis import HealthCheck, Phase, given, settings

from eaft_probe.data.messages import Message
from eaft_probe.data.rendering import chat_template, timeout
from eaft_probe.data.sources import open_source
from eaft_probe.errors import BadInput, DataError, ModelError, ProbeError, RowError, one_line
from eaft_probe.settings import ScanSettings, make_settings, read_config
from eaft_probe.storage.atomic import written_aside


@pytest.mark.parametrize("name", AREAS)
def test_it_works_or_says_why_not(name: str) -> None:
    area, tally = AREAS[name], Tally()

    @settings(
        max_examples=area.few,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(area.inputs)
    def run(found: object) -> None:
        judged(area.run, found, tally)

    run()
    assert tally.inputs >= area.few
    if name.startswith("sound"):
        assert tally.refused == 0


# --- what the fuzzers found ---


@pytest.mark.parametrize(
    "text",
    [
        "limit: !!int ''",
        "strict: !!bool x",
        "model: !!timestamp x",
        "- " * 2000,
        "[" * 3000,
        "a: &a [*a]",
        "columns: \udcff",
    ],
)
def test_yaml_that_is_none(text: str, tmp_path: Path) -> None:
    """IndexError, KeyError, AttributeError and RecursionError out of the YAML reader."""
    (tmp_path / "c.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(BadInput, match="cannot read --config"):
        read_config(tmp_path / "c.yaml")


def test_thirty_lines_of_yaml_do_not_become_a_billion_values(tmp_path: Path) -> None:
    """The message quoted the value: it was never done."""
    lines = [
        "columns:",
        " - &a0 [x, x]",
        *(f" - &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)),
    ]
    (tmp_path / "c.yaml").write_text("\n".join(lines))
    with pytest.raises(BadInput, match="aliases"):
        make_settings(ScanSettings, read_config(tmp_path / "c.yaml"))


@pytest.mark.parametrize("name", ["~nobody-here/x.jsonl", "a\0b.jsonl", "x" * 5000, "?" * 300])
def test_names_of_data_that_no_file_has(name: str) -> None:
    """RuntimeError, ValueError and OSError."""
    with pytest.raises(DataError):
        open_source(name)


@pytest.mark.parametrize("kind", [pa.timestamp("s"), pa.date64(), pa.timestamp("us", "No/Where")])
def test_a_value_that_python_has_no_type_for_rejects_its_row(kind: pa.DataType, tmp_path) -> None:
    """OverflowError, and pytz's KeyError; the rows beside it are read."""
    import pyarrow.parquet as pq

    when = pa.array([0, 2**52, None], pa.int64()).cast(kind)
    pq.write_table(pa.table({"text": ["a", "b", "c"], "when": when}), tmp_path / "x.parquet")
    _, rejected, last = open_source(tmp_path / "x.parquet").records()
    assert last.parse()["text"] == "c"
    with pytest.raises(RowError, match="cannot be read"):
        rejected.parse()


def test_an_arrow_file_whose_offsets_lie_is_refused(tmp_path: Path) -> None:
    """Arrow believes them and reads beyond the end of the memory."""
    sink = pa.BufferOutputStream()
    made = pa.table({"text": ["abcd", "efgh"]})
    with pa.ipc.new_stream(sink, made.schema) as writer:
        writer.write_table(made)
    content = sink.getvalue().to_pybytes()
    offsets = bytes([0, 0, 0, 0, 4, 0, 0, 0, 8, 0, 0, 0])
    assert content.count(offsets) == 1
    broken = content.replace(offsets, bytes([0, 0, 0, 0, 0, 0, 0, 64, 8, 0, 0, 0]))
    (tmp_path / "x.arrow").write_bytes(broken)
    with pytest.raises(DataError, match="cannot read"):
        list(open_source(tmp_path / "x.arrow").records())


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".txt"])
def test_a_line_larger_than_any_row_rejects_itself(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kilobyte of an archive unpacks to a line that no memory holds."""
    monkeypatch.setattr("eaft_probe.data.files.lines.LONGEST_ROW", 50)
    rows = [b'{"text": "a"}', b'{"text": "' + b"x" * 200 + b'"}', b'{"text": "b"}']
    content = b"\n\n".join(rows)
    path = tmp_path / f"x{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    found = list(open_source(path).records())
    assert [record.line for record in found] == [1, 3, 5]
    with pytest.raises(RowError, match="more than 50 bytes"):
        found[1].parse()
    assert "b" in found[2].parse()["text"]


LOOPS = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3


def test_a_template_without_an_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ran for days; now each row has its time, and what is slow for too long ends the run."""
    monkeypatch.setattr(chat_template, "SECONDS", 0.1)
    monkeypatch.setattr(chat_template, "SLOW", 0.1)
    template = tiny.CHAT_TEMPLATE + "{% if messages | length > 2 %}" + LOOPS + "{% endif %}"
    render = chat_template.ChatTemplate(template)
    short = [Message("user", "a"), Message("assistant", "b")]
    with pytest.raises(RowError, match="ran longer"):
        render.render([*short, *short])
    assert "b<|im_end|>" in render.render(short).text
    monkeypatch.setattr(chat_template, "MOST_SLOW", 0.15)
    with pytest.raises(ModelError, match="too slow"):
        render.render([*short, *short])


def test_the_bound_holds_in_any_thread_and_leaves_others_alone() -> None:
    def work(out: list[object], until: float) -> None:
        try:
            with timeout.at_most(0.2):
                while time.monotonic() < until:
                    pass
            out.append("done")
        except timeout.TookTooLong as error:
            out.append(error)

    slow, quick = [], []
    now = time.monotonic()
    threads = [threading.Thread(target=work, args=a) for a in ((slow, now + 60), (quick, now))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert quick == ["done"]
    assert str(slow[0]) == "it ran too long"


def test_the_bound_strikes_again_where_it_was_swallowed() -> None:
    """As in a callback of the garbage collector: the template then ran without one."""
    until = time.monotonic() + 60

    def swallow_the_first() -> None:
        with timeout.at_most(0.1):
            with suppress(timeout.TookTooLong):
                while time.monotonic() < until:
                    pass
            while time.monotonic() < until:
                pass

    with pytest.raises(timeout.TookTooLong):
        swallow_the_first()
    assert time.monotonic() < until
    time.sleep(timeout.AGAIN + 2 * timeout.POLL)  # and nothing is raised in what follows


def test_half_a_character_from_a_template_rejects_the_row() -> None:
    """The tokenizer's TypeError."""
    odd = chat_template.ChatTemplate("{{ '\\ud800' }}")
    with pytest.raises(RowError, match="refuses"):
        odd.render([Message("user", "a")])


def test_messages_are_one_printable_line() -> None:
    """A file's name or a template's own words reached the terminal with their escapes."""
    for kind in (ProbeError, BadInput, RowError):
        said = str(kind("a\nb\x1b[2J\u202e" + "x" * 5000))
        assert said.startswith("a b\\x1b[2J\\u202e")
        assert len(said) <= 1000
    assert one_line(ValueError("\x9b31m")) == "\\x9b31m"


def test_a_file_aside_is_nobody_elses(tmp_path: Path) -> None:
    """A link in its place was written through; two writers wrote into one file."""
    (tmp_path / "precious").write_text("mine")
    (tmp_path / ".x.json.part").symlink_to(tmp_path / "precious")
    with written_aside(tmp_path / "x.json") as one, written_aside(tmp_path / "x.json") as other:
        assert one != other
        one.write_text("1")
        other.write_text("2")
    assert (tmp_path / "x.json").read_text() == "1"
    assert (tmp_path / "precious").read_text() == "mine"
