"""The vLLM engine: the model's body runs in vLLM, one on each group of GPUs.

Who runs which unit is the affair of the local engine, or of Ray where there is an address;
`load_scorer.py` gives their scorers a `VllmModel`.
"""

from eaft_probe.engines import local, ray
from eaft_probe.engines.unit_queue import Job
from eaft_probe.engines.vllm_loading import stop


def run(job: Job) -> None:
    """Scores every unit, by workers of this machine or by actors of a Ray cluster."""
    try:
        (ray if job.address else local).run(job)
    finally:
        stop()
