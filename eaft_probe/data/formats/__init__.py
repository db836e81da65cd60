"""Row → `Example`: one entry of FORMATS for each shape that fine-tuning data comes in."""

from eaft_probe.data.formats.columns import reached
from eaft_probe.data.formats.entries import MAPPABLE, WITHOUT_TEMPLATE
from eaft_probe.data.formats.format import FORMATS, Example, Format, Row, row_format
from eaft_probe.data.formats.inference import RowFormat, infer_format
from eaft_probe.data.messages import Message

__all__ = [
    "FORMATS",
    "MAPPABLE",
    "WITHOUT_TEMPLATE",
    "Example",
    "Format",
    "Message",
    "Row",
    "RowFormat",
    "infer_format",
    "reached",
    "row_format",
]
