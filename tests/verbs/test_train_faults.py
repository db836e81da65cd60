"""`train` where things go wrong: full disks, kills, pickles, trackers. Then --resume goes on."""

import importlib.util
import json
import math
import os
import random
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from forked import SECONDS, Forked, main
from safetensors.torch import load_file
from transformers import AutoTokenizer, TrainerCallback
from transformers.integrations import integration_utils

from eaft_probe.cli import _run
from eaft_probe.errors import BadInput, ProbeError
from eaft_probe.objectives import forward
from eaft_probe.scans.training_log import read_log
from eaft_probe.verbs.train import train as verb
from eaft_probe.verbs.train.log_callback import RunLog
from eaft_probe.verbs.train.train import Run, train

# 10 rows, 4 a step: 3 steps an epoch, so checkpoints 2 and 8 lie within an epoch, 6 between two.
EPOCHS = {
    "num_train_epochs": 3.0,
    "logging_steps": 1,
    "save_steps": 2,
    "save_total_limit": 9,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
}
# For the runs that are killed: about 3 s of steps on one core, a checkpoint every 0.1 s.
LONG = EPOCHS | {
    "num_train_epochs": 60.0,
    "save_steps": 7,
    "save_total_limit": 1,
    "logging_steps": 3,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"say {i}"},
                {"role": "assistant", "content": "the fox " * (1 + i % 5)},
            ]
        }
        for i in range(10)
    ]
    path.write_text("\n".join(json.dumps(r) for r in rows))
    return str(path)


@pytest.fixture(scope="module")
def whole(data: str, model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that nothing happened to, with all its checkpoints."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return train(data, out, model=model_folder, objective="eaft", **EPOCHS)


@pytest.fixture
def again(data: str, model_folder: str) -> Callable[..., Run]:
    """Resumes the run in a folder."""

    def resumed(out: Path, **settings: Any) -> Run:
        given = {"model": model_folder, "objective": "eaft", **EPOCHS, **settings}
        return train(data, out, resume=True, **given)

    return resumed


def assert_same(run: Run, wanted: Run) -> None:
    """The same weights and log, the name of the folder aside."""
    (weights,) = wanted.path.glob("*model.safetensors")  # an adapter's have another name
    found = load_file(run.path / weights.name)
    for name, weight in load_file(weights).items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-6)
    assert len(run.log) == len(wanted.log)
    for row, other in zip(run.log, wanted.log, strict=True):
        for name in set(row) - {"run"}:
            same = row[name] == other[name] or row[name] == pytest.approx(other[name], rel=1e-4)
            assert same, (name, row, other)


def stopped_at(step: int, whole: Run, folder: Path) -> Path:
    """What a run has left that was stopped right after a checkpoint."""
    folder.mkdir()
    for path in whole.path.glob("checkpoint-*"):
        if int(path.name.split("-")[1]) <= step:
            shutil.copytree(path, folder / path.name)
    for name in ("train.json", "log.parquet"):
        shutil.copy(whole.path / name, folder)
    plan = json.loads((folder / "train.json").read_text())
    (folder / "train.json").write_text(json.dumps({k: v for k, v in plan.items() if k != "done"}))
    return folder


# --- resumed at every place ---


@pytest.mark.parametrize("step", [2, 4, 6, 8, 9])
def test_resumed_within_and_between_epochs(step: int, whole: Run, again, tmp_path: Path) -> None:
    """9 is the last step: only the model was not yet saved."""
    assert_same(again(stopped_at(step, whole, tmp_path / "r")), whole)


@pytest.mark.parametrize("settings", [{"num_train_epochs": 1.5}, {"max_steps": 5, "lora_r": 4}])
def test_a_last_step_within_an_epoch_is_the_last(settings, data, model_folder, tmp_path) -> None:
    given = {"model": model_folder, "objective": "eaft"} | EPOCHS | settings
    run = train(data, tmp_path / "a", **given)
    assert run.last["step"] == 5
    again = train(data, stopped_at(5, run, tmp_path / "b"), resume=True, **given)
    assert_same(again, run)
    assert {p.name for p in (tmp_path / "b").iterdir()} == {p.name for p in run.path.iterdir()}
    assert train(data, tmp_path / "b", resume=True, **given).log == again.log  # nothing is left


def test_intervals_may_change_on_resuming(whole: Run, again, tmp_path: Path) -> None:
    out = stopped_at(2, whole, tmp_path / "r")
    run = again(out, save_steps=3, logging_steps=4)
    assert {p.name for p in out.glob("checkpoint-*")} == {f"checkpoint-{n}" for n in (2, 3, 6, 9)}
    assert sorted({r["step"] for r in run.log}) == [1, 2, 3, 4, 6, 8, 9]


