"""The configurations in `examples/`, killed and resumed: the weights and the log of one process.

accelerate makes FSDP of GPUs only. Here it is told that two processes on the CPU are some; its
wrapping, our training and torch's sharding are the real ones, over gloo.
"""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env
from forked import main, ran, torchrun
from runs import require_equal, write_rows

import eaft_probe
from eaft_probe.verbs.train import launch
from eaft_probe.verbs.train import train as verb
from eaft_probe.verbs.train.log_callback import RunLog

EXAMPLES = Path(__file__).parents[2] / "examples"
SETTINGS = {
    "objective": "talr",
    "max_steps": 8,
    "per_device_train_batch_size": 2,
    "logging_steps": 2,
    "save_steps": 3,
    "learning_rate": 1e-3,
    "device": "cpu",
}
KILLED_IN = 5  # the step, behind the checkpoint of step 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model_folder: str) -> Path:
    """Data, settings, and the run on one process, undisturbed."""
    folder = tmp_path_factory.mktemp("accelerate")
    write_rows(folder / "rows.jsonl", 21, words=5)
    (folder / "settings.yaml").write_text(yaml.safe_dump(SETTINGS | {"model": model_folder}))
    eaft_probe.train(
        str(folder / "rows.jsonl"),
        folder / "one",
        model=model_folder,
        gradient_accumulation_steps=2,
        **SETTINGS,
    )
    return folder


def train(folder: Path, config: str, **more: str) -> tuple[int, str, str]:
    given = [
        "train",
        str(folder / "rows.jsonl"),
        "--config",
        str(folder / "settings.yaml"),
        "--out",
        str(folder / config),
        "--resume",
    ]
    return ran(torchrun, on_a_rank, given, **environment(config), **more)


def environment(config: str) -> dict[str, str]:
    """What `accelerate launch` tells its processes by this file, before it calls torchrun."""
    asked = ["--config_file", str(EXAMPLES / config), "--num_processes", "2", "script.py"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(asked))
    found: dict[str, str] = prepare_multi_gpu_env(arguments)
    return found


# --- on each of the ranks ---


class Killed(RunLog):
    """Of a process that is gone in the middle of a run."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == KILLED_IN and args.process_index == 1:
            os.write(2, b"killed now")
            os.kill(os.getpid(), signal.SIGKILL)


def on_a_rank(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        as_if_on_gpus()
    if "KILLED" in os.environ:
        verb.RunLog = Killed
    main(arguments)


def as_if_on_gpus() -> None:
    joined, required = PartialState.__init__, launch.require_as_launched

    def join(self: Any, *args: Any, **options: Any) -> None:
        joined(self, *args, **options)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU  # which it takes for FSDP then

    PartialState.__init__ = join
    launch.require_as_launched = lambda *of: required(*of[:2], lambda: True)


# --- what came of it ---


@pytest.mark.parametrize("config", ["accelerate_ddp.yaml", "accelerate_fsdp2.yaml"])
def test_killed_and_resumed_equals_undisturbed(config: str, folder: Path) -> None:
    out = folder / config
    status, _, errors = train(folder, config, KILLED="yes")
    assert status != 0
    assert "killed now" in errors  # whether the launcher sees that rank fail first, or the other
    assert sorted(p.name for p in out.glob("checkpoint-*")) == ["checkpoint-3"]
    status, said, errors = train(folder, config)
    assert status == 0, errors[-3000:]
    assert said.count("the model and its log are in") == 1
    for once in ("loading ", "1 row left out", "continuing from checkpoint-3", "  step "):
        assert errors.count(once) == 1
    assert (out / "checkpoint-8/pytorch_model_fsdp.bin").exists() == ("fsdp" in config)
    require_equal(out, folder / "one")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("fsdp_cpu_ram_efficient_loading", "true", "set fsdp_cpu_ram_efficient_loading to false"),
        ("fsdp_state_dict_type", "SHARDED_STATE_DICT", "fsdp_state_dict_type to FULL_STATE_DICT"),
    ],
)
def test_what_would_lose_the_model_is_refused(
    name: str, value: str, said: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = yaml.safe_load((EXAMPLES / "accelerate_fsdp2.yaml").read_text())["fsdp_config"]
    for key, of_example in (asked | {name: value}).items():
        monkeypatch.setenv(key.upper(), str(of_example))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(eaft_probe.errors.BadInput, match=said):
        launch.require_whole_models()
