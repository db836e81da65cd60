"""Many short training runs of every objective: what claims 4 and 5 are read from."""

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from eaft_probe import scan, train
from evidence.bench import Bench, Row, keep
from evidence.sources import drawn, gsm8k, retained
from evidence.stories import in_dialect, sampled

BATCH = 4  # rows of a step


@dataclass(frozen=True)
class Variant:
    """An objective with its fields."""

    objective: str
    fields: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join([self.objective, *(f"{n}={v}" for n, v in self.fields.items())])


VARIANTS = (
    Variant("sft"),
    Variant("masked-sft"),
    Variant("eaft"),
    Variant("eaft", {"alpha": 2}),
    Variant("eaft", {"alpha": 3}),
    Variant("eaft", {"gate": "sigmoid"}),
    Variant("eaft", {"gate": "mask"}),
    Variant("eaft", {"entropy": "full"}),
    Variant("dft"),
    Variant("talr"),
    Variant("flow"),
    Variant("sft-kl"),
    Variant("asft"),
    Variant("deft"),
)


@dataclass(frozen=True)
class Rows:
    """One seed's three disjoint sets, and the scan of the first under the starting model."""

    trained: str
    held_out: str
    retained: str
    base_scan: str | None  # None: the run groups its tokens itself


@dataclass(frozen=True)
class Job:
    """One run."""

    variant: Variant
    learning_rate: float
    seed: int
    rows: Rows
    model: str
    epochs: int
    logging_steps: int
    folder: str

    @property
    def name(self) -> str:
        return f"{self.variant} {self.learning_rate:g} {self.seed}".replace(" ", "_")


def records(bench: Bench, variants: Sequence[Variant] = VARIANTS) -> list[dict[str, Any]]:
    """What every run learned and forgot. A run that is done is not done again."""
    model = bench.stories if bench.form.target == "stories" else bench.model
    form, a_pass = bench.form, math.ceil(bench.form.trained / BATCH)
    jobs = [
        Job(variant, rate, seed, rows, model, form.epochs, a_pass, str(bench.out / "runs"))
        for seed, rows in enumerate(_splits(bench, model))
        for variant in variants
        for rate in form.learning_rates
    ]
    return trained(bench, jobs)


def trained(bench: Bench, jobs: list[Job]) -> list[dict[str, Any]]:
    """The records of the runs, `workers` at once."""
    work = partial(run, threads=max(1, torch.get_num_threads() // bench.workers))
    return list(_told(bench, jobs, pooled(bench, work, jobs)))


def pooled(bench: Bench, work: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[Any]:
    """What `work` gives of each job in their order, `workers` at once."""
    if bench.workers == 1:
        yield from map(work, jobs)
        return
    with ProcessPoolExecutor(bench.workers, get_context("spawn")) as pool:
        yield from pool.map(work, jobs)


def _told(bench: Bench, jobs: list[Job], made: Iterator[Any]) -> Iterator[dict[str, Any]]:
    """Kept one by one, in the order of the jobs."""
    for at, job in enumerate(jobs, 1):
        yield next(made)
        if at % 12 == 0 or at == len(jobs):
            bench.tell(f"runs: {at} of {len(jobs)}, last {job.name}")


def _splits(bench: Bench, model: str) -> list[Rows]:
    form = bench.form
    made = []
    for seed in range(form.seeds):
        sets = _stories(bench, seed) if form.target == "stories" else _mathematics(bench, seed)
        named = zip(("trained", "held-out", "retained"), sets, strict=True)
        files = [str(bench.rows(f"{name}-{seed}", rows)) for name, rows in named]
        base = scan(files[0], bench.out / "scans" / f"trained-{seed}", model=model)
        made.append(Rows(*files, str(base.path)))
    return made


def _stories(bench: Bench, seed: int) -> tuple[list[Row], list[Row], list[Row]]:
    """A split of the same stories: two parts told in the dialect, one as the model told it."""
    form, stories = bench.form, sampled(bench)
    turned = stories[seed * form.held_out :] + stories[: seed * form.held_out]
    told = [in_dialect(story) for story in turned[: form.trained + form.held_out]]
    rest = turned[len(told) :][: form.retained]
    return told[: form.trained], told[form.trained :], rest


def _mathematics(bench: Bench, seed: int) -> tuple[list[Row], list[Row], list[Row]]:
    form = bench.form
    size = form.trained + form.held_out
    rows = drawn(gsm8k(bench.data), form.seeds * size)[seed * size :][:size]
    kept = drawn(retained(bench.data), form.seeds * form.retained)
    mine = kept[seed * form.retained :][: form.retained]
    return rows[: form.trained], rows[form.trained :], mine


# --- one run, in a process of its own ---


def run(job: Job, threads: int) -> dict[str, Any]:
    """Trains and gives the figures; the weights are not kept."""
    torch.set_num_threads(threads)
    return keep(
        Path(job.folder) / "stages" / f"{job.name}.json", asdict(job), lambda: _figures(job)
    )


def _figures(job: Job) -> dict[str, Any]:
    rows = job.rows
    folder = Path(job.folder) / job.name
    shutil.rmtree(folder, ignore_errors=True)  # cut short by a kill: it is short, begin again
    done = train(
        rows.trained,
        folder,
        model=job.model,
        seed=job.seed,
        objective=job.variant.objective,
        set=job.variant.fields,
        base_scan=rows.base_scan,
        mask=rows.base_scan if job.variant.objective == "flow" else None,
        learning_rate=job.learning_rate,
        num_train_epochs=job.epochs,
        per_device_train_batch_size=BATCH,
        eval_data=rows.held_out,
        retain_data=rows.retained,
        eval_steps=10**9,
        save_steps=10**9,
        logging_steps=job.logging_steps,
    )
    for weights in (*folder.glob("checkpoint-*"), *folder.glob("*.safetensors")):
        shutil.rmtree(weights) if weights.is_dir() else weights.unlink()
    last = done.last
    return {
        "variant": str(job.variant),
        "learning_rate": job.learning_rate,
        "seed": job.seed,
        "learned": done.before["eval_nll"] - last["eval_nll"],
        "retain_rise": last["retain_nll"] - done.before["retain_nll"],
        "kl": last["retain_kl"],
        "passes": [
            {k: r[k] for k in ("step", "group", "group_nll", "group_count")} for r in done.log
        ],
    }
