"""What `manifest.json` must be for a folder to be read as a scan: one schema, checked on opening.

A scan may come from somebody else, so nothing in it is believed: not the sizes, not the names of
files. What no version of this program reads (`__pydantic_extra__`) is let through, if it is small.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, FailFast, Field, StringConstraints, ValidationError

from eaft_probe.errors import BadInput, ScanError
from eaft_probe.model.resolve import LOADED
from eaft_probe.settings import QUANTIZED
from eaft_probe.settings.option import flag
from eaft_probe.storage.atomic import file_inside, json_bytes, parsed_json, read_json
from eaft_probe.storage.folder import Destination

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
MOST_BYTES = 256_000_000  # a million parts, of 250 bytes each

SUMS = ("left_out", "not_read")  # counts by name

Count = Annotated[int, Field(ge=0, le=2**53)]
Text = Annotated[str, StringConstraints(max_length=10_000)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Names = Annotated[list[Name], FailFast()]
Scalar = bool | int | float | Text | None


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class Part(_Strict):
    file: Annotated[str, StringConstraints(pattern=r"^part-[0-9]{5,9}\.parquet$")]
    rows: Count  # of tokens/
    sha256: Hash  # of the file in tokens/
    examples_sha256: Hash
    __pydantic_extra__: dict[str, Scalar]


class Model(_Strict):
    name: Text
    adapter: Text | None
    revision: Text | None
    dtype: Text
    vocab_size: Annotated[int, Field(ge=1, le=2**31)]
    max_length: Annotated[int, Field(ge=1, le=2**53)]
    identity: Text
    adapter_identity: Text | None


class Source(_Strict):
    """One of the data sets of a merged scan."""

    source: Text
    fingerprint: Text
    rows: Count
    first: Count  # what its row 0 is called
    selection: dict[Text, int | None] | None  # --limit, --sample, --seed
    files: dict[Text, Hash] = {}


class Data(_Strict):
    source: Text
    fingerprint: Text
    format: Text
    files: dict[Text, Hash] = {}  # of several files those that rows come from, each by itself
    sources: Annotated[list[Source], FailFast()] = []


class Counts(_Strict):
    rows: Count
    examples: Count
    rejected: Count
    tokens: Count
    trained_tokens: Count
    cut_examples: Count
    left_out: dict[Text, Count] = {}  # role.field → characters that the template does not show
    not_read: dict[Text, Count] = {}  # column of a prompt or an answer → rows that leave it aside
    __pydantic_extra__: dict[str, Count]


class Config(_Strict):
    keep: Names
    columns: dict[Text, Text] | None = None
    reference: Text | None = None


class Manifest(_Strict):
    schema_version: int
    config: Config
    model: Model
    data: Data
    chat_template: Text | None
    columns: Names
    parts: Annotated[list[Part], FailFast()]  # of three million bad ones say one
    counts: Counts
    special_tokens: Annotated[list[Text], FailFast()]
    totals: Hash | None = None  # of totals.parquet, where not all tokens are kept
    last_row: Annotated[int, Field(ge=0, lt=2**53)] | None = None  # number of it, in that case
    versions: dict[Text, Text | None] = {}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a scan, as it stands. Raises `ScanError` for what breaks the schema."""
    path = file_inside(folder, MANIFEST)
    manifest = read_json(path, MOST_BYTES)
    version = manifest.get("schema_version")
    if isinstance(version, int) and version != SCHEMA_VERSION:
        raise ScanError(f"{folder} has schema version {version}, this reads {SCHEMA_VERSION}")
    try:
        Manifest.model_validate(manifest)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ScanError(f"{path} is damaged: {where}: {first['msg']}") from error
    wrong = _contradiction(manifest)
    if wrong:
        raise ScanError(f"{path} is damaged: {wrong}")
    return manifest


def _contradiction(manifest: dict[str, Any]) -> str | None:
    """What the manifest says against itself."""
    files = [part["file"] for part in manifest["parts"]]
    columns, keep, counts = manifest["columns"], manifest["config"]["keep"], manifest["counts"]
    if any(a >= b for a, b in pairwise(files)):
        return "its parts are out of order, or one is listed twice"
    for what, names in (("columns", columns), ("config.keep", keep)):
        if len(set(names)) < len(names):
            return f"{what} has a name twice"
    if counts["examples"] + counts["rejected"] != counts["rows"]:
        return "counts: examples and rejected rows do not add up to the rows"
    if not counts["examples"] <= counts["trained_tokens"] <= counts["tokens"]:
        return "counts: there cannot be so many examples or trained tokens"
    return None


def is_loaded(model: Mapping[str, Any]) -> bool:
    """Whether a manifest's model was held by a program, whose weights have an identity of their
    own kind."""
    return str(model.get("identity", "")).startswith(LOADED)


def require_model_files(manifest: Mapping[str, Any], scan: Path, *quantized: str) -> None:
    """Raises `BadInput` where no files have the weights that a scan was made under: a program held
    its model, or they were quantized otherwise than the `quantized` settings that are on."""
    model, config = manifest["model"], manifest["config"]
    if is_loaded(model):
        raise BadInput(
            f"{scan} was made under a model that a program held ({model['name']}), so no files are "
            f"known to have its weights; save the model and scan with the name of its folder"
        )
    for name in QUANTIZED:
        if config.get(name) and name not in quantized:
            raise BadInput(
                f"{scan} was made with {flag(name)}, so under other weights than those in the "
                f"files of {model['name']}; scan without it"
            )


def write_manifest(place: Destination, manifest: Mapping[str, Any]) -> None:
    """The last file of a scan: once it stands, the scan is complete. Another run may have finished
    the same scan. Raises `ScanError` where it has other parts."""
    data = json_bytes({"schema_version": SCHEMA_VERSION, **manifest})
    theirs = place.create(MANIFEST, data)
    require_same_scan(theirs or data, data, place.shown)


def require_same_scan(theirs: bytes, ours: bytes, where: str) -> None:
    """Raises `ScanError` where two manifests describe other parts; one may name the same data by
    another path."""
    a, b = (parsed_json(data, f"{where}/{MANIFEST}") for data in (theirs, ours))
    if any(a.get(what) != b.get(what) for what in ("parts", "counts", "columns", "totals")):
        raise ScanError(
            f"{where} was finished by another run with different parts; "
            f"--overwrite starts a new scan"
        )
