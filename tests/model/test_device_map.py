"""A model spread by --device-map, in part on disk, gives the numbers of a model in one place."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from eaft_probe.columns.measure import measure_states
from eaft_probe.columns.statistics import STATISTICS
from eaft_probe.errors import ModelError
from eaft_probe.model.loading import CausalLM, load_model
from eaft_probe.objectives.forward import live_head

IDS, PREFIX = tiny.token_ids(3, 13), tiny.token_ids(1, 5, seed=2)[0]
BODY = ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb")
HERE = dict.fromkeys([*BODY, "lm_head"], "cpu")
MAPS: dict[str, Any] = {
    "auto": "auto",
    "balanced": "balanced",
    "a layer on disk": HERE | {"model.layers.1": "disk"},
    "the first on disk": HERE | dict.fromkeys(BODY[:2], "disk"),
    "the head on disk": HERE | {"lm_head": "disk"},
    "all on disk": {"": "disk"},
}
APART = ("the first on disk", "the head on disk")  # which accelerate cannot do to tied weights
CASES = [("llama", where) for where in MAPS]
CASES += [("llama-tied", where) for where in MAPS if where not in APART]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in ("llama", "llama-tied"):
        tiny.save(folder / name, tiny.build(name))
    return folder


def columns(model: CausalLM) -> dict[str, torch.Tensor]:
    """Statistics of some tokens behind a prefix, those that need the head's weights too."""
    states = model.hidden(IDS, PREFIX)[:, :-1].flatten(0, 1)
    chosen = [s for s in STATISTICS.values() if s.name != "kl_reference"]
    return measure_states(model.head, states, IDS[:, 1:].flatten(), chosen).columns


@pytest.mark.parametrize(("architecture", "where"), CASES)
def test_a_spread_model_gives_the_same_numbers(
    architecture: str, where: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # a map of the CPU and the disk
    wanted = columns(load_model(str(folder / architecture)))
    model = load_model(str(folder / architecture), device_map=MAPS[where])
    assert model.device.type == "cpu"
    assert ("disk" in where) == any(p.is_meta for p in model.whole.parameters())
    found = columns(model)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_tied_weights_that_are_torn_apart_are_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot load model .*/llama-tied: "):
        load_model(str(folder / "llama-tied"), device_map=MAPS["the head on disk"])


def test_an_offloaded_head_is_not_trained(folder: Path) -> None:
    model = load_model(str(folder / "llama"), device_map={"": "disk"})
    with pytest.raises(ModelError, match="offloads cannot be trained"):
        live_head(model.whole)
