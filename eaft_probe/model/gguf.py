"""GGUF files, which take half a minute to read, as folders of weights that take half a second."""

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from eaft_probe.errors import ModelError, one_line
from eaft_probe.model.foreign import quiet
from eaft_probe.model.resolve import Place
from eaft_probe.storage.atomic import cache_folder


def converted_gguf(place: Place) -> Path:
    """A GGUF file as a plain model folder. Unpacking takes up to 30 s, so it is kept."""
    assert place.gguf is not None
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
            AutoTokenizer.from_pretrained(place.folder, gguf_file=place.gguf).save_pretrained(
                unpacked
            )
        with contextlib.suppress(OSError):  # another process was first
            os.replace(unpacked, target)
    return target


def whole_model(folder: Path, **options: Any) -> Any:
    """A model with every weight in its files; `transformers` would draw the others at random."""
    options = {name: value for name, value in options.items() if value is not None}
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    if info["missing_keys"]:
        names = ", ".join(sorted(info["missing_keys"])[:3])
        raise ValueError(f"{len(info['missing_keys'])} weights are not in its files: {names} …")
    return model
