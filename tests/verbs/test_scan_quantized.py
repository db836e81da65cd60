"""--load-in-4bit and --load-in-8bit: the numbers of the weights as bitsandbytes stores them."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from eaft_probe import Scan, scan
from eaft_probe.errors import BadInput, ScanError
from eaft_probe.verbs.gradients.gradients import gradients
from eaft_probe.verbs.merge.merge import merge

pytest.importorskip("bitsandbytes")
ROWS = [{"prompt": f"say {n}", "completion": f" the {n} fox jumps over {n % 3}"} for n in range(8)]
NF4 = {
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": torch.float32,
}
HOW: dict[str, dict[str, Any]] = {"load_in_4bit": NF4, "load_in_8bit": {}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """bitsandbytes packs 64 weights a block."""
    model = tiny.build(hidden_size=64, intermediate_size=128)
    return str(tiny.save(tmp_path_factory.mktemp("model"), model))


@pytest.fixture(scope="module")
def in_4_bits(folder: str, tmp_path_factory: pytest.TempPathFactory) -> Scan:
    out = tmp_path_factory.mktemp("scans") / "s"
    return scan(ROWS, out, model=folder, load_in_4bit=True, device="cpu")


@pytest.mark.parametrize("name", HOW)
def test_the_numbers_are_those_of_transformers(folder: str, tmp_path: Path, name: str) -> None:
    ours = scan(ROWS, tmp_path / "a", model=folder, device="cpu", **{name: True})
    quantized = AutoModelForCausalLM.from_pretrained(
        folder,
        device_map="cpu",
        dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(**{name: True}, **HOW[name]),
    ).eval()
    ids = torch.tensor([tiny.tokenizer().encode(ROWS[3]["prompt"] + ROWS[3]["completion"])])
    assert ours.tokens().query("example == 3")["token_id"].isin(ids[0].tolist()).any()
    wanted = scan(ROWS, tmp_path / "b", model=quantized, tokenizer=tiny.tokenizer())
    plain = scan(ROWS, tmp_path / "c", model=folder, device="cpu")
    assert (ours.tokens(["logprob"]) - wanted.tokens(["logprob"])).abs().to_numpy().max() < 1e-4
    assert (ours.tokens(["logprob"]) - plain.tokens(["logprob"])).abs().to_numpy().max() > 1e-3


def test_a_reference_is_not_quantized(folder: str, tmp_path: Path, in_4_bits: Scan) -> None:
    """So that kl_reference says what quantizing costs."""
    settings: dict[str, Any] = {"model": folder, "reference": folder, "device": "cpu"}
    costs = scan(ROWS, tmp_path / "a", load_in_4bit=True, **settings).tokens(["kl_reference"])
    none = scan(ROWS, tmp_path / "b", **settings).tokens(["kl_reference"])
    assert costs.to_numpy().mean() > 1e-3
    assert none.to_numpy().max() < 1e-6


def test_another_way_to_load_is_another_scan(folder: str, in_4_bits: Scan) -> None:
    with pytest.raises(ScanError, match="load_in_4bit true there, null now"):
        scan(ROWS, in_4_bits.path, model=folder, device="cpu")


def test_what_needs_the_weights_of_the_files_refuses(
    folder: str, in_4_bits: Scan, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="made with --load-in-4bit, so under other weights"):
        gradients(in_4_bits.path, model=folder, sample=4)
    other = scan(ROWS[:3], tmp_path / "b", model=folder, device="cpu")
    with pytest.raises(BadInput, match=r"differ in --load-in-4bit \(True and False\)"):
        merge([in_4_bits, other], tmp_path / "m")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"load_in_8bit": True}, "either --load-in-4bit or --load-in-8bit"),
        ({"tp": True}, "--tp cannot quantize a model"),
    ],
)
def test_settings_that_exclude_each_other(settings: dict[str, bool], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        scan(ROWS, "nowhere", load_in_4bit=True, **settings)
