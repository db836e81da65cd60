"""What a run reports: rows of log.parquet, and a table that grows on the terminal."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from eaft_probe.objectives.objective import Objective
from eaft_probe.progress import Progress
from eaft_probe.quantities import decimals, number, percent
from eaft_probe.scans.training_log import LOG_GROUPS, read_log, write_log
from eaft_probe.verbs.train.evaluation import FIGURES

GROUPS = LOG_GROUPS[1:]
# The terminal's columns: title, key of a log line, how it is written. 75 characters wide; groups
# are mean nll by base-model group.
TABLE: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("  step", "step", str),
    ("     lr", "lr", partial(number, digits=2)),
    ("   nll", "nll", decimals),
    ("  loss", "loss", decimals),
    ("  gate", "gate_mean", decimals),
    ("  gated", "mass_gated", partial(percent, digits=2)),
    *((f"{g:>6}", f"{g}_nll", decimals) for g in GROUPS),
)


class RunLog(TrainerCallback):  # type: ignore[misc]
    """Turns the trainer's log lines into rows of log.parquet, and into notes."""

    def __init__(self, folder: Path, objective: Objective, progress: Progress) -> None:
        self.folder, self.objective, self.progress = folder, str(objective), progress
        self.rows: list[dict[str, Any]] = []
        self.tokens = self.step = 0
        self.writes = False  # whether this is the process that does

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """A resumed run keeps the rows up to its checkpoint and logs in its own intervals: the
        Trainer would keep those that the checkpoint was made with."""
        state.compute_steps(args, state.max_steps)
        self.writes = state.is_world_process_zero
        logged = read_log(self.folder).to_pylist() if state.global_step else []
        self.rows = [row for row in logged if row["step"] <= state.global_step]
        self.tokens = max((r["tokens_seen"] for r in self.rows), default=0)
        self.step = state.global_step
        self.progress.start("train", state.max_steps)
        self.progress.advance(state.global_step, 0)
        self.progress.note(_line({title: title for title, _, _ in TABLE}))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> TrainerControl:
        """A line at the end, and wherever there is an evaluation or a checkpoint: each then has
        its row, and no token is counted on one side of a checkpoint and lost on the other."""
        if state.global_step >= state.max_steps or control.should_evaluate or control.should_save:
            control.should_log = True
        return control

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float],
        **_: object,
    ) -> None:
        if "nll" in logs:
            self._training(state.global_step, logs)
        if any(name in logs for name in FIGURES):
            self._evaluation(state.global_step, logs)
        if control.should_save:  # before the checkpoint: a kill may come right after it
            self.write()

    def _training(self, step: int, logs: Mapping[str, float]) -> None:
        self.tokens += int(logs["count"])
        self.progress.advance(step - self.step, int(logs["count"]))
        self.step = step
        common = {
            "run": self.folder.name,
            "step": step,
            "tokens_seen": self.tokens,
            "objective": self.objective,
            "lr": logs["learning_rate"],
            **{name: logs[name] for name in ("nll", "loss", "gate_mean", "mass_gated")},
        }
        for group, prefix in {"all": "", **{g: f"{g}_" for g in GROUPS}}.items():
            if f"{prefix}nll" in logs:
                nll, count = logs[f"{prefix}nll"], int(logs[f"{prefix}count"])
                self.rows.append(common | {"group": group, "group_nll": nll, "group_count": count})
        shown = {**logs, **common}
        self.progress.note(
            _line({title: write(shown[key]) for title, key, write in TABLE if key in shown})
        )

    def _evaluation(self, step: int, logs: Mapping[str, float]) -> None:
        """Into the step's rows, which are always there: see `on_step_end`."""
        figures = {name: logs[name] for name in FIGURES if name in logs}
        for row in self.rows:
            if row["step"] == step:
                row |= figures
        shown = ", ".join(f"{name} {number(value, 4)}" for name, value in figures.items())
        self.progress.note(f"{step:>6}  {shown}")

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.write()

    def write(self) -> None:
        """All rows so far."""
        if self.writes and self.rows:
            write_log(self.folder, self.rows)


def _line(cells: Mapping[str, str]) -> str:
    return " ".join(cells.get(title, "–").rjust(len(title)) for title, _, _ in TABLE)
