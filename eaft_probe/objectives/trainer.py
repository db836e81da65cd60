"""The `Trainer` around a gated model: the step's count, its statistics, and what is logged."""

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Sampler
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINING_ARGS_NAME

from eaft_probe.columns.measure import TokenColumns
from eaft_probe.errors import BadInput, NonFinite
from eaft_probe.objectives.forward import (
    ReferenceModel,
    evaluation_mode,
    gate,
    is_sharded,
    unadapted,
)
from eaft_probe.objectives.gates import objective as objective_named
from eaft_probe.objectives.objective import WEIGHTS, Column, Columns, Objective, Step, Weighted
from eaft_probe.objectives.packing import (
    PACKED,
    Batch,
    document_starts,
    later_document,
    require_apart,
)
from eaft_probe.objectives.scan_columns import GIVEN, OF_BASE, OF_EXAMPLE, means_by
from eaft_probe.objectives.step_metrics import TALLY, averages, tally

# --- the whole step ---


@dataclass(frozen=True)
class Gathered:
    """A `Population` held in memory: the tokens or examples of one step, from all ranks.

    A statistic of an empty one is 1, and no gate uses it.
    """

    columns: Columns

    def mean(self, of: Callable[[Columns], Column]) -> float:
        values = of(self.columns).double()
        return float(values.mean()) if len(values) else 1.0

    def quantile(self, of: Callable[[Columns], Column], at: float) -> float:
        values = of(self.columns).double().numpy()
        return float(np.quantile(values, at)) if len(values) else 1.0


# What of a batch is for the loss and the log; everything else goes to the model.
NOT_THE_MODELS = {"labels", "row", "group", WEIGHTS, *GIVEN}

if TYPE_CHECKING:
    from transformers import Trainer as Mixed  # the class that the mixin is put before
else:
    Mixed = object


