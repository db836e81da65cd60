"""`head(body(x))` equals `model(x).logits` for every architecture, or the model is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import tiny
import torch
from transformers import AutoModelForCausalLM

from eaft_probe.columns.measure import measure_states
from eaft_probe.columns.statistics import STATISTICS
from eaft_probe.errors import ModelError
from eaft_probe.model import head as head_module
from eaft_probe.model.head import Head
from eaft_probe.model.loading import CausalLM, load_model
from eaft_probe.model.proof import prove

IDS = tiny.token_ids(2, 13)
SLIDING = {"mistral", "gemma2", "gemma3", "gemma3-tied", "cohere2"}
HALVES = {"bfloat16": (torch.bfloat16, 2**-8), "float16": (torch.float16, 2**-11)}


@pytest.fixture(scope="module", params=tiny.ARCHITECTURES)
def loaded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, CausalLM, torch.Tensor]:
    """(name, the loaded model, the logits of the model as transformers runs it)."""
    folder = tmp_path_factory.mktemp(request.param)
    tiny.save(folder, tiny.build(request.param))
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = plain(input_ids=IDS).logits
    return request.param, load_model(str(folder)), logits


def test_head_over_body_is_the_model(loaded: tuple[str, CausalLM, torch.Tensor]) -> None:
    _, model, logits = loaded
    ours = model.head.logits(model.hidden(IDS).flatten(0, 1)).view_as(logits)
    assert logits.abs().max() > 0.5  # else a wrong scale or cap would not show
    torch.testing.assert_close(ours, logits, rtol=0, atol=1e-4)


def test_scales_and_caps_are_read(loaded: tuple[str, CausalLM, torch.Tensor]) -> None:
    name, model, _ = loaded
    scales = {"cohere": 0.25, "cohere2": 0.25, "granite": 0.125}
    assert model.head.scale == scales.get(name, 1.0)
    assert model.head.softcap == {"gemma2": 6.0, "gemma3": 6.0}.get(name)
    assert (model.head.bias is not None) == (name in ("phi", "gpt-j"))


def test_measured_numbers_are_the_models(loaded: tuple[str, CausalLM, torch.Tensor]) -> None:
    _, model, logits = loaded
    labels = IDS[:, 1:].flatten()
    states = model.hidden(IDS)[:, :-1].flatten(0, 1)
    names = ("logprob", "entropy")
    found = measure_states(model.head, states, labels, [STATISTICS[n] for n in names])
    for n, row in enumerate(logits[:, :-1].flatten(0, 1).double().numpy()):
        logprobs = reference.log_softmax(row)
        assert float(found["logprob"][n]) == pytest.approx(logprobs[labels[n]], abs=1e-4)
        assert float(found["entropy"][n]) == pytest.approx(reference.entropy(logprobs), abs=1e-4)


@pytest.mark.parametrize("length", [1, 7, 12])
def test_behind_a_shared_prefix(loaded: tuple[str, CausalLM, torch.Tensor], length: int) -> None:
    """Three rows with a common prefix give what each gives alone."""
    name, model, _ = loaded
    assert (model.cost is None) == (name in SLIDING)
    if model.cost is None:
        return
    assert all(c > 0 for c in model.cost)
    prefix = tiny.token_ids(1, length, seed=5)[0]
    rests = tiny.token_ids(3, 9, seed=6)
    together = model.hidden(rests, prefix)
    for rest, found in zip(rests, together, strict=True):
        alone = model.hidden(torch.cat([prefix, rest])[None])[0, length:]
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)


def test_padding_at_the_right_changes_nothing(
    loaded: tuple[str, CausalLM, torch.Tensor],
) -> None:
    _, model, _ = loaded
    padded = torch.cat([IDS, torch.zeros(2, 20, dtype=torch.int64)], dim=1)
    torch.testing.assert_close(
        model.hidden(padded)[:, : IDS.shape[1]], model.hidden(IDS), rtol=1e-4, atol=1e-4
    )


def test_an_empty_prefix_is_none() -> None:
    model = _taken_apart(tiny.build())
    empty = torch.empty(0, dtype=torch.int64)
    assert torch.equal(model.hidden(IDS, empty), model.hidden(IDS))


def _taken_apart(model: Any) -> CausalLM:
    head = head_module.head_of(model)
    parameters = model.num_parameters()
    return CausalLM(model.base_model, head, None, "tiny", model.config, parameters, model)


@pytest.mark.parametrize("change", [{"scale": 1.01}, {"softcap": 20.0}])
def test_a_wrong_scale_or_cap_is_refused(change: dict[str, float]) -> None:
    right = _taken_apart(tiny.build())
    prove(right)
    with pytest.raises(ModelError, match="not its head over its last hidden states"):
        prove(replace(right, head=replace(right.head, **change)))  # type: ignore[arg-type]


def test_a_missing_bias_is_refused() -> None:
    right = _taken_apart(tiny.build("phi"))
    with pytest.raises(ModelError, match="tiny"):
        prove(replace(right, head=replace(right.head, bias=None)))


def test_a_forward_that_alters_its_logits_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An architecture with a multiplier that no one here knows of."""
    from transformers import LlamaForCausalLM

    folder = tiny.save(tmp_path, tiny.build())
    plain = LlamaForCausalLM.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = plain(self, *args, **kwargs)
        output.logits = output.logits * 0.9
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    with pytest.raises(ModelError, match="not supported") as caught:
        load_model(str(folder))
    assert "\n" not in str(caught.value)


