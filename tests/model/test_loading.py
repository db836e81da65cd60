"""What loads, what is refused, and that a refusal is one line naming what helps."""

import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import (
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    TaskType,
    get_peft_model,
)

from eaft_probe.errors import ModelError
from eaft_probe.model import adapter_patterns
from eaft_probe.model.loading import load_model, load_tokenizer
from eaft_probe.model.resolve import context_length, find_model
from eaft_probe.storage.atomic import cache_folder

IDS = tiny.token_ids(2, 13)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("llama"), tiny.build())


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A model folder that a test may damage."""
    return tiny.save(tmp_path / "model", tiny.build())


def refused(name: Path | str, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(str(name), **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


def test_a_folder_loads(folder: Path) -> None:
    model = load_model(str(folder))
    assert model.dtype == torch.float32
    assert model.device == torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert model.max_length == 64
    assert model.name == str(folder)
    assert model.tokenizer.decode(model.tokenizer("fox").input_ids) == "fox"
    assert not model.body.training


def test_the_tokenizer_loads_alone_with_its_template(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    messages = [{"role": "user", "content": "Hé"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "<|im_start|>user\nHé<|im_end|>\n"


def test_pickled_weights_are_refused_unless_asked_for(copy: Path) -> None:
    weights = copy / "model.safetensors"
    torch.save(tiny.build().state_dict(), copy / "pytorch_model.bin")
    weights.unlink()
    assert "--allow-pickle" in refused(copy)
    model = load_model(str(copy), allow_pickle=True)
    assert torch.equal(model.head.weight, tiny.build().lm_head.weight)


@pytest.mark.parametrize(
    "name", ["/no/such/model", "./missing", "~/missing", "nothing", "missing.gguf", "a/b/c"]
)
def test_missing_models_are_refused(name: str) -> None:
    message = refused(name)
    assert message.startswith("no model at ")
    assert "smollm2" in message


def test_an_empty_name_is_refused() -> None:
    assert refused("")


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a model")
    assert "notes.txt" in refused(tmp_path / "notes.txt")


def test_a_gguf_file_that_is_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EAFT_PROBE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "fake.gguf").write_text("not a model")
    assert "fake.gguf" in refused(tmp_path / "fake.gguf")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    assert "no config.json" in refused(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model_type": "no-such-kind"}'])
def test_a_damaged_config_is_refused(copy: Path, text: str) -> None:
    (copy / "config.json").write_text(text)
    assert "cannot load model" in refused(copy)


def test_another_kind_of_model_is_refused(copy: Path) -> None:
    (copy / "config.json").write_text(json.dumps({"model_type": "vit"}))
    assert "cannot load model" in refused(copy)


def test_truncated_weights_are_refused(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    message = refused(copy)
    assert "cannot load model" in message
    assert "--allow-pickle" not in message


def test_missing_weights_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    assert "cannot load model" in refused(copy)


def test_weights_of_other_shapes_are_refused(copy: Path) -> None:
    tiny.build(hidden_size=64).save_pretrained(copy.parent / "other")
    (copy.parent / "other" / "model.safetensors").replace(copy / "model.safetensors")
    assert "cannot load model" in refused(copy)


def test_weights_that_leave_layers_out_are_refused(copy: Path) -> None:
    """Else the missing layers would be random, and every number with them."""
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    kept = {k: v for k, v in weights.items() if "layers.1.mlp" not in k}
    save_file(kept, copy / "model.safetensors", metadata={"format": "pt"})
    assert "layers.1.mlp" in refused(copy)


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    tiny.build().save_pretrained(tmp_path)
    assert "cannot load model" in refused(tmp_path)


def test_unknown_dtypes_and_devices_are_refused(folder: Path) -> None:
    assert "--dtype takes auto, float32" in refused(folder, dtype="float8")
    assert "--device" in refused(folder, device="abacus")
    assert "--device" in refused(folder, device="cuda:77")


# Adapters


def trained_adapter(base: Any, config: Any, folder: Path) -> Path:
    """An adapter that changes its model: random numbers where training would begin with 0."""
    model = get_peft_model(base, config)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def lora(*targets: str, **more: Any) -> LoraConfig:
    return LoraConfig(r=4, task_type=TaskType.CAUSAL_LM, target_modules=list(targets), **more)


ADAPTERS = {
    "attention": lora("q_proj", "v_proj"),
    "attention and head": lora("q_proj", "lm_head"),
    "head alone": lora("lm_head"),
    "head with dora": lora("lm_head", use_dora=True),
    "head trained whole": lora("q_proj", modules_to_save=["lm_head"]),
    "norms trained whole": lora("q_proj", modules_to_save=["norm"]),
}


@pytest.fixture
def quiet_peft() -> Iterator[None]:
    """PEFT warns of adapters on tied weights and of saving embeddings; both are meant here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


