"""`train`: gated fine-tuning on the very tokens that `scan` scores, by `transformers.Trainer`.

objective → model → data as windows, beside them what the objective reads of a finished scan →
groups of the base model → Trainer → model, log, card.
"""

import math
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback

from eaft_probe.data.opening import open_data
from eaft_probe.data.rendering.render import Renderer, RenderOptions
from eaft_probe.data.sources import require_outside
from eaft_probe.errors import ProbeError, one_line
from eaft_probe.model.foreign import quiet
from eaft_probe.model.loading import CausalLM
from eaft_probe.objectives.gates import objective
from eaft_probe.objectives.objective import Objective
from eaft_probe.objectives.trainer import GatedTrainer
from eaft_probe.progress import Progress, Silent
from eaft_probe.scans.training_log import read_log
from eaft_probe.settings import TrainSettings, make_settings
from eaft_probe.verbs.train import launch, run_folder, scan_features
from eaft_probe.verbs.train.dataset import EMPTY, ByLength, InEpoch, Rows, group_tokens
from eaft_probe.verbs.train.log_callback import RunLog
from eaft_probe.verbs.train.models import load, measured_against, reading, with_lora
from eaft_probe.verbs.train.run_folder import Run

__all__ = ["Run", "train"]


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
    wanted, folder = _objective(chosen), Path(out)
    scans = scan_features.Scans.opened(chosen, wanted)
    chosen = run_folder.dated(chosen, folder, scans.today)
    arguments = launch.training_arguments(data, chosen, folder)
    progress = (progress or Silent()) if arguments.process_index == 0 else Silent()
    for given in (data, chosen.eval_data, chosen.retain_data):
        require_outside(folder, given)
    run_folder.require_free(folder, chosen)  # before the long work, and made only after it
    launch.on_main(arguments, lambda: run_folder.require_unused(folder))
    progress.note(f"loading {chosen.model}")
    model = load(chosen.model, chosen, arguments)
    with launch.shared_folder() as cache, ExitStack() as held:
        with launch.main_first(arguments):
            rows = _rows(data, chosen, scans, model, cache)
        _notes(rows, wanted, chosen, progress)
        limits = Renderer(model.tokenizer, RenderOptions.of(chosen)).limits
        if limits:
            progress.note(limits)
        log = RunLog(folder, wanted, progress)
        with launch.as_bad_input():
            trainer = _trainer(rows, model, scans.resolved(wanted), arguments, chosen, log)
        before = trainer.held_out_figures()
        plan = run_folder.plan(
            chosen, rows.source, rows.fingerprint, scans.rule, arguments.world_size
        )
        prepared = run_folder.prepared(folder, chosen, plan, progress.note)
        if launch.on_main(arguments, lambda: held.enter_context(prepared)):
            progress.note("nothing is left to do; raise --max-steps or --num-train-epochs")
            return Run(folder, read_log(folder).to_pylist(), before)
        _run(trainer, folder, chosen, log)
        finished = Run(folder, read_log(folder).to_pylist(), before)
        launch.on_main(arguments, lambda: run_folder.finish(finished, chosen, rows.lost))
    return finished


def _objective(settings: TrainSettings) -> Objective:
    """The objective with what its own flags set: --compat, and --mask for `masked-sft`."""
    given = dict(settings.set)
    if settings.compat is not None:
        given["compat"] = settings.compat
    if settings.mask is not None and settings.objective == "masked-sft":
        given["conflicts"] = "scan"
    return objective(settings.objective, given)


def _rows(
    data: Any, settings: TrainSettings, scans: scan_features.Scans, model: CausalLM, cache: str
) -> Rows:
    as_scan = reading(settings)
    source = open_data(data, as_scan)
    scans.require_same_data(source, as_scan, model)
    return Rows.read(source, as_scan, model, scans.beside, cache)


def _notes(rows: Rows, wanted: Objective, settings: TrainSettings, progress: Progress) -> None:
    for what, count in rows.lost.items():
        progress.note(f"{count:,} {what}")
    theirs = wanted.authors_lr
    if theirs is not None and theirs != settings.learning_rate:
        progress.note(
            f"{wanted.name} was published with --learning-rate {theirs:g}; this run has "
            f"{settings.learning_rate:g}"
        )


# --- the run ---


def _trainer(
    rows: Rows,
    model: CausalLM,
    wanted: Objective,
    arguments: TrainingArguments,
    settings: TrainSettings,
    log: RunLog,
) -> GatedTrainer:
    trained = with_lora(model.whole, settings)
    reference, held_out = measured_against(wanted, trained, model, settings, arguments)
    for note in held_out.notes if held_out else ():
        log.progress.note(note)
    launch.require_optimizer(trained, arguments)
    order = _order(rows, arguments)
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
        objective=wanted,
        held_out=held_out,
        reference=reference,
        callbacks=[InEpoch(order), log],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _order(rows: Rows, arguments: TrainingArguments) -> ByLength:
    together = arguments.train_batch_size * arguments.world_size
    step = together * arguments.gradient_accumulation_steps
    alone = arguments.world_size == 1
    return ByLength(rows.lengths, step, 1 if alone else together, arguments.seed)


def _visited(order: ByLength, settings: TrainSettings) -> Iterator[int]:
    """The rows that the run will come by."""
    some = settings.max_steps * order.step if settings.max_steps > 0 else None
    return islice(order, some or math.ceil(settings.num_train_epochs * len(order)))


def _run(trainer: GatedTrainer, folder: Path, settings: TrainSettings, log: RunLog) -> None:
    checkpoint = run_folder.last_checkpoint(folder) if settings.resume else None
    if settings.resume:
        log.progress.note(
            f"going on from {checkpoint.name}"
            if checkpoint
            else "no checkpoint to resume from; starting at step 0"
        )
    try:
        with quiet():
            try:
                _go_on(trainer, folder, checkpoint, settings)
            finally:
                log.write()  # the last rows tell of what stopped it
        trainer.accelerator.wait_for_everyone()  # the first process writes the log
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, ProbeError):
            raise
        raise ProbeError(
            f"training stopped: {one_line(error)}; --resume goes on from the last "
            f"checkpoint in {folder}{run_folder.room(folder)}"
        ) from error


def _go_on(
    trainer: GatedTrainer, folder: Path, checkpoint: Path | None, settings: TrainSettings
) -> None:
    """The steps that are left, and the model. Where none is left, the last run was stopped behind
    its last checkpoint, whose model is the model; the Trainer would take one step too many."""
    if checkpoint is None or not run_folder.at_end(checkpoint, asdict(settings)):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        trainer.save_model(str(folder))
    elif trainer.is_world_process_zero():
        others = shutil.ignore_patterns(*run_folder.OF_TRAINER)
        shutil.copytree(checkpoint, folder, ignore=others, dirs_exist_ok=True)
