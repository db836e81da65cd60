"""`train`: gated fine-tuning on the very tokens that `scan` scores, by `transformers.Trainer`.

objective → data as windows → model → groups of the base model → Trainer → model, log, card.
"""

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint

from eaft_probe.columns.conflicts import write_json
from eaft_probe.columns.log import LOG, LOG_GROUPS, read_log, write_log
from eaft_probe.columns.measure import measure
from eaft_probe.columns.statistics import STATISTICS
from eaft_probe.data.batches import Window, batches
from eaft_probe.errors import BadInput, DataError, ProbeError, one_line
from eaft_probe.model.loading import CausalLM, load_model, quiet
from eaft_probe.objectives.gates import objective
from eaft_probe.objectives.objective import Objective
from eaft_probe.objectives.scanned import OF_BASE
from eaft_probe.objectives.trainer import AdapterOff, GatedTrainer, gate
from eaft_probe.progress import Progress, Silent
from eaft_probe.settings import ModelSettings, ScanSettings, TrainSettings, make_settings
from eaft_probe.verbs.plan import AUTO_TOKENS
from eaft_probe.verbs.rows import Rows, group_tokens, read_windows
from eaft_probe.verbs.scan import open_data

CONFIG, CARD = "train.json", "README.md"
EVAL_TOKENS = 200_000  # of each of --eval-data and --retain-data, from the start
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

    @property
    def last(self) -> dict[str, Any]:
        """The last row over all tokens."""
        return next(row for row in reversed(self.log) if row["group"] == "all")


def train(
    data: Any = None,
    out: str | Path = "eaft-run",
    *,
    progress: Progress | None = None,
    **settings: Any,
) -> Run:
    """Fine-tunes a model on the trained tokens of `data` into the folder `out`.

    `data` as in `scan`; every other argument is a field of `TrainSettings` and a flag of
    `eaft-probe train`. Raises `BadInput`, or `ProbeError` where training fails.
    """
    chosen: TrainSettings = make_settings(TrainSettings, settings)
    progress, wanted, folder = progress or Silent(), _objective(chosen), Path(out)
    _require_free(folder, chosen)  # before the long work, and made only after it
    progress.note(f"loading {chosen.model}")
    model = _load(chosen)
    with tempfile.TemporaryDirectory() as cache:
        rows = Rows.read(data, _reading(chosen), model, cache)
        for what, count in rows.lost.items():
            progress.note(f"{count:,} {what}")
        evaluator = _evaluator(chosen, model)
        before = evaluator() if evaluator else {}
        with _as_bad_input():
            trainer = _trainer(rows, model, wanted, folder, chosen, evaluator, progress)
        _prepare(folder, chosen, rows)
        _run(trainer, folder, chosen, progress)
    finished = Run(folder, read_log(folder).to_pylist())
    _card(finished, before, chosen, rows)
    return finished


def _objective(settings: TrainSettings) -> Objective:
    wanted = objective(settings.objective, settings.set)
    outside = [name for name in wanted.reads if name in OF_BASE]
    if outside:
        raise BadInput(f"objective {wanted.name!r} reads {outside[0]} from a finished scan, which "
                       f"train cannot do yet; `plot gradients` can show its gates")  # fmt: skip
    return wanted


def _require_free(folder: Path, settings: TrainSettings) -> None:
    occupied = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if occupied and not (settings.resume or settings.overwrite):
        raise BadInput(f"{folder} is not empty; give --resume, --overwrite or another --out")
    if occupied and not (folder / CONFIG).exists():
        flag = "--overwrite" if settings.overwrite else "--resume"
        raise BadInput(f"{folder} holds no training run, so {flag} leaves it alone")


def _prepare(folder: Path, settings: TrainSettings, rows: Rows) -> None:
    """The folder is touched only once everything stands: a typo must not cost an old run."""
    plan = {**asdict(settings), "data": rows.source, "fingerprint": rows.fingerprint}
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


def _load(settings: TrainSettings) -> CausalLM:
    """In float32: a step of 1e-5 is less than half a unit in the last place of most bfloat16
    weights (2 % of them moved in 60 steps, 97 % in float32). `bf16` computes in bfloat16."""
    given = {f.name: getattr(settings, f.name) for f in fields(ModelSettings)} | {"model": None}
    if given["dtype"] == "auto":
        given["dtype"] = "float32"
    if given["dtype"] != "float32" and settings.lora_r is None:
        raise BadInput(f"--dtype {given['dtype']} would round most updates away; train in float32 "
                       f"and give --bf16 to compute in bfloat16")  # fmt: skip
    del given["model"]
    return load_model(settings.model, **given)


