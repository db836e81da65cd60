"""Ways to poison a finished scan: each takes its folder. `CLAIMED` ones mend the manifest's hashes.

What a mended one must be found by is then its own check, not the sha256.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scans_made

from eaft_probe.scans.scan import Scan

Poison = Callable[[Path], None]
FIRST, SECOND = "part-00000.parquet", "part-00001.parquet"


def edited(change: Callable[[dict[str, Any]], Any]) -> Poison:
    """A poison of the manifest."""

    def poison(folder: Path) -> None:
        path = folder / "manifest.json"
        manifest = json.loads(path.read_text())
        changed = change(manifest)
        path.write_text(json.dumps(manifest if changed is None else changed))

    return poison


def put(value: Any, *where: Any) -> Poison:
    def change(manifest: Any) -> None:
        for key in where[:-1]:
            manifest = manifest[key]
        manifest[where[-1]] = value

    return edited(change)


def dropped(*where: str) -> Poison:
    def change(manifest: Any) -> None:
        for key in where[:-1]:
            manifest = manifest[key]
        del manifest[where[-1]]

    return edited(change)


def written(name: str, content: bytes) -> Poison:
    return lambda folder: void((folder / name).write_bytes(content))


def void(_: object) -> None:
    """For what returns something nobody wants."""


def swapped(kinds: tuple[str, ...]) -> Poison:
    def poison(folder: Path) -> None:
        for kind in kinds:
            a, b = folder / kind / FIRST, folder / kind / SECOND
            a.rename(folder / "x")
            b.rename(a)
            (folder / "x").rename(b)

    return poison


def linked(name: str, target: str | None = None) -> Poison:
    """The file becomes a link to a copy of it outside, or to `target`."""

    def poison(folder: Path) -> None:
        outside = folder.parent / "outside"
        outside.mkdir(exist_ok=True)
        (folder / name).rename(outside / "file")
        (folder / name).symlink_to(target or outside / "file")

    return poison


def piped(name: str) -> Poison:
    """A pipe, which blocks whoever opens it."""

    def poison(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return poison


def table(
    name: str, change: Callable[[pa.Table], pa.Table], mend: bool = True, **how: Any
) -> Poison:
    """Another table in a file's place."""

    def poison(folder: Path) -> None:
        path = folder / name
        pq.write_table(change(pq.read_table(path, partitioning=None)), path, **how)
        if mend:
            _mended(folder)

    return poison


def _mended(folder: Path) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for index, part in enumerate(manifest["parts"]):
        part |= scans_made.part_facts(folder, index, part["rows"])
    path.write_text(json.dumps(manifest))


def column(name: str, value: Any) -> Callable[[pa.Table], pa.Table]:
    """The column filled with one value of its own type."""

    def change(found: pa.Table) -> pa.Table:
        at, kind = found.schema.get_field_index(name), found.schema.field(name)
        values = pa.array([value] * len(found), kind.type)
        return found.set_column(at, kind, values)

    return change


def typed(name: str, kind: pa.DataType, value: Any) -> Callable[[pa.Table], pa.Table]:
    """The column of another type."""

    def change(found: pa.Table) -> pa.Table:
        at = found.schema.get_field_index(name)
        return found.set_column(at, name, pa.array([value] * len(found), kind))

    return change


def nested(levels: int) -> Poison:
    deep = '{"a":' * levels + "1" + "}" * levels
    return lambda folder: void(
        (folder / "manifest.json").write_text(
            (folder / "manifest.json").read_text().rstrip()[:-1] + f', "more": {deep}}}'
        )
    )


def bomb(folder: Path) -> None:
    """Twenty million times one token, a footer's claim of 900 bytes."""
    path = folder / "tokens" / FIRST
    found = pq.read_table(path)[:1]
    with pq.ParquetWriter(path, found.schema, compression="zstd", use_dictionary=True) as writer:
        whole = found.take(np.zeros(2_000_000, np.int64))
        for _ in range(10):
            writer.write_table(whole, row_group_size=2_000_000)
    edited(lambda m: m["parts"][0].__setitem__("rows", 20_000_000))(folder)
    edited(lambda m: m["counts"].__setitem__("trained_tokens", 2**40))(folder)
    edited(lambda m: m["counts"].__setitem__("tokens", 2**40))(folder)
    _mended(folder)


