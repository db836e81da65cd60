"""The processes that `torchrun` or `accelerate launch` started: all run the same scan, each of them
every so many-th unit, or all of them every unit, with a share of the model each (--tp). Rank 0 puts
the plan and the manifest."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from eaft_probe.data.units import Unit
from eaft_probe.errors import BadInput, ProbeError, one_line
from eaft_probe.model.tensor_parallel import take_device

START = timedelta(minutes=10)  # until all processes of a launch are there
PATIENCE = timedelta(days=30)  # that a rank waits for the slowest


def launched() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


class Ranks:
    """This process among those of its launch; alone where there was none."""

    rank, size = 0, 1
    shares = 1  # among which the units are divided

    @property
    def writes(self) -> bool:
        """Whether this process writes the parts of its units."""
        return True

    def device(self, device: str) -> str:
        """The GPU of this rank, where it is to be one."""
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device

    def takes(self, unit: Unit) -> bool:
        return unit.index % self.shares == self.rank % self.shares

    def agreed(self, left: bool) -> bool:
        """Whether a unit is left to score, as this process, or who writes for it, finds."""
        return left

    @contextmanager
    def first(self) -> Iterator[None]:
        """Rank 0 does it before the others."""
        if self.rank:
            self.wait()
        yield
        if not self.rank:
            self.wait()

    def wait(self) -> None:
        """Until all ranks are here."""

    def shared(self, value: Any) -> Any:
        """What rank 0 has, on every rank."""
        return value


class Launched(Ranks):
    """Raises `ProbeError` where another rank is gone."""

    def __init__(self, engine: str, backend: str = "gloo") -> None:
        """Joins the other processes. Raises `BadInput` where they cannot be found, or where another
        engine than the local one would have to share the work with them."""
        if engine != "local":
            raise BadInput(f"--engine {engine} starts its own workers: leave out the launcher")
        try:
            if not distributed.is_initialized():
                _join(backend)
            self.group = distributed.new_group(backend="gloo", timeout=PATIENCE)
        except (RuntimeError, ValueError, OSError) as error:
            raise BadInput(
                f"the {os.environ['WORLD_SIZE']} processes of this launch do not find "
                f"each other: {one_line(error)}"
            ) from error
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        self.shares = self.size

    def wait(self) -> None:
        with _heard():
            distributed.barrier(self.group)

    def shared(self, value: Any) -> Any:
        held = [value]
        with _heard():
            distributed.broadcast_object_list(held, group=self.group)
        return held[0]


class TensorParallel(Launched):
    """Ranks that hold a share of the model each. They must do the same, so rank 0, which alone
    writes, decides what is done already."""

    def __init__(self, engine: str, device: str) -> None:
        """Raises `BadInput` without a launcher, too."""
        super().__init__(engine, take_device(device))
        self.shares = 1

    @property
    def writes(self) -> bool:
        return self.rank == 0

    def agreed(self, left: bool) -> bool:
        return bool(self.shared(left))


def ranks_of(engine: str, device: str, tp: bool) -> Ranks:
    """This process's place among those of its launch."""
    if tp:
        return TensorParallel(engine, device)
    return Launched(engine) if launched() else Ranks()


def _join(backend: str) -> None:
    """The launcher's store outlives the processes: those that are started again must not find the
    addresses of those before."""
    store, rank, size = next(rendezvous("env://", timeout=START))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    distributed.init_process_group(
        backend,
        store=PrefixStore(f"eaft-probe/{attempt}", store),
        rank=rank,
        world_size=size,
        timeout=START,
    )


@contextmanager
def _heard() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ProbeError(f"another process of this launch is gone: {one_line(error)}") from error
