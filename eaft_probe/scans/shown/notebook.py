"""What a scan shows of itself in a notebook.

Summary, page and tables are made in rooms above this one. They are found by name when they are
asked for, so that a scan depends on none of them.
"""

from dataclasses import dataclass, field
from html import escape
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from eaft_probe.errors import BadInput
from eaft_probe.text import in_one_line

if TYPE_CHECKING:
    import datasets
    import pandas

    from eaft_probe.scans.scan import Scan

NAMES = (("data", "source"), ("model", "name"))  # in the manifest
Table = Literal["tokens", "examples", "conflicts"]


# Scripts of the page run by themselves: they see nothing of the notebook that it stands in.
FRAME = (
    '<iframe srcdoc="{page}" sandbox="allow-scripts allow-downloads allow-popups" '
    'style="width:100%;height:800px;border:1px solid #8884"></iframe>'
)


@dataclass(frozen=True)
class Page:
    """A report that a notebook shows; `html` is the whole page."""

    html: str = field(repr=False)
    path: Path | None  # where it is written, too

    def _repr_html_(self) -> str:
        return FRAME.format(page=escape(self.html))


class InNotebook:
    """The part of `Scan` that people look at."""

    def __repr__(self: "Scan") -> str:  # type: ignore[misc]
        data, model = (in_one_line(self.manifest[of][n]) for of, n in NAMES)
        counts = self.manifest["counts"]
        return (
            f"Scan({self.place}: {data} under {model}, examples: {counts['examples']:,}, "
            f"trained tokens: {counts['trained_tokens']:,})"
        )

    def _repr_html_(self: "Scan") -> str:  # type: ignore[misc]
        """The summary as `eaft-probe show` prints it."""
        return str(_above("view.notebook").summary_html(self))

    def summary(self: "Scan") -> dict[str, Any]:  # type: ignore[misc]
        """The numbers of the scan, as `eaft-probe show --json` gives them."""
        return dict(_above("analysis.summary").summarize(self))

    def worst(  # type: ignore[misc]
        self: "Scan", n: int = 10, rank_by: str | None = None
    ) -> "pandas.DataFrame":
        """The `n` examples with the most conflicts, the larger share first among equals: their
        conflicts, trained tokens, mean nll (nats) and text. `rank_by`: the score that orders them
        instead, as `show --rank-by`, and has a column then. Raises `BadInput`, `MissingColumn`."""
        frame: pandas.DataFrame = _above("view.notebook").worst(self, n, rank_by)
        return frame

    def report(  # type: ignore[misc]
        self: "Scan",
        out: str | Path | None = None,
        against: "Scan | str | Path | None" = None,
        **settings: Any,
    ) -> Page:
        """The page of `eaft-probe report`, which a notebook shows below the cell.

        `out`: a file to write it to as well. `against`: another scan to compare with. `settings`
        are the other flags of the command. Raises `BadInput`, `MissingColumn`.
        """
        page: Page = _above("view.notebook").report_page(self, out, against, **settings)
        return page

    def to_dataset(self: "Scan", table: Table = "tokens") -> "datasets.Dataset":  # type: ignore[misc]
        """A table of the scan as a `datasets.Dataset` in memory: the tokens with `conflict`, the
        examples or the conflicts. Raises `BadInput` for another name."""
        import datasets
        import pyarrow as pa

        if table == "tokens":
            return datasets.Dataset(_plain(self.tokens_table()))
        if table not in get_args(Table):
            raise BadInput(f"a scan has no table {table!r}; give {', '.join(get_args(Table))}")
        frame = self.examples() if table == "examples" else self.conflicts()
        return datasets.Dataset(pa.Table.from_pandas(frame, preserve_index=False))


def _above(module: str) -> Any:
    return import_module(f"eaft_probe.{module}")


def _plain(table: Any) -> Any:
    """Texts as they are, where a part has each only once."""
    import pyarrow as pa

    fields = [
        f.with_type(f.type.value_type) if pa.types.is_dictionary(f.type) else f
        for f in table.schema
    ]
    return table.cast(pa.schema(fields))
