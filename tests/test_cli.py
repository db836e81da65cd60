"""The command line as a user meets it: exit statuses, one line on standard error, JSON."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from eaft_probe.cli import _run
from eaft_probe.columns.statistics import STATISTICS
from eaft_probe.data.formats import FORMATS
from eaft_probe.objectives.gates import OBJECTIVES
from eaft_probe.view.plots import PLOTS

ROWS = [
    {"question": f"what is {n}", "answer": f"it is {n} and no more", "tag": "ab"[n % 2]}
    for n in range(9)
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return str(path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: str, model_folder: str) -> str:
    out = str(tmp_path_factory.mktemp("scan") / "s")
    wide = ["--entropy-below", "9", "--prob-below", "0.5"]
    assert _run(["scan", data, "--model", model_folder, "--out", out, "--keep", "tag", *wide]) == 0
    return out


def test_show_prints_the_numbers_as_json(finished: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["show", finished, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["examples"] == 9
    assert summary["conflict_share"] == summary["conflicts"] / summary["trained_tokens"] > 0
    assert sum(c["conflicts"] for c in summary["classes"]) == summary["conflicts"]
    assert sum(r["trained_tokens"] for r in summary["roles"]) == summary["trained_tokens"]
    assert [k["value"] for k in summary["kept"]["tag"]] == ["a", "b"]
    assert summary["entropy_quantiles"]["0.5"] > 0


@pytest.mark.parametrize(
    ("gate", "status"),
    [
        ("conflict_share>0", 3),
        ("conflict_share > 1", 0),
        ("examples==9", 3),
        ("mean_nll<=0", 0),
        ("no_such>1", 2),
        ("conflict_share~1", 2),
        ("conflict_share>e", 2),
    ],
)
def test_fail_if(finished: str, gate: str, status: int) -> None:
    assert _run(["show", finished, "--json", "--fail-if", gate]) == status


def test_flag_rewrites_only_the_rule(finished: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["flag", finished, "--quantile", "0.5", "--json"]) == 0
    rule = json.loads(capsys.readouterr().out)["rule"]
    assert rule["quantile"] == 0.5
    assert _run(["flag", finished, "--entropy_below", "9", "--prob_below", "0.5"]) == 0


def test_plain_rows_come_back_plain(model_folder: str, tmp_path: Path) -> None:
    for name, row in (
        ("text", {"text": "the cat sat"}),
        ("pair", {"prompt": "the cat", "completion": "sat on"}),
    ):
        data, out, back = (tmp_path / f"{name}{end}" for end in (".jsonl", "", "-back.jsonl"))
        data.write_text(json.dumps(row))
        assert _run(["scan", str(data), "--model", model_folder, "--out", str(out)]) == 0
        assert _run(["export", str(out), "--out", str(back)]) == 0
        assert row.items() <= json.loads(back.read_text()).items()


def test_a_truncated_part_is_one_line(
    data: str, model_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(["scan", data, "--model", model_folder, "--out", str(tmp_path / "s")]) == 0
    part = tmp_path / "s/tokens/part-00000.parquet"
    part.write_bytes(part.read_bytes()[:100])
    capsys.readouterr()
    assert _run(["show", str(tmp_path / "s")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_targets_and_flags_that_cannot_be(finished: str, tmp_path: Path) -> None:
    assert _run(["show", finished, "--export", str(tmp_path / "no" / "x.jsonl")]) == 2
    assert _run(["show", finished, "--export", ""]) == 2
    assert _run(["show", finished, "--worst", "-1"]) == 2
    assert _run(["show", finished, "--example", "1", "--json"]) == 2
    assert _run(["scan", "x" * 300 + ".jsonl"]) == 2


def test_show_example_colours_its_tokens(finished: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["show", finished, "--example", "2"]) == 0
    marked = capsys.readouterr().out
    assert marked.count("«") == marked.count("»") > 10
    assert "it is 2 and no more" in re.sub("[«»]", "", marked)
    assert _run(["show", finished, "--example", "99"]) == 2


def test_render_needs_no_forward_pass(
    data: str, model_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(["render", data, "--model", model_folder, "--limit", "1"]) == 0
    assert "tokens trained" in capsys.readouterr().out


def test_config_file_and_command_line(data: str, model_folder: str, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(f"model: {model_folder}\nrows-per-unit: 2\nlimit: 4\n")
    out = str(tmp_path / "s")
    assert _run(["scan", data, "--config", str(config), "--limit", "6", "--out", out]) == 0
    resolved = json.loads((tmp_path / "s/manifest.json").read_text())["config"]
    assert (resolved["limit"], resolved["rows_per_unit"]) == (6, 2)


def test_bad_config_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text, message in [
        ("limt: 3", "limit"),
        ("limit: many", "--limit"),
        ("- 1", "mapping"),
        ("a: [", "cannot read"),
    ]:
        (tmp_path / "c.yaml").write_text(text)
        assert _run(["scan", "x.jsonl", "--config", str(tmp_path / "c.yaml")]) == 2
        assert message in capsys.readouterr().err


def test_a_config_may_hold_what_is_a_commands_own(
    data: str, model_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`out` and `data` were given twice to the verb, `json` and `fail_if` were unknown."""
    own = {
        "out": str(tmp_path / "a"),
        "data": data,
        "json": True,
        "fail-if": "examples==9",
        "model": model_folder,
    }
    (tmp_path / "c.yaml").write_text(json.dumps(own))
    assert _run(["scan", "--config", str(tmp_path / "c.yaml")]) == 3
    assert json.loads(capsys.readouterr().out)["examples"] == 9
    again = ["--config", str(tmp_path / "c.yaml"), "--fail-if", "examples>9"]
    assert _run(["scan", *again, "--out", str(tmp_path / "b")]) == 0
    assert (tmp_path / "a/manifest.json").exists()
    assert (tmp_path / "b/manifest.json").exists()


