"""`export --for tokens`: TRL trains from the file what this program trains, with its weights."""

import json
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from eaft_probe import GatedLossMixin, Scan, export, scan, train
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.errors import BadInput
from eaft_probe.objectives.gates import OBJECTIVES
from eaft_probe.objectives.gates import objective as objective_named
from eaft_probe.objectives.scan_columns import resolved, token_columns
from eaft_probe.objectives.trainer import GatedTrainer

trl = pytest.importorskip("trl")
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling  # noqa: E402

ROOT = Path(__file__).parents[2]
Row = dict[str, Any]
SAID = "Once upon a time there was a fox. It did not mind the dog at all, and the dog slept. "
Gradients = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Conversations of unequal length, one with a message that is not trained."""
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"say {n}"},
                {"role": "assistant", "content": SAID[: 20 + 9 * n], "train": n != 3},
                {"role": "user", "content": "and"},
                {"role": "assistant", "content": f"more {n} 🦊"},
            ]
        }
        for n in range(6)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def scanned(data: Any, out: Path, model: str, **settings: Any) -> Scan:
    made = scan(data, out, model=model, rows_per_unit=4, **settings)
    entropy, prob = made.tokens(["entropy", "prob"]).median()
    return made.flag(ConflictRule(float(entropy), float(prob)))


@pytest.fixture(scope="module")
def finished(data: str, model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Scan:
    return scanned(data, tmp_path_factory.mktemp("scan") / "s", model_folder)


def collated(rows: list[Row]) -> list[tuple[int, int, int]]:
    """(row, position, id) that TRL's own collator trains."""
    columns = [{n: r[n] for n in ("input_ids", "labels")} for r in rows]
    batch = DataCollatorForLanguageModeling(pad_token_id=0)(columns)
    labels = batch["labels"]
    places = (labels[:, 1:] != -100).nonzero()  # its loss shifts by one
    assert torch.equal(batch["input_ids"][labels != -100], labels[labels != -100])
    return [(int(r), int(p) + 1, int(labels[r, p + 1])) for r, p in places]


@pytest.mark.parametrize("masked", [False, True])
def test_trl_trains_the_positions_that_this_program_trains(
    masked: bool, finished: Scan, tmp_path: Path
) -> None:
    written = export(finished, tmp_path / "t.parquet", for_="tokens", masked=masked)
    rows = pq.read_table(tmp_path / "t.parquet").to_pylist()
    tokens = finished.tokens(["example", "position", "token_id", "conflict"])
    wanted = tokens[~tokens["conflict"]] if masked else tokens
    names = ["example", "position", "token_id"]
    assert collated(rows) == list(wanted[names].itertuples(index=False, name=None))
    assert all(set(r) == {"input_ids", "attention_mask", "labels"} for r in rows)
    assert all(set(r["attention_mask"]) == {1} for r in rows)
    assert (written.trained_tokens, written.scored_tokens) == (len(wanted), len(tokens))
    assert 0 < len(wanted) <= len(tokens)


@pytest.mark.parametrize("masked", [False, True])
def test_weights_are_the_objective_s_gates(masked: bool, finished: Scan, tmp_path: Path) -> None:
    given = {"objective": "eaft", "set": {"alpha": 2}, "masked": masked}
    export(finished, tmp_path / "t", for_="tokens", **given)
    rows = datasets.load_from_disk(str(tmp_path / "t")).to_list()
    for token in finished.tokens().itertuples():
        gate = (token.entropy_top20 / np.log(20)) ** 2
        row = rows[token.example]
        weight, label = row["weights"][token.position], row["labels"][token.position]
        assert weight == pytest.approx(0 if masked and token.conflict else gate, rel=1e-5)
        assert label == (-100 if masked and token.conflict else token.token_id)
    untrained = sum(w == 0 for row in rows for w in row["weights"])
    assert untrained == sum(x == -100 for row in rows for x in row["labels"])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_gives_weights_or_says_why_not(
    name: str, finished: Scan, tmp_path: Path
) -> None:
    """The gates that figures draw, with the scan as its own reference."""
    base = {"base_scan": str(finished.path)} if name == "rho" else {}
    given = {"for_": "tokens", "objective": name, **base}
    if objective_named(name).anchor:
        with pytest.raises(BadInput, match=f"eaft-probe train --objective {name}"):
            export(finished, tmp_path / "t.jsonl", **given)
        return
    export(finished, tmp_path / "t.jsonl", **given)
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").open()]
    chosen = resolved(objective_named(name), finished, finished if base else None)
    pieces = token_columns(finished, ["example", "position", *chosen.reads], finished)
    for piece in pieces:
        places = zip(piece["example"].tolist(), piece["position"].tolist(), strict=True)
        weights = [rows[example]["weights"][position] for example, position in places]
        np.testing.assert_allclose(weights, chosen(piece), rtol=1e-6)


