"""`train` from rows to a model folder, on a tiny model."""

import json
import os
import shutil
from dataclasses import fields, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiny
import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from eaft_probe.cli import _run
from eaft_probe.errors import BadInput, DataError, NonFinite, ProbeError
from eaft_probe.progress import Silent
from eaft_probe.quantities import number
from eaft_probe.scans.training_log import SCHEMA
from eaft_probe.settings import TrainSettings
from eaft_probe.verbs.train import run_folder
from eaft_probe.verbs.train.train import Run, train
from eaft_probe.view import plots

STEPS = {
    "max_steps": 6,
    "logging_steps": 2,
    "save_steps": 3,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Rows of unequal length; one has nothing to train, one is malformed."""
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"say {i}"},
                {"role": "assistant", "content": "the fox " * (1 + i % 5)},
            ]
        }
        for i in range(20)
    ]
    lines = [json.dumps(r) for r in rows] + ["{broken", json.dumps({"messages": []})]
    path.write_text("\n".join(lines))
    return str(path)


@pytest.fixture(scope="module")
def run(data: str, model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("run") / "eaft"
    return train(
        data,
        out,
        model=model_folder,
        objective="eaft",
        eval_data=data,
        retain_data=data,
        eval_steps=4,
        **STEPS,
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def test_the_model_is_a_plain_one_and_has_learned(run: Run, model_folder: str) -> None:
    assert AutoTokenizer.from_pretrained(run.path).chat_template
    before = weights(Path(model_folder))
    assert any((w != before[n]).any() for n, w in weights(run.path).items())
    nll = [r["nll"] for r in run.log if r["group"] == "all"]
    assert nll[-1] < nll[0]


def test_the_log_has_every_column_and_the_groups_add_up(run: Run) -> None:
    table = pq.read_table(run.path / "log.parquet")
    assert table.schema.names == SCHEMA.names
    steps = {r["step"] for r in run.log}
    assert steps == {2, 3, 4, 6}  # every second, the checkpoints', the evaluation's, the last
    for step in steps:
        rows = {r["group"]: r for r in run.log if r["step"] == step}
        split = [rows[g] for g in ("high", "low", "other") if g in rows]
        assert sum(r["group_count"] for r in split) == rows["all"]["group_count"]
        total = sum(r["group_count"] * r["group_nll"] for r in split)
        assert total / rows["all"]["group_count"] == pytest.approx(rows["all"]["nll"])
        assert 0 < rows["all"]["gate_mean"] < 1
        assert rows["all"]["loss"] == pytest.approx(
            rows["all"]["nll"] * (1 - rows["all"]["mass_gated"])
        )


def test_held_out_and_retained_data_are_measured(run: Run) -> None:
    last = run.last
    assert last["eval_nll"] == pytest.approx(last["retain_nll"])  # the same rows
    assert last["retain_kl"] > 0
    assert run.before["retain_kl"] < 1e-6
    card = (run.path / "README.md").read_text()
    assert f"| retain_kl | {number(run.before['retain_kl'], 4)} |" in card


def test_its_dynamics_can_be_drawn(run: Run) -> None:
    """A random model is undecided everywhere: the tokens of high entropy are all."""
    high, *others = plots.dynamics(run.path).axes
    wanted = [r["group_nll"] for r in run.log if r["group"] == "high"]
    assert list(high.lines[0].get_ydata()) == pytest.approx(wanted)
    assert not any(axes.lines for axes in others)


@pytest.mark.parametrize("objective", ["talr", "sft-kl"])
def test_step_statistics_and_anchors(objective: str, data: str, model_folder, tmp_path) -> None:
    run = train(data, tmp_path / "r", model=model_folder, objective=objective, **STEPS)
    assert run.last["objective"] == objective
    assert run.last["step"] == 6


def test_a_lora_adapter_is_saved_as_one(data: str, model_folder: str, tmp_path: Path) -> None:
    run = train(data, tmp_path / "r", model=model_folder, objective="asft", lora_r=4, **STEPS)
    assert (run.path / "adapter_model.safetensors").exists()
    from eaft_probe.model.loading import load_model

    assert load_model(model_folder, adapter=str(run.path)).head.vocab_size


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "stm"}, "reads base_prob"),
        ({"objective": "eafd"}, "did you mean 'eaft'"),
        ({"objective": "eaft", "set": {"alpha": -1}}, "alpha"),
        ({"eval_data": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"dtype": "bfloat16"}, "round most updates away"),
        ({"optim": "foo"}, "foo"),
        ({"lora_r": 4, "lora_target": ["nosuch"]}, "nosuch"),
        ({"learning_rate": float("nan")}, "--learning-rate"),
        ({"logging_steps": 0}, "--logging-steps"),
        ({"max_steps": 0}, "--max-steps"),
        ({"lr_scheduler_type": "foo"}, "foo"),
        ({"strict": True}, "row 20"),
    ],
)
def test_bad_settings_leave_nothing_behind(settings, message, data, model_folder, tmp_path) -> None:
    with pytest.raises(BadInput, match=message):
        train(data, tmp_path / "r", model=model_folder, **STEPS | settings)
    assert not (tmp_path / "r").exists()


def test_a_run_shorter_than_a_logging_step_has_its_row(data, model_folder, tmp_path) -> None:
    short = STEPS | {"max_steps": 3, "logging_steps": 10, "eval_steps": 2, "save_steps": 100}
    run = train(data, tmp_path / "r", model=model_folder, eval_data=data, **short)
    assert [r["step"] for r in run.log if r["group"] == "all"] == [2, 3]
    assert all(r["eval_nll"] > 0 for r in run.log)


def test_rows_that_are_left_out_are_counted(run: Run) -> None:
    assert "2 rows left out" in (run.path / "README.md").read_text()


def test_resume_goes_on_with_the_same_run_only(run: Run, data, model_folder, tmp_path) -> None:
    given = {"model": model_folder, "eval_data": data, "retain_data": data, "resume": True} | STEPS
    out = tmp_path / "r"
    shutil.copytree(run.path, out)
    before = weights(out)
    with pytest.raises(BadInput, match="another objective"):
        train(data, out, objective="sft", **given)
    rows = [json.loads(r) for r in Path(data).read_text().split("\n")[:20]]
    with pytest.raises(BadInput, match="another data"):
        train(rows, out, objective="eaft", **given)
    assert all((w == before[n]).all() for n, w in weights(out).items())


NOT_REPEATED = {
    "resume",
    "overwrite",
    "max_steps",
    "num_train_epochs",
    "logging_steps",
    "save_steps",
    "save_total_limit",
    "eval_steps",
    "report_to",
    "device",
}


@pytest.mark.parametrize("name", sorted({f.name for f in fields(TrainSettings)} - NOT_REPEATED))
def test_a_resumed_run_repeats_every_other_setting(name: str, tmp_path: Path) -> None:
    settings = TrainSettings(resume=True)
    plan = run_folder.plan(settings, "data", "fingerprint", None, 1)
    (tmp_path / "train.json").write_text(json.dumps(plan | {name: "of another run"}))
    with (
        pytest.raises(BadInput, match=f"was trained with another {name} "),
        run_folder.prepared(tmp_path, settings, plan, print),
    ):
        pass


def test_resuming_a_finished_run_is_nothing_to_do(run: Run, data, model_folder, tmp_path) -> None:
    out = tmp_path / "r"
    shutil.copytree(run.path, out)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    given = {
        "model": model_folder,
        "objective": "eaft",
        "eval_data": data,
        "retain_data": data,
        "eval_steps": 4,
        "resume": True,
    } | STEPS
    again = train(data, out, **given)
    assert (again.log, again.before) == (run.log, pytest.approx(run.before))
    for checkpoint in out.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)  # as people do who have the model
    assert train(data, out, **given).log == run.log
    assert all(p.read_bytes() == b for p, b in before.items() if p.exists())
    assert {p.name for p in out.iterdir()} == {
        p.name for p in run.path.iterdir() if not p.name.startswith("checkpoint-")
    }
    with pytest.raises(BadInput, match="no checkpoint to go on from"):
        train(data, out, **given | {"max_steps": 9})


@pytest.mark.parametrize("flag", ["resume", "overwrite"])
def test_a_folder_in_use_is_refused_before_the_long_work(flag: str, run: Run, data, tmp_path):
    shutil.copytree(run.path, tmp_path / "r")
    with (
        FileLock(tmp_path / "r/.lock"),
        pytest.raises(BadInput, match="is in use by another run; wait for it"),
    ):
        train(data, tmp_path / "r", model="there is none", **{flag: True})


def test_of_two_runs_that_begin_at_once_one_is_refused(tmp_path: Path) -> None:
    folder, settings = tmp_path / "r", TrainSettings()
    plan = run_folder.plan(settings, "data", "fingerprint", None, 1)
    with run_folder.prepared(folder, settings, plan, print):
        first = run_folder.prepared(folder, settings, plan, print)
        with pytest.raises(BadInput, match="is in use by another run"):
            first.__enter__()
    assert [p.name for p in folder.iterdir()] == ["train.json"]
    late = run_folder.prepared(folder, settings, plan, print)
    with pytest.raises(BadInput, match="is not empty"):  # the first one is through
        late.__enter__()


def test_what_is_passed_on_names_no_place(data: str, model_folder: str, tmp_path: Path) -> None:
    adapted = train(data, tmp_path / "r", model=model_folder, lora_r=4, eval_data=data, **STEPS)
    said = [
        p
        for p in adapted.path.rglob("*")
        if p.is_file()
        and p.name != "train.json"
        and str(tmp_path.parents[1]).encode() in p.read_bytes()
    ]
    assert {p.name for p in said} == {"adapter_config.json"}  # by which PEFT finds the base model
    card = (adapted.path / "README.md").read_text()
    assert f"base_model: {Path(model_folder).name}\n" in card
    assert f'"eval_data": "{Path(data).name}"' in card
    arguments = torch.load(adapted.path / "training_args.bin", weights_only=False)
    assert (arguments.output_dir, arguments.max_steps) == ("r", 6)


def test_a_card_that_cannot_be_written_is_one_error(run: Run, tmp_path: Path) -> None:
    (tmp_path / "README.md").mkdir()
    with pytest.raises(ProbeError, match=r"cannot write to .*: Is a directory; the model is there"):
        run_folder.finish(replace(run, path=tmp_path), TrainSettings(), {})


def test_overwriting_with_a_typo_costs_nothing(run: Run, data, model_folder, tmp_path) -> None:
    shutil.copytree(run.path, tmp_path / "r")
    with pytest.raises(BadInput):
        train(data, tmp_path / "r", model=model_folder, overwrite=True, **STEPS | {"optim": "foo"})
    assert (tmp_path / "r/model.safetensors").exists()
    again = train(data, tmp_path / "r", model=model_folder, overwrite=True, **STEPS)
    assert again.last["objective"] == "sft"


def test_an_occupied_folder_is_kept(data: str, model_folder: str, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(BadInput, match="not empty"):
        train(data, tmp_path, model=model_folder, **STEPS)
    for given in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(BadInput, match="holds no training run"):
            train(data, tmp_path, model=model_folder, **given, **STEPS)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_no_trained_token_is_one_error(model_folder: str, tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "hi"}]}))
    with pytest.raises(DataError, match="no row has a trained token"):
        train(str(path), tmp_path / "r", model=model_folder)


def test_a_loss_that_is_no_number_names_step_and_rows(data: str, model_folder, tmp_path) -> None:
    with pytest.raises(NonFinite, match=r"step \d+, rows \["):
        train(
            data,
            tmp_path / "r",
            model=model_folder,
            **STEPS | {"learning_rate": 1e30, "max_grad_norm": 0},
        )


def test_from_the_command_line(data: str, model_folder: str, tmp_path: Path, capsys) -> None:
    out = str(tmp_path / "r")
    flags = ["--model", model_folder, "--out", out, "--objective", "eaft", "--set", "alpha=2"]
    assert _run(["train", data, *flags, "--max-steps", "2", "--logging-steps", "1"]) == 0
    assert "2 steps of eaft alpha=2; nll" in capsys.readouterr().out
    assert json.loads((tmp_path / "r/train.json").read_text())["set"] == {"alpha": "2"}
    assert _run(["train", data, *flags]) == 2


def test_an_adapter_over_4_bits_is_trained(data: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    folder = tmp_path / "m"  # bitsandbytes packs 64 weights a block
    tiny.build("llama", hidden_size=64, intermediate_size=128).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    run = train(
        data,
        tmp_path / "r",
        model=str(folder),
        objective="asft",
        lora_r=4,
        load_in_4bit=True,
        retain_data=data,
        **STEPS,
    )
    assert (run.path / "adapter_model.safetensors").exists()
    assert run.last["retain_kl"] > 0
    assert run.before["retain_kl"] == pytest.approx(0, abs=1e-6)


def test_weights_in_8_bits_are_trained_through_an_adapter_only(data: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    tiny.save(tmp_path / "m", tiny.build("llama", hidden_size=64, intermediate_size=128))
    asked = BitsAndBytesConfig(load_in_8bit=True)
    packed = AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", quantization_config=asked, device_map="cpu"
    )
    model = str(tiny.save(tmp_path / "q", packed))
    with pytest.raises(BadInput, match=r"has quantized weights, .* give --lora-r"):
        train(data, tmp_path / "r", model=model, **STEPS)
    assert not (tmp_path / "r").exists()
    assert train(data, tmp_path / "r", model=model, lora_r=4, **STEPS).last["step"] == 6


def test_a_run_goes_on_from_an_adapter(data: str, model_folder: str, tmp_path: Path) -> None:
    first = train(data, tmp_path / "a", model=model_folder, lora_r=4, **STEPS)
    again = train(
        data, tmp_path / "b", model=model_folder, adapter=str(first.path), eval_data=data, **STEPS
    )
    base = train(data, tmp_path / "c", model=model_folder, eval_data=data, **STEPS)
    assert again.before["eval_nll"] < base.before["eval_nll"]
    assert (again.path / "model.safetensors").exists()
    names = weights(Path(model_folder)).keys()
    assert weights(again.path).keys() == names


def test_a_data_file_of_our_config_s_name_is_no_run(data: str, model_folder: str, tmp_path) -> None:
    """--overwrite removes a run's own files only, and only of a run."""
    (tmp_path / "train.json").write_text('[{"messages": []}]')
    for given in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(BadInput, match="holds no training run"):
            train(data, tmp_path, model=model_folder, **given, **STEPS)
    own = tmp_path / "run"
    train(data, own, model=model_folder, **STEPS)
    (own / "thesis.txt").write_text("mine")
    train(data, own, model=model_folder, overwrite=True, **STEPS | {"max_steps": 2})
    assert (own / "thesis.txt").exists()
    assert not (own / "checkpoint-6").exists()


@pytest.mark.parametrize("out", ["file.txt", "file.txt/run"])
def test_an_output_that_cannot_be_made_is_one_error(out, data, model_folder, tmp_path) -> None:
    (tmp_path / "file.txt").write_text("mine")
    with pytest.raises(BadInput):
        train(data, tmp_path / out, model=model_folder, **STEPS)
    assert (tmp_path / "file.txt").read_text() == "mine"


def test_a_folder_without_permission_is_seen_before_the_long_work(data, tmp_path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o500)
    if os.access(tmp_path / "theirs", os.W_OK):
        pytest.skip("root may write anywhere")
    with pytest.raises(BadInput, match=r"no permission in .*; choose another --out"):
        train(data, tmp_path / "theirs/a/r", model="there is none", **STEPS)


def test_a_run_of_other_processes_is_not_resumed(run: Run, data, model_folder, tmp_path) -> None:
    shutil.copytree(run.path, tmp_path / "r")
    plan = json.loads((tmp_path / "r/train.json").read_text())
    (tmp_path / "r/train.json").write_text(json.dumps(plan | {"processes": 2}))
    with pytest.raises(BadInput, match="another number of processes"):
        train(
            data,
            tmp_path / "r",
            model=model_folder,
            objective="eaft",
            resume=True,
            eval_data=data,
            retain_data=data,
            eval_steps=4,
            **STEPS,
        )


def test_held_out_rows_that_cannot_be_read_are_said(
    data: str, model_folder: str, tmp_path: Path
) -> None:
    notes: list[str] = []

    class Notes(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    held = tmp_path / "held.jsonl"
    good = json.dumps({"question": "a b", "answer": "the cat sat"})
    held.write_text(f'{good}\n{{"question": "bad"}}\nnot json\n')
    for kind in ("eval_data", "retain_data"):
        notes.clear()
        train(
            data,
            tmp_path / kind,
            model=model_folder,
            max_steps=1,
            progress=Notes(),
            **{kind: str(held)},
        )
        why = "1 row: no column 'answer', which format 'question-answer' needs; 1 row: malformed"
        assert any(note.startswith(f"{held}: 2 rows left out; {why}") for note in notes)
