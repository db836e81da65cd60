"""A model in shards on two processes gives the numbers of one process, and rank 0 alone writes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from forked import main, ran, torchrun
from transformers import AutoModelForCausalLM

import eaft_probe
from eaft_probe.columns import measure as measuring
from eaft_probe.columns.measure import Reference, measure_states
from eaft_probe.columns.statistics import STATISTICS
from eaft_probe.engines.torchrun import ranks_of
from eaft_probe.errors import BadInput, ModelError
from eaft_probe.model.loading import CausalLM, load_model
from eaft_probe.model.tensor_parallel import ShardedHead

# name → architecture and fields: an own head, tied embeddings, a vocabulary that does not divide by
# two, a bias, a soft-cap, a scale, experts.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "tied": ("llama-tied", {}),
    "odd": ("llama", {"vocab_size": tiny.VOCAB + 1}),
    "odd-tied": ("llama-tied", {"vocab_size": tiny.VOCAB + 1}),
    "bias": ("phi", {}),
    "soft-cap": ("gemma2", {}),
    "scale": ("cohere", {}),
    "experts": ("mixtral", {}),
}
IDS, PREFIX = tiny.token_ids(3, 13), tiny.token_ids(1, 5, seed=2)[0]
SCAN = {"rows_per_unit": 4, "statistics": ["grad_hidden"]}
EXACT = ["example", "position", "token_id", "rank", "top1_id"]


def columns(model: CausalLM, reference: CausalLM) -> dict[str, torch.Tensor]:
    """All statistics of some tokens behind a prefix."""
    labels = IDS[:, 1:].flatten()
    states = [m.hidden(IDS, PREFIX)[:, :-1].flatten(0, 1) for m in (model, reference)]
    theirs = Reference(reference.head, states[1])
    found = measure_states(model.head, states[0], labels, list(STATISTICS.values()), theirs)
    return found.columns


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes made of all cases, started once."""
    folder = tmp_path_factory.mktemp("ranks")
    for name, (architecture, more) in CASES.items():
        tiny.save(folder / name, tiny.build(architecture, **more))
    tiny.save(folder / "other", tiny.build(seed=1))
    tiny.save(folder / "odd-other", tiny.build(seed=1, vocab_size=tiny.VOCAB + 1))
    tiny.save(folder / "no-plan", tiny.build("gpt2"))
    broken = tiny.build()
    broken.lm_head.weight.data[-1] = torch.nan  # in the shard of the second rank
    tiny.save(folder / "broken", broken)
    rows = [{"prompt": f"say {i}", "completion": "the fox " * (1 + i % 5)} for i in range(11)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    status, _, errors = ran(torchrun, on_a_rank, str(folder))
    assert status == 0, errors[-3000:]
    return folder


# --- on each of the ranks ---


def on_a_rank(folder: str) -> None:
    torch.set_num_threads(1)
    here, ranks = Path(folder), ranks_of("local", "cpu", tp=True)
    measuring.PRODUCT_BYTES["cpu"] = 4 * tiny.VOCAB * 8  # eight rows: several products
    for name in CASES:
        model = load_model(str(here / name), tp=True)
        reference = load_model(str(here / ("odd-other" if "odd" in name else "other")), tp=True)
        assert isinstance(model.head, ShardedHead)
        assert model.head.weight.shape[0] == (model.head.vocab_size + 1 - ranks.rank) // 2
        torch.save(columns(model, reference), here / f"{name}-{ranks.rank}.pt")
    for name in ("no-plan", "broken"):
        with pytest.raises(ModelError) as caught:
            load_model(str(here / name), tp=True)
        (here / f"{name}.txt").write_text(str(caught.value))
    scan(here, "scan", tp=True)
    scan(here, "again", tp=True)
    with ranks.first():
        for left in ("manifest.json", "tokens/part-00001.parquet", "examples/part-00001.parquet"):
            (here / "again" / left).unlink(missing_ok=bool(ranks.rank))
    scan(here, "again", tp=True)


def scan(here: Path, out: str, **more: Any) -> Any:
    model = str(here / "tied")
    return eaft_probe.scan(str(here / "rows.jsonl"), here / out, model=model, **SCAN | more)


# --- the numbers ---


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_give_the_numbers_of_one(name: str, ranks: Path) -> None:
    other = "odd-other" if "odd" in name else "other"
    wanted = columns(load_model(str(ranks / name)), load_model(str(ranks / other)))
    found, second = (torch.load(ranks / f"{name}-{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(found[column], second[column]) for column in found)
    assert found.keys() == wanted.keys() == set(STATISTICS)
    for statistic, column in found.items():
        exact = column.dtype == torch.int32
        torch.testing.assert_close(
            column, wanted[statistic], rtol=0 if exact else 1e-4, atol=0 if exact else 1e-4
        )


def test_the_logprobs_are_the_models_own(ranks: Path) -> None:
    """Against `transformers`, by itself and in one process."""
    plain = AutoModelForCausalLM.from_pretrained(ranks / "odd-tied").eval()
    together = torch.cat([PREFIX.expand(len(IDS), -1), IDS], dim=1)
    with torch.inference_mode():
        logits = plain(input_ids=together).logits[:, len(PREFIX) : -1].double()
    logprob = logits.log_softmax(-1).gather(2, IDS[:, 1:, None]).flatten()
    found = torch.load(ranks / "odd-tied-0.pt")["logprob"]
    torch.testing.assert_close(found.double(), logprob, rtol=0, atol=1e-4)


def test_a_scan_holds_what_one_process_writes(ranks: Path) -> None:
    found, wanted = frame(ranks / "scan"), frame(scan(ranks, "one").path)
    pd.testing.assert_frame_equal(found[EXACT], wanted[EXACT])
    for name in ("logprob", "entropy", "grad_logits", "grad_head", "grad_hidden"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-4, atol=1e-4)


def frame(folder: Path) -> pd.DataFrame:
    return pd.concat(map(pd.read_parquet, sorted(folder.glob("tokens/part-*"))), ignore_index=True)


def test_an_interrupted_one_comes_out_byte_for_byte(ranks: Path) -> None:
    parts = sorted((ranks / "scan").glob("*/part-*.parquet"))
    assert len(parts) == 6
    for part in parts:
        assert (
            ranks / "again" / part.relative_to(ranks / "scan")
        ).read_bytes() == part.read_bytes()


# --- what is refused ---


def test_what_is_not_proven_is_refused(ranks: Path) -> None:
    assert "has no `tp_plan`" in (ranks / "no-plan.txt").read_text()
    said = (ranks / "broken.txt").read_text()
    assert "not its head over its last hidden states" in said


def test_other_processes_make_another_scan(ranks: Path) -> None:
    with pytest.raises(BadInput, match="processes 2 there, null now"):
        scan(ranks, "scan")


def test_without_a_launcher_it_says_how(ranks: Path) -> None:
    with pytest.raises(BadInput, match="start them by torchrun --nproc-per-node N"):
        scan(ranks, "alone", tp=True)


@pytest.mark.parametrize("more", [{"device_map": "auto"}, {"adapter": "somewhere"}])
def test_other_ways_to_spread_or_change_a_model_are_refused(more: Any, ranks: Path) -> None:
    with pytest.raises(BadInput, match="remove --device-map"):
        scan(ranks, "alone", tp=True, **more)


def test_bad_input_is_one_line_of_rank_0(ranks: Path) -> None:
    given = ["scan", str(ranks / "rows.jsonl"), "--tp", "--out", str(ranks / "bad")]
    status, _, errors = ran(torchrun, main, [*given, "--model", str(ranks / "nothing")])
    assert status != 0
    assert errors.count("eaft-probe: no model at") == 1
    assert not (ranks / "bad").exists()
