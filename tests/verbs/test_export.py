"""`export --for rows`: the data as they were, with scores, chosen by SQL and by rank."""

import json
import tracemalloc
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scans_made

from eaft_probe import Scan, export, scan
from eaft_probe.analysis.scores import SCORES, worst_rows
from eaft_probe.cli import _run
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.data.sources import open_source
from eaft_probe.errors import BadInput, ProbeError
from eaft_probe.verbs.export.export import Export
from eaft_probe.verbs.merge.merge import merge

Row = dict[str, Any]
ROWS: list[Row] = [
    {
        "question": f"what is {n}",
        "answer": f"it is {n} and {'no ' * n}more",
        "tag": "ab"[n % 2],
        "meta": {"n": n, "deep": [[n], []]},
    }
    for n in range(12)
]
REJECTED = {"question": "who", "answer": "", "tag": "é\u2028", "meta": {"n": 1, "deep": []}}


def scanned(data: Any, out: Path, model: str, **settings: Any) -> Scan:
    """Flagged so that half of the tokens below the median entropy are conflicts."""
    made = scan(data, out, model=model, rows_per_unit=5, **settings)
    entropy, prob = made.tokens(["entropy", "prob"]).median()
    return made.flag(ConflictRule(float(entropy), float(prob)))


def read(path: Path) -> list[Row]:
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in filter(None, lines)]


def own(rows: list[Row]) -> list[Row]:
    return [{k: v for k, v in row.items() if not k.startswith("probe_")} for row in rows]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    lines = [*map(json.dumps, ROWS), "", json.dumps(REJECTED), "{broken"]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(data: Path, model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Scan:
    return scanned(str(data), tmp_path_factory.mktemp("scan") / "s", model_folder)


# --- the rows, as they were ---


def test_rows_come_back_with_every_column_and_their_scores(finished: Scan, tmp_path: Path) -> None:
    written = export(finished, tmp_path / "back.jsonl")
    rows = read(tmp_path / "back.jsonl")
    assert own(rows) == [*ROWS, REJECTED, {}]
    assert (written.written, written.rejected) == (14, 2)
    scores = {s for s in SCORES if f"probe_{s}" in rows[0]}
    assert scores >= {"conflict_share", "mean_nll", "ppl", "upd", "hes", "norm_loss"}
    for score in scores:
        by_row = dict(worst_rows(finished, score, 99))
        assert {r["probe_example"]: r[f"probe_{score}"] for r in rows[:12]} == by_row
    examples = finished.examples().set_index("example")
    conflicts = finished.conflicts().groupby("example").size()
    for row in rows[:12]:
        example = examples.loc[row["probe_example"]]
        assert (row["probe_tokens"], row["probe_trained_tokens"]) == (
            example["tokens"],
            example["trained_tokens"],
        )
        assert row["probe_conflicts"] == conflicts.get(row["probe_example"], 0)
        assert row["probe_rejected"] is None
    assert "empty" in rows[12]["probe_rejected"]
    assert "malformed JSON" in rows[13]["probe_rejected"]
    assert rows[13]["probe_example"] == 13
    assert rows[13]["probe_mean_nll"] is None


@pytest.mark.parametrize(
    ("name", "reader"),
    [
        ("back.json", lambda p: json.loads(p.read_text(encoding="utf-8"))),
        ("back.parquet", lambda p: pq.read_table(p).to_pylist()),
        ("back.arrow", lambda p: datasets.Dataset.from_file(str(p)).to_list()),
        ("back", lambda p: datasets.load_from_disk(str(p)).to_list()),
    ],
)
def test_every_format_holds_the_same_rows(
    name: str, reader: Callable[[Path], list[Row]], finished: Scan, tmp_path: Path
) -> None:
    for target in ("lines.jsonl", name):
        export(finished, tmp_path / target, where="probe_rejected IS NULL")
    assert reader(tmp_path / name) == read(tmp_path / "lines.jsonl")
    again = open_source(str(tmp_path / name))
    assert own([r.parse() for r in again.records()]) == ROWS
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["lines.jsonl", name])