@pytest.mark.usefixtures("quiet_peft")
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_equal_the_peft_model(tmp_path: Path, name: str, tied: bool) -> None:
    architecture = "llama-tied" if tied else "llama"
    folder = tiny.save(tmp_path / "base", tiny.build(architecture))
    adapter = trained_adapter(tiny.build(architecture), ADAPTERS[name], tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(tiny.build(architecture), adapter).eval()
    with torch.inference_mode():
        wanted = theirs(input_ids=IDS).logits
        plain = tiny.build(architecture)(input_ids=IDS).logits
    assert (wanted - plain).abs().max() > 0.1
    model = load_model(str(folder), adapter=str(adapter))
    ours = model.head.logits(model.hidden(IDS).flatten(0, 1)).view_as(wanted)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-4)


def test_a_folder_without_adapter_config_is_refused(folder: Path, tmp_path: Path) -> None:
    assert "no adapter_config.json" in refused(folder, adapter=str(tmp_path))
    assert "no adapter_config.json" in refused(folder, adapter="/no/such/adapter")


def test_an_adapter_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    other = tiny.build(hidden_size=64, num_attention_heads=8)
    adapter = trained_adapter(other, ADAPTERS["attention"], tmp_path)
    assert "size mismatch" in refused(folder, adapter=str(adapter))


def test_a_damaged_adapter_is_refused(folder: Path, tmp_path: Path) -> None:
    adapter = trained_adapter(tiny.build(), ADAPTERS["attention"], tmp_path)
    (adapter / "adapter_config.json").write_text("{")
    refused(folder, adapter=str(adapter))


def test_an_adapter_without_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    adapter = trained_adapter(tiny.build(), ADAPTERS["attention"], tmp_path)
    (adapter / "adapter_model.safetensors").unlink()
    refused(folder, adapter=str(adapter))


def test_a_pickled_adapter_is_refused_unless_asked_for(folder: Path, tmp_path: Path) -> None:
    adapter = trained_adapter(tiny.build(), ADAPTERS["attention"], tmp_path)
    from safetensors.torch import load_file

    weights = adapter / "adapter_model.safetensors"
    torch.save(load_file(weights), adapter / "adapter_model.bin")
    safe = load_model(str(folder), adapter=str(adapter)).hidden(IDS)
    weights.unlink()
    assert "--allow-pickle" in refused(folder, adapter=str(adapter))
    pickled = load_model(str(folder), adapter=str(adapter), allow_pickle=True).hidden(IDS)
    assert torch.equal(safe, pickled)


def test_an_adapter_that_leaves_layers_out_is_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    adapter = trained_adapter(tiny.build(), ADAPTERS["attention"], tmp_path)
    weights = load_file(adapter / "adapter_model.safetensors")
    kept = {k: v for k, v in weights.items() if "layers.1" not in k}
    save_file(kept, adapter / "adapter_model.safetensors")
    assert "missing adapter keys" in refused(folder, adapter=str(adapter))


