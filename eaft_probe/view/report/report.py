"""One offline HTML file of finished scans: aggregates of all of each, and a chosen sample.

Counts come from every token, out of core. Tokens in context and whole examples are chosen within a
budget of bytes, and the page says what it shows out of how many.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from eaft_probe.analysis.aggregates import counted
from eaft_probe.analysis.summary import summarize
from eaft_probe.errors import BadInput, MissingColumn, one_line
from eaft_probe.scans.rejections import reason_lines
from eaft_probe.scans.scan import Scan
from eaft_probe.settings import CompareSettings, make_settings
from eaft_probe.storage.atomic import has_mark, require_replaceable, written_aside
from eaft_probe.storage.remote import name_of
from eaft_probe.view.labels import data_name, model_name
from eaft_probe.view.notices import template_notices
from eaft_probe.view.report.comparison import against as compared
from eaft_probe.view.report.data_sets import side_by_side
from eaft_probe.view.report.forecast import forecast
from eaft_probe.view.report.page import GENERATOR, Figure, library_versions, number, page, percent
from eaft_probe.view.report.planes import landscape
from eaft_probe.view.report.selection import (
    Record,
    columns,
    examples,
    listed,
    pairs,
    short,
)

READS = ("example", "position", "token", "char_start", "char_end", "logprob", "prob", "entropy")


def report(
    scans: Sequence[Scan],
    out: str | Path,
    against: Scan | str | Path | None = None,
    *,
    overwrite: bool = False,
    **settings: Any,
) -> Path:
    """Writes the report, aside and renamed, and returns its path.

    At most 8 MB for a scan of any size, and 3 MB more for each further scan: of several, the page
    has the shares and landscapes side by side and shows the rest of one after the other.

    `against`: another scan, which the page compares with the only one of `scans` as `compare`
    does, in at most 1 MB more; `settings` are those of `compare`, of which several scans take the
    seed. Their errors are raised before anything is written.
    Raises `BadInput` if a scan has no tokens, or `out` cannot be written or is a file other
    than an earlier report (`overwrite` replaces it), `MissingColumn` if a scan lacks a column
    that the report is about.
    """
    path, wanted = Path(out), make_settings(CompareSettings, settings)
    _require_of_use(len(scans), against is not None, wanted)
    if path.is_dir():
        raise BadInput(f"cannot write {path}: it is a folder; name a file with --out")
    if not overwrite:
        require_replaceable(path, "report", partial(has_mark, mark=GENERATOR))
    with _writing(path), TemporaryFile(dir=path.parent):
        pass  # an error now rather than after minutes of reading
    text = page(_payload(scans, against, wanted))
    with _writing(path), written_aside(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return path


def _payload(
    scans: Sequence[Scan], against: Scan | str | Path | None, settings: CompareSettings
) -> Record:
    # What compares comes first, as it may refuse.
    sections = {} if against is None else {"against": compared(scans[0], against, settings)}
    if len(scans) > 1:
        sections["data_sets"] = side_by_side(scans, settings.seed)
    return {**sections, "scans": [collect(scan, 1 / len(scans)) for scan in scans]}


def _require_of_use(count: int, against: bool, settings: CompareSettings) -> None:
    """Raises `BadInput` for settings that nothing would come of."""
    if against and count > 1:
        raise BadInput(
            f"--against compares one scan with another, found {count} scans; "
            "leave out --against to see them side by side"
        )
    if not against and count == 1 and (given := settings.changed("seed")):
        raise BadInput(f"{given[0]} draws intervals: add --against B, or a second scan")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror or one_line(error)
        raise BadInput(f"cannot write {path}: {why}; choose another file with --out") from error


def collect(scan: Scan, share: float = 1) -> Record:
    """Everything the page shows of one scan, as JSON values; it has that share of the bytes."""
    missing = next((c for c in READS if c not in scan.columns), None)
    if missing is not None:
        raise MissingColumn(f"{scan.path} has no column {missing!r}, which a report reads")
    if not scan.rows("SELECT 1 FROM tokens LIMIT 1"):
        what = "has no scored tokens" if scan.keeps_all else "kept no token to show"
        raise BadInput(f"{scan.place} {what}: nothing to report")
    summary = summarize(scan)
    agreeing = counted(scan).agreeing() if "rank" in scan.columns else None
    return {
        "data": data_name(scan),
        "model": model_name(scan),
        "rule": summary["rule"],
        "headline": [f._asdict() for f in headline(summary, agreeing)],
        "notices": list(_notices(summary)),
        "forecast": forecast(scan),
        "landscape": landscape(scan),
        "columns": columns(scan),
        "tokens": listed(scan, summary, share),
        "pairs": pairs(scan),
        "groups": _groups(summary),
        "examples": examples(scan, share),
        "provenance": _provenance(scan),
    }


# --- in words ---


def headline(summary: Mapping[str, Any], agreeing: int | None) -> list[Figure]:
    """The numbers a decision depends on; `agreeing` counts the tokens of rank 0, if known."""
    total, nll, conflicts = (summary[n] for n in ("trained_tokens", "mean_nll", "conflicts"))
    flagged, examples = summary["examples_with_conflicts"], summary["examples"]
    choices = max(math.exp(min(nll, 700)), 1)  # e⁷⁰⁰ is still a float
    share, label = f"{conflicts / total:.0%}", "are confident conflicts"
    if 5 * conflicts < total:  # above a fifth, "1 in 3" would say too little
        share = f"1 in {total / conflicts:,.0f}" if conflicts else "None"
        label = "is a confident conflict"
    figures = [
        Figure(
            share,
            f"of the tokens to be learned {label}",
            f"{conflicts:,} of {total:,} ({percent(conflicts / total)}): the model was sure of "
            "something else.",
        ),
        Figure(
            f"{flagged:,} of {examples:,}",
            ("example has" if examples == 1 else "examples have") + " at least one conflict",
            f"{percent(flagged / examples)} of what was scored; the worst are shown below.",
        ),
        Figure(
            f"{number(nll)} nats",
            "is the mean loss of a token (nll)",
            f"As if each were drawn from {number(choices)} equally likely ones.",
        ),
    ]
    if agreeing is not None:
        label = "of the tokens are what the model would have said"
        detail = f"{agreeing:,} of {total:,} have rank 0: no other token is likelier."
        figures.insert(2, Figure(f"{number(100 * agreeing / total, 2)}%", label, detail))
    return figures


def _notices(summary: Mapping[str, Any]) -> Iterator[str]:
    rows, kept = f"of {summary['rows']:,}", summary.get("kept_tokens")
    if rejected := summary["rejected"]:
        why = "; ".join(reason_lines(summary["rejected_reasons"]))
        lost = f"Rows that could not be scored: {rejected:,} {rows} (rejected.jsonl)"
        yield f"{lost}; no number here includes them; {why}."
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