def test_csv_comes_back_as_csv(model_folder: str, tmp_path: Path) -> None:
    source, back = tmp_path / "rows.csv", tmp_path / "back.csv"
    source.write_text('question,answer,note\nwho,"me, ""x""\nand you",\nwhat,that,7\n')
    export(scanned(str(source), tmp_path / "s", model_folder), back)
    frames = [pandas.read_csv(f, dtype=str, keep_default_na=False) for f in (source, back)]
    assert frames[1][[*frames[0]]].equals(frames[0])
    assert frames[1]["probe_rejected"].eq("").all()


def test_the_types_of_a_table_survive(model_folder: str, tmp_path: Path) -> None:
    schema = pa.schema(
        [
            ("question", pa.large_string()),
            ("answer", pa.string()),
            ("small", pa.int8()),
            ("when", pa.timestamp("ms")),
            ("kind", pa.dictionary(pa.int32(), pa.string())),
            ("raw", pa.binary()),
            ("nested", pa.struct([("a", pa.int32()), ("b", pa.string())])),
        ]
    )
    rows = [
        {
            "question": f"what {n}",
            "answer": "that",
            "small": n,
            "when": datetime(2026, 1, 1 + n),
            "kind": "x",
            "raw": b"\x00\xff",
            "nested": {"a": n, "b": None},
        }
        for n in range(3)
    ]
    table = pa.Table.from_pylist(rows, schema)
    pq.write_table(table, tmp_path / "rows.parquet")
    made = scanned(str(tmp_path / "rows.parquet"), tmp_path / "s", model_folder)
    export(made, tmp_path / "back.parquet")
    back = pq.read_table(tmp_path / "back.parquet").select(schema.names)
    assert back.schema.remove_metadata().equals(schema)
    assert back.to_pylist() == table.to_pylist()
    with pytest.raises(BadInput, match="JSON cannot hold a value of type bytes"):
        export(made, tmp_path / "back.jsonl")
    assert not (tmp_path / "back.jsonl").exists()


def test_values_that_only_json_lines_hold(model_folder: str, tmp_path: Path) -> None:
    rows = [{**row, "any": value} for row, value in zip(ROWS, ("x", 2**80, None), strict=False)]
    lines = [*map(json.dumps, rows), '{"question": "a", "answer": "b", "any": "half \\ud800"}']
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    made = scanned(str(tmp_path / "rows.jsonl"), tmp_path / "s", model_folder)
    export(made, tmp_path / "back.jsonl")
    assert own(read(tmp_path / "back.jsonl")) == [json.loads(line) for line in lines]
    for name in ("back.parquet", "folder"):
        with pytest.raises(BadInput, match=r"any|any row"):
            export(made, tmp_path / name)
    with pytest.raises(BadInput, match="column 'meta' holds lists or objects"):
        export(made, tmp_path / "back.csv")
    assert {p.name for p in tmp_path.iterdir()} == {"rows.jsonl", "s", "back.jsonl"}


def test_an_export_of_an_export_has_new_scores(
    finished: Scan, model_folder: str, tmp_path: Path
) -> None:
    export(finished, tmp_path / "one.jsonl", rank_by="mean_nll", top=3)
    again = scanned(str(tmp_path / "one.jsonl"), tmp_path / "s", model_folder)
    export(again, tmp_path / "two.jsonl")
    assert [r["probe_example"] for r in read(tmp_path / "two.jsonl")] == [0, 1, 2]
    assert own(read(tmp_path / "two.jsonl")) == own(read(tmp_path / "one.jsonl"))


# --- which rows ---


