"""The vLLM engine: the model's body runs in vLLM, alone or in as many workers as are asked for.

Who runs which unit is the local engine's affair; `load_scorer.py` gives its scorers a `VllmModel`.
"""

from dataclasses import replace

from eaft_probe.engines import local
from eaft_probe.engines.unit_queue import Job


def run(job: Job) -> None:
    """Scores every unit; one vLLM takes all GPUs that its arguments ask for."""
    local.run(replace(job, workers=job.workers or 1))
