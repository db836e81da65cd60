"""The page around a report's payload: template, style, scripts and library in one strict file.

Which library: minified size, and what this page's content security policy says to a small heatmap
with a box to select, in chromium 156:
* Vega-Lite 6.4 with Vega, Vega-Embed and the expression interpreter, 898 kB: silent. An interval
  brush is one line of a spec, and with `ast` no expression is evaluated as JavaScript.
* Bokeh 3.9, 1,268 kB without widgets: style elements refused, so it wants 'unsafe-inline'; what a
  selection does is written as code for `new Function`, or outside of it.
* Plotly 7.1, 4,816 kB of a file's 8 MB: style elements refused, and images from data: addresses.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import jinja2
import vl_convert

from eaft_probe.text import printable

GENERATOR = b'<meta name="generator" content="eaft-probe">'  # by which a report is known
SCRIPTS = (
    "report.js",
    "landscape.js",
    "chart.js",
    "planes.js",
    "examples.js",
    "comparison.js",
    "data_sets.js",
    "forecast.js",
)
WRAPPED = '"use strict";\n(() => {{\n{}}})();\n'  # its names stay out of the window's
LIBRARY = "Object.assign(window, { vegaEmbed });"
# What would end the script element or, in JavaScript's older grammar, the line.
ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


class Figure(NamedTuple):
    """A number in words: the figure, what it counts, and how to read it."""

    figure: str
    label: str
    detail: str


SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float, digits: int = 3) -> str:
    """So many digits, as people write them.

    >>> number(0.0314), number(1234.5), number(4.2e-7)
    ('0.0314', '1,230', '4.2×10⁻⁷')
    """
    if value and not 1e-3 <= abs(value) < 1e9:
        mantissa, power = f"{value:.1e}".split("e")
        return f"{mantissa}×10{str(int(power)).translate(SUPERSCRIPT)}"
    return f"{float(f'{value:.{digits}g}'):,.12g}"


def signed(value: float) -> str:
    return ("+" if value > 0 else "") + number(value)


def percent(share: float) -> str:
    return f"{number(100 * share)}%"


def page(payload: Mapping[str, object]) -> str:
    """The report as one HTML document that loads nothing and runs only its own two scripts."""
    style, script = _read("report.css"), WRAPPED.format("\n".join(map(_read, SCRIPTS)))
    library = _library()
    template = jinja2.Template(
        _read("report.html"), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    html: str = template.render(
        script_hashes=f"{_hash(library)} {_hash(script)}",
        style_hash=_hash(style),
        style=style,
        payload=encode(payload),
        library=library,
        script=script,
    )
    return html


@cache  # two seconds of bundling, the same for every page
def _library() -> str:
    library: str = vl_convert.javascript_bundle(LIBRARY)
    assert "</script" not in library.lower()
    return library


def library_versions() -> str:
    """What draws the pictures, and its licence, which asks to be named."""
    return (
        f"Vega {vl_convert.get_vega_version()}, Vega-Lite {vl_convert.get_vegalite_versions()[-1]} "
        f"and Vega-Embed {vl_convert.get_vega_embed_version()}, © University of Washington "
        "Interactive Data Lab and contributors, BSD 3-clause licence"
    )


def encode(value: object) -> str:
    """JSON that stays text inside a script element, its strings without control characters.

    >>> encode({"a": "</script>\\x00"})
    '{"a":"\\\\u003c/script\\\\u003e\\\\\\\\x00"}'
    """
    text = _json(value)
    if not text.isprintable() or "\\u" in text:  # a tenth of the time where nothing steers
        text = _json(_shown(value))
    return text.translate(ESCAPES)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _shown(value: object) -> object:
    """Every string as `printable` shows it: the one gate between the data and the page."""
    if isinstance(value, str):
        plain = value.replace("\n", "").isprintable()
        return value if plain else printable(value)  # which reads character by character
    if isinstance(value, dict):
        return {_shown(str(k)): _shown(v) for k, v in value.items()}
    return [_shown(v) for v in value] if isinstance(value, list | tuple) else value


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _read(name: str) -> str:
    return files(__package__).joinpath("assets", name).read_text(encoding="utf-8")
