"""What is made to harm: folders of models, adapters, files and templates that grow, config files.

Each input has so much MEMORY, and may write nowhere but in its own folder.
"""

import json
import os
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import tiny
import torch
from areas import (
    PACKED,
    anything,
    area,
    damaged,
    folder,
    renderer,
    require_one_line,
    sound_scan,
)
from hypothesis import strategies as st
from safetensors.torch import save_file

from eaft_probe.cli import _run
from eaft_probe.data.formats import RowFormat, infer_format
from eaft_probe.data.rendering import chat_template as templates
from eaft_probe.data.rendering.render import Renderer
from eaft_probe.data.sources import open_source
from eaft_probe.errors import ProbeError, RowError, TooLittleMemory
from eaft_probe.model import adapter_patterns
from eaft_probe.model.loading import load_model

MEMORY = 3_000_000_000  # bytes of addresses that an input may take
ROW = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


@contextmanager
def little_memory() -> Iterator[None]:
    """An input that needs more is a defect, also where the error is said in one line."""
    limit, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, hard))
    try:
        yield
    except (ProbeError, RowError) as error:
        require_enough(error)
        raise
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def require_enough(error: Exception) -> None:
    short = isinstance(error, TooLittleMemory) or isinstance(error.__cause__, MemoryError)
    assert not short, f"more than {MEMORY:,} bytes: {error}"


@contextmanager
def touching_only(own: Path) -> Iterator[None]:
    """Beside `own` stands what may not change."""
    beside = own.parent / "precious"
    beside.mkdir(exist_ok=True)
    (beside / "file").write_text("mine")
    before = sorted(p.name for p in own.parent.iterdir())
    try:
        yield
    finally:
        assert sorted(p.name for p in own.parent.iterdir()) == before
        assert [p.read_text() for p in beside.iterdir()] == ["mine"]


# --- models ---


@cache
def sound_model() -> Path:
    return tiny.save(folder() / "sound", tiny.build("llama"))


JSONS = ("config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json")
ODD = st.one_of(
    anything,
    st.sampled_from(
        [
            0,
            -1,
            1,
            2**31,
            10**9,
            10**12,
            0.5,
            "x",
            "",
            [],
            {},
            None,
            True,
            [0],
            ["x"],
            "../../precious/file",
            "(a*)*b",
            "[",
            "LlamaForCausalLM",
            "bart",
            "mpt",
        ]
    ),
)
NAMES = st.sampled_from(
    [
        "bos_token_id",
        "num_attention_heads",
        "num_hidden_layers",
        "model_type",
        "model_max_length",
        "rope_scaling",
        "rope_parameters",
        "quantization_config",
        "auto_map",
        "architectures",
        "is_encoder_decoder",
        "tokenizer_class",
        "chat_template",
        "added_tokens",
        "torch_dtype",
        "dtype",
        "layer_types",
        "head_dim",
        "vocab_size",
        "tie_word_embeddings",
    ]
)


@st.composite
def edited(draw: Callable[..., Any], name: str) -> bytes:
    """One of the sound model's JSON files with values put elsewhere, or its bytes damaged."""
    content = (sound_model() / name).read_bytes()
    if draw(st.integers(0, 4)) == 0:
        return bytes(draw(damaged(st.just(content))))
    found = json.loads(content)
    for _ in range(draw(st.integers(1, 2))):
        inner, key = found, draw(st.sampled_from(sorted(found)) | NAMES)
        while isinstance(inner.get(key), dict) and inner[key] and draw(st.booleans()):
            inner = inner[key]
            key = draw(st.sampled_from(sorted(inner)))
        inner[key] = draw(ODD)
    return json.dumps(found).encode("utf-8", "surrogatepass")


@st.composite
def models(draw: Callable[..., Any]) -> dict[str, bytes | str]:
    """Files of a model's folder → what stands there instead: bytes, a link or a kind of file."""
    changed: dict[str, bytes | str] = {}
    for name in draw(st.lists(st.sampled_from(JSONS), min_size=1, max_size=2)):
        changed[name] = draw(edited(name))
    if draw(st.integers(0, 3)) == 0:
        name = draw(st.sampled_from([*JSONS, "model.safetensors", "added_tokens.json"]))
        changed[name] = draw(st.sampled_from(KINDS))
    if draw(st.integers(0, 3)) == 0:
        weights = (sound_model() / "model.safetensors").read_bytes()
        changed["model.safetensors"] = draw(damaged(st.just(weights)))
    return changed


KINDS = ["fifo", "/dev/zero", "folder", "gone", "../precious"]


def _place(path: Path, what: bytes | str) -> None:
    path.unlink(missing_ok=True)
    if isinstance(what, bytes):
        path.write_bytes(what)
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what != "gone":
        path.symlink_to(what)


def _fresh(name: str) -> Path:
    own = folder() / "models" / name
    shutil.rmtree(own, ignore_errors=True)
    return own


