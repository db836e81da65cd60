"""log.parquet: what a training run did, one row a logging step and group of tokens."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from eaft_probe.errors import MissingColumn, ScanError
from eaft_probe.scans.part_writer import write_parquet
from eaft_probe.scans.schemas import column_field
from eaft_probe.scans.verification import footer, reading
from eaft_probe.storage.atomic import file_inside

LOG = "log.parquet"
# all, then the groups of the base model; `other` is a token of none of them.
LOG_GROUPS = ("all", "high", "low", "conflict", "other")
_TEXT = pa.string()
SCHEMA = pa.schema(
    [
        column_field(*column)
        for column in (
            ("run", _TEXT, "", "name of the run's folder"),
            ("step", pa.int64(), "", "optimizer steps done"),
            ("tokens_seen", pa.int64(), "tokens", "trained tokens so far"),
            ("objective", _TEXT, "", "the objective with its fields"),
            ("lr", pa.float64(), "", "learning rate"),
            ("nll", pa.float64(), "nats", "mean nll since the last row, ungated"),
            ("loss", pa.float64(), "nats", "Σ gate · nll / N since the last row, anchor included"),
            ("gate_mean", pa.float64(), "", "mean gate since the last row"),
            ("mass_gated", pa.float64(), "", "1 − Σ gate · nll / Σ nll since the last row"),
            ("group", _TEXT, "", "all, or the token's group under the base model"),
            ("group_nll", pa.float64(), "nats", "mean nll of the group since the last row"),
            ("group_count", pa.int64(), "tokens", "tokens of the group since the last row"),
            ("eval_nll", pa.float64(), "nats", "mean nll of the held-out target data"),
            ("retain_nll", pa.float64(), "nats", "mean nll of the data to be retained"),
            ("retain_kl", pa.float64(), "nats", "mean KL(base ‖ model) on the data to be retained"),
        )
    ]
)


def read_log(path: Path, columns: Sequence[str] = tuple(SCHEMA.names)) -> pa.Table:
    """The log of a run's folder, or of that file. Raises `ScanError` and `MissingColumn`."""
    path = path if path.suffix == ".parquet" else path / LOG
    if not path.exists():
        raise ScanError(f"{path.parent} holds no {LOG}; `eaft-probe train` writes one")
    try:
        names = footer(file_inside(path.parent, path.name), _shape).schema.names
        missing = [c for c in columns if c not in names]
        if not missing:
            with reading(path):
                return pq.read_table(path.absolute(), columns=list(columns), partitioning=None)
    except ScanError as error:
        raise ScanError(f"{path} cannot be read as a log: {error}") from error
    raise MissingColumn(f"{path} has no column {missing[0]!r}")


def _shape(schema: pa.Schema) -> str | None:
    """What is wrong with the types of the columns that are there."""
    for field in schema:
        wanted = SCHEMA.field(field.name).type if field.name in SCHEMA.names else field.type
        if _kind(field.type) != _kind(wanted) or schema.names.count(field.name) > 1:
            return f"its column {field.name!r} is {str(field.type)[:80]}, not {wanted}"
    return None


def _kind(type_: pa.DataType) -> str:
    """Of whatever width: other tools write other ones."""
    kinds = {
        "text": (pa.types.is_string, pa.types.is_large_string),
        "number": (pa.types.is_integer, pa.types.is_floating, pa.types.is_null),
    }
    return next((k for k, tests in kinds.items() if any(t(type_) for t in tests)), "other")


def write_log(folder: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Whole or not at all."""
    write_parquet(folder / LOG, pa.Table.from_pylist(list(rows), schema=SCHEMA))
