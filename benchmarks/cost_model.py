"""The hours that `scan --dry-run` predicts against those that the scan takes.

For each case the rate of a large product is measured before and after the scan, since another
process may share the machine; `predicted` uses their mean. Loading is not counted, rendering,
tokenizing and writing are. `reached` is the share of the product's rate that explains the time,
`host` the microseconds a read token that would (which is the larger part under a tiny model).
"""

import argparse
import time
from dataclasses import asdict
from typing import Any

from contestants import CONTESTANTS, Work, arguments, prepared, print_table

from eaft_probe.verbs.costs import HOST_SECONDS, REACHED, product_flops
from eaft_probe.verbs.estimate import estimate

HEAD = ("", "rows", "read tokens", "FLOP", "product FLOP/s", "predicted s", "measured s",
        "predicted / measured", "reached", "host µs")  # fmt: skip


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[16])
    args = parser.parse_args()
    print_table(HEAD, [row(args, rows) for rows in args.rows])


def row(args: argparse.Namespace, rows: int) -> tuple[str, ...]:
    with prepared(args, rows) as work:
        said = predicted(work)
        device = str(work.model.device)
        before = product_flops(device)
        start = time.perf_counter()
        CONTESTANTS["scan"](work)
        seconds = time.perf_counter() - start
        return cells(said, rows, (before + product_flops(device)) / 2, seconds, device)


def predicted(work: Work) -> Any:
    """The estimate from all of the rows, so that only the model of costs is looked at."""
    settings = asdict(work.settings) | {"estimate_rows": 10**6}
    return estimate(str(work.data), **settings)


def cells(said: Any, rows: int, product: float, seconds: float, device: str) -> tuple[str, ...]:
    flops, read = said.flops.value, said.read_tokens.value
    compute, host = flops / product, HOST_SECONDS * read
    guess = compute / REACHED[device.split(":")[0]] + host
    return (
        f"{said.data.split('/')[-1]}, {said.model.split('/')[-1]}", str(rows), f"{read:,.0f}",
        f"{flops:.3g}", f"{product:.3g}", f"{guess:.1f}", f"{seconds:.1f}",
        f"{guess / seconds:.2f}", f"{compute / max(seconds - host, 1e-9):.2f}",
        f"{1e6 * (seconds - compute / REACHED[device.split(':')[0]]) / read:.1f}",
    )  # fmt: skip


if __name__ == "__main__":
    main()
