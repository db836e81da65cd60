"""One model in shards over the processes of a launcher, by `transformers`' own plan for it.

Rank 0 works as if it were alone. Where it loads a model, runs its body or multiplies with its head,
it first tells the other ranks, which do the same with their shards and know of no data and no file.
So whatever happens on rank 0 alone (a unit that is there already, a batch halved, a full disk)
leaves nobody behind in a collective call.
"""

import atexit
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from functools import cache, cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Replicate, Shard

from eaft_probe.errors import BadInput, ModelError, ProbeError, one_line
from eaft_probe.model.head import Head
from eaft_probe.model.loading import CausalLM, load_model, resolve_device
from eaft_probe.model.proof import PREFIX_ERRORS, prove, why_unshared

# How long a rank waits to be told what to do, while rank 0 may be rendering or writing.
PATIENCE = timedelta(days=7)
LAUNCHER = "torchrun --nproc-per-node N -m eaft_probe scan … --tp"


def join(device: str) -> "Team":
    """On rank 0: the team, which is dismissed when the process ends. On the others: serves rank 0
    until then, and ends the process. Raises `BadInput`."""
    return _team(_own_device(device))


@cache
def _team(device: torch.device) -> "Team":
    team = Team(device)
    if team.rank > 0:
        team.follow()
        raise SystemExit(0)
    atexit.register(team.dismiss)
    return team


class Team:
    """The processes of one launch. What rank 0 `tells`, all of them do."""

    def __init__(self, device: torch.device) -> None:
        """Joins the other processes. Raises `BadInput` where they cannot be reached."""
        self.device = device
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        try:
            if not dist.is_initialized():
                dist.init_process_group(backend)
            self.orders = dist.new_group(backend="gloo", timeout=PATIENCE)
        except (RuntimeError, ValueError) as error:
            raise BadInput(
                f"--tp: the processes do not find each other: {one_line(error)}; start "
                f"them by {LAUNCHER}"
            ) from error
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.models: list[SharedLM] = []
        self.broken = False

    def tell(self, *order: Any) -> None:
        with self.step():
            dist.broadcast_object_list([order], src=0, group=self.orders)

    def dismiss(self) -> None:
        """Ends the other ranks. Where a common step broke off, they do not listen; the launcher
        ends them."""
        if not self.broken:
            with suppress(ProbeError):  # they are gone
                self.tell("stop")
            dist.destroy_process_group()

    def follow(self) -> None:
        """Does what rank 0 tells, until that is to stop."""
        with suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 is interrupted, and tells
        while (order := self._told())[0] != "stop":
            name, *values = order
            with self.step():
                getattr(self, f"_{name}")(*values)
        dist.destroy_process_group()

    def _told(self) -> Any:
        told: list[Any] = [None]
        with self.step():
            dist.broadcast_object_list(told, src=0, group=self.orders)
        return told[0]

    @contextmanager
    def step(self, trying: bool = False) -> Iterator[None]:
        """A step that all ranks do. If one of them fails alone, the others wait for it there, so
        nothing can be tried again; `trying` what fails on all of them alike."""
        try:
            yield
        except BaseException as error:
            self.broken = not trying
            if not self.broken or not isinstance(error, RuntimeError):
                raise
            help = "; lower --tokens-per-batch" if isinstance(error, torch.OutOfMemoryError) else ""
            raise ProbeError(
                f"rank {self.rank} of --tp failed: {one_line(error, 120)}{help}; what "
                f"is finished stays"
            ) from error

    # --- what is told ---

    def load(self, name: str, **options: Any) -> "SharedLM":
        """On rank 0: the model, proven over all shards. Raises `ModelError`."""
        self.tell("load", name, options)
        with self.step():
            failed = self._load(name, options)
        if failed is not None:
            raise failed
        model = self.models[-1]
        prove(model, model.whole, far=False)  # shards have the ropes of the whole
        return model

    def _load(self, name: str, options: dict[str, Any]) -> ModelError | None:
        """On every rank; what one of them cannot load, none of them keeps."""
        failed: ModelError | None = None
        try:
            made = SharedLM.of(load_model(name, **options, tp=True), self, len(self.models))
        except ModelError as error:
            failed = error
        complaints: list[Any] = [None] * self.size
        dist.all_gather_object(complaints, failed, group=self.orders)
        if failed is None and not any(complaints):
            self.models.append(made)
        return next((c for c in complaints if c is not None), None)

    def _hidden(
        self, model: int, input_ids: torch.Tensor, prefix: torch.Tensor | None, trying: bool
    ) -> None:
        with suppress(*PREFIX_ERRORS) if trying else nullcontext():
            CausalLM.hidden(self.models[model], input_ids, prefix)

    @torch.inference_mode()
    def _logits(self, model: int, input_ids: torch.Tensor) -> None:
        CausalLM.own_logits(self.models[model], self.models[model].whole, input_ids)

    def _project(self, model: int, rows: int, dtype: torch.dtype) -> None:
        head = self._head(model)
        head.projected(torch.empty(rows, head.weight.shape[1], dtype=dtype, device=self.device))

    def _backward(self, model: int, rows: int) -> None:
        self._head(model).gradient(None, rows)

    def _head(self, model: int) -> "ShardedHead":
        head = self.models[model].head
        assert isinstance(head, ShardedHead)
        return head


