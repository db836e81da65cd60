"""`train`: gated fine-tuning on the very tokens that `scan` scores, by `transformers.Trainer`.

objective → model → data as windows, beside them what the objective reads of a finished scan →
groups of the base model → Trainer → model, log, card.
"""

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint

from eaft_probe.columns.conflicts import write_json
from eaft_probe.columns.log import LOG, read_log
from eaft_probe.columns.table import Scan
from eaft_probe.errors import BadInput, ProbeError, one_line
from eaft_probe.model.loading import CausalLM, load_model, quiet, resolve_device
from eaft_probe.objectives.forward import AdapterOff, ReferenceModel
from eaft_probe.objectives.gates import objective
from eaft_probe.objectives.objective import Objective
from eaft_probe.objectives.scanned import OF_BASE, ScanStep
from eaft_probe.objectives.trainer import GatedTrainer
from eaft_probe.progress import Progress, Silent
from eaft_probe.settings import ModelSettings, ScanSettings, TrainSettings, make_settings
from eaft_probe.verbs import beside
from eaft_probe.verbs.held_out import HeldOut, read_held_out
from eaft_probe.verbs.rows import EMPTY, ByLength, Rows, group_tokens
from eaft_probe.verbs.run_log import RunLog
from eaft_probe.verbs.scan import open_data, require_same_vocabulary

CONFIG, CARD = "train.json", "README.md"
# Settings that TrainingArguments takes under the same name.
PASSED = ("learning_rate", "lr_scheduler_type", "warmup_steps", "num_train_epochs", "max_steps",
          "per_device_train_batch_size", "gradient_accumulation_steps", "weight_decay",
          "max_grad_norm", "optim", "bf16", "logging_steps",
          "save_steps", "save_total_limit", "eval_steps", "report_to", "seed")  # fmt: skip


