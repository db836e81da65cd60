"""The whole verb on two processes: the numbers of one, written by one."""

import contextlib
import io
import json
import os
import shutil
import traceback
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.launch import launch_command, launch_command_parser
from forked import main, ran, torchrun
from runs import log, require_equal, weights, write_rows

import eaft_probe
from eaft_probe.cli import _run
from eaft_probe.errors import BadInput
from eaft_probe.verbs.train import launch
from eaft_probe.verbs.train import train as verb
from eaft_probe.verbs.train.log_callback import RunLog

HERE = Path(__file__).parent
# 21 rows, and 4 at once on two processes: the last micro-batch of an epoch holds one row for the
# first of them and none for the second.
ROWS, EPOCHS = 21, 2
COMMON = {
    "num_train_epochs": EPOCHS,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-3,
    "logging_steps": 2,
    "save_steps": 3,
    "eval_steps": 5,
}
# name → settings on two processes; one process accumulates twice as many micro-batches.
CASES: dict[str, dict[str, Any]] = {
    "eaft": {"objective": "eaft", "gradient_accumulation_steps": 2},
    "talr": {"objective": "talr"},
    "stm": {"objective": "stm", "set": {"threshold": 0.003}},
    "lora": {"objective": "sft-kl", "lora_r": 4, "gradient_checkpointing": True},
}
# name → flags over an old run, and what is said of them.
BAD = {
    "objective": (["--overwrite", "--objective", "eafd"], "did you mean 'eaft'"),
    "occupied": ([], "is not empty"),
    "optim": (["--overwrite", "--optim", "foo"], "foo"),
    "library": (["--overwrite", "--optim", "lomo"], "lomo"),
    "held-out": (["--overwrite", "--eval-data", "nowhere.jsonl"], "nowhere.jsonl"),
    "pipe": (["--overwrite", "--retain-data", "-"], "standard input"),
    "resume": (["--resume", "--objective", "dft"], "another objective"),
}


# --- what is trained ---