class GatedLossMixin(Mixed):  # type: ignore[misc]
    """Put before a `Trainer`, transformers' own or TRL's: `class Mine(GatedLossMixin, SFTTrainer)`.

    Minimises Σ gate · nll / N, N the trained tokens of the whole step, over all micro-batches and
    ranks; in evaluation the plain nll. Batches hold `input_ids`, `attention_mask` and `trained`
    (B, T), or `labels` with −100 where nothing is trained; where there are `weights` (B, T), gates
    are multiplied by them. They hold (B, T) columns such as `base_prob` where the objective reads
    them; whatever else they hold goes to the model. An objective with an anchor gets a `reference`.
    Rows packed with several documents are refused where the model lets these see one another, which
    the first such batch shows. What would silently replace the loss is refused: label smoothing,
    another loss function or type, sequence parallelism, Liger's fused loss. Raises `BadInput` and
    `ModelError`.
    """

    def __init__(
        self,
        *args: Any,
        objective: str | Objective,
        reference: ReferenceModel | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        objective = objective_named(objective) if isinstance(objective, str) else objective
        self.tally = torch.zeros(len(TALLY), dtype=torch.float64, device=self.args.device)
        refuse(self)
        if objective.of_scan and not objective.is_resolved:
            raise BadInput(
                f"objective {objective.name!r} must see its scan first: call its `resolve`, or use "
                f"`eaft-probe train`"
            )
        if objective.anchor and reference is None:
            raise BadInput(f"objective {objective.name!r} needs a reference model")
        if reference and not objective.anchor:
            raise BadInput(
                f"objective {objective.name!r} does not use a reference model; leave it out"
            )
        self._set_signature_columns_if_needed()  # what the model takes, before its forward changes
        self._signature_columns += ["trained", WEIGHTS, *objective.reads]
        gate(unadapted(self.model))
        self.add_callback(_AsLaunched(self))
        self.reference = reference
        self.objective = self.step_objective = objective
        self.keeps_apart = False  # whether a test showed that packed documents are kept apart
        # By the count of the whole step: transformers 5.17 asks the first, 5.23 the second.
        self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga = True

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], int]:
        """The micro-batches of a step, with N over all of them and all ranks."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        samples = [gated_inputs(s) for s in samples]
        count = torch.tensor(sum(int(s["trained"].sum()) for s in samples), device=device)
        if self.objective.of_step:
            self.step_objective = self.objective.resolve(self._step(samples))
        return samples, int(self.accelerator.reduce(count))

    def compute_loss(
        self,
        model: PreTrainedModel,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, dict[str, Any]]:
        """The gated loss; of a batch outside of training its mean nll."""
        inputs = gated_inputs(inputs)
        self._require_apart(inputs)
        if num_items_in_batch is None or not model.training:
            nll = -self.columns(inputs, ("logprob",))["logprob"].mean().to(inputs["trained"].device)
            return (nll, {"loss": nll}) if return_outputs else nll
        # DDP and FSDP average gradients over ranks, hence the division of N.
        count = max(num_items_in_batch, 1) / self.accelerator.num_processes
        objective = self.step_objective
        objective = Weighted(objective) if WEIGHTS in inputs else objective
        outputs = model(
            **model_inputs(inputs),
            objective=objective,
            count=count,
            reference=self.reference,
            base=TokenColumns({n: inputs[n] for n in objective.reads if n in (*GIVEN, WEIGHTS)}),
        )
        if not torch.isfinite(outputs["loss"]):
            rows = inputs["row"].tolist() if "row" in inputs else "unknown"
            raise NonFinite(
                f"the loss is not finite in step {self.state.global_step + 1}, rows "
                f"{rows}; try a lower --learning-rate, or float32"
            )
        self.tally += tally(outputs["columns"], inputs, outputs["loss"] * count)
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what the gates did since the last line: see `averages`."""
        if "loss" in logs:
            logs |= averages(self.accelerator.reduce(self.tally).tolist())
            self.tally.zero_()
        super().log(logs, start_time)

    def _require_apart(self, inputs: Batch) -> None:
        """Tested once, on all ranks together: a sharded model's forward pass takes them all.
        Raises `BadInput`."""
        if self.keeps_apart or not PACKED & inputs.keys():
            return
        packed = torch.tensor(later_document(inputs) is not None, device=self.args.device)
        if int(self.accelerator.reduce(packed.long())):
            half = self.args.bf16 or self.args.fp16 or self.model.dtype != torch.float32
            require_apart(inputs, lambda i: self.columns(i, ("logprob",))["logprob"], half)
            self.keeps_apart = True

    @torch.no_grad()
    def columns(
        self,
        inputs: Batch,
        reads: Sequence[str],
        reference: ReferenceModel | None = None,
    ) -> dict[str, torch.Tensor]:
        """The statistics `reads` (N,) of a batch under the model as it is, without dropout."""
        with evaluation_mode(self.model_wrapped), self.accelerator.autocast():
            prepared = self._prepare_inputs(model_inputs(inputs))
            outputs: dict[str, TokenColumns] = self.model_wrapped(
                **prepared, reads=reads, reference=reference
            )
        return outputs["columns"].columns

    @torch.no_grad()
    def _step(self, samples: Sequence[Batch]) -> Step:
        """A pass without gradients over all micro-batches of the step, on all ranks."""
        reads = tuple(sorted({*self.objective.reads, "logprob"} - set(GIVEN)))
        tokens, examples = [], []
        for sample in samples:
            columns = self.columns(sample, reads)
            base = {n: sample[n][sample["trained"]] for n in self.objective.reads if n in OF_BASE}
            means = _of_examples(columns | base, sample, self.objective.reads)
            tokens.append(columns | base)
            examples.append(means)
        return Step(Gathered(self._joined(tokens)), Gathered(self._joined(examples)))

    def _joined(self, parts: Sequence[Batch]) -> Batch:
        """The columns of all micro-batches and ranks, on the CPU."""
        columns = {n: torch.cat([p[n].cpu() for p in parts]) for n in parts[0]}
        ranks = [columns] * self.accelerator.num_processes
        if len(ranks) > 1:
            torch.distributed.all_gather_object(ranks, columns)
        return {n: torch.cat([rank[n] for rank in ranks]) for n in columns}


def _of_examples(columns: Batch, sample: Batch, reads: Sequence[str]) -> Batch:
    """(examples with a trained token,) mean nll; a packed row holds several, from position 0.

    What `reads` has of OF_EXAMPLE goes into the sample, as (B, T) columns.
    """
    first = document_starts(sample).long()
    first[:, 0] = 1
    trained = sample["trained"]
    example = (first.flatten().cumsum(0) - 1).view_as(first)[trained].cpu().numpy()
    arrays = {n: c.cpu().double().numpy() for n, c in columns.items()}
    _, begins, example = np.unique(example, return_index=True, return_inverse=True)
    means = {"mean_nll": means_by(example, -arrays["logprob"])}
    for name in [n for n in reads if n in OF_EXAMPLE]:
        values = OF_EXAMPLE[name](arrays, example)
        sample[name] = torch.zeros(trained.shape, device=trained.device)
        sample[name][trained] = torch.from_numpy(values).float().to(trained.device)
        means[name] = values[begins]
    return {n: torch.from_numpy(values) for n, values in means.items()}