@pytest.mark.parametrize(
    "text", ["out: [1]", "data: 3", "json: maybe", "as_json: true", "config: x"]
)
def test_what_is_a_commands_own_has_a_type(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert _run(["scan", "--config", str(tmp_path / "c.yaml")]) == 2
    assert text.split(":")[0] in capsys.readouterr().err


def program(command: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """The program by a shell, which closes and redirects what it stands on."""
    whole = {**os.environ, "PROGRAM": f"{sys.executable} -m eaft_probe", **environment}
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=whole)


def test_a_full_disk_behind_standard_output_is_one_line() -> None:
    done = program("$PROGRAM list statistics > /dev/full")
    assert done.returncode == 1
    assert done.stderr == "eaft-probe: [Errno 28] No space left on device\n"


def test_closed_streams(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program("$PROGRAM list statistics >&-").returncode == 0
    monkeypatch.setattr("sys.stdin", None)
    assert _run(["render", "-"]) == 2
    assert "standard input is closed" in capsys.readouterr().err


def test_another_locale_reads_and_writes_the_same(finished: str, tmp_path: Path) -> None:
    """Names and texts were read as ASCII, and printed as such."""
    (tmp_path / "é.yaml").write_text("worst: 0", encoding="utf-8")
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = program(f"$PROGRAM show {finished} --config {tmp_path}/é.yaml", **ascii_only)
    assert (done.returncode, done.stderr) == (0, "")
    assert "entropy" in done.stdout


def test_names_that_are_not_utf8_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A manifest names the files, and could not be written."""
    name = os.fsdecode(os.fsencode(tmp_path) + b"/d\xff.jsonl")
    Path(name).write_text(json.dumps(ROWS[0]))
    for given in (name, str(tmp_path)):
        assert _run(["render", given]) == 2
        assert "is not UTF-8" in capsys.readouterr().err


def test_what_nothing_expects_is_one_line_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason of last resort. A developer asks for the traceback."""
    monkeypatch.setattr("sys.stdout", 3)  # so that printing is an error of nobody's
    assert _run(["list", "statistics"]) == 1
    assert capsys.readouterr().err.startswith("eaft-probe: unexpected AttributeError")
    monkeypatch.setenv("EAFT_PROBE_TRACEBACK", "1")
    with pytest.raises(AttributeError):
        _run(["list", "statistics"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["scan", "no-such.jsonl"],
        ["scan", "--no-such-flag"],
        ["scna"],
        ["show", "no-such-dir"],
        ["scan", "--format", "mesages"],
        ["list", "statistcs"],
        ["scan", "--model", "./nowhere"],
        ["scan", "--device", "cuda:99"],
        ["scan", "--limit", "x"],
        ["scan", "--threads", "1000000"],
        ["scan", "--workers", "1000000"],
        ["flag", "no-such-dir"],
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _run(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("eaft-probe: ")
    assert not (tmp_path / "eaft-scan" / "manifest.json").exists()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["--version"]) == 0
    assert capsys.readouterr().out.strip()[0].isdigit()


# --- figures ---


def test_plot_writes_a_figure_and_its_data(
    finished: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, "s")
    assert _run(["plot", "landscape", "s"]) == 0
    assert _run(["plot", "landscape", "s", "--out", "f.svg", "--data", "d.csv"]) == 0
    assert capsys.readouterr().out.split() == ["s-landscape.png", "f.svg", "d.csv"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.csv", "f.svg", "s", "s-landscape.png"]
    assert (tmp_path / "d.csv").read_text().startswith("prob_from,prob_to,entropy_from,entropy_to")


def test_plot_prints_the_table_of_a_figure_that_is_one(
    finished: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    out = ["--out", str(tmp_path / "g.svg")]
    assert _run(["plot", "gates", finished, "--objective", "eaft,dft", "--set", "k=20", *out]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("loss removed", "eaft", "dft", "conflict", "agreeing"))


def test_plot_takes_a_config_and_the_command_line_wins(finished: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "objective: [dft, qlog]\nset: {q: '0.25'}\nnorm: grad-logits\n"
    )
    data, out = str(tmp_path / "d.csv"), str(tmp_path / "f.svg")
    given = ["--config", str(tmp_path / "c.yaml"), "--data", data, "--out", out]
    assert _run(["plot", "gradients", finished, *given]) == 2  # a norm is a column's name
    (tmp_path / "c.yaml").write_text("objective: [dft, qlog]\nset: {q: '0.25'}\nnorm: grad_head\n")
    assert _run(["plot", "gradients", finished, *given]) == 0
    written = Path(data).read_text()
    assert "mean_grad_head" in written
    assert "qlog q=0.25" in written
    assert (
        _run(["plot", "gradients", finished, *given, "--norm", "grad_logits", "--overwrite"]) == 0
    )
    assert "mean_grad_logits" in Path(data).read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["landscap"], "did you mean 'landscape'"),
        (["landscape", "--norm", "grad_head"], "no --norm; it takes --style, --difference"),
        (["stability", "--objective", "sft"], "plot stability has no --objective"),
        (["landscape", "--style", "dots"], "--style"),
        (["landscape", "--difference"], "--difference"),
        (["gradients", "--norm", "grad_hidden"], "--statistics grad_hidden"),
        (["gates", "--objective", "eaff"], "did you mean 'eaft'"),
        (["gates", "--set", "alpha"], "--set takes"),
        (["gates", "--set", "alhpa=2"], "alhpa"),
        (["gates", "--objective", "rho"], "--base-scan"),
        (["gates", "--base-scan", "nowhere", "--objective", "stm"], "nowhere"),
        (["topk"], "--statistics entropy_top5"),
        (["dynamics"], "log.parquet"),
        (["landscape", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["landscape", "--out", "f.gif"], ".png, .svg or .pdf"),
        (["landscape", "--data", "f.xlsx"], ".parquet or .csv"),
        (["landscape", "--out", "nowhere/f.png"], "cannot write nowhere/f.png"),
        (["landscape", "--no-such"], "no-such"),
    ],
    ids=str,
)
def test_a_figure_that_cannot_be_is_one_line(
    finished: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    status = _run(["plot", arguments[0], finished, *arguments[1:]])
    error = capsys.readouterr().err
    assert status == (1 if "cannot write" in said else 2)
    assert error.startswith("eaft-probe: ")
    assert error.count("\n") == 1
    assert said in error
    assert not list(tmp_path.glob(".*"))


def test_plot_of_no_scan_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["plot", "landscape", str(tmp_path)]) == 2
    assert _run(["plot", "landscape"]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("what", "entries"),
    [
        ("objectives", OBJECTIVES),
        ("statistics", STATISTICS),
        ("formats", FORMATS),
        ("plots", PLOTS),
    ],
    ids=["objectives", "statistics", "formats", "plots"],
)
def test_list_prints_every_entry(
    what: str,
    entries: Mapping[str, object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert _run(["list", what]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()[1:] if line[:1].strip()] == list(
        entries
    )
    if what == "objectives":
        assert "gate=power, alpha=1, sharpness=30, center=0.17, k=20, entropy=top" in printed


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["train", "d.jsonl", "--objective", "sft", "--objective", "eaft"], "--objective"),
        (["scan", "d.jsonl", "--max_length=5", "--max-length", "6"], "--max-length"),
    ],
)
def test_an_option_with_two_values_is_refused(
    arguments: list[str], flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(arguments) == 2
    assert f"{flag} is given more than once" in capsys.readouterr().err