@pytest.fixture(scope="module")
def ranks(model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data, and what two processes made of all cases, started once."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "model").symlink_to(model_folder)
    write_rows(folder / "rows.jsonl", ROWS, words=5)
    write_rows(folder / "held.jsonl", 60, words=12)
    eaft_probe.scan(str(folder / "rows.jsonl"), folder / "scan", model=model_folder)
    status, _, errors = ran(torchrun, on_a_rank, str(folder))
    assert status == 0, errors[-3000:]
    return folder


def trained(folder: Path, out: str, name: str, **more: Any) -> Any:
    held_out = {f"{kind}_data": str(folder / "held.jsonl") for kind in ("eval", "retain")}
    mask = {"mask": str(folder / "scan")} if name == "stm" else {}
    settings = COMMON | held_out | mask | CASES[name] | more
    model = str(folder / "model")
    return eaft_probe.train(str(folder / "rows.jsonl"), folder / out, model=model, **settings)


@cache
def on_one(folder: Path, name: str) -> Path:
    steps = 2 * CASES[name].get("gradient_accumulation_steps", 1)
    return trained(folder, f"one-{name}", name, gradient_accumulation_steps=steps).path


# --- on each of the ranks ---


class Stopping(RunLog):
    """Stops a run within its second epoch, behind a checkpoint, step 9, and an evaluation, 10."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == 10:
            raise KeyboardInterrupt


class GoingOn(RunLog):
    """Of a run that goes on from there."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        assert state.global_step == 9
        super().on_train_begin(args, state, control, **more)


def on_a_rank(folder: str) -> None:
    here = Path(folder)
    torch.set_num_threads(1)
    for name in CASES:
        trained(here, f"two-{name}", name)
    trained(here, "lora-again", "lora")
    stopped_and_resumed(here)
    for name in BAD:
        complaint(here, name)
    torch.distributed.destroy_process_group()


def stopped_and_resumed(folder: Path) -> None:
    verb.RunLog = Stopping
    with pytest.raises(KeyboardInterrupt):
        trained(folder, "resumed", "talr")
    if torch.distributed.get_rank() == 0:  # a kill while a checkpoint is written leaves a part
        half = folder / "resumed/checkpoint-10"
        half.mkdir()
        shutil.copy(folder / "resumed/checkpoint-9/config.json", half)
    torch.distributed.barrier()
    verb.RunLog = GoingOn
    trained(folder, "resumed", "talr", resume=True)
    verb.RunLog = RunLog


def complaint(folder: Path, name: str) -> None:
    """What the command line says to bad input on this rank, and its exit status."""
    rank, said = torch.distributed.get_rank(), io.StringIO()
    if rank == 0:
        shutil.copytree(folder / "two-eaft", folder / f"bad-{name}")
    torch.distributed.barrier()
    status: int | str
    with contextlib.redirect_stderr(said):
        try:
            status = _run(command(folder, f"bad-{name}", *BAD[name][0]))
        except Exception:
            status = traceback.format_exc()
    (folder / f"bad-{name}-{rank}.json").write_text(json.dumps([status, said.getvalue()]))
    torch.distributed.barrier()


def command(folder: Path, out: str, *more: str) -> list[str]:
    places = [str(folder / "rows.jsonl"), "--model", str(folder / "model"), "--out"]
    return ["train", *places, str(folder / out), "--max-steps", "3", "--logging-steps", "1", *more]


# --- the numbers ---


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(name: str, ranks: Path) -> None:
    require_equal(ranks / f"two-{name}", on_one(ranks, name))
    assert log(ranks / f"two-{name}")["retain_kl"].iloc[-1] > 1e-3  # it has learned something


@pytest.mark.parametrize("name", CASES)
def test_no_row_is_trained_twice(name: str, ranks: Path) -> None:
    counts = json.loads((ranks / "scan/manifest.json").read_text())["counts"]
    assert log(ranks / f"two-{name}")["tokens_seen"].iloc[-1] == EPOCHS * counts["trained_tokens"]


def test_resumed_equals_uninterrupted(ranks: Path) -> None:
    require_equal(ranks / "resumed", ranks / "two-talr")


def test_a_seed_gives_the_same_adapter_again(ranks: Path) -> None:
    first, again = ranks / "two-lora", ranks / "lora-again"
    assert weights(first).keys() == weights(again).keys()
    assert all((w == weights(again)[n]).all() for n, w in weights(first).items())
    assert log(first).equals(log(again))


# --- the folder, and what is said ---


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_costs_nothing(name: str, ranks: Path) -> None:
    told = [json.loads((ranks / f"bad-{name}-{rank}.json").read_text()) for rank in (0, 1)]
    assert [status for status, _ in told] == [2, 2]
    said = "\n".join(lines for _, lines in told).splitlines()
    complaints = [line for line in said if line.startswith("eaft-probe: ")]
    assert len(complaints) == 1  # of the two processes together
    assert BAD[name][1] in complaints[0]
    assert files(ranks / f"bad-{name}") == files(ranks / "two-eaft")


def test_nothing_is_left_behind(ranks: Path) -> None:
    assert not list(ranks.rglob("*.part*"))


def test_fsdp_without_gpus_is_refused(ranks: Path) -> None:
    shutil.copytree(ranks / "two-eaft", ranks / "fsdp")
    status, out, errors = ran(
        torchrun,
        main,
        command(ranks, "fsdp", "--overwrite"),
        ACCELERATE_USE_FSDP="true",
        FSDP_VERSION="2",
    )
    assert status != 0
    said = [line for line in errors.splitlines() if line.startswith("eaft-probe: ")]
    assert len(said) == 1  # of two processes
    assert "FSDP was asked for, but the model is not sharded" in said[0]
    assert "nll" not in out + errors  # the table's header
    assert files(ranks / "fsdp") == files(ranks / "two-eaft")


def accelerate_launch(arguments: list[str]) -> None:
    """Its ranks are interpreters of their own."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    launch_command(launch_command_parser().parse_args(arguments))


def test_accelerate_launches_it_and_one_process_speaks(ranks: Path) -> None:
    shutil.copytree(ranks / "two-eaft", ranks / "accelerate")
    given = command(ranks, "accelerate", "--overwrite", "--per-device-train-batch-size", "2")
    config = str(HERE.parents[1] / "examples/accelerate_ddp.yaml")
    asked = ["--config_file", config, "--num_processes", "2", "--main_process_port", "0"]
    status, out, errors = ran(accelerate_launch, [*asked, "-m", "eaft_probe", *given])
    assert status == 0, errors[-3000:]
    assert out.count("the model and its log are in") == 1
    for once in ("loading ", "1 row left out", "  step "):
        assert errors.count(once) == 1
    assert log(ranks / "accelerate")["step"].unique().tolist() == [1, 2, 3]
    assert (ranks / "accelerate/checkpoint-3/rng_state_1.pth").exists()
    assert not (ranks / "accelerate/checkpoint-6").exists()  # the old run's


def test_processes_that_would_train_alone_are_refused(
    ranks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(launch, "resolve_device", lambda device: "cuda")  # an unknown launcher's
    with pytest.raises(BadInput, match="each would train alone"):
        trained(ranks, "alone", "eaft")
    assert not (ranks / "alone").exists()


def test_another_process_failing_costs_no_old_run(
    ranks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = ["the data are read"]  # where all are still there

    def gone(state: Any) -> None:
        if not before:
            raise RuntimeError("Connection closed by peer")
        before.pop()

    shutil.copytree(ranks / "two-eaft", ranks / "peer")
    monkeypatch.setattr(launch.PartialState, "wait_for_everyone", gone)
    with pytest.raises(RuntimeError, match="closed by peer"):
        trained(ranks, "peer", "eaft", overwrite=True)
    assert files(ranks / "peer") == files(ranks / "two-eaft")


@pytest.mark.parametrize("schedule", ["cosine_with_min_lr", "reduce_lr_on_plateau"])
def test_a_schedule_that_cannot_be_made_costs_no_old_run(schedule: str, ranks: Path) -> None:
    out = ranks / f"schedule-{schedule}"
    shutil.copytree(ranks / "two-eaft", out)
    with pytest.raises(BadInput, match=r"training cannot start: .*"):
        eaft_probe.train(
            str(ranks / "rows.jsonl"),
            out,
            model=str(ranks / "model"),
            overwrite=True,
            lr_scheduler_type=schedule,
        )
    assert files(out) == files(ranks / "two-eaft")