def test_an_objective_of_another_scan(
    data: str, finished: Scan, model_folder: str, tmp_path: Path
) -> None:
    tiny.build("llama", seed=5, max_position_embeddings=1024).save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(tmp_path / "other")
    base = scanned(data, tmp_path / "b", str(tmp_path / "other"))
    with pytest.raises(BadInput, match="give --base-scan"):
        export(finished, tmp_path / "t.jsonl", for_="tokens", objective="rho")
    given = {"objective": "rho", "set": {"keep": 0.5}, "base_scan": str(base.path)}
    export(finished, tmp_path / "t.jsonl", for_="tokens", **given)
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").open()]
    excess = base.tokens()["logprob"] - finished.tokens()["logprob"]
    kept = excess >= np.quantile(excess.astype(np.float64), 0.5)
    weights = [rows[t.example]["weights"][t.position] for t in finished.tokens(None).itertuples()]
    assert weights == kept.astype(float).tolist()


@pytest.mark.parametrize("turns", ["together", "each"])
def test_long_texts_turns_and_ids_are_as_they_were_read(
    turns: str, model_folder: str, tmp_path: Path
) -> None:
    """Windows of plain text, rows that came as ids, and turns rendered by themselves."""
    said = [("user", "hi"), ("assistant", "a fox"), ("user", "and"), ("assistant", "one more dog")]
    kinds: dict[str, list[Row]] = {
        "text": [{"text": SAID * 2}, {"text": "short"}],
        "ids": [{"input_ids": [1, 80, 81, 82, 90], "labels": [-100, 80, -100, 82, 90]}],
        "turns": [{"messages": [{"role": r, "content": c} for r, c in said]}],
    }
    for name, rows in kinds.items():
        settings = {"max_length": 40, "stride": 5} if name == "text" else {}
        made = scanned(rows, tmp_path / name, model_folder, turns=turns, **settings)
        export(made, tmp_path / f"{name}.jsonl", for_="tokens", data=rows)
        lines = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").open()]
        tokens = made.tokens(["token_id"])["token_id"].tolist()
        assert [label for *_, label in collated(lines)] == tokens
        assert max(len(line["input_ids"]) for line in lines) <= made.manifest["model"]["max_length"]
        assert len(lines) == {"text": 4, "ids": 1}.get(name, 2 if turns == "each" else 1)


def test_the_file_scans_as_the_data_did(finished: Scan, model_folder: str, tmp_path: Path) -> None:
    export(finished, tmp_path / "t.jsonl", for_="tokens")
    again = scan(str(tmp_path / "t.jsonl"), tmp_path / "s", model=model_folder)
    for name in ("example", "position", "token_id"):
        assert again.tokens()[name].tolist() == finished.tokens()[name].tolist()
    np.testing.assert_allclose(again.tokens()["logprob"], finished.tokens()["logprob"], atol=1e-4)


def test_a_scan_of_a_loaded_model_needs_its_tokenizer(model_folder: str, tmp_path: Path) -> None:
    rows = [{"question": "who", "answer": "a fox"}]
    held = AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    made = scan(rows, tmp_path / "s", model=held, tokenizer=tokenizer)
    with pytest.raises(BadInput, match="give its tokenizer's folder as --model"):
        export(made, tmp_path / "t.jsonl", for_="tokens", data=rows)
    written = export(made, tmp_path / "t.jsonl", for_="tokens", data=rows, model=model_folder)
    assert written.trained_tokens == len(made.tokens())


def test_a_row_without_a_trained_token_is_left_out_and_said(finished: Scan, tmp_path: Path) -> None:
    all_flagged = finished.flag(ConflictRule(99, 1.1))
    try:
        written = export(all_flagged, tmp_path / "t.jsonl", for_="tokens", masked=True)
    finally:
        entropy, prob = finished.tokens(["entropy", "prob"]).median()
        finished.flag(ConflictRule(float(entropy), float(prob)))
    assert written.written == written.trained_tokens == 0
    assert written.notes() == [
        "the file does not say it all: 6 windows without a token that is still trained"
    ]


# --- two steps of TRL against two steps of `eaft-probe train` ---


class Kept(TrainerCallback):
    """The gradients of every step, as the optimizer is about to see them."""

    def __init__(self) -> None:
        self.steps: list[Gradients] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        self.steps.append({n: p.grad.clone() for n, p in model.named_parameters()})


def off(a: Gradients, b: Gradients) -> float:
    """‖a − b‖ / ‖b‖ over all parameters."""
    both = [(a[n].double(), b[n].double()) for n in b]
    norms = (
        sum(float(x.pow(2).sum()) for x in xs) for xs in ([x - y for x, y in both], b.values())
    )
    difference, size = norms
    return (difference / size) ** 0.5


