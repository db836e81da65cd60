"""A forecast against float64 autograd, on tiny models; the oracle shares no code with it."""

import json
import math
import random
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from eaft_probe import Scan, forecast, scan
from eaft_probe.errors import BadInput, DataError, ProbeError
from eaft_probe.verbs.forecast import alignment, frontier
from eaft_probe.verbs.forecast.first_order import first_order, held_out
from eaft_probe.verbs.forecast.forecast import Forecast
from eaft_probe.verbs.forecast.passes import recomputed

WORDS = "the cat sat on a mat and then it ran over hills to see what was there".split()  # noqa: SIM905
OBJECTIVES = ["dft", "tail", "sft-kl"]
Weights = dict[str, torch.Tensor]


def chats(count: int, seed: int, words: int = 5) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    return [
        {
            "messages": [
                {"role": "user", "content": draw.choice(WORDS)},
                {"role": "assistant", "content": " ".join(draw.choices(WORDS, k=words))},
            ]
        }
        for _ in range(count)
    ]


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


class Said:
    """A progress that keeps its notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def start(self, what: str, rows: int) -> None: ...

    def advance(self, rows: int, tokens: int) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def made(model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The arguments of a forecast, its result, and scans of the retained and held-out rows."""
    folder, said = tmp_path_factory.mktemp("forecast"), Said()
    rows = {"data": chats(24, 0), "retain": chats(12, 1), "eval": chats(11, 2)}
    files = {name: written(folder / f"{name}.jsonl", own) for name, own in rows.items()}
    settings = {
        "model": model_folder,
        "retain_data": files["retain"],
        "eval_data": files["eval"],
        "objective": OBJECTIVES,
        "rows_per_unit": 9,
    }
    done = forecast(files["data"], folder / "out", progress=said, **settings)
    scans = {n: scan(files[n], folder / n, model=model_folder) for n in ("retain", "eval")}
    return {
        "done": done,
        "settings": settings,
        "notes": said.notes,
        "scans": {"data": done.scan, **scans},
        **files,
    }


# --- the oracle: float64, a token at a time ---