def unpacked(folder: Path) -> None:
    """Half a gigabyte of one letter in a few kilobytes."""
    path = folder / "examples" / FIRST
    found = pq.read_table(path)
    long = pa.array(["x" * (500_000_000 // len(found))] * len(found), pa.string())
    at = found.schema.get_field_index("text")
    pq.write_table(
        found.set_column(at, "text", long), path, compression="zstd", use_dictionary=False
    )
    _mended(folder)


def other_model(folder: Path) -> None:
    """The tokens of the same data under another model: as many, with the same examples."""
    found = Scan.open(folder).tokens()
    wanted = scans_made.measured(found[["example", "turn", "position", "token_id"]], 9, False)
    made = scans_made.write(folder.parent / "under another", wanted)
    for index in range(len(made.manifest["parts"])):
        name = f"part-{index:05d}.parquet"
        shutil.copy(made.path / "tokens" / name, folder / "tokens" / name)


HUGE = 10**18
# name → (poison, what the one line says). All verbs refuse these.
REFUSED: dict[str, tuple[Poison, str]] = {
    "no json": (written("manifest.json", b"{"), "damaged"),
    "a list": (written("manifest.json", b"[]"), "damaged"),
    "bytes": (written("manifest.json", b"\xff\xfe\0"), "damaged"),
    "another version": (put(2, "schema_version"), "schema version 2"),
    "a version that is true": (put(True, "schema_version"), "schema_version"),
    **{
        f"without {name}": (dropped(name), name)
        for name in (
            "schema_version",
            "config",
            "model",
            "data",
            "chat_template",
            "columns",
            "parts",
            "counts",
            "special_tokens",
        )
    },
    "without a model's name": (dropped("model", "name"), "model.name"),
    "without the vocabulary": (dropped("model", "vocab_size"), "vocab_size"),
    "a vocabulary of nothing": (put(0, "model", "vocab_size"), "vocab_size"),
    "parts as an object": (put({}, "parts"), "parts"),
    "parts as numbers": (put([1] * 1000, "parts"), "parts.0"),
    "no parts": (put([], "parts"), "tokens/ has"),
    "rows as text": (put("9", "parts", 0, "rows"), "parts.0.rows"),
    "rows NaN": (written("manifest.json", b'{"schema_version": NaN}'), "NaN"),
    "rows below 0": (put(-1, "parts", 0, "rows"), "parts.0.rows"),
    "rows huge": (put(HUGE, "parts", 0, "rows"), "parts.0.rows"),
    "rows one more": (put(401, "parts", 0, "rows"), "the manifest says 401"),
    "counts below 0": (put(-5, "counts", "rejected"), "counts.rejected"),
    "counts huge": (put(10**4000, "counts", "tokens"), "counts.tokens"),
    "counts that do not add up": (put(7, "counts", "rejected"), "do not add up to the rows"),
    "a part twice": (edited(lambda m: m["parts"].__setitem__(1, m["parts"][0])), "out of order"),
    "parts in another order": (edited(lambda m: m["parts"].reverse()), "out of order"),
    "a part less": (edited(lambda m: void(m["parts"].pop())), "tokens/ has"),
    "a path upwards": (put("../../secret", "parts", 0, "file"), "parts.0.file"),
    "an absolute path": (put("/etc/passwd", "parts", 0, "file"), "parts.0.file"),
    "another name": (put("part-0.parquet", "parts", 0, "file"), "parts.0.file"),
    "a name with a line break": (put("part-00000.parquet\n", "parts", 0, "file"), "parts.0.file"),
    "a name of a gigabyte, nearly": (put("x" * 10**7, "model", "name"), "model.name"),
    "thousands of levels": (nested(5000), "recursion"),
    "a hundred levels": (nested(100), "levels deep"),
    "half a surrogate": (put("\ud800", "data", "source"), "surrogates"),
    "columns twice": (put(["example"] * 9, "columns"), "columns has a name twice"),
    "other columns": (edited(lambda m: m["columns"].reverse()), "other columns"),
    "keep that is not there": (put(["topic"], "config", "keep"), "no column 'topic'"),
    "keep as text": (put("topic", "config", "keep"), "config.keep"),
    "special tokens as numbers": (put([1], "special_tokens"), "special_tokens"),
    "a hash that is none": (put("0" * 63, "parts", 0, "sha256"), "sha256"),
    "another hash": (put("0" * 64, "parts", 0, "sha256"), "its sha256 differs"),
    "manifest is a link": (linked("manifest.json"), "leads out"),
    "manifest is a pipe": (piped("manifest.json"), "not a regular file"),
    "a part is a link": (linked(f"tokens/{FIRST}"), "leads out"),
    "a part is a link in a circle": (linked(f"tokens/{FIRST}", FIRST), "cannot be read"),
    "a part is a pipe": (piped(f"examples/{FIRST}"), "not a regular file"),
    "a folder is a link": (linked("tokens"), "a link"),
    "a part is missing": (lambda f: (f / "tokens" / FIRST).unlink(), "No such file"),
    "a part is text": (written(f"tokens/{FIRST}", b"PAR1 no PAR1"), "damaged"),
    "a part is cut": (lambda f: os.truncate(f / "tokens" / FIRST, 500), "damaged"),
    "an examples part is cut": (lambda f: os.truncate(f / "examples" / FIRST, 500), "damaged"),
    "a bit is turned": (
        lambda f: written(f"tokens/{FIRST}", _turned((f / "tokens" / FIRST).read_bytes()))(f),
        "its sha256 differs",
    ),
    "tokens swapped": (swapped(("tokens",)), "damaged|the manifest says"),
    "examples swapped": (swapped(("examples",)), "damaged"),
    "both swapped": (swapped(("tokens", "examples")), "damaged|the manifest says"),
    "tokens under another model": (other_model, "its sha256 differs"),
    "examples out of order, mended": (table(f"tokens/{FIRST}", column("example", 999)), "damaged"),
    "negative examples, mended": (table(f"tokens/{FIRST}", column("example", -1)), "damaged"),
    "a column of texts, mended": (
        table(f"tokens/{FIRST}", typed("prob", pa.string(), "0.5")),
        "'prob' is string",
    ),
    "a column of lists, mended": (
        table(f"examples/{FIRST}", typed("text", pa.list_(pa.string()), ["x"])),
        "'text' is list",
    ),
    "a column less, mended": (
        table(f"examples/{FIRST}", lambda t: t.drop_columns("text")),
        "no column 'text'",
    ),
    "twenty million rows, mended": (bomb, "claims"),
    "half a gigabyte, mended": (unpacked, "claims to unpack"),
}

# What opening does not see. Every verb works, or says in one line why not.
LATE: dict[str, Poison] = {
    **{
        f"{name} is {value}, mended": table(f"tokens/{FIRST}", column(name, value))
        for name, value in (
            ("prob", float("nan")),
            ("prob", 7.0),
            ("prob", None),
            ("entropy", float("inf")),
            ("entropy", -3.0),
            ("entropy", 1e30),
            ("logprob", float("nan")),
            ("logprob", 5.0),
            ("rank", -1),
            ("position", -7),
            ("turn", 99),
            ("turn", -1),
            ("token_id", 2**31 - 1),
            ("token", None),
            ("token", "\x1b[2J"),
            ("grad_logits", float("nan")),
            ("char_start", 10**6),
            ("char_start", -5),
            ("char_end", -1),
            ("char_end", 2**31 - 1),
            ("char_end", None),
        )
    },
    **{
        f"examples' {name} is {value}, mended": table(f"examples/{FIRST}", column(name, value))
        for name, value in (
            ("text", ""),
            ("text", None),
            ("messages", "{"),
            ("messages", None),
            ("messages", "[" * 10_000),
            ("key", None),
            ("mean_nll", None),
            ("mean_nll", float("nan")),
            ("trained_tokens", 0),
            ("tokens", -1),
            ("trained_tokens", None),
        )
    },
    "rule.json is none": written("rule.json", b"{"),
    "rule.json is a list": written("rule.json", b"[]"),
    "rule.json of NaN": written("rule.json", b'{"entropy_below": NaN}'),
    "rule.json of texts": written("rule.json", b'{"entropy_below": "x"}'),
    "rule.json of 10^400": written("rule.json", b'{"entropy_below": 1' + b"0" * 400 + b"}"),
    "rule.json of 10^300": written("rule.json", b'{"entropy_below": 1e300}'),
    "rule.json deep": written("rule.json", b"[" * 100_000),
    "rule.json of other keys": written("rule.json", b'{"a": 1}'),
    "rule.json of another rule": written("rule.json", b'{"entropy_below": 3, "prob_below": 0.9}'),
    "rule.json is a folder": lambda f: ((f / "rule.json").unlink(), (f / "rule.json").mkdir())[1],
    "rule.json is a pipe": piped("rule.json"),
    "rule.json is a link": linked("rule.json"),
    "no conflicts": lambda f: (f / "conflicts.parquet").unlink(),
    "conflicts cut": lambda f: os.truncate(f / "conflicts.parquet", 60),
    "conflicts are a pipe": piped("conflicts.parquet"),
    "conflicts of other columns": table(
        "conflicts.parquet", lambda t: t.drop_columns("before"), False
    ),
    "conflicts of other types": table("conflicts.parquet", typed("prob", pa.string(), "x"), False),
    "fewer conflicts": table("conflicts.parquet", lambda t: t[:1], False),
    "conflicts of no example": table("conflicts.parquet", column("example", 10**9), False),
    "cache is a file": lambda f: written("cache", b"")(f),
    "cache is a link": lambda f: (f / "cache").symlink_to(f.parent),
    "plan.json is none": written("plan.json", b"{"),
    "gradients are none": written("gradients.parquet", b"PAR1"),
    "gradients are a pipe": lambda f: os.mkfifo(f / "gradients.parquet"),
    "aside is a link": lambda f: (f / ".conflicts.parquet.part").symlink_to(f.parent / "precious"),
}


def _turned(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
