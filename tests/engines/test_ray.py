"""Actors on a cluster of several nodes, of which some are lost."""

import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from running import SETTINGS, Bar, begun, command, hashes, kill, left_over, started, until

from eaft_probe import scan
from eaft_probe.errors import BadInput, ModelError

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own
ENVIRONMENT = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_worker_niceness": "0",  # else actors hardly run beside other tests
}


def actors() -> list[psutil.Process]:
    """Of every node of the cluster: their processes descend from this one."""
    return [p for p in psutil.Process().children(recursive=True) if _is_actor(p)]


def _is_actor(process: psutil.Process) -> bool:
    try:
        return "".join(process.cmdline()[:1]).startswith("ray::Actor")  # a zombie has none
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without a processor, and two nodes with one each."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'eaft-probe[ray]'")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        for _ in range(2):
            made.add_node(num_cpus=1)
        yield made
        made.shutdown()


def test_without_ray_it_is_named(
    data: Path, model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BadInput, match=r"pip install 'eaft-probe\[ray\]'"):
        scan(data, tmp_path / "s", model=model_folder, engine="ray")
    assert not (tmp_path / "s").exists()


def test_a_lost_actor_and_a_lost_node(
    cluster: Any, data: Path, model_folder: str, undisturbed: Path, tmp_path: Path
) -> None:
    """One actor is killed, then a node removed; another one joins and gets its actor."""
    done = []

    def then(bar: Bar) -> None:
        if not done and bar.rows >= 4:
            done.append("actor")
            kill(actors()[0])
        elif len(done) == 1 and bar.rows >= 12:
            done.append("node")
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
            cluster.add_node(num_cpus=1)

    bar = Bar(then)
    made = scan(
        data,
        tmp_path / "s",
        model=model_folder,
        engine="ray",
        workers=2,
        progress=bar,
        address=cluster.address,
        **SETTINGS,
    )
    assert done == ["actor", "node"]
    assert hashes(tmp_path / "s") == hashes(undisturbed)
    counts = made.manifest["counts"]
    assert (bar.starts, bar.rows, bar.tokens) == (1, counts["rows"], counts["trained_tokens"])
    assert not left_over(tmp_path / "s")


def test_a_frozen_actors_unit_goes_to_another(
    cluster: Any,
    data: Path,
    model_folder: str,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is ended, so nothing can come from it any more. The only one, so that it has a unit."""
    monkeypatch.setattr("eaft_probe.engines.ray.LEAST", 5.0)
    monkeypatch.setattr("eaft_probe.engines.ray.TIMES", 2)
    until(lambda: not actors())  # of the scan before
    frozen = []

    def then(bar: Bar) -> None:
        if not frozen and bar.rows >= 8:
            frozen.extend(actors())
            kill(frozen[0], signal.SIGSTOP)

    bar = Bar(then)
    made = scan(
        data,
        tmp_path / "s",
        model=model_folder,
        engine="ray",
        workers=1,
        progress=bar,
        address=cluster.address,
        **SETTINGS,
    )
    (said,) = [note for note in bar.notes if "silent" in note]
    assert "an actor is lost (was silent for" in said
    assert hashes(tmp_path / "s") == hashes(undisturbed)
    counts = made.manifest["counts"]
    assert (bar.rows, bar.tokens) == (counts["rows"], counts["trained_tokens"])
    gone, alive = psutil.wait_procs(frozen, timeout=30)
    assert (len(gone), alive) == (1, [])


def test_a_lost_driver_means_a_rerun(
    cluster: Any, data: Path, model_folder: str, undisturbed: Path, tmp_path: Path
) -> None:
    given = command(
        data,
        tmp_path / "s",
        model_folder,
        "--engine",
        "ray",
        "--workers",
        "2",
        "--address",
        cluster.address,
    )
    process = started(given)
    begun(process, tmp_path / "s")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    scan(data, tmp_path / "s", model=model_folder, **SETTINGS)
    assert hashes(tmp_path / "s") == hashes(undisturbed)
    assert not left_over(tmp_path / "s")


def test_why_an_actor_cannot_load_is_said(
    cluster: Any, data: Path, model_folder: str, tmp_path: Path
) -> None:
    model = shutil.copytree(model_folder, tmp_path / "model")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="model"):
        scan(
            data,
            tmp_path / "s",
            model=str(model),
            engine="ray",
            workers=1,
            address=cluster.address,
            **SETTINGS,
        )


def test_an_actors_error_is_said(
    cluster: Any, data: Path, model_folder: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=r"row 47 .*malformed JSON"):
        scan(
            data,
            tmp_path / "s",
            model=model_folder,
            engine="ray",
            workers=1,
            strict=True,
            address=cluster.address,
            **SETTINGS,
        )
