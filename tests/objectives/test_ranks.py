"""Two processes, with DDP or FSDP2, give the gradients of one."""

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import tiny
import torch
from forked import ran, torchrun
from steps import Gradients, off, one_step
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from eaft_probe.errors import ModelError
from eaft_probe.objectives.gates import objective
from eaft_probe.objectives.trainer import gate


class Case(NamedTuple):
    objective: str
    architecture: str = "llama"
    spread: str = "ddp"  # or how FSDP2 groups the modules: see `sharded`
    checkpointing: bool = False

    def __str__(self) -> str:
        return "-".join([*self[:3], *["checkpointing"] * self.checkpointing])


CASES = [Case(name) for name in ("eaft", "talr", "mile")] + [
    Case(name, architecture, spread, checkpointing)
    for architecture in ("llama", "llama-tied")
    for spread in ("layers", "tail")
    for name, checkpointing in (("eaft", False), ("talr", True))
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_ranks_equal_one(case: Case, ranks: Path) -> None:
    one = on_one(case.objective, case.architecture, ranks)
    assert any(g.abs().max() > 0 for g in one.values())
    assert off(torch.load(ranks / f"{case}.pt"), one) < 1e-5


def test_a_head_in_shards_of_its_own_is_refused(ranks: Path) -> None:
    for rank in (0, 1):
        assert "the head's weights are sharded by themselves" in (ranks / f"{rank}.txt").read_text()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes made of all cases, started once."""
    folder = tmp_path_factory.mktemp("ranks")
    status, _, errors = ran(torchrun, on_a_rank, str(folder))
    assert status == 0, errors[-2000:]
    return folder


@cache
def on_one(name: str, architecture: str, folder: Path) -> Gradients:
    return two_steps(folder / "one", name, build(architecture), each=8)


def two_steps(folder: Path, name: str, model, **options) -> Gradients:
    """The gradients of the second: weights that are not gathered anew after the first would show.
    One of the eight rows has no trained token: with two ranks, a micro-batch of the second's."""
    for _ in range(2):
        gradients = one_step(
            folder, objective(name), model=model, optim="sgd", learning_rate=0.1, **options
        )
    return gradients


def build(architecture: str):
    torch.manual_seed(0)
    return tiny.build(architecture)


# --- on each of the ranks ---


def on_a_rank(folder: str) -> None:
    torch.distributed.init_process_group("gloo")
    rank, out = torch.distributed.get_rank(), Path(folder)
    options = {"each": 1, "steps_of": 4, "ddp_backend": "gloo"}
    for case in CASES:
        model = build(case.architecture) if case.spread == "ddp" else sharded(case)
        made = two_steps(
            out, case.objective, model, gradient_checkpointing=case.checkpointing, **options
        )
        whole = {n: g.full_tensor() if isinstance(g, DTensor) else g for n, g in made.items()}
        if rank == 0:
            torch.save({n.removeprefix("module."): g for n, g in whole.items()}, out / f"{case}.pt")
    try:
        two_steps(out, "eaft", sharded(Case("eaft", spread="head")), **options)
    except ModelError as error:
        (out / f"{rank}.txt").write_text(str(error))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def sharded(case: Case):
    """A model cut up over the ranks. Units of their own: each layer ("layers", as in FSDP2's
    examples); the norm and the head too, with tied embeddings ("tail", as accelerate does it, but
    on GPUs only); the head alone ("head")."""
    mesh, model = init_device_mesh("cpu", (2,)), gate(build(case.architecture))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    tied = [model.model.embed_tokens] if model.config.tie_word_embeddings else []
    if case.spread == "tail":
        tail = [model.model.norm, *tied, model.lm_head]
        fully_shard(tail, mesh=mesh, reshard_after_forward=False)
    if case.spread == "head":
        fully_shard(model.lm_head, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert all(isinstance(p, DTensor) for p in model.parameters())
    # The trainer's way with a model that comes in shards: it does not wrap it again.
    model._is_distributed_loading_by_transformers = model._is_fsdp_managed_module = True
    model.config.distributed_config = SimpleNamespace(dp_replicate_size=1)
    return model