@pytest.mark.usefixtures("quiet_peft")
@pytest.mark.parametrize("config", [PromptTuningConfig, PrefixTuningConfig])
def test_adapters_that_are_prompts_are_refused(folder: Path, tmp_path: Path, config: Any) -> None:
    """They live outside the base model, so taking it apart would leave them out unsaid."""
    prompts = config(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=4)
    adapter = trained_adapter(tiny.build(), prompts, tmp_path)
    assert "--adapter" in refused(folder, adapter=str(adapter))


# Places


def test_identity_follows_the_weights(copy: Path) -> None:
    before = find_model(str(copy)).identity()
    assert find_model(str(copy)).identity() == before
    tiny.build(seed=1).save_pretrained(copy)
    assert find_model(str(copy)).identity() != before


def sharded(folder: Path, name: str) -> Path:
    """The folder with its weights moved to `name`, which an index names."""
    weights = folder / "model.safetensors"
    keys = list(tiny.build().state_dict())
    (folder / name).parent.mkdir(exist_ok=True)
    weights.rename(folder / name)
    index = {"metadata": {}, "weight_map": dict.fromkeys(keys, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder / name


def test_identity_follows_weights_that_an_index_names_in_a_subfolder(copy: Path) -> None:
    shard = sharded(copy, "shards/a.safetensors")
    before = find_model(str(copy)).identity()
    assert load_model(str(copy)).parameters > 0
    other = tiny.save(copy.parent / "other", tiny.build(seed=1))
    shard.write_bytes((other / "model.safetensors").read_bytes())
    assert find_model(str(copy)).identity() != before


def test_identity_follows_weights_that_the_configuration_names(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    other = tiny.save(copy.parent / "other", tiny.build(seed=1)) / "model.safetensors"
    (copy / "deep").mkdir()
    found = {find_model(str(copy)).identity()}
    for name, weights in (("b.safetensors", other), ("deep/c.safetensors", other)):
        (copy / name).write_bytes(weights.read_bytes())
        config["transformers_weights"] = name
        (copy / "config.json").write_text(json.dumps(config))
        loaded = load_model(str(copy)).head.weight
        assert torch.equal(loaded, tiny.build(seed=1).lm_head.weight)
        found.add(find_model(str(copy)).identity())
    assert len(found) == 3


def test_identity_follows_which_of_two_shards_is_loaded(copy: Path) -> None:
    sharded(copy, "a.safetensors")
    other = tiny.save(copy.parent / "other", tiny.build(seed=1)) / "model.safetensors"
    (copy / "b.safetensors").write_bytes(other.read_bytes())
    first = find_model(str(copy)).identity()
    index = copy / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("a.safetensors", "b.safetensors"))
    assert find_model(str(copy)).identity() != first


def test_identity_of_common_shards_is_that_of_their_files(copy: Path) -> None:
    alone = find_model(str(copy)).identity()
    sharded(copy, "model-00001-of-00001.safetensors")
    assert find_model(str(copy)).identity() == alone


@pytest.mark.parametrize("name", ["../x.safetensors", "/x.safetensors", "a/../../x.safetensors"])
def test_weights_outside_of_the_folder_are_refused(copy: Path, name: str) -> None:
    shard = sharded(copy, "x.safetensors")
    index = copy / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("x.safetensors", name))
    shard.rename(copy.parent / "x.safetensors")
    assert "must lie in the model's own folder" in refused(copy)
    with pytest.raises(ModelError, match="own folder"):
        find_model(str(copy)).identity()


def test_an_index_that_names_a_pickle_needs_the_flag(copy: Path) -> None:
    shard = sharded(copy, "w.bin")
    torch.save(tiny.build().state_dict(), shard)
    assert "w.bin; pickled weights need --allow-pickle" in refused(copy)
    assert torch.equal(
        load_model(str(copy), allow_pickle=True).head.weight, tiny.build().lm_head.weight
    )


def test_a_pickled_adapter_beside_the_weights_needs_the_flag(copy: Path) -> None:
    (copy / "adapter_config.json").write_text("{}")
    (copy / "adapter_model.bin").write_bytes(b"")
    assert "adapter_model.bin; pickled weights need --allow-pickle" in refused(copy)


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"weight_map": 1}', '{"weight_map": {"a": 1}}', "[" * 100_000]
)
def test_a_damaged_index_is_refused(copy: Path, text: str) -> None:
    sharded(copy, "x.safetensors")
    (copy / "model.safetensors.index.json").write_text(text)
    refused(copy)
    with pytest.raises(ModelError):
        find_model(str(copy)).identity()


