"""A small run of `benchmarks/claims.py`, with a model of simple stories in both places."""

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import claims  # noqa: E402
from evidence.bench import Bench, Form  # noqa: E402
from evidence.runs import Variant  # noqa: E402

FORM = Form(
    seeds=2,
    prompts=6,
    new_tokens=24,
    exact=8,
    stories=20,
    story_tokens=40,
    target="stories",
    trained=8,
    held_out=4,
    retained=8,
    epochs=2,
    learning_rates=(1e-4, 1e-3),
    audited=6,
)
VARIANTS = (Variant("sft"), Variant("eaft"), Variant("flow"))


def bench(shared: Path, out: Path) -> Bench:
    stories = str(shared / "models" / "stories260K")
    return Bench(shared / "data", stories, stories, out, FORM, 1)


def make(shared: Path, out: Path) -> Path:
    claims.measure(bench(shared, out), VARIANTS)
    return out