# Newer versions of transformers call it activation checkpointing and warn of the old name.
CHECKPOINTING = next(
    name for name in ("activation_checkpointing", "gradient_checkpointing")
    if hasattr(TrainingArguments, name)
)  # fmt: skip
# What may change when a run is resumed.
FREE = {"resume", "overwrite", "max_steps", "num_train_epochs", "logging_steps", "save_steps",
        "save_total_limit", "eval_steps", "report_to", "device"}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A finished training run."""

    path: Path
    log: list[dict[str, Any]]  # the rows of log.parquet
    before: dict[str, float]  # eval_nll, retain_nll and retain_kl of the model it started from

    @property
    def last(self) -> dict[str, Any]:
        """The last row over all tokens."""
        return next(row for row in reversed(self.log) if row["group"] == "all")

    def __str__(self) -> str:
        """What was learned and what was forgotten, in one line."""
        last, said = self.last, []
        if "eval_nll" in self.before:
            said.append(f"learned: eval nll {_change(self.before['eval_nll'], last['eval_nll'])}")
        if "retain_nll" in self.before:
            change = _change(self.before["retain_nll"], last["retain_nll"])
            said.append(f"forgot: retain nll {change}, KL from the base {last['retain_kl']:.4f}")
        said = said or [f"nll {last['nll']:.4f} of the last training tokens"]
        return f"{last['step']} steps of {last['objective']}; {'; '.join(said)}; nats a token"


def _change(before: float, after: float) -> str:
    return f"{before:.4f} → {after:.4f} ({after - before:+.4f})"


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
    scans = _Scans.opened(chosen, wanted)
    with _as_bad_input():
        arguments = _arguments(chosen, folder)
    main = arguments.process_index == 0
    progress = (progress or Silent()) if main else Silent()
    _require_free(folder, chosen)  # before the long work, and made only after it
    progress.note(f"loading {chosen.model}")
    model = _load(chosen.model, chosen, arguments)
    with _shared_folder() as cache:
        with arguments.main_process_first(local=True):
            rows = _rows(data, chosen, scans, model, cache)
        _notes(rows, wanted, chosen, progress)
        with _as_bad_input():
            trainer = _trainer(rows, model, scans.resolved(wanted), arguments, chosen, progress)
        before = trainer.held_out_figures()
        _on_main(arguments, lambda: _prepare(folder, chosen, rows, scans))
        _run(trainer, folder, chosen, progress)
    finished = Run(folder, read_log(folder).to_pylist(), before)
    _on_main(arguments, lambda: _card(finished, chosen, rows))
    return finished


def _on_main(arguments: TrainingArguments, work: Callable[[], None]) -> None:
    """Done by one process while the others wait; what it raises, all of them do."""
    failed: list[ProbeError | None] = [None]
    if arguments.process_index == 0:
        try:
            work()
        except ProbeError as error:
            failed = [error]
    if error_of_main := broadcast_object_list(failed)[0]:
        raise error_of_main


def _objective(settings: TrainSettings) -> Objective:
    """The objective with what its own flags set: --compat, and --mask for `masked-sft`."""
    given = dict(settings.set)
    if settings.compat is not None:
        given["compat"] = settings.compat
    if settings.mask is not None and settings.objective == "masked-sft":
        given["conflicts"] = "scan"
    return objective(settings.objective, given)


@dataclass(frozen=True)
class _Scans:
    """The finished scans of a run: one that the objective reads, one that groups the log."""

    read: Scan | None
    names: tuple[str, ...]  # the columns of OF_BASE that the objective reads
    base: Scan | None

    @classmethod
    def opened(cls, settings: TrainSettings, wanted: Objective) -> "_Scans":
        names = tuple(name for name in wanted.reads if name in OF_BASE)
        mask, base = beside.opened(settings.mask), beside.opened(settings.base_scan)
        if names and (mask or base) is None:
            raise BadInput(f"objective {wanted.name!r} reads {names[0]} from a finished scan of "
                           f"the same data; give it as --mask DIR")  # fmt: skip
        if mask and not names:
            raise BadInput(f"objective {wanted.name!r} reads nothing from a scan; leave --mask out")
        if base:
            beside.require_same_model(base, settings)
        return cls((mask or base) if names else None, names, base)

    def resolved(self, wanted: Objective) -> Objective:
        """An objective that must see the whole scan first has seen it."""
        if not wanted.of_scan:
            return wanted
        assert self.read is not None
        return wanted.resolve(ScanStep(self.read, None, tuple(wanted.reads)))

    @property
    def beside(self) -> list[beside.Beside]:
        objectives = [beside.for_objective(self.read, self.names)] if self.read else []
        return objectives + ([beside.for_groups(self.base)] if self.base else [])


def _arguments(settings: TrainSettings, folder: Path) -> TrainingArguments:
    """What the Trainer is told. Under a launcher this joins the other processes."""
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


@contextmanager
def _shared_folder() -> Iterator[str]:
    """A temporary folder of one name for all processes, removed at the end."""
    with tempfile.TemporaryDirectory() as own:
        yield str(broadcast_object_list([own])[0])


def _rows(data: Any, settings: TrainSettings, scans: _Scans, model: CausalLM, cache: str) -> Rows:
    reading = _reading(settings)
    source = open_data(data, reading)
    for scan, flag in ((scans.read, "--mask"), (scans.base, "--base-scan")):
        if scan:
            beside.require_same_data(scan, source, reading, model, flag)
    return Rows.read(source, reading, model, scans.beside, cache)


def _notes(rows: Rows, wanted: Objective, settings: TrainSettings, progress: Progress) -> None:
    for what, count in rows.lost.items():
        progress.note(f"{count:,} {what}")
    theirs = wanted.authors_lr
    if theirs is not None and theirs != settings.learning_rate:
        progress.note(f"{wanted.name} was published with --learning-rate {theirs:g}; this run has "
                      f"{settings.learning_rate:g}")  # fmt: skip


def _require_free(folder: Path, settings: TrainSettings) -> None:
    occupied = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if occupied and not (settings.resume or settings.overwrite):
        raise BadInput(f"{folder} is not empty; give --resume, --overwrite or another --out")
    if occupied and not (folder / CONFIG).exists():
        flag = "--overwrite" if settings.overwrite else "--resume"
        raise BadInput(f"{folder} holds no training run, so {flag} leaves it alone")


def _prepare(folder: Path, settings: TrainSettings, rows: Rows, scans: _Scans) -> None:
    """The folder is touched only once everything stands: a typo must not cost an old run."""
    plan = {**asdict(settings), "data": rows.source, "fingerprint": rows.fingerprint}
    if scans.read:
        plan["mask_rule"] = asdict(scans.read.rule)
    try:
        if settings.resume and (folder / CONFIG).exists():
            _require_same(folder, plan)
        if settings.overwrite and folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / CONFIG, plan)
    except OSError as error:
        raise BadInput(f"cannot write to {folder}: {error.strerror or one_line(error)}") from error


def _require_same(folder: Path, plan: Mapping[str, Any]) -> None:
    """A resumed run goes on with the settings and the data that it began with."""
    try:
        before = json.loads((folder / CONFIG).read_text())
    except ValueError as error:
        raise BadInput(f"{folder / CONFIG} is damaged; choose another --out") from error
    for name, value in json.loads(json.dumps(plan)).items():
        if name not in FREE and before.get(name) != value:
            raise BadInput(f"{folder} was trained with another {name} ({before.get(name)!r}, now "
                           f"{value!r}); --resume goes on with the same")  # fmt: skip
    checkpoint = get_last_checkpoint(str(folder))
    if checkpoint and 0 < plan["max_steps"] <= _steps(checkpoint):
        raise BadInput(f"{folder} is finished: {_steps(checkpoint)} steps; raise --max-steps")


def _steps(checkpoint: str) -> int:
    return int(json.loads((Path(checkpoint) / "trainer_state.json").read_text())["global_step"])


@contextmanager
def _as_bad_input() -> Iterator[None]:
    """What `TrainingArguments`, PEFT and the optimizer say of a setting, as one line."""
    try:
        yield
    except (ValueError, ImportError, TypeError) as error:
        raise BadInput(f"training cannot start: {one_line(error)}") from error


def _load(name: str, settings: TrainSettings, arguments: TrainingArguments) -> CausalLM:
    """In float32: a step of 1e-5 is less than half a unit in the last place of most bfloat16
    weights (2 % of them moved in 60 steps, 97 % in float32). `bf16` computes in bfloat16."""
    given = {f.name: getattr(settings, f.name) for f in fields(ModelSettings) if f.name != "model"}
    if given["dtype"] == "auto":
        given["dtype"] = "float32"
    if given["dtype"] != "float32" and settings.lora_r is None:
        raise BadInput(f"--dtype {given['dtype']} would round most updates away; train in float32 "
                       f"and give --bf16 to compute in bfloat16")  # fmt: skip
    if given["device"] == "auto":
        given["device"] = str(arguments.device)
    if name != settings.model:  # a reference
        given["adapter"] = None
    return load_model(name, **given, merge_adapter=True, load_in_4bit=settings.load_in_4bit)


def _reading(settings: TrainSettings) -> ScanSettings:
    """The same settings as a scan would have them: the same rows, tokens, mask and truncation."""
    names = {f.name for f in fields(ScanSettings)} & {f.name for f in fields(TrainSettings)}
    return ScanSettings(**{n: getattr(settings, n) for n in names - {"overwrite"}})


# --- the run ---


def _trainer(
    rows: Rows,
    model: CausalLM,
    wanted: Objective,
    arguments: TrainingArguments,
    settings: TrainSettings,
    progress: Progress,
) -> GatedTrainer:
    alone = arguments.world_size == 1
    together = arguments.train_batch_size * arguments.world_size
    step = together * arguments.gradient_accumulation_steps
    order = ByLength(rows.lengths, step, 1 if alone else together, arguments.seed)
    if settings.base_scan is None:
        some = settings.max_steps * step if settings.max_steps > 0 else None
        seen = islice(order, some or math.ceil(settings.num_train_epochs * len(order)))
        visited = [row for row in seen if row != EMPTY]
        group_tokens(rows, model, visited, settings.group_rows, settings.seed)
    trained = _with_lora(model.whole, settings)
    reference, held_out = _measured_against(wanted, trained, model, settings, arguments)
    trainer = GatedTrainer(
        trained, arguments, train_dataset=rows, eval_dataset=[], data_collator=rows.collate,
        sampler=order, processing_class=model.tokenizer, objective=wanted, held_out=held_out,
        reference=reference, callbacks=[RunLog(Path(arguments.output_dir), wanted, progress)],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer


def _with_lora(whole: Any, settings: TrainSettings) -> Any:
    whole.train()
    if settings.lora_r is None:
        return whole.requires_grad_(True)  # a merged adapter has left the rest frozen
    from peft import LoraConfig, get_peft_model

    set_seed(settings.seed)  # of the adapter's first weights
    return get_peft_model(
        whole,
        LoraConfig(r=settings.lora_r, lora_alpha=settings.lora_alpha, task_type="CAUSAL_LM",
                   target_modules=settings.lora_target or "all-linear"),
    )  # fmt: skip


def _measured_against(
    wanted: Objective,
    trained: Any,
    model: CausalLM,
    settings: TrainSettings,
    arguments: TrainingArguments,
) -> tuple[ReferenceModel | None, HeldOut | None]:
    """What an anchor pulls towards, and what is held out. The starting model, where either needs
    it, is the one with the adapter off, or one copy."""
    other, same = settings.reference, replace(_reading(settings), limit=None, sample=None)
    any_kind = replace(same, format=None, columns={}, config_name=None, split="train")
    target = read_held_out(settings.eval_data, same, model, settings.eval_tokens)
    retain = read_held_out(settings.retain_data, any_kind, model, settings.eval_tokens)
    base: ReferenceModel | None = None
    if retain or (wanted.anchor and other is None):
        lora = settings.lora_r is not None
        base = (
            AdapterOff(trained, model.head) if lora else _load(settings.model, settings, arguments)
        )
    held_out = HeldOut(target, retain, base if retain else None) if target or retain else None
    if wanted.anchor is None:
        if other is not None:
            raise BadInput(f"objective {wanted.name!r} has no anchor; leave --reference out")
        return None, held_out
    if other is None:
        return base, held_out
    pulled = _load(other, settings, arguments)
    require_same_vocabulary(model, pulled, other, settings.model)
    return pulled, held_out


def _run(trainer: GatedTrainer, folder: Path, settings: TrainSettings, progress: Progress) -> None:
    checkpoint = get_last_checkpoint(str(folder)) if settings.resume else None
    if settings.resume and checkpoint is None:
        progress.note("no checkpoint to resume from; starting at step 0")
    try:
        with quiet():
            trainer.train(resume_from_checkpoint=checkpoint)  # ends with an evaluation
            trainer.save_model(str(folder))
        trainer.accelerator.wait_for_everyone()  # the first process writes the log
    except (OSError, RuntimeError) as error:
        if isinstance(error, ProbeError):
            raise
        raise ProbeError(f"training stopped: {one_line(error)}; --resume goes on from the last "
                         f"checkpoint in {folder}") from error  # fmt: skip


def _card(run: Run, settings: TrainSettings, rows: Rows) -> None:
    """The model card: what was trained how, and what it learned and forgot."""
    last = run.last
    figures = [f"| nll of the training data | | {last['nll']:.4f} |"]
    figures += [
        f"| {k} | {v:.4f} | {last[k]:.4f} |" for k, v in run.before.items() if last[k] is not None
    ]
    text = [
        "---", f"base_model: {settings.model}", "library_name: transformers", "---", "",
        f"# {run.path.name}", "",
        f"{settings.model} fine-tuned by `eaft-probe train`, objective {last['objective']}, "
        f"{last['step']} steps, {last['tokens_seen']:,} trained tokens. {LOG} has its history.", "",
        *(f"{count:,} {what}.\n" for what, count in rows.lost.items()),
        "| nats a token | before | after |", "|---|---|---|", *figures, "",
        "```json", json.dumps(asdict(settings), indent=1), "```", "",
    ]  # fmt: skip
    (run.path / CARD).write_text("\n".join(text))