@area(st.deferred(models), few=12)
def model_folder(given: dict[str, bytes | str]) -> None:
    """Damaged folders: loaded and proven, a row rendered and read; what a dry run asks."""
    own = _fresh("model")
    shutil.copytree(sound_model(), own)
    for name, what in given.items():
        _place(own / name, what)
    with little_memory(), touching_only(own):
        model = load_model(str(own), device="cpu")
        assert model.max_length >= 0
        found = Renderer(model.tokenizer)(RowFormat("messages")(ROW))
        ids = torch.from_numpy(found.ids).long().clamp(max=model.head.vocab_size - 1)
        assert model.hidden(ids[None]).shape[:2] == (1, len(ids))


patterns = st.one_of(
    st.sampled_from(
        [
            "(.*)*" * 7 + "xx",
            "(a|a?)+$",
            ".*q_proj",
            "[",
            "(?P<",
            "all-linear",
            "",
            "(.*)*.q_proj",
            r"model\.layers\.\d+\.mlp.*",
            "(" * 5000,
        ]
    ),
    st.text("a.*+?()[]|\\{}1,q_proj$", max_size=20),
)
adapters = st.fixed_dictionaries(
    {"peft_type": st.just("LORA") | anything, "target_modules": patterns | st.lists(patterns)},
    optional={
        "r": ODD,
        "rank_pattern": st.dictionaries(patterns, ODD, max_size=2),
        "layers_pattern": patterns,
        "layers_to_transform": ODD,
        "exclude_modules": patterns,
        "modules_to_save": st.lists(patterns, max_size=2) | ODD,
        "task_type": ODD,
        "auto_mapping": ODD,
        "lora_alpha": ODD,
        "bias": ODD,
        "init_lora_weights": ODD,
    },
)


@area(adapters, few=6)
def adapter(given: dict[str, Any]) -> None:
    """Adapters whose patterns may not end."""
    own = _fresh("adapter")
    own.mkdir(parents=True)
    (own / "adapter_config.json").write_text(json.dumps(given))
    save_file({"x": torch.zeros(1)}, own / "adapter_model.safetensors")
    with patch.object(adapter_patterns, "SECONDS", 2.0), little_memory(), touching_only(own):
        load_model(str(sound_model()), adapter=str(own), device="cpu")


# --- files that grow ---

