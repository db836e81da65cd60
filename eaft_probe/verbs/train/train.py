"""`train`: gated fine-tuning on the very tokens that `scan` scores, by `transformers.Trainer`.

objective → model → data as windows, with what the objective reads of a finished scan → groups of
the base model → Trainer → model, log, card.
"""

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

from accelerate import PartialState
from safetensors import SafetensorError
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback

from eaft_probe.data.opening import open_data, require_obeyed
from eaft_probe.data.rendering.render import Renderer, RenderOptions
from eaft_probe.data.sources import require_outside
from eaft_probe.errors import ProbeError, one_line
from eaft_probe.model.foreign import quiet
from eaft_probe.model.loading import CausalLM
from eaft_probe.objectives.gates import objective as objective_named
from eaft_probe.objectives.objective import Objective
from eaft_probe.objectives.trainer import GatedTrainer
from eaft_probe.progress import Progress, Silent
from eaft_probe.progress_bar import watched
from eaft_probe.scans.training_log import read_log
from eaft_probe.settings import TrainSettings, as_scan, make_settings
from eaft_probe.verbs.scan.plan import date_of_plan_file
from eaft_probe.verbs.train import launch, run_folder, scan_features
from eaft_probe.verbs.train.dataset import (
    EMPTY,
    ByLength,
    InEpoch,
    Rows,
    group_tokens,
)
from eaft_probe.verbs.train.log_callback import RunLog
from eaft_probe.verbs.train.models import load, measured_against, with_lora
from eaft_probe.verbs.train.run_folder import Run

__all__ = ["Run", "train"]


@watched
def train(
    data: Any = None,
    out: str | Path = "eaft-run",
    *,
    progress: Progress | None = None,
    **settings: Any,
) -> Run:
    """Fine-tunes a model on the trained tokens of `data` into the folder `out`.

    `data` as in `scan`; every other argument is a field of `TrainSettings` and a flag of
    `eaft-probe train`. Under `torchrun` or `accelerate launch` every process calls it.
    Raises `BadInput`, or `ProbeError` where training fails.
    """
    chosen: TrainSettings = make_settings(TrainSettings, settings)
    objective, folder = _objective(chosen), Path(out)
    scans = scan_features.Scans.opened(chosen, objective)
    today = chosen.today or scans.today
    today = date_of_plan_file(folder / run_folder.CONFIG, today, overwrite=not chosen.resume)
    chosen = replace(chosen, today=today)
    arguments = launch.training_arguments(data, chosen, folder)
    progress = (progress or Silent()) if arguments.process_index == 0 else Silent()
    for source in (data, chosen.eval_data, chosen.retain_data):
        require_outside(folder, source)
    run_folder.require_free(folder, chosen)  # before the long work, and made only after it
    launch.on_main(arguments, lambda: run_folder.require_unused(folder))
    progress.note(f"loading {chosen.model}")
    model = load(chosen.model, chosen, arguments)
    with launch.shared_folder() as cache, ExitStack() as held:
        with arguments.main_process_first(local=True):
            rows = _rows(data, chosen, scans, model, cache, progress)
        # If the first process failed soon after, it would remove what the others still read.
        PartialState().wait_for_everyone()
        lost = rows.lost.sentences()
        for note in _notes(lost, objective, chosen, model):
            progress.note(note)
        log = RunLog(folder, objective, progress)
        with launch.as_bad_input():
            trainer = _trainer(rows, model, scans.resolved(objective), arguments, chosen, log)
        before = trainer.held_out_figures()
        rule = scans.read.rule if scans.read else None
        plan = run_folder.plan(chosen, rows.source, rows.fingerprint, rule, arguments.world_size)
        prepared = run_folder.prepared(folder, chosen, plan, progress.note)
        if launch.on_main(arguments, lambda: held.enter_context(prepared)):
            progress.note("nothing is left to do; raise --max-steps or --num-train-epochs")
            return Run(folder, read_log(folder).to_pylist(), before)
        _run(trainer, folder, chosen, log)
        finished = Run(folder, read_log(folder).to_pylist(), before)
        launch.on_main(arguments, lambda: run_folder.finish(finished, chosen, lost))
    return finished