@dataclass(frozen=True, slots=True)
class ShardedHead(Head):
    """A head whose vocabulary is cut over the ranks; `weight` and `own` hold this rank's rows.

    Rank 0 gets the logits of the whole vocabulary, a chunk of positions at a time, so that the
    statistics are computed as of any other head; no rank holds more of W than its share.
    """

    own: Head = field(kw_only=True)
    whole_size: int = field(kw_only=True)
    team: Team = field(kw_only=True)
    model: int = field(kw_only=True)

    @property
    def vocab_size(self) -> int:
        return self.whole_size

    @property
    def width(self) -> int:
        """Rows of W on each rank; the last ones may have fewer."""
        return -(-self.whole_size // self.team.size)

    def _project(self, hidden: torch.Tensor, out: torch.Tensor) -> None:
        self.team.tell("project", self.model, len(hidden), hidden.dtype)
        with self.team.step():
            shards = self.projected(hidden.contiguous())
        for at, shard in zip(range(0, self.whole_size, self.width), shards, strict=False):
            out[:, at : at + self.width] = shard[:, : self.whole_size - at]

    @torch.inference_mode()
    def projected(self, hidden: torch.Tensor) -> list[torch.Tensor]:
        """On every rank: rank 0's (n, D) states → there each rank's (n, width) logits."""
        dist.broadcast(hidden, 0)
        own = hidden.new_zeros((len(hidden), self.width), dtype=torch.float32)
        if self.own.vocab_size:
            own[:, : self.own.vocab_size] = self.own.logits(hidden)
        drives = self.team.rank == 0
        found = [torch.empty_like(own) for _ in range(self.team.size)] if drives else None
        dist.gather(own, found, dst=0)
        return found or []

    def backward(self, delta: torch.Tensor) -> torch.Tensor:
        self.team.tell("backward", self.model, len(delta))
        with self.team.step():
            return self.gradient(delta, len(delta))

    @torch.inference_mode()
    def gradient(self, delta: torch.Tensor | None, rows: int) -> torch.Tensor:
        """On every rank: rank 0's (n, V) gradient → there (n, D), the sum over the shards."""
        own = torch.empty(rows, self.width, device=self.team.device)
        dist.scatter(own, self._cut(delta) if delta is not None else None, src=0)
        total = self.own.backward(own[:, : self.own.vocab_size]).float()
        dist.reduce(total, 0)
        return total

    def _cut(self, delta: torch.Tensor) -> list[torch.Tensor]:
        missing = self.width * self.team.size - self.whole_size
        padded = torch.nn.functional.pad(delta, (0, missing))
        return [shard.contiguous() for shard in padded.chunk(self.team.size, dim=1)]


@dataclass
class SharedLM(CausalLM):
    """A model in shards. Its methods are rank 0's; the other ranks follow them."""

    team: Team = field(kw_only=True)
    number: int = field(kw_only=True)
    trying: bool = field(default=False, kw_only=True)

    @classmethod
    def of(cls, parts: CausalLM, team: Team, number: int) -> "SharedLM":
        """Raises `ModelError` where the plan shards the head in a way that is not known."""
        given = {f.name: getattr(parts, f.name) for f in fields(CausalLM) if f.init}
        head = _sharded(parts.head, team, number)
        return cls(**given | {"head": head}, team=team, number=number)

    def hidden(self, input_ids: torch.Tensor, prefix: torch.Tensor | None = None) -> torch.Tensor:
        self.team.tell("hidden", self.number, input_ids, prefix, self.trying)
        with self.team.step(self.trying):
            return super().hidden(input_ids, prefix)

    def own_logits(self, model: Any, input_ids: torch.Tensor) -> torch.Tensor:
        self.team.tell("logits", self.number, input_ids)
        with self.team.step():
            return super().own_logits(model, input_ids)

    @cached_property
    def unshared(self) -> str | None:
        self.trying = True
        try:
            return why_unshared(self)
        finally:
            self.trying = False


def _sharded(head: Head, team: Team, number: int) -> Head:
    """The head as it is where every rank holds all of it, or the sharded one."""
    weight, bias = head.weight, head.bias
    if not isinstance(weight, DTensor) or weight.placements == (Replicate(),):
        return replace(head, weight=_local(weight), bias=None if bias is None else _local(bias))
    if weight.placements != (Shard(0),):
        raise ModelError(
            f"this model's tensor-parallel plan cuts its head as {weight.placements}, "
            f"not along the vocabulary; leave out --tp"
        )
    return ShardedHead(
        _local(weight),
        None if bias is None else _whole(bias),
        head.scale,
        head.softcap,
        own=Head(_local(weight), None),
        whole_size=weight.shape[0],
        team=team,
        model=number,
    )


def _local(weight: torch.Tensor) -> torch.Tensor:
    return weight.to_local() if isinstance(weight, DTensor) else weight


def _whole(bias: torch.Tensor) -> torch.Tensor:
    return bias.full_tensor() if isinstance(bias, DTensor) else bias


def _own_device(device: str) -> torch.device:
    """This rank's. Raises `BadInput` where `transformers` would take another."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        raise BadInput(f"--tp spreads a model over several processes; start them by {LAUNCHER}")
    found = torch.accelerator.current_accelerator(check_available=True)
    kind, local = found.type if found else "cpu", int(os.environ.get("LOCAL_RANK", "0"))
    if resolve_device(device) != kind:
        raise BadInput(f"--tp runs on {kind} here; leave out --device {device}")
    if found is None:
        return torch.device("cpu")
    if local >= (count := torch.accelerator.device_count()):
        raise BadInput(f"--tp takes a device for each process, and this machine has {count}")
    torch.accelerator.set_device_index(local)
    return torch.device(kind, local)
