"""GGUF files, which take half a minute to read, as folders of weights that take half a second."""

import contextlib
import os
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel

from eaft_probe.errors import ModelError, one_line
from eaft_probe.model.foreign import quiet
from eaft_probe.model.resolve import ModelFiles
from eaft_probe.storage.atomic import cache_folder


def model_folder(place: ModelFiles) -> Path:
    """The folder to load from: a GGUF file is unpacked into one, which is kept, as that takes up
    to 30 s. Raises `ModelError`."""
    if place.gguf is None:
        return place.folder
    target = cache_folder() / f"{Path(place.gguf).stem}-{place.identity()[:16]}"
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(
            f"cannot write the cache: {one_line(error)}; EAFT_PROBE_CACHE names another folder"
        ) from error
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".converting-") as temporary:
        unpacked = Path(temporary) / "model"
        with quiet():
            model = whole_model(
                place.folder,
                gguf_file=place.gguf,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
            )
            model.save_pretrained(unpacked)
            tokenizer = AutoTokenizer.from_pretrained(place.folder, gguf_file=place.gguf)
            tokenizer.save_pretrained(unpacked)
        with contextlib.suppress(OSError):  # another process was first
            os.replace(unpacked, target)
    return target


def whole_model(folder: Path, **options: object) -> PreTrainedModel:
    """A model with every weight in its files; `transformers` would draw the others at random."""
    given = {name: value for name, value in options.items() if value is not None}
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **given)
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{len(missing)} weights are not in its files: {', '.join(missing[:3])} …")
    return model
