"""The processes that `torchrun` or `accelerate launch` started: rank 0 plans, all of them score.

Rank 0 has a worker process for its own device and gives units to it and to the other ranks, over
connections whose address and key it puts into the launcher's store.
"""

import os
import pickle
import secrets
import time
from datetime import timedelta
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

from torch.distributed.rendezvous import rendezvous

from eaft_probe.engines.worker import serve, tell_over
from eaft_probe.errors import BadInput, ProbeError, one_line

PLACE = "eaft-probe"  # of rank 0's address in the store
PATIENCE = timedelta(minutes=10)  # until all processes of a launch have started
NOBODY = (OSError, EOFError, AuthenticationError)  # or somebody else


def launched() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


class Ranks:
    """This process among those of its launch. On rank 0: `connections` to all others."""

    def __init__(self, engine: str = "local") -> None:
        """Joins the other processes. Raises `BadInput` where they cannot be found, or where another
        engine than the local one would have to share the work with them."""
        if engine != "local":
            raise BadInput(f"--engine {engine} starts its own workers: leave out the launcher")
        self.local = int(os.environ.get("LOCAL_RANK", "0"))
        self.connections: list[Connection[Any, Any]] = []
        try:
            self.store, self.rank, self.size = next(rendezvous("env://", timeout=PATIENCE))
            if self.rank == 0:
                self._welcome()
        except (RuntimeError, ValueError, OSError) as error:
            raise BadInput(f"the {os.environ['WORLD_SIZE']} processes of this launch do not find "
                           f"each other: {one_line(error)}") from error  # fmt: skip

    def _welcome(self) -> None:
        host, key = os.environ["MASTER_ADDR"], secrets.token_bytes(32)
        with Listener((host, 0), authkey=key) as listener:
            self.store.set(PLACE, pickle.dumps((listener.address, key)))
            self.connections = [listener.accept() for _ in range(self.size - 1)]
        # The store outlives the processes: those that are started again must not find this.
        self.store.delete_key(PLACE)

    def serve(self, device: str) -> None:
        """On the other ranks: scores what rank 0 sends, until it says that all is done.

        Raises what ended the run on rank 0.
        """
        own = f"cuda:{self.local}" if device == "cuda" else device
        try:
            serve(self._connected(), own)
        except (*NOBODY, RuntimeError) as error:
            raise ProbeError(f"rank 0 is gone: {one_line(error)}") from error

    def _connected(self) -> "Connection[Any, Any]":
        """To rank 0. An address where nobody is may be that of one that was ended before all had
        come, until another takes its place."""
        until = time.monotonic() + PATIENCE.total_seconds()
        while True:
            address, key = pickle.loads(self.store.get(PLACE))
            try:
                return Client(address, authkey=key)
            except NOBODY:
                if time.monotonic() > until:
                    raise
                time.sleep(0.5)

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Rank 0 tells the others how it ended; they wait for nothing else."""
        told = error if error is None or isinstance(error, ProbeError) else ProbeError("rank 0 "
                "has failed; its message says why")  # fmt: skip
        for connection in self.connections:
            tell_over(connection, told)