SGD = {"learning_rate": 0.05, "optim": "sgd", "lr_scheduler_type": "constant", "warmup_steps": 0}
STEPS = {**SGD, "max_steps": 2, "per_device_train_batch_size": 2, "max_grad_norm": 0.0}


def ours(data: str, out: Path, model: str, monkeypatch: Any, **settings: Any) -> list[Gradients]:
    """Two steps over all rows, three micro-batches each."""
    kept, before = Kept(), GatedTrainer.__init__

    def init(self: GatedTrainer, *args: Any, callbacks: Any, **options: Any) -> None:
        before(self, *args, callbacks=[*callbacks, kept], **options)

    monkeypatch.setattr(GatedTrainer, "__init__", init)
    options = {"gradient_accumulation_steps": 3, "group_rows": 0, "device": "cpu", **STEPS}
    train(data, out, model=model, **{**options, **settings})
    return kept.steps


def trls(
    rows: datasets.Dataset, out: Path, model: str, kind: Any = trl.SFTTrainer, **settings: Any
) -> list[Gradients]:
    kept = Kept()
    options = {n: settings.pop(n) for n in [*settings] if n in ("objective", "data_collator")}
    arguments = trl.SFTConfig(
        str(out),
        **{**STEPS, **settings},
        gradient_accumulation_steps=3,
        max_length=None,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    kind(loaded, arguments, train_dataset=rows, callbacks=[kept], **options).train()
    return kept.steps


def test_two_steps_of_trl_are_those_of_train(
    data: str, finished: Scan, model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(finished, tmp_path / "t", for_="tokens")
    theirs = trls(datasets.load_from_disk(str(tmp_path / "t")), tmp_path / "trl", model_folder)
    mine = ours(data, tmp_path / "run", model_folder, monkeypatch)
    assert [off(a, b) < 1e-5 for a, b in zip(theirs, mine, strict=True)] == [True, True]
    assert off(mine[1], mine[0]) > 1e-3  # the weights moved between them


def test_with_a_mask_they_differ_by_kept_over_trained(
    data: str, finished: Scan, model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = export(finished, tmp_path / "t", for_="tokens", masked=True)
    rows = datasets.load_from_disk(str(tmp_path / "t"))
    factor = written.trained_tokens / written.scored_tokens
    given = {"objective": "masked-sft", "mask": str(finished.path)}
    mine = ours(data, tmp_path / "run", model_folder, monkeypatch, **given)
    rate = STEPS["learning_rate"] * factor
    theirs = trls(rows, tmp_path / "trl", model_folder, learning_rate=rate)
    scaled = [{n: g * factor for n, g in step.items()} for step in theirs]
    assert [off(a, b) < 1e-5 for a, b in zip(scaled, mine, strict=True)] == [True, True]
    assert off(theirs[0], mine[0]) > 0.1


def test_weights_reach_the_gated_loss(
    data: str, finished: Scan, model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the recipe of docs/export.md: in the first step the model is that of the scan."""
    export(finished, tmp_path / "t", for_="tokens", objective="eaft")
    rows = datasets.load_from_disk(str(tmp_path / "t"))
    here: Row = {}
    exec(_recipe('load_from_disk("weighted")'), here)
    mine = ours(data, tmp_path / "run", model_folder, monkeypatch, objective="eaft")
    options = {"data_collator": here["WithWeights"](pad_token_id=0), "objective": "sft"}
    theirs = trls(rows, tmp_path / "trl", model_folder, here["WeightedSFTTrainer"], **options)
    assert off(theirs[0], mine[0]) < 1e-4  # weights are rounded to float32, and of padded passes
    assert issubclass(here["WeightedSFTTrainer"], GatedLossMixin)
    assert objective_named("sft").reads == ("prob",)


def _recipe(part: str, stop: str = "\ntrainer = ") -> str:
    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    (code,) = (c for c in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if part in c)
    return code.split(stop)[0]


@pytest.mark.parametrize("part", ['load_from_disk("tokens")', 'load_from_disk("weighted")'])
def test_the_recipes_for_trl_run(
    part: str, finished: Scan, model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    export(finished, tmp_path / "tokens", for_="tokens", masked=True)
    export(finished, tmp_path / "weighted", for_="tokens", objective="eaft")
    code = _recipe(part, stop="\0").replace("org/name", model_folder)
    on_cpu = '"run", use_cpu=True, bf16=False, report_to=[], max_steps=1'
    exec(code.replace('"run"', on_cpu), {})
    assert list((tmp_path / "run").glob("checkpoint-*/model.safetensors"))
