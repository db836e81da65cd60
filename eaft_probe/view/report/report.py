"""One offline HTML file of a finished scan: aggregates of all of it, and a chosen sample.

Counts come from every token, out of core. Tokens in context and whole examples are chosen within a
budget of bytes, and the page says what it shows out of how many.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eaft_probe.analysis.aggregates import counted
from eaft_probe.analysis.histogram2d import ENTROPY_BINS, ENTROPY_STEP, PROB_BINS, PROB_STEP
from eaft_probe.analysis.summary import summarize
from eaft_probe.errors import BadInput, MissingColumn, one_line
from eaft_probe.scans.scan import Scan
from eaft_probe.storage.atomic import has_mark, require_replaceable, written_aside
from eaft_probe.storage.remote import name_of
from eaft_probe.view.notices import rejections, template_notices
from eaft_probe.view.report.comparison import against as compared
from eaft_probe.view.report.page import GENERATOR, Figure, library_versions, page
from eaft_probe.view.report.selection import (
    Record,
    columns,
    examples,
    last_part,
    listed,
    pairs,
    short,
)

READS = ("example", "position", "token", "char_start", "char_end", "logprob", "prob", "entropy")


def report(
    scan: Scan,
    out: str | Path,
    against: Scan | str | Path | None = None,
    *,
    overwrite: bool = False,
    **settings: Any,
) -> Path:
    """Writes the report, aside and renamed, and returns its path: at most 8 MB for any scan.

    `against`: another scan, which the page compares with this one as `compare` does, in at most
    1 MB more; `settings` are those of `compare`, whose errors are raised before anything is
    written.
    Raises `BadInput` if the scan has no tokens, or `out` cannot be written or is a file other
    than an earlier report (`overwrite` replaces it), `MissingColumn` if the scan lacks a column
    that the report is about.
    """
    path = Path(out)
    if path.is_dir():
        raise BadInput(f"cannot write {path}: it is a folder; name a file with --out")
    if not overwrite:
        require_replaceable(path, "report", partial(has_mark, mark=GENERATOR))
    with _writing(path), TemporaryFile(dir=path.parent):
        pass  # an error now rather than after minutes of reading
    # First, as it is the part that may refuse.
    comparison = {} if against is None else {"against": compared(scan, against, **settings)}
    text = page({**collect(scan), **comparison})
    with _writing(path), written_aside(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return path


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror or one_line(error)
        raise BadInput(f"cannot write {path}: {why}; choose another file with --out") from error


def collect(scan: Scan) -> Record:
    """Everything the page shows, as JSON values."""
    missing = next((c for c in READS if c not in scan.columns), None)
    if missing is not None:
        raise MissingColumn(f"{scan.path} has no column {missing!r}, which a report reads")
    if not scan.rows("SELECT 1 FROM tokens LIMIT 1"):
        what = "has no scored tokens" if scan.keeps_all else "kept no token to show"
        raise BadInput(f"{scan.place} {what}: nothing to report")
    summary = summarize(scan)
    agreeing = counted(scan).agreeing() if "rank" in scan.columns else None
    return {
        "data": last_part(summary["data"]),
        "model": last_part(summary["model"]),
        "rule": summary["rule"],
        "headline": [f._asdict() for f in headline(summary, agreeing)],
        "notices": list(_notices(summary)),
        "landscape": _landscape(scan),
        "columns": columns(scan),
        "tokens": listed(scan, summary),
        "pairs": pairs(scan),
        "groups": _groups(summary),
        "examples": examples(scan),
        "provenance": _provenance(scan),
    }


# --- in words ---


def headline(summary: Mapping[str, Any], agreeing: int | None) -> list[Figure]:
    """The numbers a decision depends on; `agreeing` counts the tokens of rank 0, if known."""
    total, nll, conflicts = (summary[n] for n in ("trained_tokens", "mean_nll", "conflicts"))
    flagged, examples = summary["examples_with_conflicts"], summary["examples"]
    choices = max(math.exp(min(nll, 700)), 1)  # e⁷⁰⁰ is still a float
    share = f"{conflicts / total:.0%}"
    if 5 * conflicts < total:  # above a fifth, "1 in 3" would say too little
        share = f"1 in {total / conflicts:,.0f}" if conflicts else "None"
    figures = [
        Figure(
            share,
            "of the tokens to be learned is a confident conflict",
            f"{conflicts:,} of {total:,} ({conflicts / total:.2%}): the model was sure of "
            "something else.",
        ),
        Figure(
            f"{flagged:,} of {examples:,}",
            "examples have at least one conflict",
            f"{flagged / examples:.0%} of what was scored; the worst are shown below.",
        ),
        Figure(
            f"{nll:.2f} nats",
            "is the mean surprise of a token (nll)",
            f"As if each were drawn from {choices:,.3g} equally likely ones.",
        ),
    ]
    if agreeing is not None:
        label = "of the tokens are what the model would have said"
        detail = f"{agreeing:,} of {total:,} have rank 0: no other token is likelier."
        figures.insert(2, Figure(f"{agreeing / total:.0%}", label, detail))
    return figures


def _notices(summary: Mapping[str, Any]) -> Iterator[str]:
    rows, kept = f"of {summary['rows']:,}", summary.get("kept_tokens")
    if rejected := summary["rejected"]:
        why = f"no number here includes them; {'; '.join(rejections(summary))}"
        yield f"Rows that could not be scored: {rejected:,} {rows} (rejected.jsonl); {why}."
    if cut := summary["cut_examples"]:
        yield f"Examples cut at the model's context: {cut:,} {rows}."
    yield from template_notices(summary)
    if kept:
        yield (
            f"Tokens kept one by one (--keep-tokens {kept['keep']}): {kept['tokens']:,} of "
            f"{summary['trained_tokens']:,}. Examples and tokens in context show those; all "
            "counts, groups and the landscape cover every token."
        )
    if kept and kept["pairs_too_low"]:
        low = kept["pairs_too_low"]
        yield f"Pairs: only the commonest were kept; counts are up to {low:,} too low."


def _groups(summary: Mapping[str, Any]) -> list[Record]:
    """The tables of `show`: by role, by class of token, and by each kept column."""
    tables = {
        "By role of the message": summary["roles"],
        "By kind of token": summary["classes"],
        **{f"Examples by {name}": rows for name, rows in summary["kept"].items()},
    }
    return [
        {
            "title": title,
            "names": [n.replace("_", " ") for n in rows[0]],
            "rows": [[short(v) for v in r.values()] for r in rows],
        }
        for title, rows in tables.items()
        if rows
    ]


def _provenance(scan: Scan) -> list[tuple[str, list[tuple[str, str]]]]:
    manifest = scan.manifest
    sections = {
        "model": manifest["model"],
        "data": {**manifest["data"], "chat_template": manifest.get("chat_template")},
        "conflict rule": scan.rule.as_dict(),
        "counts": manifest["counts"],
        "settings": manifest["config"],
        "versions": manifest.get("versions", {}),
        "report": {"scan": name_of(scan.place), "drawn with": library_versions()},
    }
    return [
        (title, [(str(k), short(v)) for k, v in values.items() if v not in (None, [], {})])
        for title, values in sections.items()
    ]


# --- the landscape ---


def _landscape(scan: Scan) -> Record:
    """The counts of all tokens and of the conflicts by cell, sparse."""
    whole = counted(scan)
    return {
        "prob_cells": round(1 / PROB_STEP),
        "entropy_cells": round(1 / ENTROPY_STEP),
        "rows": ENTROPY_BINS,
        "columns": PROB_BINS,
        "counts": sparse(whole.plane().counts),
        "conflicts": sparse(whole.conflict_plane().counts),
        "vocab_size": scan.manifest["model"].get("vocab_size"),
    }


def sparse(counts: NDArray[np.int64]) -> list[int]:
    """Row by row: the step to the next cell that is not empty, its count, and so on.

    >>> sparse(np.array([[0, 7], [0, 9]]))
    [1, 7, 2, 9]
    """
    flat = counts.ravel()
    at = np.flatnonzero(flat)
    pairs: list[int] = np.column_stack([np.diff(at, prepend=0), flat[at]]).ravel().tolist()
    return pairs
