"""Finished scans written by hand: real distributions over a small vocabulary, in plain float64."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from eaft_probe.analysis.partial_aggregates import unit_totals
from eaft_probe.analysis.token_filter import kept_tokens
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.columns.statistics import STATISTICS
from eaft_probe.scans.keys import EACH, TOGETHER
from eaft_probe.scans.manifest import MANIFEST, SCHEMA_VERSION
from eaft_probe.scans.part_writer import (
    TOTALS,
    part_facts,
    part_name,
    sha256,
    write_parquet,
    write_part,
)
from eaft_probe.scans.scan import Scan
from eaft_probe.scans.schemas import examples_schema, tokens_schema
from eaft_probe.storage.atomic import write_json
from eaft_probe.storage.folder import Folder

VOCAB, WIDTH = 64, 8
TOP_K = (5, 10, 20, 50)
COUNTED, SIGNED = ("rank", "top1_id"), ("logprob", "surprise")


def places(count: int, seed: int = 0, trained: int = 40) -> pandas.DataFrame:
    """`count` labels in examples of one to three trained turns of 1 to `trained` tokens."""
    random = np.random.default_rng(seed)
    rows: list[tuple[int, int, int]] = []
    example = 0
    while len(rows) < count:
        position = 0
        for turn in range(1, 2 * random.integers(1, 4), 2):
            position += int(random.integers(3, 9))  # the user's message
            length = int(random.integers(1, trained + 1))
            rows += [(example, turn, position + i) for i in range(length)]
            position += length
        example += int(random.integers(1, 3))  # a rejected row now and then
    frame = pandas.DataFrame(rows[:count], columns=["example", "turn", "position"])
    return frame.assign(token_id=random.integers(0, VOCAB, count))


def by_turn(placed: pandas.DataFrame) -> pandas.DataFrame:
    """The same labels where each turn is a rendering of its own: places repeat within a row, and
    the turns of every other row begin alike."""
    groups = placed.groupby(["example", "turn"])
    return placed.assign(position=5 + placed["example"] % 2 * placed["turn"] + groups.cumcount())


def measured(placed: pandas.DataFrame, seed: int = 1, follow: bool = True) -> pandas.DataFrame:
    """The labels with every statistic under random distributions, from sure to undecided.

    `follow`: most labels are drawn anew from those distributions; the rest are conflicts.
    """
    random = np.random.default_rng(seed)
    n = len(placed)
    logits = random.normal(size=(n, VOCAB)) * random.choice([0.3, 1, 2, 5, 12], (n, 1))
    logits -= np.logaddexp.reduce(logits, 1, keepdims=True)
    labels = placed["token_id"].to_numpy().copy()
    if follow:
        likely = (logits + random.gumbel(size=logits.shape)).argmax(1)
        labels = np.where(random.random(n) < 0.8, likely, labels)
    columns = statistics(logits, labels, random.normal(size=(VOCAB, WIDTH)))
    columns["kl_reference"] = random.exponential(0.1, n)
    return placed.assign(token_id=labels, **columns)


def statistics(
    logprobs: NDArray[np.float64], labels: NDArray[np.int64], weight: NDArray[np.float64]
) -> dict[str, NDArray[Any]]:
    """(N, V) log-probabilities → a scan's columns, as DESIGN's table of them says."""
    rows, p = np.arange(len(labels)), np.exp(logprobs)
    logprob = logprobs[rows, labels]
    rank = (logprobs > logprob[:, None]).sum(1)
    error = p.copy()
    error[rows, labels] -= 1
    grad_logits = np.sqrt((error**2).sum(1))
    entropy = -(p * logprobs).sum(1)
    varentropy = (p * (logprobs + entropy[:, None]) ** 2).sum(1)
    columns: dict[str, NDArray[Any]] = {
        "logprob": logprob,
        "prob": np.exp(logprob),
        "entropy": entropy,
        "varentropy": varentropy,
        "surprise": -(logprob + entropy) / np.sqrt(np.maximum(varentropy, 1e-6)),
        "concentration": (p**2).sum(1),
        "rank": rank,
        "top1_id": np.where(rank == 0, labels, logprobs.argmax(1)),
        "top1_prob": p.max(1),
        "grad_logits": grad_logits,
        "grad_head": grad_logits * 3,
        "grad_hidden": np.sqrt(((error @ weight) ** 2).sum(1)),
    }
    falling = -np.sort(-logprobs, 1)
    for k in TOP_K:
        top = falling[:, :k] - np.logaddexp.reduce(falling[:, :k], 1, keepdims=True)
        columns[f"entropy_top{k}"] = -(np.exp(top) * top).sum(1)
    return {
        name: (c if name in SIGNED else np.maximum(c, 0)).astype(np.float32)
        for name, c in columns.items()
        if name not in COUNTED
    } | {name: columns[name].astype(np.int32) for name in COUNTED}


def with_text(
    tokens: pandas.DataFrame,
    words: Sequence[str] | None = None,
    key: Sequence[str] = ("example",),
) -> pandas.DataFrame:
    """The texts of labels and of what the model would say, and where they stand."""
    words = [f" w{i}" for i in range(VOCAB)] if words is None else words
    text = tokens["token_id"].map(lambda i: words[i % len(words)]).astype(str)
    ends = text.str.len().groupby([tokens[name] for name in key]).cumsum()
    return tokens.assign(
        token=text,
        top1=tokens["top1_id"].map(lambda i: words[i % len(words)]).astype(str),
        char_end=ends,
        char_start=ends - text.str.len(),
    )


def write(
    folder: Path,
    tokens: pandas.DataFrame,
    parts: int = 3,
    rule: ConflictRule | None = None,
    group: int | None = None,
    without: Sequence[str] = (),
    source: str = "rows.jsonl",
    model: str = "made",
    words: Sequence[str] | None = None,
    fingerprint: str | None = None,
    turns: str | None = "together",
) -> Scan:
    """A finished scan of those tokens in `parts` units, in row groups of `group` tokens.

    `turns`: as --turns; None is a scan from before there was that setting.
    """
    key = EACH if turns == "each" else TOGETHER
    tokens = with_text(tokens, words, key)
    own = [s for s in STATISTICS.values() if s.name in tokens and s.name not in without]
    schema = tokens_schema(own)
    listed = []
    units = np.array_split(tokens["example"].unique(), parts)
    for kind in ("tokens", "examples"):
        (folder / kind).mkdir(parents=True)
    for index, unit in enumerate(units):
        mine = tokens[tokens["example"].isin(unit)]
        table = pa.Table.from_pandas(mine[schema.names], schema, preserve_index=False)
        examples = _examples(mine, turns)
        write_part(
            Folder(folder), index, table, examples, {"counts": {"trained_tokens": len(mine)}}
        )
        file = folder / "tokens" / part_name(index)
        if group is not None:
            pq.write_table(table, file, row_group_size=group)
        listed.append(part_facts(folder, index, len(mine)))
    manifest = {
        "command": "scan",
        "config": {"keep": []} | ({} if turns is None else {"turns": turns}),
        "model": model_facts(model, VOCAB),
        "chat_template": "made",
        "data": {"source": source, "fingerprint": fingerprint or source, "format": "messages"},
        "columns": schema.names,
        "parts": listed,
        "counts": {
            "trained_tokens": len(tokens),
            "tokens": 2 * len(tokens),
            "rejected": 0,
            "examples": tokens["example"].nunique(),
            "rows": tokens["example"].nunique(),
            "renderings": tokens.groupby(list(key)).ngroups,
            "cut_examples": 0,
        },
        "special_tokens": [],
    }
    return written(folder, manifest).flag(rule or ConflictRule())


def keeping(scan: Scan, folder: Path, share: float = 0.5) -> Scan:
    """The same scan with a sample of its tokens, in one part, and the totals of all."""
    tokens, rule = scan.tokens_table(scan.columns), scan.rule
    examples = pa.concat_tables(scan.example_part(i) for i in range(len(scan.manifest["parts"])))
    totals = unit_totals(tokens, examples, [], rule, set())
    kept = kept_tokens(tokens, examples, rule, share)
    for kind in ("tokens", "examples"):
        (folder / kind).mkdir(parents=True)
    write_part(Folder(folder), 0, *kept, {"counts": {"trained_tokens": len(kept[0])}})
    write_parquet(folder / TOTALS, totals)
    config = {
        **scan.manifest["config"],
        "keep_tokens": f"sample:{share}",
        "entropy_below": rule.entropy_below,
        "prob_below": rule.prob_below,
    }
    manifest = {
        **scan.manifest,
        "config": config,
        "totals": sha256(folder / TOTALS),
        "parts": [part_facts(folder, 0, len(kept[0]))],
    }
    return written(folder, manifest).flag(rule)


def keeping_columns(scan: Scan, values: Mapping[str, str]) -> Scan:
    """The same scan with pass-through columns that have one value each."""
    for file in scan.part_files("examples"):
        table = pq.read_table(file)
        for name, value in values.items():
            table = table.append_column(name, pa.array([value] * len(table)))
        write_parquet(file, table)
    return resealed(scan, config={**scan.manifest["config"], "keep": [*values]})


def forecast_of(scan: Scan, folder: Path) -> Scan:
    """The same scan with a forecast that was never made: random alignment, six objectives."""
    shutil.copytree(scan.path, folder)
    (folder / "alignment").mkdir()
    random = np.random.default_rng(3)
    for part in range(len(scan.manifest["parts"])):
        place = pa.concat_tables(scan.token_parts(["example", "turn", "position"], part))
        for name in ("retain_alignment", "eval_alignment"):
            values = random.normal(size=len(place)).astype(np.float32)
            place = place.append_column(name, pa.array(values))
        write_parquet(folder / "alignment" / part_name(part), place.combine_chunks())
    facts = {
        "made": {},
        "held_out": False,
        "seed": 0,
        "step": "plain",
        "step_length": 0.0123,
        "step_tokens": 1500,
        "retain_rows": 40,
        "eval_rows": 30,
        "checked_tokens": 4,
        "check_error": {"retain": 1e-4, "eval": 2e-4},
    }
    write_json(folder / "alignment" / "manifest.json", facts)
    rates = {
        "sft": (1.0, 1.0, 1.0),
        "eaft": (1.2, 1.1, 1.4),
        "chord": (0.8, 0.5, 1.3),
        "clip": (0.7, 0.6, 0.9),
    }
    rows = [forecast_row(n, 0.002, 3e-4, 1e-4, rate) for n, rate in rates.items()]
    rows.append(forecast_row("dft", 1e-5, -4e-4, 2e-4, (None,) * 3, "no rate: it reaches 0"))
    rows.append(forecast_row("profit", None, None, None, (None,) * 3, "its gates are 0"))
    pandas.DataFrame(rows).to_parquet(folder / "forecast.parquet")
    return Scan.open(folder)


def forecast_row(
    objective: str,
    gain: float | None,
    change: float | None,
    kl: float | None,
    rate: Sequence[float | None],
    note: str = "",
) -> dict[str, Any]:
    """A row of forecast.parquet, its intervals 0.0005 to both sides."""
    row: dict[str, Any] = {"objective": objective, "note": note}
    for name, value in (("gain", gain), ("retain_nll_change", change), ("retain_kl", kl)):
        ends = (0, -5e-4, 5e-4)
        row |= {
            f"{name}{end}": None if value is None else value + off
            for end, off in zip(("", "_low", "_high"), ends, strict=True)
        }
    return row | {f"exchange_rate{e}": v for e, v in zip(("", "_low", "_high"), rate, strict=True)}


def written(folder: Path, manifest: Mapping[str, Any]) -> Scan:
    """A scan with this manifest, whichever it had."""
    write_json(folder / MANIFEST, {"schema_version": SCHEMA_VERSION, **manifest})
    return Scan.open(folder)


def model_facts(name: str, vocab_size: int) -> dict[str, Any]:
    """What a manifest says of a model that never was."""
    return {
        "name": name,
        "adapter": None,
        "revision": None,
        "dtype": "float32",
        "vocab_size": vocab_size,
        "max_length": 1024,
        "identity": name,
        "adapter_identity": None,
    }


def resealed(scan: Scan, **changes: Any) -> Scan:
    """The scan opened again, its manifest saying what its parts now are, and the `changes`."""
    sizes = [pq.read_metadata(f).num_rows for f in scan.part_files("tokens")]
    parts = [part_facts(scan.path, i, rows) for i, rows in enumerate(sizes)]
    counts = {**scan.manifest["counts"], "trained_tokens": sum(sizes)}
    return written(scan.path, {**scan.manifest, "parts": parts, "counts": counts, **changes})


def _examples(tokens: pandas.DataFrame, turns: str | None) -> pa.Table:
    groups = tokens.groupby(list(EACH if turns == "each" else TOGETHER), sort=True)
    messages = json.dumps([{"role": "user" if i % 2 == 0 else "assistant"} for i in range(6)])
    frame = pandas.DataFrame(
        {
            "example": [g["example"].iloc[0] for _, g in groups],
            "turn": [g["turn"].iloc[0] if turns == "each" else None for _, g in groups],
            "key": None,
            "text": ["".join(g["token"]) for _, g in groups],
            "messages": messages,
            "tokens": (2 * groups.size()).to_list(),
            "trained_tokens": groups.size().to_list(),
            "mean_nll": [-g["logprob"].astype(np.float64).mean() for _, g in groups],
            "mean_entropy": [g["entropy"].astype(np.float64).mean() for _, g in groups],
        }
    )
    schema = examples_schema(())
    if turns is None:
        schema = schema.remove(schema.get_field_index("turn"))
    return pa.Table.from_pandas(frame, schema, preserve_index=False)
