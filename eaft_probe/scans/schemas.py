"""The columns of a scan's files: names, types, units and meanings, and what a file's may be."""

from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa

from eaft_probe.columns.statistics import STATISTICS, Statistic

TEXT = pa.dictionary(pa.int32(), pa.string())

# (name, type, unit, meaning) of the columns that are not statistics.
PLACES = (
    ("example", pa.int64(), "", "row number in the data, from 0"),
    ("turn", pa.int16(), "", "index of the message the token belongs to"),
    ("position", pa.int32(), "tokens", "the label's index in the example's token sequence"),
    ("token_id", pa.int32(), "", "the label"),
    ("token", TEXT, "", "the label decoded alone; bytes that are no character as \\xNN"),
    ("char_start", pa.int32(), "characters", "where the token begins in examples.text"),
    ("char_end", pa.int32(), "characters", "one past where it ends in examples.text"),
)
OPTIONAL = tuple(s.name for s in STATISTICS.values() if s.alone)  # some tokens have none
TOP1 = ("top1", TEXT, "", "the likeliest token decoded alone")
EXAMPLES = (
    ("example", pa.int64(), "", "row number in the data, from 0"),
    ("turn", pa.int16(), "", "the only turn trained in this rendering, under --turns each"),
    ("key", pa.string(), "", "the row's own id, where it has one"),
    ("text", pa.string(), "", "the rendered conversation"),
    ("messages", pa.string(), "", "the messages as JSON"),
    ("tokens", pa.int32(), "tokens", "length of the token sequence that was read"),
    ("trained_tokens", pa.int32(), "tokens", "how many of them are trained and scored"),
    ("mean_nll", pa.float32(), "nats", "mean of −logprob over the trained tokens"),
    ("mean_entropy", pa.float32(), "nats", "mean entropy over the trained tokens"),
)

EXAMPLE_COLUMNS = (*(e[0] for e in EXAMPLES), "conflicts")  # the last on reading


def column_field(name: str, kind: pa.DataType, unit: str, meaning: str) -> pa.Field:
    """A column that says its unit and meaning."""
    return pa.field(name, kind, metadata={"unit": unit, "meaning": meaning})


def tokens_schema(statistics: Sequence[Statistic]) -> pa.Schema:
    """The columns of a tokens part; `top1` stands behind `top1_id`."""
    fields = [column_field(*place) for place in PLACES]
    for s in statistics:
        fields.append(column_field(s.name, getattr(pa, s.dtype)(), s.unit, s.meaning))
        if s.name == "top1_id":
            fields.append(column_field(*TOP1))
    return pa.schema(fields)


def examples_schema(keep: Sequence[str]) -> pa.Schema:
    """The columns of an examples part; `keep` are the pass-through columns, as JSON text."""
    kept = [column_field(name, pa.string(), "", "passed through from the data") for name in keep]
    return pa.schema([*(column_field(*e) for e in EXAMPLES), *kept])


TOTALS_SCHEMA = pa.schema(
    [("table", pa.string()), ("key", pa.string()), ("values", pa.list_(pa.float64()))]
)
CONFLICT_SCHEMA = pa.schema(
    [
        ("example", pa.int64()),
        ("turn", pa.int16()),
        ("position", pa.int32()),
        ("token", pa.string()),
        ("top1", pa.string()),
        ("prob", pa.float32()),
        ("top1_prob", pa.float32()),
        ("entropy", pa.float32()),
        ("rank", pa.int32()),
        ("before", pa.string()),
        ("after", pa.string()),
    ]
)


# --- what the columns of a file may be ---

Types = Mapping[str, pa.DataType]
Fits = Callable[[pa.Schema], str | None]  # what is wrong with the columns of a file


def shapes(columns: Sequence[str], keep: Sequence[str]) -> dict[str, Fits]:
    """What tells for each kind of part what is wrong with its schema, if anything is.

    `columns`: those of tokens parts; `keep`: the pass-through columns of examples parts.
    """
    tokens = {f.name: f.type for f in tokens_schema(list(STATISTICS.values()))}
    examples = {e[0]: e[1] for e in EXAMPLES}
    kept = dict.fromkeys(keep, pa.string())

    def of_tokens(schema: pa.Schema) -> str | None:
        if schema.names != columns:
            return "it has other columns than the manifest says"
        return wrong_columns(schema, [p[0] for p in PLACES], tokens)

    def of_examples(schema: pa.Schema) -> str | None:
        needed = [n for n in examples if n != "turn"]  # older scans have none
        return wrong_columns(schema, [*needed, *kept], {**kept, **examples})

    return {"tokens": of_tokens, "examples": of_examples}


def conflicts_shape(schema: pa.Schema) -> str | None:
    return wrong_columns(schema, CONFLICT_SCHEMA.names, {f.name: f.type for f in CONFLICT_SCHEMA})


def wrong_columns(schema: pa.Schema, needed: Sequence[str], known: Types) -> str | None:
    """A column that is missing, there twice, or of another type; unknown ones must be flat."""
    names = schema.names
    if len(set(names)) < len(names):
        return "it has a column twice"
    missing = next((n for n in needed if n not in names), None)
    if missing is not None:
        return f"it has no column {missing!r}"
    for field in schema:
        wanted = known.get(field.name)
        if wanted in (TEXT, pa.string()) and _is_text(field.type):
            continue
        if pa.types.is_nested(field.type) or field.type != (wanted or field.type):
            return f"its column {field.name!r} is {str(field.type)[:80]}, not {wanted or 'flat'}"
    return None


def _is_text(kind: pa.DataType) -> bool:
    """Other tools write texts of 64-bit lengths, or without the dictionary."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