@pytest.mark.parametrize("settings", [{"bf16": True}, {"gradient_checkpointing": True}])
def test_precision_and_memory_settings(settings, data, model_folder, whole, tmp_path) -> None:
    given = {"model": model_folder, "objective": "eaft"} | EPOCHS | settings
    run = train(data, tmp_path / "a", **given)
    assert all(math.isfinite(r[n]) for r in run.log for n in ("nll", "loss", "group_nll"))
    nll = [r["nll"] for r in run.log if r["group"] == "all"]
    theirs = [r["nll"] for r in whole.log if r["group"] == "all"]
    assert nll == pytest.approx(theirs, rel=0.02 if "bf16" in settings else 1e-5)
    assert_same(train(data, stopped_at(4, run, tmp_path / "b"), resume=True, **given), run)


# --- checkpoints cut short ---


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


SAVED = ("model.safetensors", "optimizer.pt", "trainer_state.json")  # in this order


@pytest.mark.parametrize(
    ("at", "limit"),
    [(SAVED[0], 1), (SAVED[1], 2), (SAVED[2], 1), (SAVED[2], 2), ("nothing yet", 2)],
)
def test_a_checkpoint_cut_short_is_none(at, limit, whole: Run, again, tmp_path: Path) -> None:
    out = stopped_at(6, whole, tmp_path / "r")
    broken = out / "checkpoint-6"
    for name in SAVED[SAVED.index(at) + 1 :] if at in SAVED else [f.name for f in broken.iterdir()]:
        (broken / name).unlink()
    if at in SAVED:
        half(broken / at)
    assert_same(again(out, save_total_limit=limit), whole)
    kept = {p.name for p in out.glob("checkpoint-*")}
    assert kept == {"checkpoint-9", "checkpoint-8"} if limit == 2 else {"checkpoint-9"}


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, int], None]]:
    """Once a checkpoint is whole no file can grow beyond a size: a disk that runs full."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(step: int, size: int) -> None:
        class Full(RunLog):
            def on_save(self, *given: Any, **more: Any) -> None:
                if (self.folder / f"checkpoint-{step}/trainer_state.json").exists():
                    resource.setrlimit(resource.RLIMIT_FSIZE, (size, unlimited[1]))

        monkeypatch.setattr(verb, "RunLog", Full)

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)


def room_again(monkeypatch: pytest.MonkeyPatch) -> None:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    monkeypatch.setattr(verb, "RunLog", RunLog)


@pytest.mark.parametrize("full_at", ["model", "optimizer", "log"])
def test_a_full_disk_costs_no_checkpoint(
    full_at, whole, again, data, model_folder, small_files, monkeypatch, tmp_path, capsys
) -> None:
    saved = whole.path / "checkpoint-4"
    size = {
        "model": (saved / "model.safetensors").stat().st_size // 2,
        "optimizer": (saved / "optimizer.pt").stat().st_size // 2,
        "log": 1000,
    }
    assert (saved / "model.safetensors").stat().st_size < size["optimizer"]
    small_files(4, size[full_at])
    out, limit = tmp_path / "r", {"save_total_limit": 1}
    flags = [f"--{n.replace('_', '-')}={v}" for n, v in (EPOCHS | limit).items()]
    status = _run(
        ["train", data, "--model", model_folder, "--out", str(out), "--objective", "eaft", *flags]
    )
    room_again(monkeypatch)
    last = capsys.readouterr().err.strip().split("\n")[-1]
    assert status == 1
    assert "--resume continues from the last checkpoint" in last
    assert " free)" in last
    assert (out / "checkpoint-4/trainer_state.json").exists()
    assert_same(again(out, **limit), whole)


def test_a_full_disk_at_the_final_model(
    whole, again, small_files, monkeypatch, tmp_path, data, model_folder
) -> None:
    small_files(9, 10_000)
    given = {"model": model_folder, "objective": "eaft"} | EPOCHS
    with pytest.raises(ProbeError, match="--resume continues"):
        train(data, tmp_path / "r", **given)
    room_again(monkeypatch)
    assert_same(again(tmp_path / "r"), whole)


def test_no_temporary_folder_is_one_error(data, model_folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(BadInput, match="set TMPDIR to a folder with room"):
        train(data, tmp_path / "r", model=model_folder)


# --- killed and interrupted processes ---


def killed_while_saving(arguments: list[str]) -> None:
    save = torch.save

    def killed(what: Any, path: Any, *more: Any, **named: Any) -> None:
        save(what, path, *more, **named)
        if "checkpoint-14" in str(path):
            half(Path(path))
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = killed
    main(arguments)


def started(call: Callable[..., None], data: str, model: str, out: Path) -> Forked:
    flags = [f"--{n.replace('_', '-')}={v}" for n, v in LONG.items()]
    given = ["train", data, "--model", model, "--out", str(out), "--objective", "eaft", *flags]
    return Forked(call, given)


def after_a_checkpoint(process: Forked, out: Path) -> None:
    """Waits for a whole checkpoint."""
    end = time.monotonic() + SECONDS
    while not list(out.glob("checkpoint-*/trainer_state.json")):
        assert process.poll() is None, process.communicate()[1][-2000:]
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="module")
def long(data: str, model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("long") / "run"
    return train(data, out, model=model_folder, objective="eaft", **LONG)


def test_killed_at_any_moment(data, model_folder, long: Run, again, tmp_path: Path) -> None:
    out, wait = tmp_path / "r", random.uniform(0, 0.8)
    process = started(main, data, model_folder, out)
    after_a_checkpoint(process, out)
    time.sleep(wait)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, f"finished before {wait:.2f} s; raise LONG"
    assert not (out / "model.safetensors").exists()
    print(f"killed after {wait:.3f} s: {sorted(p.name for p in out.iterdir())}")
    assert_same(again(out, **LONG), long)


def test_killed_while_saving(data, model_folder, long: Run, again, tmp_path: Path) -> None:
    out = tmp_path / "r"
    process = started(killed_while_saving, data, model_folder, out)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert {p.name for p in out.glob("checkpoint-*")} == {"checkpoint-7", "checkpoint-14"}
    assert_same(again(out, **LONG), long)


def test_interrupted_by_hand(data, model_folder, long: Run, again, tmp_path: Path) -> None:
    out = tmp_path / "r"
    process = started(main, data, model_folder, out)
    after_a_checkpoint(process, out)
    process.send_signal(signal.SIGINT)
    errors = process.communicate()[1]
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert errors.strip().split("\n")[-1] == (
        f"interrupted; --resume continues from the last checkpoint in {out}"
    )
    assert_same(again(out, **LONG), long)


def test_no_number_costs_no_checkpoint(
    data, model_folder, whole, again, tmp_path, monkeypatch, capsys
) -> None:
    """In step 6 only; the log says what led to it."""
    loss, calls = forward.gated_loss, []

    def broken(*given: Any) -> Any:
        made = loss(*given)
        calls.append(1)
        return replace(made, loss=made.loss * math.nan) if len(calls) == 6 else made

    monkeypatch.setattr(forward, "gated_loss", broken)
    flags = [f"--{n.replace('_', '-')}={v}" for n, v in EPOCHS.items()]
    out = tmp_path / "r"
    assert (
        _run(
            [
                "train",
                data,
                "--model",
                model_folder,
                "--out",
                str(out),
                "--objective",
                "eaft",
                *flags,
            ]
        )
        == 1
    )
    last = capsys.readouterr().err.strip().split("\n")[-1]
    assert "the loss is not finite in step 6, rows [" in last
    assert (out / "checkpoint-4/trainer_state.json").exists()
    assert max(read_log(out)["step"].to_pylist()) == 5
    assert_same(again(out), whole)


# --- weights that are pickles ---


def test_pickled_weights_are_asked_for(data, model_folder, tmp_path, capsys) -> None:
    folder, out = tmp_path / "m", tmp_path / "r"
    shutil.copytree(model_folder, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    flags = ["train", data, "--model", str(folder), "--out", str(out), "--max-steps=1"]
    assert _run(flags) == 2
    notes, error = capsys.readouterr().err.strip().split("eaft-probe: ")  # notes wrap at 80
    assert "".join(notes.split()) == f"loading{folder}"
    assert "--allow-pickle" in error
    assert "\n" not in error
    assert not out.exists()
    assert _run([*flags, "--allow-pickle"]) == 0
    assert (out / "model.safetensors").exists()


# --- trackers ---


@pytest.mark.parametrize("name", ["wandb", "tensorboard", "nosuch"])
def test_a_tracker_that_is_not_there(name, data, model_folder, tmp_path, capsys) -> None:
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    flags = ["--model", model_folder, "--out", str(tmp_path / "r"), "--report-to", name]
    assert _run(["train", data, *flags]) == 2
    errors = capsys.readouterr().err.strip().split("\n")
    assert len(errors) == 1  # not even the model was loaded
    assert name in errors[0]
    assert "--report-to" in errors[0]
    assert list(tmp_path.iterdir()) == []


def test_trackers_see_what_the_log_sees(data, model_folder, tmp_path, monkeypatch) -> None:
    seen: list[dict[str, float]] = []

    class Tracker(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            seen.append({"step": state.global_step, **logs})

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Tracker)
    monkeypatch.setattr(integration_utils, "is_wandb_available", lambda: True)
    run = train(
        data,
        tmp_path / "r",
        model=model_folder,
        objective="eaft",
        report_to=["wandb"],
        eval_data=data,
        retain_data=data,
        eval_steps=3,
        **EPOCHS,
    )
    for row in run.log:
        told = {k: v for s in seen if s["step"] == row["step"] for k, v in s.items()}
        for name in ("nll", "loss", "gate_mean", "mass_gated", "eval_nll", "retain_nll"):
            assert told.get(name) == row[name]
        if row["group"] != "all":
            assert told[f"{row['group']}_nll"] == row["group_nll"]
    assert {r["group"] for r in run.log} > {"all"}


def test_tensorboard_gets_its_files(data, model_folder, tmp_path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(data, tmp_path / "r", model=model_folder, report_to=["tensorboard"], **EPOCHS)
    (folder,) = (run.path / "runs").iterdir()
    found = EventAccumulator(str(folder)).Reload()
    gates = [(e.step, e.value) for e in found.Scalars("train/gate_mean")]
    wanted = [(r["step"], r["gate_mean"]) for r in run.log if r["group"] == "all"]
    assert [g[0] for g in gates] == [w[0] for w in wanted]
    assert [g[1] for g in gates] == pytest.approx([w[1] for w in wanted])


# --- held-out data ---

ONE = {"max_steps": 1, "per_device_train_batch_size": 4, "learning_rate": 1e-3}


def test_held_out_data_of_another_kind(data, model_folder, tmp_path) -> None:
    text, rows = tmp_path / "text.txt", tmp_path / "rows.csv"
    text.write_text("A fox and a dog.\n\nThe dog sleeps.\n")
    rows.write_text("prompt,completion\n" + "\n".join(f"say {i},the fox" for i in range(4)))
    run = train(
        data, tmp_path / "r", model=model_folder, retain_data=str(text), eval_data=str(rows), **ONE
    )
    assert all(math.isfinite(run.last[n]) for n in ("eval_nll", "retain_nll", "retain_kl"))


def test_limits_of_held_out_data(data, model_folder, tmp_path) -> None:
    """--eval-tokens holds for it, --limit and --sample do not."""
    lines = Path(data).read_text().split("\n")
    (tmp_path / "first.jsonl").write_text("\n".join(lines[:3]))
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokens = sum(
        len(tokenizer.apply_chat_template(json.loads(r)["messages"], return_dict=True)["input_ids"])
        for r in lines[:3]
    )

    def before(name: str, held_out: str, **settings: Any) -> float:
        given = {"eval_data": held_out, "model": model_folder} | ONE | settings
        return train(data, tmp_path / name, **given).before["eval_nll"]

    first, all_of_it = before("a", str(tmp_path / "first.jsonl")), before("b", data)
    assert first != pytest.approx(all_of_it, rel=1e-3)
    assert before("c", data, eval_tokens=tokens) == pytest.approx(first)
    assert before("d", data, eval_tokens=tokens - 1) != pytest.approx(first, rel=1e-3)
    assert before("e", data, limit=2) == pytest.approx(all_of_it)
    assert before("f", data, sample=2) == pytest.approx(all_of_it)


# --- settings from a file, and the last line ---


def test_settings_come_from_a_file(data, model_folder, tmp_path, capsys) -> None:
    config, out = tmp_path / "F.yaml", tmp_path / "r"
    settings = {
        "model": model_folder,
        "objective": "eaft",
        "set": {"alpha": 2},
        "max-steps": 5,
        "learning_rate": 1e-3,
        "logging_steps": 1,
    }
    config.write_text(yaml.safe_dump(settings))
    flags = ["train", data, "--out", str(out), "--config", str(config), "--max-steps", "2"]
    assert _run(flags) == 0
    assert "2 steps of eaft alpha=2" in capsys.readouterr().out
    config.write_text(yaml.safe_dump(settings | {"learning_rat": 1}))
    assert _run([*flags, "--overwrite"]) == 2
    assert "did you mean 'learning_rate'" in capsys.readouterr().err
    assert (out / "model.safetensors").exists()


def test_a_run_in_one_line(tmp_path: Path) -> None:
    last = {
        "group": "all",
        "step": 6,
        "objective": "eaft",
        "nll": 1.0,
        "eval_nll": 1.5,
        "retain_nll": 2.25,
        "retain_kl": 3.1e-5,
    }
    log = [last, last | {"group": "high", "nll": 9.0}]
    before = {"eval_nll": 2.0, "retain_nll": 2.0, "retain_kl": 0.0}
    assert str(Run(tmp_path, log, before)) == (
        "6 steps of eaft; learned: eval nll 2 → 1.5 (-0.5); forgot: retain nll "
        "2 → 2.25 (+0.25), KL from the base 3.1e-5; nats a token"
    )
    assert str(Run(tmp_path, log, {})) == (
        "6 steps of eaft; nll 1 of the last training tokens; nats a token"
    )