class Oracle:
    """The model in float64, and rows as the ids and trained positions that a scan says."""

    def __init__(self, folder: str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.start = {n: p.detach().clone() for n, p in self.model.named_parameters()}

    def logprobs(self, done: Scan) -> list[torch.Tensor]:
        """(T, V) of each row, of its trained tokens."""
        tokens, rows = done.tokens(["example", "position", "token_id"]), []
        for example, text in zip(*(done.examples()[n] for n in ("example", "text")), strict=True):
            ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
            own = tokens[tokens["example"] == example]
            at = torch.tensor(own["position"].tolist())
            assert ids[0, at].tolist() == own["token_id"].tolist()
            rows.append(self.model(input_ids=ids).logits[0].log_softmax(-1)[at - 1])
        return rows

    def nlls(self, done: Scan) -> list[torch.Tensor]:
        """(T,) of each row."""
        labels = [g.tolist() for _, g in done.tokens().groupby("example")["token_id"]]
        rows = zip(self.logprobs(done), labels, strict=True)
        return [-lp.gather(1, torch.tensor(y)[:, None])[:, 0] for lp, y in rows]

    @torch.no_grad()
    def mean_nll(self, done: Scan) -> float:
        return float(torch.cat(self.nlls(done)).mean())

    def gradient(self, of: torch.Tensor) -> Weights:
        names, parameters = zip(*self.model.named_parameters(), strict=True)
        found = torch.autograd.grad(of, parameters, retain_graph=True)
        return dict(zip(names, found, strict=True))

    @torch.no_grad()
    def moved(self, along: Weights | None = None, length: float = 0.0) -> None:
        norm = math.sqrt(sum(float(g.pow(2).sum()) for g in along.values())) if along else 1.0
        for name, parameter in self.model.named_parameters():
            step = along[name] * (length / norm) if along else 0.0
            parameter.copy_(self.start[name] - step)


def product(a: Weights, b: Weights) -> float:
    return math.fsum(float((a[n] * b[n]).sum()) for n in a)


@cache
def oracle(folder: str) -> Oracle:
    return Oracle(folder)


# --- truth ---


@pytest.mark.parametrize("of", ["retain", "eval"])
def test_alignment_is_the_product_of_the_two_gradients(
    made: dict[str, Any], model_folder: str, of: str
) -> None:
    truth = oracle(model_folder)
    truth.moved()
    direction = truth.gradient(torch.cat(truth.nlls(made["scans"][of])).mean())
    found = made["done"].scan.tokens([f"{of}_alignment"])[f"{of}_alignment"].to_numpy()
    nlls = torch.cat(truth.nlls(made["done"].scan))
    chosen = range(0, len(nlls), 7)
    exact = np.array([product(truth.gradient(nlls[i]), direction) for i in chosen])
    assert np.abs(found[list(chosen)] - exact).max() < 1e-3 * np.abs(exact).max()
    assert np.abs(exact).max() > 10 * np.abs(exact).min()  # they differ


def test_a_backward_pass_keeps_no_activations_of_a_layer(model_folder: str) -> None:
    """Each layer is computed a second time, in evaluation mode, and is afterwards as it was."""
    model = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    layers, modes = model.model.layers, list[bool]()
    layers[0].mlp.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    layers[1].forward = layers[1].forward  # as a hook of accelerate does
    kept = layers[1].forward
    ids = torch.arange(5, 25)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    plain = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    assert modes == [False]
    with recomputed(model):
        model(input_ids=ids, labels=ids).loss.backward()
    assert modes == [False] * 3
    for parameter, grad in zip(model.parameters(), plain, strict=True):
        assert torch.equal(parameter.grad, grad)
    assert "forward" not in vars(layers[0])
    assert layers[1].forward is kept


def test_a_step_gains_and_costs_what_float64_says(made: dict[str, Any], model_folder: str) -> None:
    truth, table = oracle(model_folder), made["done"].table.set_index("objective")
    data, retain, held = (made["scans"][n] for n in ("data", "retain", "eval"))
    length = made["done"].made["step_length"]
    truth.moved()
    before = {n: torch.cat(truth.logprobs(s)).detach() for n, s in made["scans"].items()}
    nll = {n: truth.mean_nll(s) for n, s in made["scans"].items()}
    costs = {}
    for name in ("sft", "dft"):
        truth.moved()
        nlls = torch.cat(truth.nlls(data))
        gates = (-nlls).exp().detach() if name == "dft" else torch.ones_like(nlls)
        truth.moved(truth.gradient((gates * nlls).mean()), length)
        gain = nll["eval"] - truth.mean_nll(held)
        change = truth.mean_nll(retain) - nll["retain"]
        after = torch.cat(truth.logprobs(retain)).detach()
        kl = float((before["retain"].exp() * (before["retain"] - after)).sum(1).mean())
        row = table.loc[name]
        assert row["gain"] == pytest.approx(gain, rel=1e-3)
        assert row["retain_nll_change"] == pytest.approx(change, rel=1e-3, abs=1e-6)
        assert row["retain_kl"] == pytest.approx(kl, rel=0.01)
        costs[name] = kl / gain**2
    assert table.loc["dft", "exchange_rate"] == pytest.approx(costs["dft"] / costs["sft"], rel=0.02)


def test_a_preconditioned_step_is_divided_as_adam_divides(
    made: dict[str, Any], model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the root mean square over 8 parts of the rows. The alignment is taken from a forecast."""
    monkeypatch.setattr(alignment, "perturbed_scan", interrupted)
    own = {"scan": str(made["done"].scan.path), "step": "preconditioned", "objective": ["sft"]}
    done = forecast(made["data"], tmp_path / "f", **made["settings"] | own)
    assert done.made["step"] == "preconditioned"
    truth, held = oracle(model_folder), made["scans"]["eval"]
    truth.moved()
    before, nlls = truth.mean_nll(held), truth.nlls(done.scan)
    count = sum(map(len, nlls))
    parts = [truth.gradient(torch.cat(nlls[i::8]).sum() / count) for i in range(8)]
    direction = {}
    for name in truth.start:
        own_parts = torch.stack([p[name] for p in parts])
        scale = (8 * own_parts).pow(2).mean(0).sqrt() + 1e-8
        direction[name] = own_parts.sum(0) / scale
    truth.moved(direction, done.made["step_length"])
    row = done.table.iloc[0]
    assert row["gain"] == pytest.approx(before - truth.mean_nll(held), rel=5e-3)
    assert 0.8e-4 <= row["retain_kl"] <= 1.25e-4
    assert row["gain"] != pytest.approx(made["done"].table["gain"][0], rel=0.02)


def test_a_length_that_was_not_found_is_said(
    made: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And tokens that were not there are not counted as checked."""
    monkeypatch.setattr(frontier, "MOST_TRIES", 0)
    own = {"scan": str(made["done"].scan.path), "step_tokens": 1, "checks": 1000}
    done = forecast(made["data"], tmp_path / "f", **made["settings"] | own)
    notes = done.table.set_index("objective")["note"]
    assert "0 lengths were tried, and it has a KL of" in notes["sft"]
    assert "lengths" not in notes["dft"]
    assert done.made["checked_tokens"] == done.made["step_tokens"] < 1000
    assert f"checked on {done.made['step_tokens']} tokens" in str(done)


def test_the_length_is_that_at_which_sft_costs_a_ten_thousandth(made: dict[str, Any]) -> None:
    kl = made["done"].table.set_index("objective").loc["sft", "retain_kl"]
    assert 0.8e-4 <= kl <= 1.25e-4


def test_intervals_hold_their_figures_and_sft_is_the_unit(made: dict[str, Any]) -> None:
    table = made["done"].table.set_index("objective")
    for name in ("gain", "retain_nll_change", "retain_kl"):
        assert (table[f"{name}_low"] < table[name]).all()
        assert (table[name] < table[f"{name}_high"]).all()
    rates = ["exchange_rate", "exchange_rate_low", "exchange_rate_high"]
    assert table.loc["sft", rates].tolist() == [1, 1, 1]
    low, high = table.loc["dft", rates[1:]]
    assert low < table.loc["dft", "exchange_rate"] < high


def test_what_does_nothing_in_a_first_step_says_so(made: dict[str, Any]) -> None:
    table = made["done"].table.set_index("objective")
    assert "anchor does nothing" in table.loc["sft-kl", "note"]
    assert "drops nothing" in table.loc["tail", "note"]
    for name in ("sft-kl", "tail"):
        assert table.loc[name, "gain"] == table.loc["sft", "gain"]


def test_first_order_is_the_sum_over_the_column(made: dict[str, Any]) -> None:
    folder = made["done"].scan.path
    found = first_order(folder, ["dft"]).iloc[0]
    tokens = Scan.open(folder).tokens(["prob", "retain_alignment", "eval_alignment"])
    for name in ("retain", "eval"):
        wanted = -(tokens["prob"].astype(np.float64) * tokens[f"{name}_alignment"]).mean()
        assert found[f"{name}_change"] == pytest.approx(wanted, rel=1e-6)
        assert found[f"{name}_change_low"] < wanted < found[f"{name}_change_high"]
    assert found["ratio"] == pytest.approx(found["retain_change"] / found["eval_change"])


def test_set_gives_the_objectives_their_fields(made: dict[str, Any], tmp_path: Path) -> None:
    """As `plot gradients --set` does; the same fields have one gate, however they are asked for."""
    folder = made["done"].scan.path
    found = first_order(folder, ["qlog", "profit"], {"q": 1, "threshold": 2}).set_index("objective")
    assert found.index.tolist() == ["qlog q=1", "profit threshold=2"]
    wanted = first_order(folder, ["dft"])["retain_change"][0]
    assert found.loc["qlog q=1", "retain_change"] == pytest.approx(wanted, rel=1e-6)
    with pytest.raises(BadInput, match="--set alpa: no objective here has that field"):
        first_order(folder, ["eaft"], {"alpa": 2})
    own = {"scan": str(folder), "objective": ["qlog"], "set": {"q": "1"}}
    done = forecast(made["data"], tmp_path / "f", **made["settings"] | own)
    rates = done.table.set_index("objective")["exchange_rate"]
    dft = made["done"].table.set_index("objective").loc["dft", "exchange_rate"]
    assert rates["qlog q=1"] == pytest.approx(dft, rel=1e-3)


def test_gates_of_0_have_no_effect(made: dict[str, Any]) -> None:
    found = made["done"].first_order(["profit", "sft"], {"threshold": 2})
    assert found["note"].tolist() == ["no effect: its gates are 0 on all tokens", ""]
    assert found["retain_change"][0] == found["eval_change_high"][0] == 0
    assert found["ratio"].isna().tolist() == [True, False]


# --- files ---


def test_it_is_a_scan_with_two_columns_more(made: dict[str, Any]) -> None:
    done: Forecast = made["done"]
    opened = Scan.open(done.scan.path, verify=True)
    assert opened.columns[-2:] == ["retain_alignment", "eval_alignment"]
    by_part = opened.tokens(["example", "position", "retain_alignment"])
    by_sql = opened.frame(
        "SELECT example, position, retain_alignment FROM tokens ORDER BY example, position"
    )
    pandas.testing.assert_frame_equal(by_part, by_sql)
    assert opened.tokens(["eval_alignment", "conflict"]).columns.tolist()[1] == "conflict"
    assert not (opened.path / "alignment" / "work").exists()


def test_it_says_what_it_costs_and_how_exact_it_is(made: dict[str, Any]) -> None:
    assert "four more of the same cost" in made["notes"][0]
    assert sum("against exact backward passes: worst error" in n for n in made["notes"]) == 2
    assert max(made["done"].made["check_error"].values()) < 5e-3


def test_a_finished_one_is_returned_as_it_is(made: dict[str, Any]) -> None:
    folder, said = made["done"].scan.path, Said()
    before = {f: f.stat().st_mtime_ns for f in folder.rglob("*") if f.is_file()}
    again = forecast(made["data"], folder, progress=said, **made["settings"])
    assert {f: f.stat().st_mtime_ns for f in folder.rglob("*") if f.is_file()} == before
    assert not said.notes
    pandas.testing.assert_frame_equal(again.table, made["done"].table)


def test_other_settings_replace_a_finished_one_only_when_told_to(
    made: dict[str, Any], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(made["done"].scan.path, tmp_path / "f"))
    before = {f: f.stat().st_mtime_ns for f in folder.rglob("*") if f.is_file()}
    other = made["settings"] | {"checks": 2, "objective": ["sft"]}
    with pytest.raises(BadInput, match=r"other settings \(--checks\)"):
        forecast(made["data"], folder, **other)
    for name in ("eval_data", "retain_data"):  # other rows under the same name
        rows = Path(shutil.copy(made["data"], tmp_path / Path(made["settings"][name]).name))
        flag = f"--{name.replace('_', '-')}"
        with pytest.raises(BadInput, match=rf"other settings \({flag}\)"):
            forecast(made["data"], folder, **made["settings"] | {name: str(rows)})
    assert {f: f.stat().st_mtime_ns for f in folder.rglob("*") if f.is_file()} == before
    assert len(forecast(made["data"], folder, overwrite=True, **other).table) == 1


def test_another_objective_is_added_to_a_finished_one(
    made: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one step of its own: no scan, no gradient of other data, no check."""
    folder = Path(shutil.copytree(made["done"].scan.path, tmp_path / "f"))
    before = {f: f.stat().st_mtime_ns for f in folder.rglob("*") if f.is_file()}
    anew = made["settings"] | {"scan": str(folder), "objective": ["chord"]}
    chord = forecast(made["data"], tmp_path / "g", **anew).table
    for name in ("perturbed_scan", "gradient", "checked"):
        monkeypatch.setattr(alignment, name, interrupted)
    said, asked = Said(), made["settings"] | {"objective": ["chord", "dft"]}
    done = forecast(made["data"], folder, progress=said, **asked)
    after = {f: f.stat().st_mtime_ns for f in folder.rglob("*") if f.is_file()}
    assert [f.name for f in before if after[f] != before[f]] == ["forecast.parquet"]
    assert said.notes[0].startswith("this takes for each of 2 objectives one backward pass")
    pandas.testing.assert_frame_equal(done.table[:-1], made["done"].table)
    pandas.testing.assert_frame_equal(
        done.table[-1:].reset_index(drop=True), chord[1:].reset_index(drop=True)
    )
    again = forecast(made["data"], folder, progress=(nothing := Said()), **made["settings"])
    assert (len(again.table), nothing.notes) == (len(done.table), [])


def test_one_killed_while_it_is_replaced_is_not_a_finished_one(
    made: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(made["done"].scan.path, tmp_path / "f"))
    (folder / "alignment" / "manifest.json").unlink()
    monkeypatch.setattr(frontier.Frontier, "table", interrupted)
    with pytest.raises(KeyboardInterrupt):
        forecast(made["data"], folder, **made["settings"] | {"checks": 2})
    assert not (folder / "forecast.parquet").exists()
    with pytest.raises(BadInput, match="holds no finished forecast"):
        first_order(folder, ["sft"])
    with pytest.raises(BadInput, match="holds no finished forecast"):
        Forecast.open(folder)


def test_parts_of_two_runs_are_never_taken_for_one(
    made: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the first part under another direction."""
    folder = Path(shutil.copytree(made["done"].scan.path, tmp_path / "f"))
    (folder / "alignment" / "manifest.json").unlink()
    real, files = alignment.write_parquet, list[Path]()

    def one(file: Path, table: Any) -> None:
        files.append(file)
        if len(files) == 2:
            raise KeyboardInterrupt
        real(file, table)

    other = made["settings"] | {"retain_data": made["eval"]}
    monkeypatch.setattr(alignment, "write_parquet", one)
    with pytest.raises(KeyboardInterrupt):
        forecast(made["data"], folder, **other)
    assert not (folder / "alignment" / alignment.WRITTEN).exists()


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_one_goes_on_with_its_direction(
    made: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the second of four perturbed scans, then once more before the steps."""
    real, calls = alignment.perturbed_scan, list[str]()

    def second(*given: Any) -> Scan:
        calls.append(given[1].name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*given)

    settings = made["settings"] | {"objective": ["sft"]}
    monkeypatch.setattr(alignment, "perturbed_scan", second)
    with pytest.raises(KeyboardInterrupt):
        forecast(made["data"], tmp_path / "f", **settings)
    monkeypatch.setattr(alignment, "perturbed_scan", real)
    file = tmp_path / "f" / "alignment" / "retain.safetensors"
    written_at = file.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(frontier.Frontier, "table", interrupted)
        with pytest.raises(KeyboardInterrupt):
            forecast(made["data"], tmp_path / "f", **settings)
    parts = tmp_path / "f" / "alignment" / "part-00000.parquet"
    parts_at = parts.stat().st_mtime_ns
    done = forecast(made["data"], tmp_path / "f", **settings)
    assert (file.stat().st_mtime_ns, parts.stat().st_mtime_ns) == (written_at, parts_at)
    columns = ["retain_alignment", "eval_alignment"]
    pandas.testing.assert_frame_equal(done.scan.tokens(columns), made["done"].scan.tokens(columns))


def test_without_eval_data_a_tenth_is_held_out_of_the_step(
    made: dict[str, Any], tmp_path: Path
) -> None:
    rows = chats(140, 5, words=2)
    data = written(tmp_path / "many.jsonl", rows)
    settings = made["settings"] | {"eval_data": None, "objective": ["sft"], "rows_per_unit": 256}
    done = forecast(data, tmp_path / "f", **settings)
    outside = held_out(np.arange(140), 0)
    assert (done.made["eval_rows"], done.made["step_rows"]) == (outside.sum(), 140 - outside.sum())
    tokens = done.scan.tokens(["example", "retain_alignment"])
    inside = ~held_out(tokens["example"].to_numpy(), 0)
    wanted = -tokens["retain_alignment"][inside].astype(np.float64).mean()
    found = first_order(done.scan.path, ["sft"]).iloc[0]["retain_change"]
    assert found == pytest.approx(wanted, rel=1e-6)


TERSE = (  # both turns fit the small model's context
    "{% for m in messages %}{{ m['role'][0] }}{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}a{% endif %}"
)


def test_turns_that_are_examples_of_their_own(
    made: dict[str, Any], model_folder: str, tmp_path: Path
) -> None:
    """Under --turns each; their positions repeat within a row."""
    pairs = zip(chats(10, 6, words=2), chats(10, 7, words=2), strict=True)
    rows = [{"messages": a["messages"] + b["messages"]} for a, b in pairs]
    (tmp_path / "t.jinja").write_text(TERSE)
    own = {"chat_template": str(tmp_path / "t.jinja"), "turns": "each"}
    settings = made["settings"] | own | {"objective": ["sft"]}
    done = forecast(written(tmp_path / "rows.jsonl", rows), tmp_path / "f", **settings)
    retained = scan(made["retain"], tmp_path / "r", model=model_folder, **own)
    truth = oracle(model_folder)
    truth.moved()
    direction = truth.gradient(torch.cat(truth.nlls(retained)).mean())
    texts = done.scan.examples().set_index(["example", "turn"])["text"]
    tokens = done.scan.tokens(["example", "turn", "position", "token_id", "retain_alignment"])
    assert tokens.duplicated(["example", "position"]).any() or len(texts) == 20
    found, exact = [], []
    for (example, turn), group in [*tokens.groupby(["example", "turn"])][:8]:
        encoded = truth.tokenizer(texts[example, turn], add_special_tokens=False)["input_ids"]
        logprobs = truth.model(input_ids=torch.tensor([encoded])).logits[0].log_softmax(-1)
        token = group.iloc[len(group) // 2]
        position, label = int(token["position"]), int(token["token_id"])
        assert encoded[position] == label
        exact.append(product(truth.gradient(-logprobs[position - 1, label]), direction))
        found.append(token["retain_alignment"])
    assert np.abs(np.subtract(found, exact)).max() < 1e-3 * np.abs(exact).max()
    assert max(done.made["check_error"].values()) < 5e-3


@pytest.mark.usefixtures("forked_workers")
def test_workers_take_the_direction_from_its_file(made: dict[str, Any], tmp_path: Path) -> None:
    settings = made["settings"] | {"workers": 2, "objective": ["sft"]}
    done = forecast(made["data"], tmp_path / "f", **settings)
    columns = ["logprob", "retain_alignment", "eval_alignment"]
    pandas.testing.assert_frame_equal(done.scan.tokens(columns), made["done"].scan.tokens(columns))


def test_with_lora_the_adapter_alone_moves(made: dict[str, Any], tmp_path: Path) -> None:
    settings = made["settings"] | {"lora_r": 2, "objective": ["sft"]}
    done = forecast(made["data"], tmp_path / "f", **settings)
    assert max(done.made["check_error"].values()) < 5e-3
    direction = load_file(done.scan.path / "alignment" / "retain.safetensors")
    assert all("lora_" in name for name in direction)
    assert not any(d.any() for n, d in direction.items() if "lora_A" in n)  # as B is 0
    assert any(d.any() for n, d in direction.items() if "lora_B" in n)


def test_a_finished_scan_of_the_data_is_taken_as_it_is(
    made: dict[str, Any], model_folder: str, tmp_path: Path
) -> None:
    done = scan(made["data"], tmp_path / "s", model=model_folder, rows_per_unit=9)
    settings = made["settings"] | {"scan": str(done.path), "objective": ["sft"]}
    taken = forecast(made["data"], tmp_path / "f", **settings).scan
    assert taken.manifest["parts"] == done.manifest["parts"]
    columns = ["token", "retain_alignment", "eval_alignment"]
    pandas.testing.assert_frame_equal(taken.tokens(columns), made["done"].scan.tokens(columns))
    other = made["settings"] | {"scan": str(done.path), "rows_per_unit": 5}
    with pytest.raises(BadInput, match="other settings"):
        forecast(made["data"], tmp_path / "g", **other)
    assert not (tmp_path / "g").exists()
    settings["scan"] = str(made["scans"]["retain"].path)
    with pytest.raises(BadInput, match="already holds another scan than"):
        forecast(made["data"], tmp_path / "f", **settings)


def test_a_reference_is_the_base_of_rho_alone(
    made: dict[str, Any], model_folder: str, tmp_path: Path
) -> None:
    """Whatever sets the rule, which is of the scan alone."""
    reference = shutil.copytree(model_folder, tmp_path / "reference")
    model = AutoModelForCausalLM.from_pretrained(reference)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    model.save_pretrained(reference)
    drawn = [row | {"temperature": 1, "top_p": 1} for row in chats(12, 4)]
    own = written(tmp_path / "own.jsonl", drawn)
    own_scan = scan(own, tmp_path / "own", model=model_folder, keep=["temperature", "top_p"])
    rule = {"calibrate": str(own_scan.path), "rate": 0.1}
    settings = made["settings"] | rule | {"reference": str(reference), "objective": ["rho"]}
    done = forecast(made["data"], tmp_path / "f", **settings)
    assert done.table["objective"].tolist()[0] == "sft"
    names = ["tail", "rho"]
    found = first_order(done.scan.path, names).set_index("objective")["retain_change"].tolist()
    without = made["done"].scan.path
    wanted = first_order(without, ["tail"])["retain_change"].tolist()
    assert found[:1] == wanted
    assert found[1] not in wanted


def test_rows_of_retained_data_that_cannot_be_read_are_counted(
    made: dict[str, Any], tmp_path: Path
) -> None:
    broken, said = tmp_path / "broken.jsonl", Said()
    broken.write_text(Path(made["retain"]).read_text() + '{"messages"\n{"messages"\n')
    settings = made["settings"] | {"retain_data": str(broken), "objective": ["sft"]}
    forecast(made["data"], tmp_path / "f", progress=said, **settings)
    why = "malformed JSON: Expecting ':' delimiter at column 12"
    assert f"--retain-data: 2 rows left out; 2 rows: {why}" in said.notes


# --- what is refused ---


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"retain_data": None}, "give --retain-data R"),
        ({"retain_data": "-"}, "give a file or a list of rows"),
        ({"dtype": "bfloat16"}, "in bfloat16 are noise; give --dtype float32"),
        ({"objective": ["rho"]}, "give --reference M"),
        ({"objective": ["dtf"]}, "did you mean 'dft'"),
        ({"keep_tokens": "flagged"}, "needs every token"),
        ({"scan": "s", "overwrite": True}, "remove --overwrite"),
        ({"tp": True}, "--tp"),
    ],
)
def test_what_cannot_be_forecast_is_refused_at_once(
    made: dict[str, Any], tmp_path: Path, given: dict[str, Any], why: str
) -> None:
    with pytest.raises(BadInput, match=why):
        forecast(made["data"], tmp_path / "f", **made["settings"] | given)
    assert not (tmp_path / "f").exists()


def test_data_without_a_scored_token_or_too_few_rows(made: dict[str, Any], tmp_path: Path) -> None:
    silent = written(tmp_path / "s.jsonl", [{"messages": [{"role": "user", "content": "the"}]}])
    with pytest.raises(DataError, match="no row has a token that is scored"):
        forecast(made["data"], tmp_path / "f", **made["settings"] | {"retain_data": silent})
    few = written(tmp_path / "few.jsonl", chats(3, 3))
    with pytest.raises(BadInput, match=r"--retain-data has 3 rows .* at least 10"):
        forecast(made["data"], tmp_path / "f", **made["settings"] | {"retain_data": few})
    with pytest.raises(BadInput, match=r"has \d rows? .*; give more rows, or raise --eval-tokens"):
        forecast(made["data"], tmp_path / "f", **made["settings"] | {"eval_tokens": 100})
    assert not (tmp_path / "f").exists()  # said before the scan


def test_an_old_forecast_outlives_data_that_are_too_few(
    made: dict[str, Any], tmp_path: Path
) -> None:
    old = shutil.copytree(made["done"].scan.path, tmp_path / "f")
    few = written(tmp_path / "few.jsonl", chats(3, 3))
    given = made["settings"] | {"retain_data": few, "overwrite": True}
    with pytest.raises(BadInput, match="--retain-data has 3 rows"):
        forecast(made["data"], old, **given)
    assert Forecast.open(old).table.equals(made["done"].table)


def test_a_step_at_which_the_loss_is_not_finite(
    made: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights overflow. One line, and no forecast."""
    monkeypatch.setattr(frontier, "FIRST_STEP", 1e30)
    own = {"scan": str(made["done"].scan.path), "objective": ["sft"]}
    said = r"the loss is not finite after a step of length \S+ along sft"
    with pytest.raises(ProbeError, match=said) as no:
        forecast(made["data"], tmp_path / "f", **made["settings"] | own)
    assert "\n" not in str(no.value)
    with pytest.raises(BadInput, match="holds no finished forecast"):
        Forecast.open(tmp_path / "f")


def test_a_scan_without_a_forecast_has_no_first_order(made: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="holds no finished forecast"):
        first_order(made["scans"]["retain"].path, ["sft"])