GROWING: dict[str, tuple[str, Callable[[int], bytes]]] = {
    "line": (".jsonl", lambda n: b'{"text": "' + b"x" * n + b'"}'),
    "paragraph": (".txt", lambda n: b"the fox\n" * (n // 8)),
    "one line": (".txt", lambda n: b"x" * n),
    "blank lines": (".txt", lambda n: b"\n" * n),
    "deep": (".json", lambda n: b"[" * n),
    "deep line": (".jsonl", lambda n: b"[" * n),
    "deep object": (".jsonl", lambda n: b'{"a":' * (n // 5)),
    "string": (".json", lambda n: b'[{"text":"a"},{"text":"' + b"x" * n + b'"}]'),
    "spaces": (".json", lambda n: b" " * n + b"[]"),
    "member": (".json", lambda n: b'{"data":[{"text":"' + b"x" * n + b'"}],"a":1}'),
    "number": (".json", lambda n: b"[" + b"1" * n + b"]"),
    "elements": (".json", lambda n: b"[" + b"1," * (n // 2) + b"1]"),
    "brackets in a text": (".jsonl", lambda n: b'{"text": "' + b"[" * n + b'"}'),
    "escapes": (".jsonl", lambda n: b'{"text": "' + b"\\" * n + b"[" * n + b'"}'),
    "field": (".csv", lambda n: b'text,b\n"' + b"x" * n + b'",b\n'),
    "open quote": (".csv", lambda n: b'text,b\n"' + b"x\n" * (n // 2)),
    "columns": (".csv", lambda n: b"," * n + b"\n" + b"," * n),
    "rows": (".csv", lambda n: b"text\n" + b"x\n" * (n // 200)),
}


@area(
    st.tuples(
        st.sampled_from(sorted(GROWING)),
        st.sampled_from([99, 101, 1_000, 100_000, 3_000_000, 11_000_000, 40_000_000]),
        st.sampled_from(["", ".zst"]),
    ),
    few=25,
)
def growing_file(given: tuple[str, int, str]) -> None:
    """Files of one long row, or few, packed to nothing or not."""
    kind, size, packing = given
    many = kind in ("elements", "blank lines", "rows") and size > 1_000_000
    if many or (not packing and size > 20_000_000):
        return  # slow to write, or of many rows and no long one
    suffix, made = GROWING[kind]
    path = folder() / f"growing{suffix}{packing}"
    path.write_bytes(PACKED[packing](made(size)))
    with little_memory():
        for record in open_source(path).records():
            try:
                found = record.parse()
                if record.size < 100_000 and record.row < 5:
                    renderer()(infer_format([found], {})(found))
            except RowError as error:
                require_enough(error)
                require_one_line(error)


# --- templates that grow ---

atoms = st.sampled_from(
    [
        "x",
        "x",
        "'ab'",
        "'%9d'",
        "'{0}{0}'",
        "'{:>9}'",
        "messages",
        "messages[0].content",
        "10",
        "10 ** 9",
        "-3",
        "2.5",
        "[x, x]",
        "{'a': x, 'b': x}",
        "(x, 1)",
        "range(9999)",
        "true",
        "none",
        "'a\\n\\t' * 999",
        "namespace(a=x, b=x)",
        "dict(a=x)",
        "'%(a)s' * 99",
        "i",
    ]
)
FILTERS = (
    "list",
    "join",
    "upper",
    "string",
    "tojson",
    "e",
    "title",
    "length",
    "center(1000000)",
    "indent(100000)",
    "replace('a', x)",
    "batch(2)|list",
    "map('center', 99999)|list",
    "int",
    "sum(start=[])",
    "wordwrap(1, wrapstring=x)",
    "urlize",
    "pprint",
    "first",
    "round(-99999999)",
    "slice(999999)|list",
    "join(x)",
    "tojson(indent=999999)",
    "items",
    "reverse",
    "xmlattr",
    "truncate(5)",
    "striptags",
    "format(x)",
    "unique|list",
)
METHODS = (
    "replace('a', {})",
    "join({})",
    "center({})",
    "ljust({})",
    "zfill({})",
    "format({})",
    "expandtabs({})",
    "translate({{97: {}}})",
    "split({})",
    "format_map({})",
    "count({})",
    "encode().center({})",
    "to_bytes({})",
    "strip({})",
    "get({})",
    "items()",
)
expressions = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.tuples(
            inner, st.sampled_from(["+", "*", "**", "%", "~", "-", "//", "in", "=="]), inner
        ).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        st.tuples(inner, st.sampled_from(FILTERS)).map(lambda t: f"({t[0]}|{t[1]})"),
        st.tuples(inner, st.sampled_from(METHODS), inner).map(
            lambda t: f"({t[0]}).{t[1].format(t[2])}"
        ),
        st.tuples(inner).map(lambda t: f"({t[0]})[:]"),
    ),
    max_leaves=5,
)


@area(st.tuples(expressions, expressions, st.sampled_from([1, 60, 9999])), few=25)
def growing_template(given: tuple[str, str, int]) -> None:
    """Templates whose steps feed each other, with a history and without."""
    start, step, times = given
    step = re.sub(r"\bx\b", "ns.x", step)
    source = (
        f"{{% set x = 'ab' %}}{{% set i = 2 %}}{{% set ns = namespace(x={start}) %}}"
        f"{{% for i in range({times}) %}}{{% set ns.x = {step} %}}{{% endfor %}}"
        f"{{{{ ns.x }}}}{tiny.CHAT_TEMPLATE}"
    )
    with patch.object(templates, "SECONDS", 0.5), little_memory():
        made = Renderer(tiny.tokenizer(source))
        example = RowFormat("messages")(ROW)
        made.locator(example).template.text(example.messages)
        made(example)


# --- config files of commands ---

COMMANDS = (("show",), ("flag",), ("plot", "landscape"))
own_keys = st.sampled_from(
    [
        "out",
        "data",
        "json",
        "fail_if",
        "folder",
        "config",
        "kind",
        "worst",
        "quantile",
        "export",
        "example",
        "as_json",
        "context",
        "given",
    ]
)
own_values = anything | st.sampled_from(
    [
        True,
        False,
        "x>1",
        "examples>0",
        "f.csv",
        "f.png",
        3,
        None,
        [1],
        "nowhere/f.png",
        "/dev/full",
        "",
        "f.gif",
        "\x1b[2J",
    ]
)


@area(
    st.tuples(st.sampled_from(COMMANDS), st.dictionaries(own_keys, own_values, max_size=3)), few=20
)
def command_config(given: tuple[tuple[str, ...], dict[str, Any]]) -> None:
    """--config with what is a command's own: it is done, or said in one line why not."""
    command, settings = given
    path, said = folder() / "own.yaml", StringIO()
    path.write_text(json.dumps(settings))
    names = (str(settings.get(n)) for n in ("out", "data", "export"))
    if any("/" in n and not n.startswith(("nowhere", "/dev")) for n in names):
        return  # a name drawn at random is written to, as was asked
    before = os.getcwd()
    os.chdir(_fresh_here())
    try:
        with redirect_stderr(said), redirect_stdout(StringIO()):
            status = _run([command[0], *command[1:], str(sound_scan()), "--config", str(path)])
    finally:
        os.chdir(before)
    errors = said.getvalue().splitlines()
    assert status in (0, 1, 2, 3), status
    assert "unexpected" not in said.getvalue(), errors
    assert len(errors) == (status in (1, 2)), errors


def _fresh_here() -> Path:
    here = folder() / "here"
    here.mkdir(exist_ok=True)
    return here