def test_rows_are_chosen_by_sql(finished: Scan, tmp_path: Path) -> None:
    export(finished, tmp_path / "all.jsonl")
    limit = float(np.median([r["probe_mean_nll"] or 0 for r in read(tmp_path / "all.jsonl")]))
    low = f"probe_mean_nll < {limit} AND probe_trained_tokens > 9"
    export(finished, tmp_path / "some.jsonl", where=f"{low} OR probe_rejected LIKE '%JSON%'")
    wanted = [
        r
        for r in read(tmp_path / "all.jsonl")
        if "JSON" in (r["probe_rejected"] or "")
        or ((r["probe_mean_nll"] or 99) < limit and r["probe_trained_tokens"] > 9)
    ]
    assert read(tmp_path / "some.jsonl") == wanted
    assert 1 < len(wanted) < 14


@pytest.mark.parametrize(
    "where",
    [
        "probe_nothing > 1",
        "",
        "1=1) ; DROP TABLE probe; --",
        "true; COPY probe TO '{}/stolen.csv'",
        "probe_example IN (SELECT 1 FROM read_csv('{}/rows.csv'))",
        "probe_example IN (SELECT 1 FROM '{}/rows.csv')",
        "probe_tokens > (SELECT count(*) FROM glob('{}/*'))",
    ],
)
def test_a_condition_touches_no_file(where: str, finished: Scan, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a\n1\n")
    with pytest.raises(BadInput, match=r"^--where: .*condition in SQL on probe_example"):
        export(finished, tmp_path / "out.jsonl", where=where.format(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["rows.csv"]


@pytest.mark.parametrize("score", ["conflict_share", "hes"])
def test_the_worst_rows_are_taken_or_left_out(score: str, finished: Scan, tmp_path: Path) -> None:
    worst = [row for row, _ in worst_rows(finished, score, 4)]
    export(finished, tmp_path / "top.jsonl", rank_by=score, top=4)
    export(finished, tmp_path / "rest.jsonl", rank_by=score, drop_top=4)
    top, rest = (
        [r["probe_example"] for r in read(tmp_path / f"{n}.jsonl")] for n in ("top", "rest")
    )
    assert top == sorted(worst)
    assert rest == sorted({*range(14)} - {*worst})


def test_the_ranking_is_of_the_rows_that_a_condition_leaves(finished: Scan, tmp_path: Path) -> None:
    first = worst_rows(finished, "mean_nll", 1)[0][0]
    where = f"probe_example <> {first}"
    export(finished, tmp_path / "o.jsonl", where=where, rank_by="mean_nll", top=1)
    second = worst_rows(finished, "mean_nll", 2)[1][0]
    assert [r["probe_example"] for r in read(tmp_path / "o.jsonl")] == [second]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rank_by": "mean_nll"}, "--rank-by needs --top N or --drop-top N"),
        ({"top": 3}, "--rank-by needs"),
        ({"rank_by": "hes", "top": 3, "drop_top": 3}, "only one of them"),
        ({"rank_by": "retain_alignment", "top": 3}, "`eaft-probe forecast` makes it"),
        ({"rank_by": "hess", "top": 3}, "did you mean 'hes'"),
        ({"masked": True}, "neither a mask nor weights"),
        ({"objective": "eaft"}, "neither a mask nor weights"),
        ({"for_": "axolotl", "objective": "eaft"}, "no weights"),
        ({"for_": "tokens", "objective": "sft-kl"}, "which no weight says"),
        ({"for_": "tokens", "set": {"alpha": 2}}, "add --objective"),
        ({"for_": "token"}, "--for: "),
    ],
)
def test_settings_that_do_not_fit(settings: Row, said: str, finished: Scan, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=said):
        export(finished, tmp_path / "o.jsonl", **settings)
    assert not list(tmp_path.iterdir())


# --- where the data are ---


def test_data_that_moved_or_changed(model_folder: str, tmp_path: Path) -> None:
    data, moved, out = (tmp_path / n for n in ("rows.jsonl", "moved.jsonl", "out.jsonl"))
    data.write_text("\n".join(map(json.dumps, ROWS[:3])))
    made = scanned(str(data), tmp_path / "s", model_folder)
    data.rename(moved)
    with pytest.raises(
        BadInput, match=r"from rows.jsonl, which cannot be found; give it as --data"
    ):
        export(made, out)
    export(made, out, data=str(moved))
    assert own(read(out)) == ROWS[:3]
    data.write_text("\n".join(map(json.dumps, ROWS[1:4])))
    with pytest.raises(BadInput, match="has changed since"):
        export(made, tmp_path / "other.jsonl")
    moved.write_text("{}")
    data.unlink()
    with pytest.raises(BadInput, match="is not among the data that were given"):
        export(made, tmp_path / "other.jsonl", data=str(moved))


def test_rows_in_memory(model_folder: str, tmp_path: Path) -> None:
    made = scanned(ROWS[:4], tmp_path / "s", model_folder)
    with pytest.raises(BadInput, match="give it as --data"):
        export(made, tmp_path / "o.jsonl")
    export(made, tmp_path / "o.jsonl", data=ROWS[:4])
    assert own(read(tmp_path / "o.jsonl")) == ROWS[:4]
    saved = datasets.Dataset.from_list(ROWS[:4])
    made = scanned(saved, tmp_path / "d", model_folder)
    export(made, tmp_path / "o.parquet", data=saved)
    back = datasets.Dataset.from_parquet(str(tmp_path / "o.parquet"), cache_dir=str(tmp_path))
    assert own(back.to_list()) == ROWS[:4]


@pytest.mark.parametrize("chosen", [{"limit": 3}, {"sample": 4, "seed": 1}])
def test_only_scanned_rows_come_back(chosen: Row, model_folder: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    made = scanned(str(tmp_path / "rows.jsonl"), tmp_path / "s", model_folder, **chosen)
    export(made, tmp_path / "o.jsonl")
    numbers = made.examples()["example"].tolist()
    assert own(read(tmp_path / "o.jsonl")) == [ROWS[n] for n in numbers]
    assert [r["probe_example"] for r in read(tmp_path / "o.jsonl")] == numbers


def test_a_merged_scan_gives_back_all_of_its_data(model_folder: str, tmp_path: Path) -> None:
    for name, rows in {"a": ROWS[:4], "b": ROWS[4:]}.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        scanned(str(tmp_path / f"{name}.jsonl"), tmp_path / f"scan-{name}", model_folder, limit=5)
    merged = merge([tmp_path / "scan-a", tmp_path / "scan-b"], tmp_path / "m")
    export(merged, tmp_path / "o.jsonl")
    assert own(read(tmp_path / "o.jsonl")) == ROWS[:9]
    for name in "ab":
        (tmp_path / f"{name}.jsonl").rename(tmp_path / f"moved-{name}.jsonl")
    with pytest.raises(BadInput, match="give it as --data"):
        export(merged, tmp_path / "p.jsonl", data=str(tmp_path / "moved-b.jsonl"))
    moved = [str(tmp_path / f"moved-{name}.jsonl") for name in "ba"]
    export(merged, tmp_path / "p.jsonl", data=moved)
    assert read(tmp_path / "p.jsonl") == read(tmp_path / "o.jsonl")


def test_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    peaks = []
    for count in (1200, 4800):  # fewer do not fill a block that is written
        frame = scans_made.places(count, trained=1)
        rows = int(frame["example"].max()) + 1
        data = tmp_path / f"{count}.jsonl"
        with data.open("w") as file:
            for n in range(rows):
                file.write(json.dumps({"question": str(n), "answer": "x" * 2000}) + "\n")
        made = scans_made.write(
            tmp_path / f"s{count}",
            scans_made.measured(frame),
            parts=count // 300,
            fingerprint=open_source(str(data)).fingerprint(),
        )
        tracemalloc.start()
        export(made, tmp_path / f"{count}.parquet", data=str(data))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0], peaks


@pytest.mark.parametrize("turns", ["together", "each"])
def test_a_row_is_scored_over_its_turns(turns: str, model_folder: str, tmp_path: Path) -> None:
    said = [("user", "hi"), ("assistant", "a fox"), ("user", "and"), ("assistant", "one more dog")]
    rows = [{"messages": [{"role": r, "content": f"{c} {n}"} for r, c in said]} for n in range(3)]
    made = scanned(rows, tmp_path / "s", model_folder, turns=turns)
    export(made, tmp_path / "o.jsonl", data=rows)
    back, tokens = read(tmp_path / "o.jsonl"), made.tokens()
    assert own(back) == rows
    for row, (example, group) in zip(back, tokens.groupby("example"), strict=True):
        assert row["probe_example"] == example
        assert row["probe_trained_tokens"] == len(group)
        assert row["probe_conflicts"] == group["conflict"].sum()
        assert row["probe_mean_nll"] == pytest.approx(-group["logprob"].mean(), rel=1e-5)
    examples = made.examples().groupby("example")
    assert [row["probe_tokens"] for row in back] == examples["tokens"].sum().tolist()


# --- the target ---


def test_targets_that_are_refused(finished: Scan, data: Path, tmp_path: Path) -> None:
    precious = tmp_path / "mine.jsonl"
    precious.write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    for target, overwrite, said in (
        (precious, False, "exists; choose another name or give --overwrite"),
        (tmp_path / "folder", True, "not a folder of a saved data set alone"),
        (tmp_path / "o.xlsx", False, "unknown ending '.xlsx'; expected .jsonl"),
        ("", False, "--out is empty"),
        ("s3://bucket/o.jsonl", False, "is a URL"),
        (finished.path / "manifest.json", True, "lies in the scan"),
        (data.parent / "rows.jsonl", True, "lies in the data"),
    ):
        with pytest.raises(BadInput, match=said):
            export(finished, target, overwrite=overwrite)
    with pytest.raises(BadInput, match="CSV holds no lists"):
        export(finished, tmp_path / "o.csv", for_="tokens")
    with pytest.raises(ProbeError, match="cannot write"):
        export(finished, tmp_path / "no" / "such" / "o.jsonl")
    assert precious.read_text() == "mine"
    assert (tmp_path / "folder" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["o.jsonl", "o"])
def test_a_file_and_a_saved_data_set_are_replaced_if_asked(
    name: str, finished: Scan, tmp_path: Path
) -> None:
    sound = {"where": "probe_rejected IS NULL"}
    export(finished, tmp_path / name, **sound)
    with pytest.raises(BadInput, match="--overwrite"):
        export(finished, tmp_path / name, **sound)
    export(finished, tmp_path / name, overwrite=True, rank_by="hes", top=1, **sound)
    assert len(list(open_source(str(tmp_path / name)).records())) == 1
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_nothing_that_is_still_needed_is_replaced(
    finished: Scan, data: Path, model_folder: str, tmp_path: Path
) -> None:
    saved = tmp_path / "saved"
    datasets.Dataset.from_list(ROWS[:2]).save_to_disk(str(saved))
    (part,) = saved.glob("data-*.arrow")
    made = scanned(str(part), tmp_path / "s", model_folder)
    before = sorted(saved.iterdir())
    with pytest.raises(BadInput, match=r"holds the data, .*, which would be lost"):
        export(made, saved, overwrite=True)
    (tmp_path / "link").symlink_to(saved)
    (tmp_path / "plain").write_text("mine")
    for name in ("link", "plain"):
        with pytest.raises(BadInput, match="not a folder of a saved data set alone"):
            export(finished, tmp_path / name, overwrite=True)
    made.path.rename(saved / "scan")
    with pytest.raises(BadInput, match="not a folder of a saved data set alone"):
        export(finished, saved, overwrite=True)
    (saved / "scan").rename(saved / "data-scan.arrow")
    with pytest.raises(BadInput, match="holds the scan, which would be lost"):
        export(saved / "data-scan.arrow", saved, overwrite=True, data=str(data))
    assert sorted(saved.iterdir()) == sorted([*before, saved / "data-scan.arrow"])


@pytest.mark.parametrize("name", ["o.jsonl", "o.parquet"])
def test_a_column_of_the_user_s_stays_whatever_its_name(
    name: str, model_folder: str, tmp_path: Path
) -> None:
    rows = [{**row, "probe_note": row["tag"], "probe_hes": 7} for row in ROWS[:2]]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    made = scanned(str(tmp_path / "rows.parquet"), tmp_path / "s", model_folder)
    export(made, tmp_path / name)
    back = [r.parse() for r in open_source(str(tmp_path / name)).records()]
    assert [row["probe_note"] for row in back] == [row["tag"] for row in rows]
    assert all(row["probe_hes"] != 7 for row in back)


def test_json_has_null_for_what_is_not_a_number(model_folder: str, tmp_path: Path) -> None:
    rows = [{**ROWS[0], "x": [float("nan"), 1.5]}, {**ROWS[1], "x": [float("inf"), -0.5]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    made = scanned(str(tmp_path / "rows.parquet"), tmp_path / "s", model_folder)
    done = export(made, tmp_path / "o.jsonl")
    text = (tmp_path / "o.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert [row["x"] for row in read(tmp_path / "o.jsonl")] == [[None, 1.5], [None, -0.5]]
    assert "2 numbers that JSON has no word for" in done.notes()[0]


def test_a_single_token_is_trained(tmp_path: Path) -> None:
    said = [str(Export(tmp_path, "tokens", 1, 0, 1, n, of)) for n, of in ((1, 1), (1, 9), (2, 9))]
    assert [text.split("; ")[1] for text in said] == [
        "1 of 1 token is trained",
        "1 of 9 tokens is trained",
        "2 of 9 tokens are trained",
    ]


# --- the command ---


def test_the_command(
    finished: Scan, tmp_path: Path, capsys: pytest.CaptureFixture[str], data: Path
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(f"for: rows\nrank-by: hes\ntop: 2\nout: {tmp_path / 'o.jsonl'}\n")
    assert _run(["export", str(finished.path), "--config", str(config), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["kind"], summary["written"], summary["rejected"]) == ("rows", 2, 2)
    again = ["export", str(finished.path), "--config", str(config)]
    assert _run(again) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert _run([*again, "--overwrite", "--data", str(data)]) == 0
    assert capsys.readouterr().out == f"2 rows written to {tmp_path / 'o.jsonl'}\n"


def test_show_export_says_what_replaces_it(
    finished: Scan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o.jsonl"
    assert _run(["show", str(finished.path), "--export", str(out)]) == 0
    assert "`eaft-probe export` replaces --export" in capsys.readouterr().err
    assert own(read(out)) == [*ROWS, REJECTED, {}]


def test_show_ranks_by_a_score(finished: Scan, capsys: pytest.CaptureFixture[str]) -> None:
    shown = ["show", str(finished.path), "--worst", "2", "--rank-by", "mean_nll"]
    assert _run([*shown, "--json"]) == 0
    ranked = json.loads(capsys.readouterr().out)["ranked"]
    worst = worst_rows(finished, "mean_nll", 2)
    assert ranked == [{"example": row, "mean_nll": value} for row, value in worst]
    assert _run(shown) == 0
    printed = capsys.readouterr().out
    places = [printed.index(f"mean_nll {value:.4g}\nexample {row} ") for row, value in worst]
    assert places == sorted(places)
    assert _run(["show", str(finished.path), "--rank-by", "ifd"]) == 2
