"""`train` with finished scans: what objectives read of them, and scans of other tokens refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from eaft_probe import Scan, scan, train
from eaft_probe.columns.conflicts import ConflictRule
from eaft_probe.data.opening import open_data
from eaft_probe.errors import BadInput
from eaft_probe.model.loading import load_model
from eaft_probe.objectives.scan_columns import OF_BASE
from eaft_probe.settings import ScanSettings
from eaft_probe.verbs.train import scan_features
from eaft_probe.verbs.train.dataset import Rows

STEPS = {
    "max_steps": 2,
    "logging_steps": 1,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
}
STM = {"threshold": 0.005}  # a random model of 200 tokens gives none 0.4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"say {i}"},
                {"role": "assistant", "content": "the fox jumps " * (1 + i % 4)},
            ]
        }
        for i in range(11)
    ]
    rows.insert(3, {"messages": []})
    path.write_text("\n".join(json.dumps(r) for r in rows))
    return str(path)


@pytest.fixture(scope="module")
def scanned(data: str, model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Scan:
    """Flagged so that a good part of the tokens are conflicts."""
    made = scan(data, tmp_path_factory.mktemp("scan") / "s", model=model_folder, rows_per_unit=4)
    middle = float(made.tokens(["prob"])["prob"].median())
    return made.flag(ConflictRule(100.0, middle))


def read(data: str, model_folder: str, scanned: Scan, tmp_path: Path, made) -> Rows:
    settings = ScanSettings(model=model_folder)
    return Rows.read(
        open_data(data, settings), settings, load_model(model_folder), made, str(tmp_path / "cache")
    )


def test_every_trained_token_has_its_own_columns(data, model_folder, scanned, tmp_path) -> None:
    """Against the scan as one data frame."""
    both = [scan_features.for_objective(scanned, tuple(OF_BASE)), scan_features.for_groups(scanned)]
    rows = read(data, model_folder, scanned, tmp_path, both)
    frame, seen = scanned.tokens().set_index(["example", "position"]), 0
    for item in rows.data:
        of_example = frame.loc[int(item["row"])]
        assert np.flatnonzero(item["trained"]).tolist() == of_example.index.tolist()
        own = {n: item[n][item["trained"]] for n in (*OF_BASE, "group")}
        np.testing.assert_array_equal(own["base_prob"], of_example["prob"])
        np.testing.assert_array_equal(own["reference_logprob"], of_example["logprob"])
        np.testing.assert_array_equal(own["base_conflict"], of_example["conflict"])
        mean = -of_example["logprob"].astype(np.float64).mean()
        np.testing.assert_allclose(own["base_mean_nll"], mean, rtol=1e-6)
        high, low = of_example["entropy"] >= 2.0, of_example["entropy"] <= 0.5
        np.testing.assert_array_equal(own["group"], high + 2 * low + 4 * of_example["conflict"])
        assert not item["base_prob"][~item["trained"]].any()
        seen += len(of_example)
    assert seen == len(frame)


def test_an_example_may_span_row_groups(data, model_folder, scanned, tmp_path, monkeypatch) -> None:
    def in_threes(self, names, only=None):
        frame = self.tokens(names)
        for at in range(0, len(frame), 3):
            yield {n: frame[n].to_numpy()[at : at + 3] for n in names}

    made = [scan_features.for_objective(scanned, ("base_prob",))]
    whole = read(data, model_folder, scanned, tmp_path / "a", made)
    monkeypatch.setattr(Scan, "token_arrays", in_threes)
    split = read(data, model_folder, scanned, tmp_path / "b", made)
    for a, b in zip(whole.data, split.data, strict=True):
        np.testing.assert_array_equal(a["base_prob"], b["base_prob"])


@pytest.mark.parametrize(
    ("objective", "gate"),
    [
        ("masked-sft", lambda t: ~t["conflict"]),
        ("stm", lambda t: t["prob"] >= np.float32(STM["threshold"])),
        ("rho", lambda t: t["prob"] >= 0),  # under its own scan nothing stands out: ties are kept
        ("flow", lambda t: np.exp(-t["of_example"] / t["median"])),
    ],
)
def test_the_first_step_has_the_scan_s_gates(
    objective, gate, data, model_folder, scanned, tmp_path
) -> None:
    run = train(
        data,
        tmp_path / "r",
        model=model_folder,
        objective=objective,
        mask=str(scanned.path),
        set=STM if objective == "stm" else {},
        **STEPS | {"per_device_train_batch_size": 11},
    )
    tokens = scanned.tokens()
    nll = -tokens["logprob"].astype(np.float64)
    tokens["of_example"] = nll.groupby(tokens["example"]).transform("mean")
    tokens["median"] = nll.groupby(tokens["example"]).mean().median()
    wanted = gate(tokens).astype(np.float64)
    first = next(r for r in run.log if r["group"] == "all")
    assert first["tokens_seen"] == len(tokens)
    if objective != "rho":
        assert first["gate_mean"] == pytest.approx(wanted.mean(), rel=1e-4)
        assert first["loss"] == pytest.approx((wanted * nll).mean(), rel=1e-3)
        assert 0 < first["gate_mean"] < 1


def test_groups_of_a_base_scan_are_those_of_a_pass(data, model_folder, scanned, tmp_path) -> None:
    scanned.flag(ConflictRule())
    given = dict(model=model_folder, objective="eaft", **STEPS)
    own = train(data, tmp_path / "a", **given)
    read_ = train(data, tmp_path / "b", base_scan=str(scanned.path), **given)
    names = ("step", "group", "group_count", "group_nll")
    assert [[r[n] for n in names] for r in own.log] == [[r[n] for n in names] for r in read_.log]
    assert len({r["group"] for r in own.log}) > 1


def test_a_base_scan_serves_what_the_objective_reads(data, model_folder, scanned, tmp_path) -> None:
    run = train(
        data,
        tmp_path / "r",
        model=model_folder,
        objective="stm",
        base_scan=str(scanned.path),
        **STEPS,
    )
    assert run.last["objective"] == "stm"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_on": "all"}, "another --train-on"),
        ({"max_length": 9}, "another --max-length"),
        ({"limit": 5, "columns": {"messages": "messages"}}, "another --columns"),
    ],
)
def test_a_scan_with_other_settings_is_refused(
    settings, message, data, model_folder, scanned, tmp_path
) -> None:
    with pytest.raises(BadInput, match=message):
        train(
            data,
            tmp_path / "r",
            model=model_folder,
            objective="stm",
            mask=str(scanned.path),
            **STEPS,
            **settings,
        )
    assert not (tmp_path / "r").exists()


def test_a_scan_of_other_data_is_refused(data, model_folder, scanned, tmp_path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(Path(data).read_text().replace("fox", "dog"))
    with pytest.raises(BadInput, match="made from another data"):
        train(
            str(other),
            tmp_path / "r",
            model=model_folder,
            objective="stm",
            mask=str(scanned.path),
            **STEPS,
        )


def test_a_scan_of_too_few_rows_is_refused(data, model_folder, tmp_path) -> None:
    scan(data, tmp_path / "s", model=model_folder, limit=6)
    with pytest.raises(BadInput, match="holds no row 6 "):
        train(
            data,
            tmp_path / "r",
            model=model_folder,
            objective="stm",
            mask=str(tmp_path / "s"),
            **STEPS,
        )
    run = train(
        data,
        tmp_path / "r",
        model=model_folder,
        objective="stm",
        limit=4,
        mask=str(tmp_path / "s"),
        **STEPS,
    )
    assert run.last["step"] == 2


def test_other_tokens_of_the_same_data_are_refused(data, model_folder, scanned, tmp_path) -> None:
    """As another tokenizer with the same template would make them."""
    made = scan_features.for_objective(scanned, ("base_prob",))
    ids = scanned.tokens(["token_id"])
    assert ids["token_id"].max() > 0
    swapped = scan_features.ScanFeatures(_Other(scanned), made.reads, made.compute)
    with pytest.raises(BadInput, match="holds other tokens for row 0"):
        read(data, model_folder, scanned, tmp_path, [swapped])


class _Other:
    """A scan whose last label is another."""

    def __init__(self, scan: Scan) -> None:
        self.scan, self.path = scan, scan.path
        self.example_key, self.token_key = scan.example_key, scan.token_key

    def token_arrays(self, names, only=None):
        for piece in self.scan.token_arrays(names, only):
            yield piece | {"token_id": piece["token_id"] + 1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "stm"}, "give it as --mask DIR"),
        ({"objective": "rho"}, "give it as --mask DIR"),
        ({"objective": "rho", "base_scan": "SCAN"}, "compares with another model"),
        ({"adapter": "a", "lora_r": 2}, "remove one of them"),
        ({"lora_target": ["q_proj"]}, "add --lora-r"),
        ({"objective": "masked-sft", "set": {"conflicts": "scan"}}, "give it as --mask DIR"),
        ({"objective": "eaft", "mask": "SCAN"}, "reads nothing from a scan"),
        (
            {"objective": "masked-sft", "mask": "SCAN", "set": {"prob_below": 0.1}},
            "the rule of the scan gives the thresholds",
        ),
        ({"objective": "stm", "mask": "nowhere"}, "nowhere holds no scan"),
        ({"objective": "sft", "compat": "axolotl"}, "no field 'compat'"),
        (
            {"objective": "eaft", "compat": "axolotl", "set": {"gate": "mask"}},
            "fixes gate, entropy and k",
        ),
        ({"objective": "eaft", "reference": "MODEL"}, "has no anchor"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    settings, message, data, model_folder, scanned, tmp_path
) -> None:
    stands = {"SCAN": str(scanned.path), "MODEL": model_folder}
    given = {k: stands.get(v, v) if isinstance(v, str) else v for k, v in settings.items()}
    with pytest.raises(BadInput, match=message):
        train(data, tmp_path / "r", model=model_folder, **given, **STEPS)
    assert not (tmp_path / "r").exists()


def test_a_base_scan_under_another_model_is_refused(data, model_folder, scanned, tmp_path) -> None:
    other = tmp_path / "m"
    loaded = load_model(model_folder)
    torch.manual_seed(1)
    for parameter in loaded.whole.parameters():
        parameter.data.add_(0.01 * torch.randn_like(parameter))
    loaded.whole.save_pretrained(other)
    loaded.tokenizer.save_pretrained(other)
    with pytest.raises(BadInput, match="was made under"):
        train(data, tmp_path / "r", model=str(other), base_scan=str(scanned.path), **STEPS)
    run = train(
        data, tmp_path / "r", model=str(other), objective="rho", mask=str(scanned.path), **STEPS
    )
    assert run.last["gate_mean"] < 1


def test_an_anchor_may_pull_towards_another_model(data, model_folder, tmp_path) -> None:
    given = dict(model=model_folder, objective="sft-kl", **STEPS | {"max_steps": 6})
    own = train(data, tmp_path / "a", **given)
    other = train(data, tmp_path / "b", reference=model_folder, **given)
    assert own.last["loss"] == pytest.approx(other.last["loss"], rel=1e-6)
    first = next(r for r in own.log if r["group"] == "all")
    assert first["loss"] == pytest.approx(first["nll"], rel=1e-5)  # KL from itself is 0
    assert own.last["loss"] > own.last["nll"]