def gated_inputs(inputs: Batch) -> Batch:
    """A batch with `trained` instead of `labels`. Raises `BadInput` where it cannot be trained."""
    if "trained" in inputs:
        return inputs
    if "labels" not in inputs or "input_ids" not in inputs:
        raise BadInput(f"a batch needs input_ids and labels, found {', '.join(inputs)}")
    trained = (inputs["labels"] != -100) & ~document_starts(inputs)  # nothing predicts those
    trained[:, 0] = False
    if not torch.equal(inputs["labels"][trained], inputs["input_ids"][trained]):
        raise BadInput(
            "labels must be the input_ids of their own positions; shifted labels and soft prompts "
            "cannot be trained on"
        )
    return {**{n: c for n, c in inputs.items() if n != "labels"}, "trained": trained}


def model_inputs(inputs: Batch) -> Batch:
    """What the model gets of a batch."""
    return {n: c for n, c in inputs.items() if n not in NOT_THE_MODELS}


def refuse(trainer: Any) -> None:
    args, parallel = trainer.args, getattr(trainer.accelerator, "parallelism_config", None)
    loss_type = getattr(args, "loss_type", None)  # TRL's
    refused = {
        "label smoothing": args.label_smoothing_factor != 0,
        "a compute_loss_func": trainer.compute_loss_func is not None,
        f"loss_type={loss_type!r}": loss_type != getattr(type(args), "loss_type", None),
        "Liger's fused loss": args.use_liger_kernel,
        "sequence parallelism": getattr(parallel, "sp_enabled", False),
        "context parallelism": getattr(parallel, "cp_enabled", False),
    }
    for what, asked in refused.items():
        if asked:
            raise BadInput(f"{what} would replace the gated loss; leave it out")


class _AsLaunched(TrainerCallback):  # type: ignore[misc]
    """Stops before the first step where the processes are not what the launcher asked for."""

    def __init__(self, trainer: GatedLossMixin) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        require_as_launched(
            args.world_size, args.fsdp, lambda: is_sharded(self.trainer.model_wrapped)
        )


def require_as_launched(processes: int, fsdp: object, is_sharded: Callable[[], bool]) -> None:
    """accelerate silently falls back to DDP, or to one process each. Raises `BadInput`."""
    asked = fsdp or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if asked and not is_sharded():
        raise BadInput(
            "FSDP was asked for, but the model is not sharded; accelerate shards on GPUs only, so "
            "leave FSDP out"
        )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != processes:
        raise BadInput(
            f"launched as {launched} processes, but each would train alone; give --device cpu, or "
            f"as many GPUs as processes"
        )


class GatedTrainer(GatedLossMixin, Trainer):  # type: ignore[misc]
    """The `Trainer` of `eaft-probe train`: rows in the order of `sampler`, and held-out data.

    `held_out`, called with the trainer, gives the figures of an evaluation.
    """

    control: TrainerControl

    def __init__(
        self,
        *args: Any,
        sampler: Sampler[int] | None = None,
        held_out: Callable[["GatedTrainer"], dict[str, float]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.sampler, self.held_out = sampler, held_out

    def _get_train_sampler(self, *args: object) -> Sampler[int] | None:
        return self.sampler or super()._get_train_sampler(*args)

    def _save(self, output_dir: str | None = None, *args: object, **options: object) -> None:
        """The model, with arguments that name the run but not its path, and without the blank card
        of an adapter, which has the path of its base model."""
        super()._save(output_dir, *args, **options)
        if not self.args.should_save:  # another process has written it
            return
        folder, shared = Path(output_dir or self.args.output_dir), copy.copy(self.args)
        shared.output_dir = Path(self.args.output_dir).name
        torch.save(shared, folder / TRAINING_ARGS_NAME)
        (folder / "README.md").unlink(missing_ok=True)

    def held_out_figures(self) -> dict[str, float]:
        """Of the model as it is."""
        return self.held_out(self) if self.held_out else {}

    def evaluate(self, *args: object, **options: object) -> dict[str, float]:
        """The held-out figures, logged."""
        metrics, handler = self.held_out_figures(), self.callback_handler
        self.log(metrics)
        self.control = handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
