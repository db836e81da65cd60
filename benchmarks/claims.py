"""The claims of arXiv 2601.02151 and what comes out here: one command, one table.

Every stage keeps what it has done in --out, so a stopped run goes on with the same command.
--data is a folder with gsm8k/train.jsonl, medmcqa/dev.json, fireact/gpt_hotpotqa.jsonl and, for
--form gpu, text/wikitext2_test.txt, mmlu/dev and ifeval/input_data.jsonl, each as published.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import transformers
from evidence.answers import PAPER_CONFLICTS, PAPER_TOPK, conflict_shares, topk_correlations
from evidence.audit import audit
from evidence.bench import FORMS, Bench
from evidence.findings import Finding, table
from evidence.frontier import PAPER_DYNAMICS, PAPER_FORGOT, dynamics, frontier, picture
from evidence.gradients import PAPER_GRADIENTS, gradient_shares
from evidence.runs import VARIANTS, Variant, records

from eaft_probe.errors import ProbeError, one_line

TITLES = {
    1: "Conflicts in supervised data, and in the model's own answers to the same prompts",
    2: "The entropy of the K likeliest tokens against the full one",
    3: "Where the gradient comes from",
    4: "What is forgotten for what is learned, over learning rates",
    5: "What happens to certain and to uncertain tokens",
    6: "Do conflicts find what was changed in an answer?",
}
PAPER = {1: PAPER_CONFLICTS, 2: PAPER_TOPK, 3: PAPER_GRADIENTS, 4: PAPER_FORGOT, 5: PAPER_DYNAMICS}


def main() -> None:
    args = _arguments()
    form = FORMS["quick" if args.quick else args.form]
    try:
        print(measure(Bench(args.data, args.model, args.stories, args.out, form, args.workers)))
    except (ProbeError, OSError) as error:
        sys.exit(f"claims: {one_line(error)}; what is done is in {args.out}")


def measure(bench: Bench, variants: Sequence[Variant] = VARIANTS) -> str:
    """Everything into the bench's folder: claims.md, which it returns, claims.json, a figure."""
    start = time.monotonic()
    findings, runs = list(_under_the_model(bench)), records(bench, variants)
    findings += [*frontier(runs), *dynamics(runs)]
    page = _page(bench, findings, time.monotonic() - start)
    shown = {"form": asdict(bench.form), "findings": [asdict(f) for f in findings], "runs": runs}
    (bench.out / "claims.json").write_text(json.dumps(shown, indent=1))
    (bench.out / "claims.md").write_text(page)
    picture(runs, f"{bench.trains}; grey: sft").write(bench.out / "frontier.png")
    return page


def _under_the_model(bench: Bench) -> Iterator[Finding]:
    for stage in (conflict_shares, topk_correlations, gradient_shares, audit):
        start = time.monotonic()
        yield from stage(bench)
        bench.tell(f"{stage.__name__}: {time.monotonic() - start:.0f} s")


def _page(bench: Bench, findings: list[Finding], seconds: float) -> str:
    parts = [
        f"Means and 95 % intervals over {bench.form.seeds} seeds; at most {bench.form.sampled:,} "
        f"tokens sampled. Claims 1 to 3 and the demo: {bench.model}; 4 and 5: {bench.trains}. "
        f"This call took {seconds / 60:.1f} minutes; torch {torch.__version__}, transformers "
        f"{transformers.__version__}, Python {platform.python_version()}."
    ]
    for claim, title in TITLES.items():
        mine = [f for f in findings if f.claim == claim]
        parts.append(f"## {claim}. {title}\n\n{table(mine, PAPER.get(claim, {}))}")
    return "\n\n".join(parts) + "\n"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--stories", required=True, help="folder of the model stories260K")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--out", type=Path, default=Path("claims"))
    parser.add_argument("--form", choices=FORMS, default="full")
    parser.add_argument("--quick", action="store_true", help="--form quick: 20 minutes, 2 cores")
    parser.add_argument("--workers", type=int, help="training runs at once; default: one a core")
    args = parser.parse_args()
    alone = args.form == "gpu" and not args.quick
    args.workers = args.workers or (1 if alone else os.cpu_count() or 1)
    return args


if __name__ == "__main__":
    main()
