"""A small scan of text that would like to run, its tokens spread over the landscape."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scans_made

from eaft_probe import Scan, scan
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.scans.part_writer import write_parquet

ATTACKS = (
    "<script>window.hacked = 1</script>",
    '<img src=x onerror="window.hacked = 2">',
    "</script><script>window.hacked = 3</script><!--",
    '<a href="javascript:window.hacked = 4">press</a>',
    "<svg onload=window.hacked=5> &lt;b&gt; {{script}} {{payload}}",
    'a \u202eright to left\u202c \u2066isolated\u2069 "}]; window.hacked = 6 //',
    "null \x00 escape \x1b[2J separator \u2028 tag \U000e0041 end",
)
THEIRS = [f"B{attack}" for attack in ATTACKS]  # of a second scan


def hostile_scan(folder: Path, model: str) -> Scan:
    """Every attack as question, answer, key and kept value, among plain rows."""
    rows = [
        {"id": f"{text} {n}", "question": text, "answer": f"The fox says {text}.", "tag": text}
        for n, text in enumerate([*ATTACKS, *("the dog and the fox " * k for k in (1, 2, 3))])
    ]
    return spread(scan(rows, folder, model=model, keep=["tag"]))


def spread(done: Scan) -> Scan:
    """The scan with made-up numbers: a tiny random model finds every token alike."""
    random = np.random.default_rng(0)
    for file in done.part_files("tokens"):
        table = pq.read_table(file)
        prob = random.beta(0.4, 0.6, len(table))
        entropy = 0.02 + random.gamma(2.0, 1.2, len(table)) * (1 - prob)
        for name, values in (("prob", prob), ("entropy", entropy), ("logprob", np.log(prob))):
            at = table.schema.get_field_index(name)
            values = pa.array(values.astype(np.float32))
            table = table.set_column(at, table.schema.field(at), values)
        write_parquet(file, table)
    return scans_made.resealed(done).flag(ConflictRule(1.0, 0.3))
