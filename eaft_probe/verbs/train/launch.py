"""The Trainer's arguments, the processes of a launch, and what is refused before the long work."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from eaft_probe.errors import BadInput, ProbeError, one_line
from eaft_probe.model.loading import resolve_device
from eaft_probe.objectives.trainer import require_as_launched
from eaft_probe.settings import TrainSettings

# Settings that TrainingArguments takes under the same name.
PASSED = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "weight_decay",
    "max_grad_norm",
    "optim",
    "bf16",
    "logging_steps",
    "save_steps",
    "save_total_limit",
    "eval_steps",
    "report_to",
    "seed",
)


# Newer versions of transformers call it activation checkpointing and warn of the old name.
CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if hasattr(TrainingArguments, name)
)


def training_arguments(data: object, settings: TrainSettings, folder: Path) -> TrainingArguments:
    """The Trainer's arguments. Under a launcher this joins the other processes. Raises `BadInput`
    where the Trainer would later, or where the processes are not those launched."""
    with as_bad_input():
        arguments = _arguments(settings, folder)
    # On GPUs the model will be sharded, if so launched.
    require_as_launched(
        arguments.world_size, arguments.fsdp, lambda: arguments.device.type != "cpu"
    )
    require_whole_models()
    if arguments.n_gpu > 1:
        raise BadInput(
            f"one process cannot train on {arguments.n_gpu} GPUs; start it by `torchrun "
            f"--nproc-per-node {arguments.n_gpu} -m eaft_probe train …`, or set "
            f"CUDA_VISIBLE_DEVICES to one of them"
        )
    require_trackers(arguments.report_to)
    sources = (data, settings.eval_data, settings.retain_data)
    if arguments.world_size > 1 and any(isinstance(s, str) and s == "-" for s in sources):
        raise BadInput("several processes cannot share the standard input; give a file")
    return arguments


def _arguments(settings: TrainSettings, folder: Path) -> TrainingArguments:
    held_out = settings.eval_data is not None or settings.retain_data is not None
    checkpointing = {CHECKPOINTING: True} if settings.gradient_checkpointing else {}
    return TrainingArguments(
        output_dir=str(folder),
        **{name: getattr(settings, name) for name in PASSED},
        **checkpointing,
        eval_strategy="steps" if held_out else "no",
        save_strategy="steps",
        remove_unused_columns=False,
        disable_tqdm=True,
        use_cpu=resolve_device(settings.device) == "cpu",
    )


def require_whole_models() -> None:
    """Checks FSDP as accelerate's config asks for it. Raises `BadInput` where a process would
    measure the base model without its weights, or the Trainer would write no model at the end."""
    fsdp = {n: v.lower() for n, v in os.environ.items() if n.startswith(("FSDP_", "ACCELERATE_"))}
    if fsdp.get("ACCELERATE_USE_FSDP") != "true":
        return
    if fsdp.get("FSDP_CPU_RAM_EFFICIENT_LOADING") == "true":
        raise BadInput(
            "every process measures the base model before it is sharded, so each needs all "
            "weights: set fsdp_cpu_ram_efficient_loading to false"
        )
    default = "full_state_dict" if fsdp.get("FSDP_VERSION", "1") == "1" else "sharded_state_dict"
    if fsdp.get("FSDP_STATE_DICT_TYPE", default) != "full_state_dict":
        raise BadInput(
            "train writes a plain model folder, not a sharded one: set fsdp_state_dict_type to "
            "FULL_STATE_DICT"
        )


def require_trackers(names: Sequence[str]) -> None:
    """Before the long work: the Trainer would look for them after it."""
    installed = get_available_reporting_integrations()
    for name in names:
        if name not in installed:
            why = "not installed" if name in INTEGRATION_TO_CALLBACK else "unknown"
            raise BadInput(
                f"the tracker {name!r} for --report-to is {why}; installed: "
                f"{', '.join(installed) or 'none'}, available: {', '.join(INTEGRATION_TO_CALLBACK)}"
            )


def require_optimizer(trained: torch.nn.Module, arguments: TrainingArguments) -> None:
    """Raises, while the folder is untouched, what the trainer would when it begins: for an
    optimizer whose library is missing, or a schedule that needs more than its name."""
    if arguments.lr_scheduler_type == "reduce_lr_on_plateau":
        raise BadInput(
            "--lr-scheduler-type reduce_lr_on_plateau follows an eval_loss, which train does not "
            "compute; choose another schedule"
        )
    Trainer.get_optimizer_cls_and_kwargs(arguments, trained)
    get_scheduler(
        arguments.lr_scheduler_type,
        torch.optim.SGD([torch.nn.Parameter()]),
        arguments.get_warmup_steps(1),
        1,
        arguments.lr_scheduler_kwargs,
    )


@contextmanager
def as_bad_input() -> Iterator[None]:
    """Errors of `TrainingArguments`, PEFT and the optimizer over a setting, as one line."""
    try:
        yield
    except (ValueError, ImportError, TypeError, OSError) as error:
        raise BadInput(f"training cannot start: {one_line(error)}") from error


def on_main(arguments: TrainingArguments, work: Callable[[], object]) -> object:
    """One process does the work while the others wait, and all of them return or raise what it
    does. It begins once all have arrived: where another one failed, an old run must stay."""
    outcome: list[object] = [None, None]
    PartialState().wait_for_everyone()
    if arguments.process_index == 0:
        try:
            outcome[0] = work()
        except ProbeError as error:
            outcome[1] = error
    result, error_of_main = broadcast_object_list(outcome)
    if error_of_main:
        raise error_of_main
    return result


@contextmanager
def shared_folder() -> Iterator[str]:
    """A temporary folder of one name for all processes, removed at the end. Raises `BadInput`."""
    try:
        temporary = tempfile.TemporaryDirectory()
    except OSError as error:
        raise BadInput(
            f"no temporary folder for the tokens: {one_line(error)}; set TMPDIR to a folder with "
            f"room"
        ) from error
    with temporary as path:
        yield str(broadcast_object_list([path])[0])
