"""The folder of a training run: whether it may be written to, its checkpoints, its model card."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME

from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.errors import BadInput, ProbeError, one_line
from eaft_probe.quantities import bytes_text, counted_noun, number
from eaft_probe.scans.training_log import LOG
from eaft_probe.settings import TrainSettings
from eaft_probe.storage.atomic import locked, require_writable, write_json

CONFIG, CARD, LOCK = "train.json", "README.md", ".lock"
DONE = "done"  # a key of CONFIG, written last of all
# What a checkpoint holds besides the model.
OF_TRAINER = (TRAINER_STATE_NAME, "optimizer*", "scheduler*", "scaler*", "rng_state*", CARD)
# What a run writes, and --overwrite removes.
RUN_FILES = (
    "checkpoint-*",
    "*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "runs",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template.jinja",
    "training_args.bin",
    LOG,
    CARD,
    CONFIG,
)
# What may change when a run is resumed. Whether the data are the same is seen by the fingerprint.
FREE = {
    "data",
    "resume",
    "overwrite",
    "max_steps",
    "num_train_epochs",
    "logging_steps",
    "save_steps",
    "save_total_limit",
    "eval_steps",
    "report_to",
    "device",
}
NAMES = {"fingerprint": "data", "processes": "number of processes"}  # as a user calls them


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
        last, changes = self.last, []
        if "eval_nll" in self.before:
            change = _change(self.before["eval_nll"], last["eval_nll"])
            changes.append(f"learned: eval nll {change}")
        if "retain_nll" in self.before:
            change = _change(self.before["retain_nll"], last["retain_nll"])
            changes.append(
                f"forgot: retain nll {change}, KL from the base {number(last['retain_kl'], 4)}"
            )
        changes = changes or [f"nll {number(last['nll'], 4)} of the last training tokens"]
        steps = counted_noun(last["step"], "step")
        return f"{steps} of {last['objective']}; {'; '.join(changes)}; nats a token"


def _change(before: float, after: float) -> str:
    return f"{number(before, 4)} → {number(after, 4)} ({number(after - before, sign='+')})"


def require_free(folder: Path, settings: TrainSettings) -> None:
    """Raises `BadInput` where the folder holds what this run must not touch."""
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder} is a file; --out names a folder")
    require_writable(folder)
    occupied = folder.exists() and any(path.name != LOCK for path in folder.iterdir())
    if occupied and not (settings.resume or settings.overwrite):
        raise BadInput(f"{folder} is not empty; give --resume, --overwrite or another --out")
    if occupied and not _is_run(folder):
        flag = "--overwrite" if settings.overwrite else "--resume"
        raise BadInput(f"{folder} holds no training run, so {flag} leaves it alone")


def _is_run(folder: Path) -> bool:
    """A file of that name may be somebody's data."""
    try:
        config = json.loads((folder / CONFIG).read_text())
    except FileNotFoundError:
        return False
    except (OSError, ValueError, RecursionError):
        return (folder / LOG).exists() or bool(_checkpoints(folder))  # a run's, damaged
    return isinstance(config, dict) and {"objective", "fingerprint"} <= config.keys()


def plan(
    settings: TrainSettings,
    data: str,
    fingerprint: str,
    rule: ConflictRule | None,
    processes: int,
) -> dict[str, Any]:
    """What a resumed run must repeat, except FREE. The order of the rows depends on the number of
    processes."""
    config = {**asdict(settings), "data": data, "fingerprint": fingerprint, "processes": processes}
    return config | ({"mask_rule": rule.as_dict()} if rule else {})


def require_unused(folder: Path) -> None:
    """Before the long work. Raises `BadInput` where another run is in the folder."""
    if (folder / LOCK).exists():
        with locked(folder / LOCK, folder, str):
            pass


@contextmanager
def prepared(
    folder: Path, settings: TrainSettings, plan: Mapping[str, Any], note: Callable[[str], object]
) -> Iterator[bool]:
    """The folder for this run alone, and whether the run is finished already. It is touched only
    when everything else is ready: a typo must not cost an old run. Raises `BadInput`."""
    with ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(folder / LOCK, folder, note))
            finished = _prepare(folder, settings, plan)
        except OSError as error:
            raise BadInput(
                f"cannot write to {folder}: {error.strerror or one_line(error)}"
            ) from error
        yield finished