def test_a_head_with_too_few_tokens_is_refused() -> None:
    right = _taken_apart(tiny.build())
    short = replace(right.head, weight=right.head.weight[:-1])
    with pytest.raises(ModelError, match=r"shapes \(24, 300\) and \(24, 299\)"):
        prove(replace(right, head=short))


@pytest.mark.parametrize("parameter", ["lm_head.weight", "model.norm.weight"])
def test_weights_that_are_nan_are_refused(tmp_path: Path, parameter: str) -> None:
    model = tiny.build()
    with torch.no_grad():
        model.get_parameter(parameter).view(-1)[3] = torch.nan
    with pytest.raises(ModelError, match="NaN"):
        load_model(str(tiny.save(tmp_path, model)))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("rows_at_once", [16, 4096])
def test_half_precision_heads_give_float32_logits(
    dtype: str, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The product of the rounded weights, not rounded again."""
    monkeypatch.setattr(head_module, "WIDEN_ROWS", rows_at_once)
    kind, _ = HALVES[dtype]
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(70, 32, generator=g).to(kind)
    hidden = torch.randn(5, 32, generator=g).to(kind)
    bias = torch.randn(70, generator=g).to(kind)
    logits = Head(weight, bias).logits(hidden)
    wanted = hidden.double() @ weight.double().T + bias.double()
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), wanted, rtol=1e-5, atol=1e-5)
    delta = torch.randn(5, 70, generator=g)
    found = Head(weight, bias).backward(delta).double()
    torch.testing.assert_close(found, delta.double() @ weight.double(), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "granite", "phi"])
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_models_load_and_are_near(
    tmp_path: Path, dtype: str, architecture: str
) -> None:
    kind, step = HALVES[dtype]
    folder = tiny.save(tmp_path, tiny.build(architecture))
    model = load_model(str(folder), dtype=dtype)
    assert model.dtype == model.head.weight.dtype == kind
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=kind).eval()
    with torch.inference_mode():
        states, logits = model.hidden(IDS)[0], plain(input_ids=IDS).logits[0].double()
    ours = model.head.logits(states)
    assert ours.dtype == torch.float32
    head = model.head
    wanted = states.double() @ head.weight.double().T
    wanted = (wanted + (0 if head.bias is None else head.bias.double())) * head.scale
    if head.softcap is not None:
        wanted = head.softcap * (wanted / head.softcap).tanh()
    torch.testing.assert_close(ours.double(), wanted, rtol=1e-5, atol=1e-5)
    assert (wanted - logits).abs().max() <= 8 * step * max(1.0, float(logits.abs().max()))


def test_out_is_overwritten() -> None:
    head = Head(torch.randn(9, 4), torch.randn(9), 0.5, 3.0)
    hidden, out = torch.randn(2, 4), torch.full((2, 9), torch.nan)
    assert head.logits(hidden, out) is out
    np.testing.assert_array_equal(out, head.logits(hidden))


def test_a_model_without_a_head_is_refused() -> None:
    model = tiny.build()
    with pytest.raises(ModelError, match="no output embeddings"):
        head_module.head_of(model.base_model)
