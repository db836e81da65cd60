"""The alignment of every token with a gradient, beside the parts of a scan.

alignment/retain.safetensors …    unit directions, with their sha256 in manifest.json
alignment/part-00000.parquet …    `example, turn, position` and the columns, row by row as tokens/
alignment/manifest.json           how it was made; written last
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from eaft_probe.errors import BadInput, ScanError
from eaft_probe.quantities import counted_noun, number
from eaft_probe.scans.part_writer import part_file
from eaft_probe.scans.verification import reading
from eaft_probe.storage.atomic import read_json

if TYPE_CHECKING:
    import pandas

ALIGNMENT, FORECAST = "alignment", "forecast.parquet"
ALIGNMENT_COLUMNS = {
    "retain_alignment": "⟨d nll, d mean nll of the retained data⟩ over the trained parameters",
    "eval_alignment": "⟨d nll, d mean nll of the held-out data⟩ over the trained parameters",
}
PLACE = ("example", "turn", "position")
MOST_BYTES = 1_000_000  # of its manifest


def alignment_manifest(folder: Path) -> dict[str, Any] | None:
    """How the alignment of a scan was made; None where it has none, or an unfinished one."""
    file = folder / ALIGNMENT / "manifest.json"
    return read_json(file, MOST_BYTES) if file.is_file() else None


def is_forecast(folder: str) -> bool:
    """Whether a path is the folder of a forecast rather than data."""
    return (Path(folder) / FORECAST).is_file() and (Path(folder) / "manifest.json").is_file()


def aligned(
    tables: Iterable[pa.Table], folder: Path, part: int, names: Sequence[str]
) -> Iterator[pa.Table]:
    """The pieces of a tokens part, which have PLACE, with those alignment columns.

    Raises `ScanError` where the alignment is of other tokens.
    """
    if not names:
        yield from tables
        return
    file, first = part_file(folder, ALIGNMENT, part), 0
    with reading(file):
        whole = pq.read_table(file, columns=[*PLACE, *names], partitioning=None)
    for table in tables:
        stored, first = whole.slice(first, len(table)), first + len(table)
        if any(not stored[n].combine_chunks().equals(table[n].combine_chunks()) for n in PLACE):
            raise ScanError(
                f"{file} is not of the tokens of this scan; `eaft-probe forecast --overwrite` "
                f"makes it anew"
            )
        for name in names:
            table = table.append_column(name, stored[name])
        yield table


def finished_forecast(folder: Path) -> dict[str, Any] | None:
    """How the forecast of a scan was made; None where it has none, or an unfinished one."""
    made = alignment_manifest(folder)
    return made if made and made["made"] is not None and (folder / FORECAST).is_file() else None


def how_made(made: Mapping[str, Any]) -> str:
    """A finished forecast in a sentence: its step, its data and how exact it is."""
    error = 100 * max(made["check_error"].values())
    return (
        f"a {made['step']} step of length {number(made['step_length'])} on "
        f"{counted_noun(made['step_tokens'], 'token')}; retained: "
        f"{counted_noun(made['retain_rows'], 'row')}, held out: "
        f"{counted_noun(made['eval_rows'], 'row')}; alignment checked on "
        f"{counted_noun(made['checked_tokens'], 'token')}, worst error {number(error, 2)} % of "
        f"the largest"
    )


def unfinished(folder: str | Path) -> BadInput:
    return BadInput(
        f"{folder} holds no finished forecast; `eaft-probe forecast DATA --retain-data R "
        f"--out DIR` makes one"
    )


def forecast_table(folder: Path) -> "pandas.DataFrame":
    """forecast.parquet: a row for each objective. Raises `BadInput` where there is none."""
    file = folder / FORECAST
    if not file.is_file():
        raise unfinished(folder)
    with reading(file):
        return pq.read_table(file.absolute(), partitioning=None).to_pandas()
