"""Answers read without their prompts, against a plain forward pass of each."""

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from eaft_probe import Scan, export, scan
from eaft_probe.analysis.scores import worst_rows
from eaft_probe.errors import BadInput
from eaft_probe.verbs.merge.merge import merge
from eaft_probe.view.report.report import report

CHATS = [
    [("user", "fox?"), ("assistant", "The quick fox."), ("user", "And?"), ("assistant", "Dogs do")],
    [("user", "the dog"), ("assistant", "The quick fox.")],
    [("user", "a long question about a dog"), ("assistant", "no, the lazy dog does not mind it")],
]
SETTINGS = {"statistics": ["logprob_alone"], "rows_per_unit": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("alone") / "rows.jsonl"
    rows = [{"messages": [{"role": r, "content": c} for r, c in chat]} for chat in CHATS]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture(scope="module")
def chats(data: str, model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Scan:
    """Under a tokenizer that adds no BOS."""
    return scan(data, tmp_path_factory.mktemp("alone") / "s", model=model_folder, **SETTINGS)


def alone(folder: str, tokens: pandas.DataFrame, before: list[int]) -> list[float]:
    """ln p of each token in a pass of its answer; NaN behind nothing."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    runs = [0, *(i + 1 for i, (a, b) in enumerate(pairwise(places(tokens))) if not follows(a, b))]
    found = []
    for start, past in pairwise([*runs, len(tokens)]):
        ids = tokens["token_id"].tolist()[start:past]
        with torch.no_grad():
            logprobs = model(input_ids=torch.tensor([before + ids])).logits[0].log_softmax(-1)
        at = [len(before) + i - 1 for i in range(len(ids))]  # what predicts each token
        found += [
            float(logprobs[a, y]) if a >= 0 else math.nan for a, y in zip(at, ids, strict=True)
        ]
    return found


def places(tokens: pandas.DataFrame) -> list[tuple[int, int, int]]:
    return [*zip(*(tokens[n] for n in ("example", "turn", "position")), strict=True)]


def follows(a: tuple[int, int, int], b: tuple[int, int, int]) -> bool:
    return a[:2] == b[:2] and b[2] == a[2] + 1


def test_without_bos_an_answer_stands_behind_its_header(chats: Scan, model_folder: str) -> None:
    tokens, tokenizer = chats.tokens(), AutoTokenizer.from_pretrained(model_folder)
    header = tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False)
    wanted = alone(model_folder, tokens, header)
    np.testing.assert_allclose(tokens["logprob_alone"], wanted, atol=1e-4)


def test_behind_bos_every_token_has_one(data: str, model_folder: str, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    special = [("<s>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<s> $A", None, special)
    AutoModelForCausalLM.from_pretrained(model_folder).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    tokens = scan(data, tmp_path / "s", model=str(tmp_path / "m"), **SETTINGS).tokens()
    wanted = alone(model_folder, tokens, [tokenizer.bos_token_id])
    np.testing.assert_allclose(tokens["logprob_alone"], wanted, atol=1e-4)


def test_the_first_token_of_a_completion_behind_nothing_has_none(
    model_folder: str, tmp_path: Path
) -> None:
    """In a part as in a query, and whatever reads the scan after."""
    rows = [{"prompt": p, "completion": c} for p, c in (("the", " dog"), ("lazy", " fox jumps"))]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = scan(file, tmp_path / "s", model=bare(model_folder, tmp_path / "m"), **SETTINGS)
    tokens = Scan.open(plain.path, verify=True).tokens()
    wanted = alone(model_folder, tokens, [])
    assert np.isnan(wanted).sum() == len(rows)
    np.testing.assert_allclose(tokens["logprob_alone"], wanted, atol=1e-4)
    assert plain.rows("SELECT count(*) FROM tokens WHERE logprob_alone IS NULL") == [(2,)]
    report([plain], tmp_path / "r.html")
    joined = merge([plain, plain], tmp_path / "both")
    assert joined.tokens(["logprob_alone"]).isna().sum().item() == 2 * len(rows)
    export(plain, tmp_path / "scored.jsonl")
    first = json.loads((tmp_path / "scored.jsonl").read_text().splitlines()[0])
    assert first["probe_ifd"] == pytest.approx(dict(worst_rows(plain, "ifd", 2))[0])


def bare(folder: str, to: Path) -> str:
    """The model with a tokenizer that has no chat template."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = None
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(to)
    tokenizer.save_pretrained(to)
    return str(to)


def test_nothing_else_of_a_scan_changes_and_batches_do_not_matter(
    chats: Scan, data: str, model_folder: str, tmp_path: Path
) -> None:
    small = scan(data, tmp_path / "b", model=model_folder, **SETTINGS, tokens_per_batch=1).tokens()
    without = scan(data, tmp_path / "w", model=model_folder, rows_per_unit=2)
    column = chats.tokens(["logprob_alone"])
    np.testing.assert_allclose(small["logprob_alone"], column["logprob_alone"], atol=1e-4)
    pandas.testing.assert_frame_equal(
        without.tokens(), chats.tokens([*without.columns, "conflict"])
    )


def test_ifd_is_how_much_less_the_prompt_helps(chats: Scan) -> None:
    tokens = chats.tokens(["example", "logprob", "logprob_alone"]).dropna().astype(np.float64)
    fall = (tokens["logprob_alone"] - tokens["logprob"]).groupby(tokens["example"]).mean()
    wanted = np.exp(fall).sort_values(ascending=False)
    found = worst_rows(chats, "ifd", 3)
    assert [row for row, _ in found] == wanted.index.tolist()
    assert [score for _, score in found] == pytest.approx(wanted.tolist(), rel=1e-5)


def test_it_takes_every_token(data: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="remove --keep-tokens"):
        scan(data, tmp_path / "s", **SETTINGS, keep_tokens="flagged")