def _objective(settings: TrainSettings) -> Objective:
    """The objective with what its own flags set: --compat, and --mask for `masked-sft`."""
    values = dict(settings.set)
    if settings.compat is not None:
        values["compat"] = settings.compat
    if settings.mask is not None and settings.objective == "masked-sft":
        values["conflicts"] = "scan"
    return objective_named(settings.objective, values)


def _rows(
    data: Any,
    settings: TrainSettings,
    scans: scan_features.Scans,
    model: CausalLM,
    cache: str,
    progress: Progress,
) -> Rows:
    reading = as_scan(settings)
    source = open_data(data, reading, progress.note)
    if settings.eval_data is None:  # which is read with the same settings
        require_obeyed(source, reading)
    return Rows.read(source, reading, model, scans.features(source, reading, model), cache)


def _notes(
    lost: Sequence[str], objective: Objective, settings: TrainSettings, model: CausalLM
) -> Iterator[str]:
    yield from lost
    if objective.authors_lr not in (None, settings.learning_rate):
        yield (
            f"{objective.name} was published with --learning-rate {objective.authors_lr:g}; this "
            f"run has {settings.learning_rate:g}"
        )
    if limits := Renderer(model.tokenizer, RenderOptions.of(settings)).limits:
        yield limits


# --- the run ---


def _trainer(
    rows: Rows,
    model: CausalLM,
    objective: Objective,
    arguments: TrainingArguments,
    settings: TrainSettings,
    log: RunLog,
) -> GatedTrainer:
    trained = with_lora(model.whole, settings)
    reference, held_out = measured_against(objective, trained, model, settings, arguments)
    for note in held_out.notes:
        log.progress.note(note)
    launch.require_optimizer(trained, arguments)
    together = arguments.train_batch_size * arguments.world_size
    step = together * arguments.gradient_accumulation_steps
    together = together if arguments.world_size > 1 else 1
    order = ByLength(rows.data["length"], step, together, arguments.seed)
    if settings.base_scan is None:  # the long work; a typo has shown by now
        visited = [row for row in _visited(order, settings) if row != EMPTY]
        group_tokens(rows, model, visited, settings.group_rows, settings.seed)
    trainer = GatedTrainer(
        trained,
        arguments,
        train_dataset=rows,
        eval_dataset=[],
        data_collator=rows.collate,
        sampler=order,
        processing_class=model.tokenizer,
        objective=objective,
        held_out=held_out,
        reference=reference,
        callbacks=[InEpoch(order), log],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _visited(order: ByLength, settings: TrainSettings) -> Iterator[int]:
    """The rows that the run will visit."""
    epochs = math.ceil(settings.num_train_epochs * len(order))
    return islice(order, settings.max_steps * order.step if settings.max_steps > 0 else epochs)


def _run(trainer: GatedTrainer, folder: Path, settings: TrainSettings, log: RunLog) -> None:
    checkpoint = run_folder.last_checkpoint(folder) if settings.resume else None
    if settings.resume:
        log.progress.note(
            f"continuing from {checkpoint.name}"
            if checkpoint
            else "no checkpoint to resume from; starting at step 0"
        )
    try:
        with quiet():
            try:
                _go_on(trainer, folder, checkpoint, settings)
            finally:
                log.write()  # the last rows show what stopped it
        trainer.accelerator.wait_for_everyone()  # the first process writes the log
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ProbeError(
            f"training stopped: {one_line(error)}; --resume continues from the last checkpoint in "
            f"{folder}{run_folder.free_space(folder)}"
        ) from error


def _go_on(
    trainer: GatedTrainer, folder: Path, checkpoint: Path | None, settings: TrainSettings
) -> None:
    """The steps that are left, and the model. Where none is left, the last run was stopped after
    its last checkpoint, which has the model; the Trainer would take one step too many."""
    if checkpoint is None or not run_folder.at_end(checkpoint, asdict(settings)):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        trainer.save_model(str(folder))
    elif trainer.is_world_process_zero():
        without = shutil.ignore_patterns(*run_folder.OF_TRAINER)
        shutil.copytree(checkpoint, folder, ignore=without, dirs_exist_ok=True)
