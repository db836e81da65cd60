"""A scan under a model that the program holds: the numbers of its files, and nothing changed."""

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model

from eaft_probe import Scan, compare, scan
from eaft_probe.errors import BadInput, NonFinite, ScanError
from eaft_probe.model.loaded import identity
from eaft_probe.verbs.gradients.gradients import gradients

ROWS = [{"prompt": f"say {n}", "completion": f" the {n} fox jumps over {n % 3}"} for n in range(8)]
TOKENIZER = tiny.tokenizer()


def state(model: torch.nn.Module) -> dict[str, Any]:
    """Everything of a model that a scan might touch."""
    own = {
        f"{name}.{key}": tuple(value.items()) if isinstance(value, dict) else value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if key != "_modules"
    }
    return own | {f"grad of {n}": p.grad for n, p in model.named_parameters()}


def scanned(model: Any, out: Path, **settings: Any) -> Scan:
    return scan(ROWS, out, model=model, tokenizer=TOKENIZER, **settings)


@pytest.fixture
def quiet_peft() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


# --- the numbers ---


def test_the_numbers_are_those_of_the_files(tmp_path: Path) -> None:
    files = scan(ROWS, tmp_path / "a", model=str(tiny.save(tmp_path / "m", tiny.build())))
    loaded = scanned(tiny.build(), tmp_path / "b")
    for left, right in zip(files.part_files("tokens"), loaded.part_files("tokens"), strict=True):
        assert left.read_bytes() == right.read_bytes()
    assert loaded.manifest["model"]["name"] == "LlamaForCausalLM"
    assert loaded.manifest["model"]["identity"].startswith("loaded:")
    same = compare(files, loaded)
    assert same.by == "tokens"
    assert same.totals["unchanged_share"] == 1


def test_two_kinds_of_identity_are_told_apart(tmp_path: Path) -> None:
    files = scan(ROWS, tmp_path / "a", model=str(tiny.save(tmp_path / "m", tiny.build())))
    loaded = scanned(tiny.build(), tmp_path / "b")
    notes = " ".join(compare(files, loaded, by="distributions").notes)
    assert "was loaded by a program" in notes
    assert "the models differ" not in notes


def test_an_adapter_in_training_counts(tmp_path: Path, quiet_peft: None) -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    model = get_peft_model(tiny.build(), config).train()
    before = state(model)
    adapted = scanned(model, tmp_path / "a")
    assert state(model) == before
    merged = model.eval().merge_and_unload()
    truth = scanned(merged, tmp_path / "b").tokens(["logprob"])
    assert (adapted.tokens(["logprob"]) - truth).abs().to_numpy().max() < 1e-4


