"""One model in shards over the processes of a launcher, by `transformers`' own plan for it.

All of them do the same: every row is read, run and measured on every rank. Each holds its shards of
the body, and of the head its rows of the vocabulary; the logits of a chunk of positions are put
together on every rank, so that the statistics are computed as of any other head.
"""

import os
from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Replicate, Shard

from eaft_probe.errors import BadInput, ModelError
from eaft_probe.model.head import Head

LAUNCHER = "torchrun --nproc-per-node N -m eaft_probe scan … --tp"


def take_device(device: str) -> str:
    """Makes this rank's device the current one, and names the backend of its group. Raises
    `BadInput` without a launcher, or where `transformers` would take another device."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        raise BadInput(f"--tp spreads a model over several processes; start them by {LAUNCHER}")
    found = torch.accelerator.current_accelerator(check_available=True)
    kind, local = found.type if found else "cpu", int(os.environ.get("LOCAL_RANK", "0"))
    if device not in ("auto", kind):
        raise BadInput(f"--tp runs on {kind} here; leave out --device {device}")
    if found is None:
        return "gloo"
    if local >= (count := torch.accelerator.device_count()):
        raise BadInput(f"--tp takes a device for each process, and this machine has {count}")
    torch.accelerator.set_device_index(local)
    return "cpu:gloo,cuda:nccl"


@dataclass(frozen=True, slots=True)
class ShardedHead(Head):
    """A head whose vocabulary is cut over the ranks; `weight` holds this rank's rows."""

    whole_size: int = field(kw_only=True)

    @property
    def vocab_size(self) -> int:
        return self.whole_size

    @property
    def width(self) -> int:
        """Rows of W on each rank; the last ones may have fewer."""
        return -(-self.whole_size // dist.get_world_size())

    @property
    def own(self) -> Head:
        """This rank's rows, as a head of their own."""
        return Head(self.weight, None)

    @torch.inference_mode()
    def _project(self, hidden: torch.Tensor, out: torch.Tensor) -> None:
        own = hidden.new_zeros((len(hidden), self.width), dtype=torch.float32)
        if len(self.weight):
            own[:, : len(self.weight)] = self.own.logits(hidden)
        shards = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(shards, own)
        for at, shard in zip(range(0, self.whole_size, self.width), shards, strict=False):
            out[:, at : at + self.width] = shard[:, : self.whole_size - at]

    @torch.inference_mode()
    def backward(self, delta: torch.Tensor) -> torch.Tensor:
        at = self.width * dist.get_rank()
        total = self.own.backward(delta[:, at : at + len(self.weight)].contiguous())
        dist.all_reduce(total)
        return total


def sharded(head: Head) -> Head:
    """The head as it is where every rank holds all of it, or the sharded one. Raises `ModelError`
    where the plan shards it in a way that is not known."""
    weight, bias = head.weight, None if head.bias is None else _whole(head.bias)
    if not isinstance(weight, DTensor) or weight.placements == (Replicate(),):
        return replace(head, weight=_whole(weight), bias=bias)
    if weight.placements != (Shard(0),):
        raise ModelError(
            f"this model's tensor-parallel plan cuts its head as {weight.placements}, "
            f"not along the vocabulary; leave out --tp"
        )
    own, size = weight.to_local(), weight.shape[0]
    return ShardedHead(own, bias, head.scale, head.softcap, whole_size=size)


def _whole(weight: torch.Tensor) -> torch.Tensor:
    return weight.full_tensor() if isinstance(weight, DTensor) else weight
