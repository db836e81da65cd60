"""The models of a run: the one it starts from, and what it is measured against."""

from dataclasses import replace

from transformers import PreTrainedModel, TrainingArguments

from eaft_probe.errors import BadInput
from eaft_probe.model.loading import CausalLM, load_model
from eaft_probe.objectives.forward import AdapterOff, ReferenceModel
from eaft_probe.objectives.objective import Objective
from eaft_probe.settings import TrainSettings, as_scan
from eaft_probe.verbs.scan.load_scorer import require_same_vocabulary
from eaft_probe.verbs.scan.perturbation import Lora
from eaft_probe.verbs.train.evaluation import HeldOut, read_held_out


def load(
    name: str, settings: TrainSettings, arguments: TrainingArguments, other: bool = False
) -> CausalLM:
    """In float32: a step of 1e-5 is less than half a unit in the last place of most bfloat16
    weights (2 % of them moved in 60 steps, 97 % in float32). `bf16` computes in bfloat16."""
    options = settings.loading()
    if options["dtype"] == "auto":
        options["dtype"] = "float32"
    if options["dtype"] != "float32" and settings.lora_r is None:
        raise BadInput(
            f"--dtype {options['dtype']} would round most updates away; train in float32 and give "
            f"--bf16 to compute in bfloat16"
        )
    if options["device"] == "auto":
        options["device"] = str(arguments.device)
    if other:  # than the one that is trained: whole, and without its adapter
        options["adapter"] = None
    options["load_in_4bit"] = settings.load_in_4bit and not other
    return load_model(name, **options, merge_adapter=True)


def with_lora(whole: PreTrainedModel, settings: TrainSettings) -> PreTrainedModel:
    """The model, or a new adapter on it, ready to be trained. Raises `BadInput`."""
    whole.train()
    if settings.lora_r is None:
        if not all(p.is_floating_point() for p in whole.parameters()):
            raise BadInput(
                f"{settings.model} has quantized weights, which cannot be trained; give --lora-r "
                f"to train an adapter over them"
            )
        return whole.requires_grad_(True)  # a merged adapter has left the rest frozen
    return Lora(settings.lora_r, settings.lora_alpha, settings.lora_target, settings.seed).on(whole)


def measured_against(
    objective: Objective,
    trained: PreTrainedModel,
    model: CausalLM,
    settings: TrainSettings,
    arguments: TrainingArguments,
) -> tuple[ReferenceModel | None, HeldOut]:
    """What an anchor pulls towards, and the held-out data. Where either needs the starting model,
    that is the trained one with the adapter off, or one copy."""
    other, same = settings.reference, replace(as_scan(settings), limit=None, sample=None)
    any_kind = replace(same, format=None, columns={}, config_name=None, split="train")
    any_kind = replace(any_kind, delimiter=None, encoding=None)
    target, notes = read_held_out(settings.eval_data, same, model, settings.eval_tokens)
    retain, more = read_held_out(settings.retain_data, any_kind, model, settings.eval_tokens)
    if objective.anchor is None and other is not None:
        raise BadInput(f"objective {objective.name!r} has no anchor; leave --reference out")
    base: ReferenceModel | None = None
    if retain or (objective.anchor and other is None):
        lora = settings.lora_r is not None
        base = (
            AdapterOff(trained, model.head) if lora else load(settings.model, settings, arguments)
        )
    held_out = HeldOut(target, retain, base if retain else None, [*notes, *more])
    if other is None:
        return base if objective.anchor else None, held_out
    reference = load(other, settings, arguments, other=True)
    require_same_vocabulary(model, reference, other, settings.model)
    return reference, held_out