def _reading(settings: TrainSettings) -> ScanSettings:
    """The same settings as a scan would have them: the same rows, tokens, mask and truncation."""
    names = {f.name for f in fields(ScanSettings)} & {f.name for f in fields(TrainSettings)}
    return ScanSettings(**{n: getattr(settings, n) for n in names - {"overwrite"}})


# --- the run ---


def _trainer(
    rows: Rows,
    model: CausalLM,
    wanted: Objective,
    folder: Path,
    settings: TrainSettings,
    evaluator: Callable[[], dict[str, float]] | None,
    progress: Progress,
) -> GatedTrainer:
    group_tokens(rows, model, settings.group_rows, settings.seed)
    gate(model.whole)
    trained = _with_lora(model.whole, settings)
    checkpointing = {CHECKPOINTING: True} if settings.gradient_checkpointing else {}
    arguments = TrainingArguments(
        output_dir=str(folder),
        **{name: getattr(settings, name) for name in PASSED},
        **checkpointing,
        eval_strategy="steps" if evaluator else "no",
        save_strategy="steps",
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
        disable_tqdm=True,
        use_cpu=model.device.type == "cpu",
    )
    trainer = GatedTrainer(
        trained, arguments, train_dataset=rows.data, eval_dataset=[], data_collator=rows.collate,
        processing_class=model.tokenizer, objective=wanted, evaluator=evaluator,
        reference=_reference(wanted, trained, model, settings),
        callbacks=[Log(folder, wanted, progress)],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer


def _with_lora(whole: Any, settings: TrainSettings) -> Any:
    whole.train()
    if settings.lora_r is None:
        return whole
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        whole,
        LoraConfig(r=settings.lora_r, lora_alpha=settings.lora_alpha, task_type="CAUSAL_LM",
                   target_modules=settings.lora_target or "all-linear"),
    )  # fmt: skip


def _reference(
    wanted: Objective, trained: Any, model: CausalLM, settings: TrainSettings
) -> CausalLM | AdapterOff | None:
    """What an anchor pulls towards: the starting model, as a copy or with the adapter off."""
    if wanted.anchor is None:
        return None
    return _load(settings) if settings.lora_r is None else AdapterOff(trained, model.head)


def _run(trainer: GatedTrainer, folder: Path, settings: TrainSettings, progress: Progress) -> None:
    checkpoint = get_last_checkpoint(str(folder)) if settings.resume else None
    if settings.resume and checkpoint is None:
        progress.note("no checkpoint to resume from; starting at step 0")
    try:
        with quiet():
            trainer.train(resume_from_checkpoint=checkpoint)  # ends with an evaluation
            trainer.save_model(str(folder))
    except (OSError, RuntimeError) as error:
        if isinstance(error, ProbeError):
            raise
        raise ProbeError(f"training stopped: {one_line(error)}; --resume goes on from the last "
                         f"checkpoint in {folder}") from error  # fmt: skip