def test_identity_reads_blocks_of_large_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(3_000_000))
    before = find_model(str(tmp_path)).identity()
    weights.write_bytes(bytes(2_999_999) + b"x")
    assert find_model(str(tmp_path)).identity() != before


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    monkeypatch.delenv("EAFT_PROBE_CACHE", raising=False)
    assert cache_folder() == Path("/somewhere/eaft-probe")
    monkeypatch.setenv("EAFT_PROBE_CACHE", "/else")
    assert cache_folder() == Path("/else")


def test_context_length_is_the_configs(folder: Path, tmp_path: Path) -> None:
    assert context_length(folder) == 64
    (tmp_path / "config.json").write_text("{}")
    assert context_length(tmp_path) is None


# --- what a folder can hold ---


@pytest.mark.parametrize(
    ("file", "changed", "said"),
    [
        ("config.json", {"num_attention_heads": 0}, "cannot load model"),
        ("config.json", {"bos_token_id": "x"}, "bos_token_id"),
        ("config.json", {"model_type": ["x"]}, "TypeError"),
        ("config.json", {"num_hidden_layers": 10**9}, "num_hidden_layers of config.json"),
        ("tokenizer_config.json", {"model_max_length": "x"}, "invalid literal for int"),
        (
            "tokenizer.json",
            {"normalizer": {"type": "Replace", "pattern": {"Regex": "["}, "content": ""}},
            "cannot load model",
        ),
    ],
)
def test_whatever_a_folder_makes_the_loaders_raise_is_one_line(
    copy: Path, file: str, changed: dict[str, Any], said: str
) -> None:
    content = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps(content | changed))
    assert said in refused(copy)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\3\0\0\0" + b"\xff" * 16, b"x" * 99])
def test_a_cut_gguf_file_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    assert "cannot load model" in refused(tmp_path / "x.gguf")


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_pipe_or_a_device_in_a_folder_is_not_opened(copy: Path, file: str) -> None:
    """Reading one would wait for ever, the other never ends."""
    (copy / file).unlink()
    os.mkfifo(copy / file)
    assert f"{file} is not a regular file" in refused(copy)
    (copy / file).unlink()
    (copy / file).symlink_to("/dev/zero")
    assert f"{file} is not a regular file" in refused(copy)


@pytest.mark.parametrize(
    ("pattern", "said"), [("(.*)*" * 7 + "xx", "takes more than"), ("*", "holds a pattern")]
)
def test_an_adapters_patterns_end(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, said: str
) -> None:
    """PEFT matched the first with the name of every module, for years."""
    monkeypatch.setattr(adapter_patterns, "SECONDS", 2.0)
    get_peft_model(tiny.build(), LoraConfig(task_type=TaskType.CAUSAL_LM)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"target_modules": pattern}))
    assert said in refused(folder, adapter=str(tmp_path))


def test_a_pattern_that_ends_is_loaded(folder: Path, tmp_path: Path) -> None:
    lora = LoraConfig(task_type=TaskType.CAUSAL_LM, target_modules=r".*\.(q|v)_proj")
    get_peft_model(tiny.build(), lora).save_pretrained(tmp_path)
    assert load_model(str(folder), adapter=str(tmp_path)).head.vocab_size == tiny.VOCAB


def test_a_cache_that_cannot_be_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    monkeypatch.setenv("EAFT_PROBE_CACHE", str(tmp_path / "file" / "below"))
    assert "EAFT_PROBE_CACHE names another" in refused(tmp_path / "x.gguf")
