"""Scans of disjoint data as one: every number that of a scan of all the data, refusals, resume."""

import errno
import hashlib
import json
import os
import shutil
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scans_made
import tiny
from forked import Forked
from pandas.testing import assert_frame_equal

from eaft_probe import Scan, compare, scan
from eaft_probe.analysis.exact_gradients import FullGradients
from eaft_probe.analysis.histogram2d import histogram
from eaft_probe.analysis.summary import summarize, worst_examples
from eaft_probe.cli import _run
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.data.sources import open_source
from eaft_probe.errors import BadInput, ProbeError, ScanError
from eaft_probe.model.loading import load_model
from eaft_probe.progress import Silent
from eaft_probe.scans.part_writer import write_part
from eaft_probe.settings import ScanSettings
from eaft_probe.verbs.gradients.gradients import gradients
from eaft_probe.verbs.merge.merge import merge
from eaft_probe.verbs.train.scan_features import require_same_data

RULE = ConflictRule(4.6, 0.002)  # a random model is sure of little
WORDS = "the cat sat on a mat and then it ran over hills to see what was there".split()  # noqa: SIM905
OTHERWISE = ("path", "data", "kept", "rule")  # of a summary: what does not depend on the numbers


def line(number: int) -> str:
    """A row; some cannot be scored."""
    if number % 9 == 4:
        return "{not json"
    answer = " ".join(WORDS[(number * 5 + i * i) % len(WORDS)] for i in range(3 + number % 7))
    return json.dumps(
        {
            "id": f"row-{number}",
            "question": WORDS[number % 17],
            "answer": answer,
            "tag": "ab"[number % 2],
            "source": f"s{number % 3}",
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files of 8, 4 and 10 rows."""
    folder = tmp_path_factory.mktemp("merge")
    (folder / "data").mkdir()
    at = 0
    for name, rows in (("a", 8), ("b", 4), ("c", 10)):
        lines = [line(n) for n in range(at, at + rows)]
        (folder / f"data/{name}.jsonl").write_text("\n".join(lines) + "\n")
        at += rows
    return folder


@pytest.fixture(scope="module")
def shards(folder: Path, model_folder: str) -> list[Scan]:
    return [scanned(folder / f"data/{n}.jsonl", folder / n, model_folder) for n in "abc"]


@pytest.fixture(scope="module")
def whole(folder: Path, model_folder: str) -> Scan:
    return scanned(folder / "data", folder / "whole", model_folder)


def scanned(data: Path, out: Path, model: str, **settings: Any) -> Scan:
    given: dict[str, Any] = {"rows_per_unit": 4, "entropy_below": 4.6, "prob_below": 0.002}
    return scan(str(data), out, model=model, **given | settings)


def files(folder: Path) -> dict[str, str]:
    found = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def rejected(scan: Scan) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (scan.path / "rejected.jsonl").open()]


# --- the whole ---


def test_merged_scans_are_the_scan_of_all_the_data(
    folder: Path, shards: list[Scan], whole: Scan
) -> None:
    merged = merge(shards, folder / "merged")
    assert_frame_equal(merged.tokens(), whole.tokens())
    assert_frame_equal(merged.examples().drop(columns="source"), whole.examples())
    assert_frame_equal(merged.conflicts(), whole.conflicts())
    assert merged.rule == whole.rule == RULE
    assert 0 < len(merged.conflicts()) < len(merged.tokens())
    for name in ("counts", "columns", "model", "chat_template", "special_tokens", "versions"):
        assert merged.manifest[name] == whole.manifest[name], name
    assert merged.manifest["data"]["rows"] == whole.manifest["data"]["rows"] == 22
    assert {k: v for k, v in summarize(merged).items() if k not in OTHERWISE} == {
        k: v for k, v in summarize(whole).items() if k not in OTHERWISE
    }
    assert worst_examples(merged, 5) == worst_examples(whole, 5)
    names = [{n: row[n] for n in ("row", "line", "reason")} for row in rejected(merged)]
    sevens = [{n: row[n] for n in ("row", "line", "reason")} for row in rejected(whole)]
    assert names == sevens
    assert [Path(row["source"]).name for row in rejected(merged)] == ["a.jsonl", "c.jsonl"]


def test_every_example_says_where_it_came_from(folder: Path, shards: list[Scan]) -> None:
    merged = merge(shards, folder / "merged")
    examples = merged.examples()
    said = examples["source"].map(lambda name: Path(name).stem)
    expected = ["a" if n < 8 else "b" if n < 12 else "c" for n in examples["example"]]
    assert said.to_list() == expected
    table = summarize(merged)["kept"]["source"]
    assert {Path(r["value"]).stem: r["examples"] for r in table} == {"a": 7, "b": 4, "c": 9}
    field = pq.read_schema(merged.path / "examples/part-00000.parquet").field("source")
    assert b"came from" in field.metadata[b"meaning"]
    listed = merged.manifest["data"]["sources"]
    assert [(s["first"], s["rows"]) for s in listed] == [(0, 8), (8, 4), (12, 10)]
    assert merged.manifest["data"]["source"] == "a.jsonl + b.jsonl + c.jsonl"


def test_the_fingerprint_is_that_of_the_files_together(
    folder: Path, shards: list[Scan], whole: Scan
) -> None:
    """So that a merged scan is compared with a scan of all the data token by token."""
    merged = merge(shards, folder / "merged")
    assert merged.manifest["data"]["fingerprint"] == whole.manifest["data"]["fingerprint"]
    found = compare(merged, whole)
    assert (found.by, found.totals["learned"], found.totals["forgotten"]) == ("tokens", 0, 0)
    assert found.totals["tokens"] == whole.manifest["counts"]["trained_tokens"]


def test_a_merged_scan_may_mask_a_training_on_all_the_data(
    folder: Path, shards: list[Scan], model_folder: str
) -> None:
    merged, model = merge(shards, folder / "merged"), load_model(model_folder)
    source, settings = open_source(folder / "data"), ScanSettings(model=model_folder)
    require_same_data(merged, source, settings, model, "--mask")
    with pytest.raises(BadInput, match="another data"):
        require_same_data(shards[0], source, settings, model, "--mask")


def test_the_hashes_of_the_parts_are_theirs(folder: Path, shards: list[Scan]) -> None:
    merged = merge(shards, folder / "merged")
    for part, known in zip(merged.manifest["parts"], merged.part_files("tokens"), strict=True):
        assert part["sha256"] == hashlib.sha256(known.read_bytes()).hexdigest()
        assert part["rows"] == pq.read_metadata(known).num_rows


def test_merged_in_steps_is_merged_at_once(folder: Path, shards: list[Scan]) -> None:
    at_once = merge(shards, folder / "merged")
    first = merge(shards[:2], folder / "two")
    for number, steps in enumerate(([first, shards[2]], [shards[0], None])):
        last = steps[1] or merge(shards[1:], folder / "last")
        made = merge([steps[0] or first, last], folder / f"steps-{number}")
        assert files(made.path).keys() == files(at_once.path).keys()
        assert_frame_equal(made.tokens(), at_once.tokens())
        assert_frame_equal(made.examples(), at_once.examples())
        assert made.manifest["data"] == at_once.manifest["data"]
        assert made.manifest["parts"] == at_once.manifest["parts"]
        assert rejected(made) == rejected(at_once)


@pytest.mark.parametrize("seed", range(6))
def test_any_split_gives_the_numbers_of_the_whole(tmp_path: Path, seed: int) -> None:
    """Random cuts, parts and row groups; a scan's own examples begin at 0 and may have gaps."""
    random = np.random.default_rng(seed)
    tokens = scans_made.measured(scans_made.places(900, seed), seed + 1)
    examples = np.sort(tokens["example"].unique())
    cuts = np.sort(random.choice(examples[1:], int(random.integers(1, 6)), replace=False))
    made, expected, first = [], [], 0
    for number, mine in enumerate(np.split(examples, np.searchsorted(examples, cuts))):
        own = tokens[tokens["example"].isin(mine)]
        own = own.assign(example=own["example"] - mine[0])
        parts, group = int(random.integers(1, 4)), random.choice([None, 50])
        made.append(
            scans_made.write(
                tmp_path / f"s{number}", own, parts, RULE, group, source=f"{number}.jsonl"
            )
        )
        expected.append(own.assign(example=own["example"] + first))
        first += int(own["example"].max()) + 1
    merged = merge(made, tmp_path / "merged")
    one = scans_made.write(tmp_path / "one", pandas.concat(expected), 2, RULE)
    assert_frame_equal(merged.tokens(), one.tokens(), check_categorical=False)
    assert_frame_equal(merged.conflicts(), one.conflicts())
    assert (histogram(merged).counts == histogram(one).counts).all()
    ours, theirs = summarize(merged), summarize(one)
    for name in {*theirs} - {*OTHERWISE}:
        same = theirs[name] if isinstance(theirs[name], list | str) else pytest.approx(theirs[name])
        assert ours[name] == same, name  # sums in another order differ in their last digits


def test_rows_of_a_sample_keep_their_numbers(folder: Path, model_folder: str) -> None:
    a, b = (
        scanned(folder / f"data/{n}.jsonl", folder / f"{n}-some", model_folder, sample=3)
        for n in "ca"
    )
    merged = merge([a, b], folder / "some")
    last = max(a.examples()["example"].max(), *(row["row"] for row in rejected(a)), 2)
    rows = [*(b.examples()["example"] + last + 1)]
    assert [*merged.examples()["example"]] == [*a.examples()["example"], *rows]
    whole = merge([Scan.open(folder / n) for n in "ca"], folder / "ca")
    assert merged.manifest["data"]["fingerprint"] != whole.manifest["data"]["fingerprint"]


def test_kept_columns_come_along(folder: Path, model_folder: str) -> None:
    """One of the name `source` makes room; a scan without a column gets nulls."""
    a = scanned(folder / "data/a.jsonl", folder / "a-kept", model_folder, keep=["source", "tag"])
    b = scanned(folder / "data/b.jsonl", folder / "b-kept", model_folder, keep=["tag"])
    merged = merge([a, b], folder / "kept")
    examples = merged.examples()
    assert list(examples)[-3:] == ["source_in_data", "tag", "source"]
    assert [*examples["source_in_data"][:7]] == [*a.examples()["source"]]
    assert examples["source_in_data"][7:].isna().all()
    assert [*examples["tag"]] == [*a.examples()["tag"], *b.examples()["tag"]]
    again = merge(
        [merged, scanned(folder / "data/c.jsonl", folder / "c", model_folder)],
        folder / "kept-again",
    )
    assert list(again.examples())[-3:] == ["source_in_data", "tag", "source"]
    assert_frame_equal(again.examples()[: len(examples)], examples)


def test_sources_of_one_name_are_told_apart(tmp_path: Path, model_folder: str) -> None:
    made = []
    for number in range(2):
        rows = [json.loads(line(n + number)) for n in range(3)]
        made.append(scan(rows, tmp_path / str(number), model=model_folder))
    names = merge(made, tmp_path / "m").examples()["source"].unique()
    prints = [s.manifest["data"]["fingerprint"][:8] for s in made]
    assert [*names] == [f"rows ({p})" for p in prints]


# --- the rule ---


class Notes:
    def __init__(self) -> None:
        self.said: list[str] = []

    def start(self, what: str, rows: int) -> None: ...

    def advance(self, rows: int, tokens: int) -> None: ...

    def note(self, text: str) -> None:
        self.said.append(text)


def made(tmp_path: Path, name: str, rule: ConflictRule | None = None, seed: int = 0) -> Scan:
    tokens = scans_made.measured(scans_made.places(200, seed), seed)
    return scans_made.write(tmp_path / name, tokens, rule=rule, source=f"{name}.jsonl")


def test_one_rule_is_kept_several_are_the_default(tmp_path: Path) -> None:
    notes = Notes()
    a, b = made(tmp_path, "a", RULE), made(tmp_path, "b", RULE, 1)
    assert merge([a, b], tmp_path / "same", progress=notes).rule == RULE
    assert not notes.said
    b.flag(ConflictRule())
    assert merge([a, b], tmp_path / "other", progress=notes).rule == ConflictRule()
    assert "different rules (entropy < 4.6 nats and prob < 0.002; entropy < 0.509" in notes.said[0]


def test_a_quantile_is_found_again_over_the_whole(tmp_path: Path) -> None:
    a, b = (made(tmp_path, n, ConflictRule(quantile=0.3), s) for n, s in (("a", 0), ("b", 1)))
    rule = merge([a, b], tmp_path / "m").rule
    both = pandas.concat([a.tokens(["entropy", "prob"]), b.tokens(["entropy", "prob"])])
    assert rule.quantile == 0.3
    assert rule.entropy_below == pytest.approx(np.quantile(both["entropy"], 0.3), abs=1e-7)
    assert rule.prob_below == pytest.approx(np.quantile(both["prob"], 0.3), abs=1e-7)


# --- going on ---


class Stop(Notes):
    """Progress that interrupts after some parts, as Ctrl-C would."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def advance(self, rows: int, tokens: int) -> None:
        self.left -= rows
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [0, 2, 4])
def test_an_interrupted_merge_goes_on_byte_for_byte(
    folder: Path, shards: list[Scan], tmp_path: Path, after: int
) -> None:
    merge(shards, folder / "merged")
    with pytest.raises(KeyboardInterrupt):
        merge(shards, tmp_path / "m", progress=Stop(after))
    with pytest.raises(ScanError, match="unfinished"):
        Scan.open(tmp_path / "m")
    merge(shards, tmp_path / "m")
    assert files(tmp_path / "m") == files(folder / "merged")


class Kill(Silent):
    def advance(self, rows: int, tokens: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_merge_goes_on(folder: Path, shards: list[Scan], tmp_path: Path) -> None:
    given = [str(s.path) for s in shards]
    killed = Forked(partial(merge, progress=Kill()), given, str(tmp_path / "m"))
    assert killed.wait() == -signal.SIGKILL, killed.communicate()
    assert len(list((tmp_path / "m").glob("examples/part-*"))) == 1
    merge(shards, tmp_path / "m")
    assert files(tmp_path / "m") == files(merge(shards, folder / "merged").path)


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    folder: Path, shards: list[Scan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []

    def full(into: Path, index: int, *more: Any) -> None:
        written.append(index)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_part(into, index, *more)

    monkeypatch.setattr("eaft_probe.verbs.merge.merge.write_part", full)
    with pytest.raises(ProbeError, match="No space left on device; finished parts are kept"):
        merge(shards, tmp_path / "m")
    merge(shards, tmp_path / "m")
    assert written == [0, 1, 2, 2, 3, 4, 5]
    assert files(tmp_path / "m") == files(merge(shards, folder / "merged").path)


class Held(Notes):
    """What Arrow holds when a part is done."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: list[int] = []

    def advance(self, rows: int, tokens: int) -> None:
        self.bytes.append(pa.total_allocated_bytes())


def test_a_part_is_held_at_a_time(tmp_path: Path) -> None:
    tokens = scans_made.measured(scans_made.places(4000))
    made = [scans_made.write(tmp_path / n, tokens, parts=8, source=n) for n in "ab"]
    held = Held()
    merge(made, tmp_path / "m", progress=held)
    assert len(held.bytes) == 16
    part = made[0].tokens_table().nbytes / 8
    assert max(held.bytes) < min(held.bytes) + 2 * part


def test_a_finished_merge_is_left_alone_and_another_is_refused(
    shards: list[Scan], tmp_path: Path
) -> None:
    merge(shards[:2], tmp_path / "m")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "m").rglob("*.*")}
    merge(shards[:2], tmp_path / "m")
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "m").rglob("*.*")}
    with pytest.raises(ScanError, match="--overwrite"):
        merge(shards[1:], tmp_path / "m")
    assert len(merge(shards[1:], tmp_path / "m", overwrite=True).examples()) == 13