class Log(TrainerCallback):  # type: ignore[misc]
    """Turns the trainer's log lines into rows of log.parquet, and into notes."""

    def __init__(self, folder: Path, wanted: Objective, progress: Progress) -> None:
        self.folder, self.objective, self.progress = folder, str(wanted), progress
        self.rows: list[dict[str, Any]] = []
        self.tokens = self.step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """A resumed run goes on behind the rows up to its checkpoint."""
        before = read_log(self.folder).to_pylist() if state.global_step else []
        self.rows = [r for r in before if r["step"] <= state.global_step]
        self.tokens = max((r["tokens_seen"] for r in self.rows), default=0)
        self.progress.start("train", state.max_steps)
        self.progress.advance(state.global_step, 0)
        self.step = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> Any:
        """A line at the end, and wherever there is an evaluation or a checkpoint: each then has
        its row, and no token is counted on one side of a checkpoint and lost on the other."""
        if state.global_step >= state.max_steps or control.should_evaluate or control.should_save:
            control.should_log = True
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
        if "nll" in logs:
            self._training(state.global_step, logs)
        if "eval_nll" in logs or "retain_nll" in logs:
            self._evaluation(state.global_step, logs)

    def _training(self, step: int, logs: Mapping[str, float]) -> None:
        self.tokens += int(logs["count"])
        self.progress.advance(step - self.step, int(logs["count"]))
        self.step = step
        common = {"run": self.folder.name, "step": step, "tokens_seen": self.tokens,
                  "objective": self.objective, "lr": logs["learning_rate"], "nll": logs["nll"],
                  "loss": logs["loss"], "gate_mean": logs["gate_mean"],
                  "mass_gated": logs["mass_gated"]}  # fmt: skip
        found = {"all": (logs["nll"], logs["count"])}
        found |= {g: (logs[f"{g}_nll"], logs[f"{g}_count"]) for g in LOG_GROUPS[1:]
                  if f"{g}_nll" in logs}  # fmt: skip
        for group, (nll, count) in found.items():
            own = {"group": group, "group_nll": nll, "group_count": int(count)}
            self.rows.append(common | own)
        self.progress.note(
            f"step {step}: nll {logs['nll']:.4f}, loss {logs['loss']:.4f}, mean gate "
            f"{logs['gate_mean']:.3f}, {100 * logs['mass_gated']:.1f} % of the nll gated away"
        )

    def _evaluation(self, step: int, logs: Mapping[str, float]) -> None:
        """Into the step's rows, which are always there: see `on_step_end`."""
        measured = {k: v for k, v in logs.items() if k.startswith(("eval_", "retain_"))}
        for row in self.rows:
            if row["step"] == step:
                row |= measured
        self.progress.note(
            f"step {step}: " + ", ".join(f"{k} {v:.4f}" for k, v in measured.items())
        )

    def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        write_log(self.folder, self.rows)

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        write_log(self.folder, self.rows)

    def on_evaluate(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        write_log(self.folder, self.rows)


# --- learned and forgotten ---


def _evaluator(settings: TrainSettings, model: CausalLM) -> Callable[[], dict[str, float]] | None:
    """Measures nll on --eval-data, nll and KL from the base model on --retain-data."""
    reading = _reading(settings)
    target = _held_out(settings.eval_data, reading, model)
    retain = _held_out(settings.retain_data, reading, model)
    base = _load(settings) if retain else None

    def measured() -> dict[str, float]:
        training = model.whole.training
        model.whole.eval()
        made = {f"eval_{k}": v for k, v in _means(model, target, None).items()}
        made |= {f"retain_{k}": v for k, v in _means(model, retain, base).items()}
        model.whole.train(training)
        return made

    return measured if target or retain else None


def _held_out(data: str | None, settings: ScanSettings, model: CausalLM) -> list[Window]:
    """The first windows of the data, EVAL_TOKENS tokens at most."""
    if data is None:
        return []
    kept, tokens = list[Window](), 0
    lost = Counter[str]()  # as many as there are among the first windows; not the run's own data
    for _, window in read_windows(open_data(data, settings), settings, model, lost):
        if kept and tokens + len(window.ids) > EVAL_TOKENS:
            break
        kept.append(window)
        tokens += len(window.ids)
    if not kept:
        raise DataError(f"{data}: no row has a trained token")
    return kept


def _means(model: CausalLM, items: Sequence[Window], base: CausalLM | None) -> dict[str, float]:
    """Mean nll, and KL where there is a base, over the windows' trained tokens."""
    if not items:
        return {}
    names = ("logprob", "kl_reference") if base else ("logprob",)
    sums, count = dict.fromkeys(names, 0.0), 0
    for batch in batches(items, AUTO_TOKENS["cpu"], None):
        columns = measure(model, batch, [STATISTICS[n] for n in names], base)
        count += len(columns["logprob"])
        for name in names:
            sums[name] += float(columns[name].sum(dtype=torch.float64))
    made = {"nll": -sums["logprob"] / count}
    return made | ({"kl": sums["kl_reference"] / count} if base else {})


def _card(run: Run, before: Mapping[str, float], settings: TrainSettings, rows: Rows) -> None:
    """The model card: what was trained how, and what it learned and forgot."""
    last = run.last
    figures = [f"| nll of the training data | | {last['nll']:.4f} |"]
    figures += [
        f"| {k} | {v:.4f} | {last[k]:.4f} |" for k, v in before.items() if last[k] is not None
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
