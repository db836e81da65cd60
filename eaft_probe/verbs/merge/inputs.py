"""The scans that `merge` joins: where each stands in the whole, and what is refused."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.compute as pc

from eaft_probe.data.formats import WITHOUT_TEMPLATE
from eaft_probe.errors import BadInput, ScanError
from eaft_probe.scans.folder import stored_plan
from eaft_probe.scans.rejections import rejected
from eaft_probe.scans.scan import Scan
from eaft_probe.settings import QUANTIZED
from eaft_probe.settings.option import flag
from eaft_probe.storage.remote import Store, local

SOURCE = "source"  # the column that is added to the examples
KEPT_SOURCE = "source_in_data"  # what a pass-through column of that name is called from then on
MOST_ROWS = 2**53  # as many as a manifest may count

T = TypeVar("T")
Row = dict[str, Any]  # of JSON


@dataclass(frozen=True)
class Shard:
    """One of the scans."""

    scan: Scan
    first: int  # what its row 0 is called in the whole
    names: Mapping[str, str]  # its sources, and what each is called in the whole

    def number(self, row: Row) -> Row:
        """A rejected row under its number in the whole, with its source."""
        return {**row, "row": row["row"] + self.first, SOURCE: self.name(row.get(SOURCE))}

    def name(self, source: str | None) -> str:
        """What a source is called in the whole; the only one where the scan is not a merged one."""
        if is_merged(self.scan):
            return self.names.get(str(source), str(source))
        return next(iter(self.names.values()))

    @cached_property
    def kept(self) -> dict[str, str]:
        """Its pass-through columns, and what each is called in the whole."""
        names = self.scan.manifest["config"].get("keep") or []
        if is_merged(self.scan):
            return {n: n for n in names if n != SOURCE}
        return {n: KEPT_SOURCE if n == SOURCE else n for n in names}


def is_merged(scan: Scan) -> bool:
    return bool(scan.manifest["data"].get("sources"))


def sources(scan: Scan) -> list[Row]:
    """What a scan was made from: one entry, or those that a merged scan lists."""
    data, config = scan.manifest["data"], scan.manifest["config"]
    if is_merged(scan):
        return list(data["sources"])
    count, limit = scan.manifest["counts"]["rows"], config.get("limit")
    part = config.get("sample") is not None or (isinstance(limit, int) and count >= limit)
    selection = {n: config.get(n) for n in ("limit", "sample", "seed")} if part else None
    return [
        {
            SOURCE: data["source"],
            "fingerprint": data["fingerprint"],
            "rows": count,
            "first": 0,
            "selection": selection,
            **{n: data[n] for n in ("files",) if data.get(n)},
        }
    ]


def shards_of(scans: Sequence[Scan]) -> list[Shard]:
    """Sources of the same name (two standard inputs) are told apart by their fingerprints."""
    uses = Counter(s[SOURCE] for scan in scans for s in sources(scan))
    shards, first = [], 0
    for scan in scans:
        prints = {s[SOURCE]: f" ({s['fingerprint'][:8]})" for s in sources(scan)}
        names = {name: name + (shown if uses[name] > 1 else "") for name, shown in prints.items()}
        shards.append(Shard(scan, first, names))
        first += span(scan)
    return shards


def span(scan: Scan) -> int:
    """How many row numbers a scan takes: its rows; of a --sample up to the last one drawn."""
    parts = reversed(range(len(scan.manifest["parts"])))
    examples = (scan.example_part(part, ["example"])["example"] for part in parts)
    last_scored = next((pc.max(e).as_py() for e in examples if len(e)), 0)
    last_rejected = max((row["row"] for row in rejected(scan)), default=0)
    last = max(last_scored or 0, last_rejected, scan.manifest.get("last_row") or 0)
    if last >= MOST_ROWS:
        raise ScanError(f"{scan.path} is damaged: its last row is number {last:,}")
    return int(max(scan.manifest["counts"]["rows"], last + 1))


# --- what is refused ---


def require_disjoint(scans: Sequence[Scan], out: str | Path) -> None:
    if len(scans) < 2:
        raise BadInput("merge joins at least two scans")
    seen: dict[str, Scan] = {}
    for scan in scans:
        if (scan.store or scan.path.resolve()) == (Store.of(out) or local(out).resolve()):
            raise BadInput(f"--out {out} is one of the scans to merge; choose another folder")
        for name, fingerprint in _fingerprints(scan):
            before = seen.setdefault(fingerprint, scan)
            if before is not scan:
                raise BadInput(
                    f"{before.path} and {scan.path} both contain the data in {name}; "
                    f"merge joins scans of disjoint data"
                )


def _fingerprints(scan: Scan) -> Iterator[tuple[str, str]]:
    """Of what a scan was made from, and of the files of that which it names."""
    for source in sources(scan):
        yield source[SOURCE], source["fingerprint"]
        yield from source.get("files", {}).items()


def require_alike(scans: Sequence[Scan]) -> None:
    """Raises `BadInput` where numbers of two scans do not belong side by side."""
    first = _shared(scans[0])
    for scan in scans:
        if not is_merged(scan) and {SOURCE, KEPT_SOURCE} <= {*scan.manifest["config"]["keep"]}:
            raise BadInput(
                f"{scan.path} keeps {SOURCE} and {KEPT_SOURCE}; merge gives the first the "
                f"name of the second: scan without --keep {KEPT_SOURCE}"
            )
        for what, value in _shared(scan).items():
            if value != first[what]:
                raise BadInput(
                    f"{scans[0].path} and {scan.path} differ in {what}"
                    f"{_both(first[what], value)}; merge joins scans made with the same settings"
                )


def _shared(scan: Scan) -> dict[str, object]:
    """What scans must share, by its name."""
    manifest, config, plan = scan.manifest, scan.manifest["config"], stored_plan(scan)
    model, row_format = manifest["model"], manifest["data"].get("format")
    return {
        "the model's weights": model.get("identity") or model["name"],
        "the adapter's weights": model.get("adapter_identity"),
        "the model's configuration or tokenizer": plan.get("model_files"),
        "dtype": model.get("dtype"),
        **{flag(name): bool(config.get(name)) for name in QUANTIZED},
        "the chat template": manifest["chat_template"],
        "--max-length": model.get("max_length"),
        "--train-on": config.get("train_on"),
        "--tool-calls": config.get("tool_calls"),
        "--turns": scan.turns,
        "--template-arg": config.get("template_arg") or {},
        "--today": plan.get("today"),
        "--stride": config.get("stride", 1),
        "--reference": plan.get("reference_identity"),
        "columns": list(manifest["columns"]),
        "--keep-tokens": scan.keep_tokens,
        "the conflict rule": "" if scan.keeps_all else scan.rule.thresholds,
        # Plain text beside conversations could not be told apart again.
        "format": row_format if row_format in WITHOUT_TEMPLATE else "conversations",
    }


def _both(a: object, b: object) -> str:
    """The two values where they are short; of columns those that only one scan has."""
    if isinstance(a, list) and isinstance(b, list):
        return f" ({', '.join(sorted({*a} ^ {*b})) or 'their order'})"
    short = all(v is None or len(str(v)) <= 40 for v in (a, b))
    return f" ({a} and {b})" if short else ""


# --- the data of the whole ---


def data_of(shards: Sequence[Shard]) -> dict[str, object]:
    """What manifest.json says of the data of the whole."""
    listed = [
        {**source, SOURCE: shard.names[source[SOURCE]], "first": source["first"] + shard.first}
        for shard in shards
        for source in sources(shard.scan)
    ]
    manifests = [shard.scan.manifest for shard in shards]
    formats = {f for m in manifests for f in str(m["data"].get("format")).split(" + ")}
    names = [Path(s[SOURCE]).name for s in listed]
    return {
        "source": " + ".join(names if len(names) <= 3 else [names[0], f"{len(names) - 1} more"]),
        "split": common(m["data"].get("split") for m in manifests),
        "fingerprint": _fingerprint(listed),
        "rows": sum(m["counts"]["rows"] for m in manifests),
        "units": sum(len(m["parts"]) for m in manifests),
        "format": " + ".join(sorted(formats)),
        "sources": listed,
    }


def common(values: Iterable[T]) -> T | None:
    """The value that all share; None where they differ."""
    first, *others = values
    return first if all(value == first for value in others) else None


def _fingerprint(listed: Sequence[Row]) -> str:
    """That of the sources' files read as one data set; a part of one (--limit) counts apart."""
    digest = hashlib.sha256()
    for source in listed:
        digest.update(source["fingerprint"].encode())
        if source["selection"]:
            digest.update(json.dumps(source["selection"], sort_keys=True).encode())
    return digest.hexdigest()
