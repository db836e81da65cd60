"""Processes that need no seconds to import torch: each is a fork of one that has imported it.

They are killed, interrupted and launched like those of an interpreter of their own, by the same
names as `subprocess` has. What is about that start itself uses `subprocess`.
"""

import atexit
import gc
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any

import psutil

SECONDS = 600  # a hang is a failure, a busy machine is none
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["eaft_probe.verbs.scan.scan", "eaft_probe.verbs.train.train"])


class Forked:
    """A process that calls a function, as `subprocess.Popen` has it; its output is text."""

    def __init__(self, call: Callable[..., Any], *arguments: Any, **environment: str) -> None:
        self.folder = tempfile.TemporaryDirectory()
        given = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        self.process = SERVER.Process(
            target=_begin, args=(self.folder.name, given, os.getcwd(), call, arguments)
        )
        self.process.start()
        self.pid: int = self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = SECONDS) -> int | None:
        self.process.join(timeout)
        return self.poll()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self, timeout: float = SECONDS) -> tuple[str, str]:
        """(output, errors) when it has ended."""
        if self.wait(timeout) is None:
            for process in [*psutil.Process(self.pid).children(recursive=True), self.process]:
                process.kill()
            raise TimeoutExpired(str(self.process), timeout)
        out, errors = (Path(self.folder.name, name).read_text() for name in ("1", "2"))
        return out, errors


def ran(call: Callable[..., Any], *arguments: Any, **environment: str) -> tuple[Any, str, str]:
    """(status, output, errors) of a process that has ended."""
    process = Forked(call, *arguments, **environment)
    out, errors = process.communicate()
    return process.returncode, out, errors


def _begin(folder: str, environment: dict[str, str], here: str, call: Any, arguments: Any) -> None:
    for number in (1, 2):
        os.dup2(os.open(Path(folder, str(number)), os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(here)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal
    gc.freeze()  # a trainer's collection went through all of torch: half of a short run
    _as_a_program(call, arguments)


def _as_a_program(call: Callable[..., Any], arguments: Sequence[Any]) -> None:
    """With what is to be done at exit, which multiprocessing leaves out."""
    atexit._clear()
    try:
        call(*arguments)
    finally:
        atexit._run_exitfuncs()


def main(arguments: Sequence[str]) -> None:
    """`python -m eaft_probe`."""
    sys.argv = ["eaft-probe", *arguments]
    runpy.run_module("eaft_probe", run_name="__main__")


def torchrun(call: Callable[..., Any], *arguments: Any, restarts: int = 0) -> None:
    """Two processes under torch's launcher, without GPUs, of which there may be fewer."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    config = LaunchConfig(
        1,
        1,
        2,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=str(time.time_ns()),
        max_restarts=restarts,
        start_method="fork",
        monitor_interval=0.05,
    )
    elastic_launch(config, _rank)(call, arguments)


def _rank(call: Callable[..., Any], arguments: Sequence[Any]) -> None:
    """The launcher waits for what a rank returns, and an exit with status 0 returns nothing."""
    try:
        _as_a_program(call, arguments)
    except SystemExit as ended:
        if ended.code:
            raise