def _prepare(folder: Path, settings: TrainSettings, plan: Mapping[str, Any]) -> bool:
    require_free(folder, settings)  # another run may have come and gone
    if settings.resume and (folder / CONFIG).exists():
        earlier = _require_same(folder, plan)
        if earlier.get(DONE) and _no_step_left(folder, earlier, plan):
            return True
        for checkpoint in _checkpoints(folder):
            if not _state(checkpoint):  # it fills the disk, and --save-total-limit counts it
                shutil.rmtree(checkpoint)
    for pattern in RUN_FILES if settings.overwrite else ():
        for path in folder.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    write_json(folder / CONFIG, plan)
    return False


def _require_same(folder: Path, plan: Mapping[str, Any]) -> dict[str, Any]:
    """The settings and the data that the run began with, and must be resumed with."""
    try:
        earlier: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{folder / CONFIG} is damaged; choose another --out") from error
    now = json.loads(json.dumps(plan))
    different = (name for name in now if name not in FREE and earlier.get(name) != now[name])
    found = [f"another {NAMES.get(n, n)} ({earlier.get(n)!r}, now {now[n]!r})" for n in different]
    if found:
        raise BadInput(f"{folder} was trained with {', '.join(found)}; --resume needs the same")
    return earlier


def _no_step_left(folder: Path, earlier: Mapping[str, Any], plan: Mapping[str, Any]) -> bool:
    """Of a finished run. Without its checkpoints it cannot be longer than it was."""
    if checkpoint := last_checkpoint(folder):
        return at_end(checkpoint, plan)
    if any(earlier[name] != plan[name] for name in ("max_steps", "num_train_epochs")):
        raise BadInput(
            f"{folder} is finished and has no checkpoint to go on from; choose another --out, or "
            f"give --overwrite"
        )
    return True


def last_checkpoint(folder: Path) -> Path | None:
    """The last whole one."""
    steps = {path: state["global_step"] for path in _checkpoints(folder) if (state := _state(path))}
    return max(steps, key=steps.__getitem__, default=None)


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob("checkpoint-*") if path.is_dir()]


def _state(checkpoint: Path) -> dict[str, Any]:
    """The trainer's, or nothing: it is written last, so a checkpoint that a kill or a full disk
    cut short has none, or half of one."""
    with suppress(OSError, ValueError):
        return dict(json.loads((checkpoint / TRAINER_STATE_NAME).read_text()))
    return {}


def at_end(checkpoint: Path, plan: Mapping[str, Any]) -> bool:
    """Whether no step is left."""
    if plan["max_steps"] > 0:
        return bool(_state(checkpoint)["global_step"] >= plan["max_steps"])
    return bool(_state(checkpoint)["epoch"] >= plan["num_train_epochs"])


def free_space(folder: Path) -> str:
    """For a full disk, of which torch says "unexpected pos 576 vs 534"."""
    with suppress(OSError):  # the folder may be gone
        return f" ({bytes_text(shutil.disk_usage(folder).free)} free)"
    return ""


def finish(run: Run, settings: TrainSettings, lost: Sequence[str]) -> None:
    """The model card, and the mark that nothing is left to do. Raises `ProbeError`."""
    try:
        (run.path / CARD).write_text("\n".join(_card(run, settings, lost)))
        plan = json.loads((run.path / CONFIG).read_text())
        write_json(run.path / CONFIG, plan | {DONE: True})
    except OSError as error:
        raise ProbeError(
            f"cannot write to {run.path}: {error.strerror or one_line(error)}; the model is there, "
            f"--resume writes the rest"
        ) from error


def _name(value: object) -> object:
    """Of a file or folder its own name: a card is passed on. Anything else as it is."""
    if isinstance(value, str) and value and (os.path.isabs(value) or os.path.exists(value)):
        return Path(value).resolve().name
    return value


def _card(run: Run, settings: TrainSettings, lost: Sequence[str]) -> list[str]:
    """The lines of the model card: what was trained how, and what it learned and forgot."""
    last, names = run.last, {k: _name(v) for k, v in asdict(settings).items()}
    return [
        "---",
        f"base_model: {names['model']}",
        "library_name: transformers",
        "---",
        "",
        f"# {run.path.name}",
        "",
        f"{names['model']} fine-tuned by `eaft-probe train`, objective {last['objective']}, "
        f"{counted_noun(last['step'], 'step')}, "
        f"{counted_noun(last['tokens_seen'], 'trained token')}. {LOG} has its history.",
        "",
        *(f"{sentence}.\n" for sentence in lost),
        "| nats a token | before | after |",
        "|---|---|---|",
        f"| nll of the training data | | {number(last['nll'], 4)} |",
        *(
            f"| {name} | {number(value, 4)} | {number(last[name], 4)} |"
            for name, value in run.before.items()
            if last[name] is not None
        ),
        "",
        "```json",
        json.dumps(names, indent=1),
        "```",
        "",
    ]