# --- exact norms ---


def with_norms(shards: Sequence[Scan], folder: Path, **settings: Any) -> list[Scan]:
    """Copies of scans, with their exact norms."""
    copies = [Scan.open(shutil.copytree(s.path, folder / s.path.name)) for s in shards]
    for copy in copies:
        gradients(copy.path, **settings)
    return copies


def test_exact_norms_come_along(shards: list[Scan], whole: Scan, tmp_path: Path) -> None:
    """Of all tokens they are those of the whole."""
    (one,) = with_norms([whole], tmp_path, sample=1000)
    merged = merge(with_norms(shards, tmp_path, sample=1000), tmp_path / "m")
    places = ["example", "position"]
    found, wanted = (
        FullGradients.open(s).table.sort_values(places, ignore_index=True) for s in (merged, one)
    )
    assert len(found) == len(whole.tokens())
    assert_frame_equal(found, wanted, rtol=1e-4, atol=1e-4)
    path = merged.path / "gradients.parquet"
    before = path.read_bytes()
    assert gradients(merged.path, sample=2000).made.sample == 3000
    assert path.read_bytes() == before


def test_a_merged_sample_stands_for_the_tokens_of_all(shards: list[Scan], tmp_path: Path) -> None:
    made = with_norms(shards[:2], tmp_path, sample=20, seed=3)
    merged = merge(made, tmp_path / "m")
    found = FullGradients.open(merged)
    tables = [FullGradients.open(s).table for s in made]
    tables[1]["example"] += 8  # the rows of the first
    assert_frame_equal(found.table, pandas.concat(tables, ignore_index=True))
    assert (found.made.sample, found.made.seed, len(found.table)) == (40, 3, 40)
    assert found.covered == pytest.approx(1)  # each stratum of each scan has been drawn from