def test_the_notebook_of_the_documentation_runs(
    tmp_path: Path, model_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs/python.md").read_text(encoding="utf-8")
    (code,) = [b for b in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "tokenizer=" in b]
    monkeypatch.chdir(tmp_path)
    cell: dict[str, Any] = {}
    exec(code.replace("org/name", model_folder), cell)
    assert cell["done"].to_dataset("examples")["key"][:] == ["0"]
    assert cell["done"].manifest["model"]["name"] == Path(model_folder).name


# --- nothing of the model is changed ---


@pytest.mark.parametrize("architecture", ["llama", "gemma3-tied", "qwen3-moe"])
def test_a_model_in_training_goes_on_as_it_was(tmp_path: Path, architecture: str) -> None:
    model = tiny.build(architecture).train()
    model.model.layers[0].eval()  # frozen by the program
    model(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().backward()
    before, random = state(model), torch.get_rng_state()
    scanned(model, tmp_path / "s")
    assert state(model) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert TOKENIZER.name_or_path == ""


def test_so_it_does_after_an_error(tmp_path: Path) -> None:
    model = tiny.build().train()
    before = state(model)
    with pytest.raises(BadInput, match="max-length"):
        scanned(model, tmp_path / "s", max_length=100)
    assert state(model) == before
    with torch.no_grad():
        model.lm_head.weight[17] = float("nan")
    with pytest.raises((BadInput, NonFinite)):
        scanned(model, tmp_path / "s")
    assert model.training


def test_a_rope_that_depends_on_the_length_can_be_trained_afterwards(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    model = tiny.build(max_position_embeddings=16, rope_parameters=rope).train()
    before = state(model)
    scanned(model, tmp_path / "s")
    assert state(model) == before
    model(input_ids=tiny.token_ids(1, 40)).logits.sum().backward()
    stretched = state(model)
    scanned(model, tmp_path / "s")  # the same model, whatever it read last
    assert state(model) == stretched


def test_quantized_weights_under_an_adapter_keep_their_gradients(
    tmp_path: Path, quiet_peft: None
) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    tiny.save(tmp_path / "m", tiny.build(hidden_size=64, intermediate_size=128))
    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(
            tmp_path / "m",
            device_map="cpu",
            quantization_config=BitsAndBytesConfig(load_in_4bit=True),
        ),
        LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False),
    ).train()

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(input_ids=tiny.token_ids(1, 20)).logits.float().square().sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    before = gradients()
    done = scanned(model, tmp_path / "s")
    assert done.manifest["counts"]["examples"] == len(ROWS)
    after = gradients()
    assert len(before) == 4
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


# --- its identity ---


def test_one_step_of_an_optimizer_makes_another_model(tmp_path: Path) -> None:
    model = tiny.build()
    scanned(model, tmp_path / "s")
    scanned(model, tmp_path / "s")  # the same
    model(input_ids=torch.tensor([[5, 6, 7]])).logits.square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=1e-5).step()
    with pytest.raises(ScanError, match=r"with other settings .*model_identity"):
        scanned(model, tmp_path / "s")


class Net(torch.nn.Module):
    def __init__(self, size: int = 2_000_000) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(size))
        self.register_buffer("kept", torch.zeros(3))
        self.register_buffer("lost", torch.zeros(3), persistent=False)


@pytest.mark.parametrize("name", ["weight", "kept", "lost"])
@pytest.mark.parametrize("at", [0, -1])
def test_every_parameter_and_buffer_counts(name: str, at: int) -> None:
    model = Net()
    before = identity(model)
    assert before == identity(Net())
    with torch.no_grad():
        getattr(model, name)[at] = 1e-7
    assert identity(model) != before


def test_shape_and_type_count() -> None:
    kinds = [Net(8), Net(9), Net(8).bfloat16(), torch.nn.Sequential(Net(8))]
    assert len({identity(kind) for kind in kinds}) == 4


# --- what is refused ---


def test_what_loads_the_model_again_says_that_there_is_none(tmp_path: Path) -> None:
    done = scanned(tiny.build(), tmp_path / "s")
    with pytest.raises(BadInput, match="was made under a model that a program held"):
        gradients(done.path, model=str(tiny.save(tmp_path / "m", tiny.build())), sample=4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokenizer": None}, "a loaded model needs tokenizer="),
        ({"dtype": "bfloat16"}, "the model is loaded already: leave out dtype="),
        ({"workers": 2}, "leave out workers="),
        ({"model": torch.nn.Linear(2, 2)}, "model should be a name, .* found a Linear"),
        ({"model": "smollm2"}, "tokenizer= goes with a loaded model"),
    ],
)
def test_settings_that_do_not_go_with_it(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    given = {"model": tiny.build(), "tokenizer": TOKENIZER, **settings}
    with pytest.raises(BadInput, match=message):
        scan(ROWS, tmp_path / "s", **given)
    assert not (tmp_path / "s").exists()


def test_a_generator_under_a_loaded_model_goes_on(tmp_path: Path) -> None:
    model = tiny.build()
    first = scan(iter(ROWS), tmp_path / "s", model=model, tokenizer=TOKENIZER, rows_per_unit=3)
    whole = first.part_files("tokens")[1].read_bytes()
    (tmp_path / "s/manifest.json").unlink()
    first.part_files("tokens")[1].unlink()
    again = scan(iter(ROWS), tmp_path / "s", model=model, tokenizer=TOKENIZER, rows_per_unit=3)
    assert again.part_files("tokens")[1].read_bytes() == whole
