"""Two processes with DDP give the gradients of one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_trainer import off, one_step

from eaft_probe.objectives.gates import objective

SCRIPT = """
import sys
sys.path[:0] = {paths!r}
import torch
from test_trainer import one_step
from eaft_probe.objectives.gates import objective

torch.distributed.init_process_group("gloo")
gradients = one_step({out!r}, objective({name!r}), each=1, steps_of=4, ddp_backend="gloo")
if torch.distributed.get_rank() == 0:
    torch.save({{n.removeprefix("module."): g for n, g in gradients.items()}}, {out!r} + "/g.pt")
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize("name", ["eaft", "talr", "mile"])
def test_two_ranks_equal_one(name: str, tmp_path: Path) -> None:
    here = Path(__file__).parent
    script = tmp_path / "rank.py"
    paths = [str(here), str(here.parent)]
    script.write_text(SCRIPT.format(paths=paths, out=str(tmp_path), name=name))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
               "--master-port=0", "--standalone", str(script)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    two = torch.load(tmp_path / "g.pt")
    assert off(two, one_step(tmp_path / "one", objective(name), 8)) < 1e-5