def test_norms_that_do_not_belong_together_are_left_out(shards: list[Scan], tmp_path: Path) -> None:
    made = with_norms(shards[:2], tmp_path, sample=5)
    assert "c has none" in left_out([*made, shards[2]], tmp_path / "m")
    gradients(made[1].path, sample=5, seed=1, overwrite=True)
    assert "seeds or samples differ" in left_out(made, tmp_path / "n")
    (made[1].path / "gradients.parquet").write_bytes(b"PAR1")
    assert "is damaged" in left_out(made, tmp_path / "o")


def left_out(scans: Sequence[Scan], out: Path) -> str:
    """The note that a merge gives."""
    notes = Notes()
    merge(scans, out, progress=notes)
    assert not (out / "gradients.parquet").exists()
    (said,) = [s for s in notes.said if s.startswith("gradients.parquet is left out: ")]
    assert said.endswith(f"`eaft-probe gradients {out}` makes one of the whole")
    return said


# --- what is refused ---


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model of other weights, and one with another template."""
    folder = tmp_path_factory.mktemp("others")
    long = {"max_position_embeddings": 1024}
    tiny.save(folder / "other", tiny.build(seed=1, **long))
    tiny.build(**long).save_pretrained(folder / "template")
    tiny.tokenizer(tiny.CHAT_TEMPLATE + "\n").save_pretrained(folder / "template")
    return {name: str(folder / name) for name in ("other", "template")}


def refused(scans: Sequence[Any], out: Path, said: str, kind: type[Exception] = BadInput) -> None:
    with pytest.raises(kind, match=said) as error:
        merge(scans, out)
    assert "\n" not in str(error.value)
    assert not (out / "manifest.json").exists()


def test_the_same_data_twice_is_refused(
    folder: Path, shards: list[Scan], tmp_path: Path, model_folder: str
) -> None:
    refused(shards[:1], tmp_path / "m", "at least two")
    refused([shards[0], str(shards[0].path)], tmp_path / "m", "both contain the data")
    again = scanned(folder / "data/a.jsonl", folder / "a-again", model_folder, limit=5)
    refused([shards[0], again], tmp_path / "m", r"the data in .*a\.jsonl;")
    merged = merge(shards[:2], folder / "two")
    refused([merged, again], tmp_path / "m", r"the data in .*a\.jsonl;")
    refused([shards[2], shards[0], merged], tmp_path / "m", r"the data in .*a\.jsonl;")
    refused([shards[0], tmp_path / "none"], tmp_path / "m", "no such folder", ScanError)
    assert not (tmp_path / "m").exists()


def test_a_folder_beside_one_of_its_files_is_refused(
    folder: Path, shards: list[Scan], whole: Scan, tmp_path: Path, model_folder: str
) -> None:
    """By the content of the files, wherever they lie; also in a scan that was merged before."""
    refused(
        [shards[1], whole], tmp_path / "m", r"b and .*whole both contain the data in .*b\.jsonl;"
    )
    moved = tmp_path / "data"
    moved.mkdir()
    (moved / "x.jsonl").write_bytes((folder / "data/c.jsonl").read_bytes())
    (moved / "y.jsonl").write_text("\n".join(line(n) for n in range(30, 36)))
    (moved / "z.jsonl").write_text("")
    other = scanned(moved, tmp_path / "other", model_folder)
    refused([other, whole], tmp_path / "m", r"the data in .*c\.jsonl;")
    merged = merge([shards[0], other], tmp_path / "merged")
    refused([merged, shards[2]], tmp_path / "m", r"the data in .*c\.jsonl;")
    refused([merged, whole], tmp_path / "m", r"the data in .*a\.jsonl;")


def test_a_part_of_a_folder_may_stand_beside_a_file_that_it_has_nothing_of(
    folder: Path, shards: list[Scan], tmp_path: Path, model_folder: str
) -> None:
    first = scanned(folder / "data", tmp_path / "first", model_folder, limit=8)
    assert [*first.manifest["data"]["files"]] == ["a.jsonl"]
    refused([first, shards[0]], tmp_path / "m", r"the data in .*a\.jsonl;")
    assert len(merge([first, shards[2]], tmp_path / "m").examples()) == 7 + 9


def test_scans_that_name_no_files_are_read_and_finished_as_before(
    folder: Path, whole: Scan, shards: list[Scan], tmp_path: Path, model_folder: str
) -> None:
    """As those of before `files` was recorded."""
    old = Path(shutil.copytree(whole.path, tmp_path / "old"))
    for name in ("manifest.json", "plan.json"):
        said = json.loads((old / name).read_text())
        del said["data"]["files"]
        (old / name).write_text(json.dumps(said))
    before = files(old)
    scanned(folder / "data", old, model_folder)
    assert files(old) == before
    (old / "manifest.json").unlink()
    (old / "tokens/part-00001.parquet").unlink()
    again = scanned(folder / "data", old, model_folder)
    assert again.manifest["parts"] == whole.manifest["parts"]


def test_the_folder_is_no_scan_to_merge(shards: list[Scan], whole: Scan) -> None:
    before = files(shards[0].path)
    for overwrite in (False, True):
        with pytest.raises(BadInput, match="one of the scans"):
            merge(shards, shards[0].path, overwrite=overwrite)
    assert files(shards[0].path) == before


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"train_on": "all"}, r"--train-on \(assistant and all\)"),
        ({"max_length": 60}, r"--max-length \(\d+ and 60\)"),
        ({"stride": 5}, r"--stride \(1 and 5\)"),
        ({"template_arg": {"brief": True}}, "--template-arg"),
        ({"dtype": "bfloat16"}, r"dtype \(float32 and bfloat16\)"),
        ({"statistics": ["grad_hidden"]}, r"columns \(grad_hidden\)"),
        ({"model": "other"}, "the model's weights"),
        ({"model": "template"}, "configuration or tokenizer|chat template"),
        ({"reference": "other"}, "--reference"),
        ({"format": "text", "columns": {"text": "answer"}}, "format"),
    ],
    ids=str,
)
def test_scans_made_otherwise_are_refused(
    folder: Path,
    shards: list[Scan],
    model_folder: str,
    others: dict[str, str],
    tmp_path: Path,
    settings: dict[str, Any],
    said: str,
) -> None:
    given = {k: others.get(str(v), v) for k, v in settings.items()}
    model = given.pop("model", model_folder)
    other = scanned(folder / "data/b.jsonl", tmp_path / "b", model, **given)
    refused([shards[0], other], tmp_path / "m", said)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("what", ["tokens", "examples", "rejected", "plan"])
def test_damage_is_not_passed_on(
    folder: Path, shards: list[Scan], model_folder: str, tmp_path: Path, what: str
) -> None:
    bad = scanned(folder / "data/c.jsonl", tmp_path / "bad", model_folder)
    if what in ("tokens", "examples"):
        part = bad.part_files(what)[1]
        table = pq.read_table(part, partitioning=None)
        changed = table.set_column(
            table.schema.get_field_index("example"), "example", [[7] * len(table)]
        )
        pq.write_table(changed.replace_schema_metadata(table.schema.metadata), part)
    elif what == "rejected":
        (bad.path / "rejected.jsonl").write_text("")
    else:
        (bad.path / "plan.json").write_text("[1")
    refused([shards[0], bad], tmp_path / "m", f"{tmp_path}.*(damaged|manifest)", ScanError)


def test_a_poisoned_list_of_sources_is_refused(shards: list[Scan], tmp_path: Path) -> None:
    merged = merge(shards[:2], tmp_path / "two")
    path = merged.path / "manifest.json"
    good = json.loads(path.read_text())
    for field, value in (
        ("source", 3),
        ("fingerprint", None),
        ("first", "0"),
        ("first", -1),
        ("rows", 1e300),
        ("selection", [1]),
    ):
        bad = json.loads(json.dumps(good))
        bad["data"]["sources"][1][field] = value
        path.write_text(json.dumps(bad))
        refused([path.parent, shards[2]], tmp_path / "m", "damaged: data.sources", ScanError)
    bad["data"]["sources"] = [{}]
    path.write_text(json.dumps(bad))
    refused([path.parent, shards[2]], tmp_path / "m", "damaged: data.sources", ScanError)


# --- the command ---


def test_the_command_and_what_reads_its_scan(
    folder: Path, shards: list[Scan], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, given = str(tmp_path / "m"), [str(s.path) for s in shards]
    assert _run(["merge", *given, "--out", out, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["examples"] == 20
    assert _run(["merge", *given, "--out", out]) == 0
    assert "by source" in capsys.readouterr().out
    for command in (
        ["show", out],
        ["show", out, "--example", "21"],
        ["export", out, "--out", str(tmp_path / "rows.jsonl")],
        ["plot", "landscape", out, "--out", str(tmp_path / "f.svg")],
        ["report", out, "--out", str(tmp_path / "r.html")],
        ["compare", out, given[0], "--by", "distributions"],
        ["flag", out, "--quantile", "0.4"],
    ):
        assert _run(command) == 0, (command, capsys.readouterr().err)
    capsys.readouterr()
    assert _run(["merge", given[0], given[0], "--out", str(tmp_path / "n")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert _run(["merge", given[0]]) == 2
