"""What the stages share: how large they are, where their files go, and results that are kept."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from eaft_probe.storage.atomic import written_aside

Row = dict[str, Any]


@dataclass(frozen=True)
class Form:
    """How much is measured. Every count of rows is one seed's."""

    seeds: int
    prompts: int  # of each data set, answered by the model itself
    new_tokens: int  # after which an answer is cut; no later token counts on either side
    exact: int  # tokens whose exact gradient is taken
    stories: int  # sampled from the story model, for all seeds together
    story_tokens: int
    target: Literal["stories", "gsm8k"]  # what the frontier trains on
    trained: int  # rows that are trained, then rows held out of training, then retained ones
    held_out: int
    retained: int
    epochs: int
    learning_rates: tuple[float, ...]
    audited: int  # rows, of which every other one is changed

    @property
    def sampled(self) -> int:
        """The most tokens that are sampled: three data sets, and the stories."""
        return 3 * self.seeds * self.prompts * self.new_tokens + self.stories * self.story_tokens


FORMS = {
    "quick": Form(
        seeds=3,
        prompts=8,
        new_tokens=96,
        exact=100,
        stories=64,
        story_tokens=120,
        target="stories",
        trained=28,
        held_out=12,
        retained=24,
        epochs=4,
        learning_rates=(1e-5, 3e-5, 1e-4, 3e-4, 1e-3),
        audited=60,
    ),
    "full": Form(
        seeds=5,
        prompts=32,
        new_tokens=256,
        exact=200,
        stories=512,
        story_tokens=240,
        target="stories",
        trained=256,
        held_out=96,
        retained=160,
        epochs=4,
        learning_rates=(3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3),
        audited=100,
    ),
    "gpu": Form(
        seeds=3,
        prompts=128,
        new_tokens=384,
        exact=500,
        stories=512,
        story_tokens=240,
        target="gsm8k",
        trained=512,
        held_out=128,
        retained=192,
        epochs=3,
        learning_rates=(1e-6, 3e-6, 1e-5, 3e-5, 1e-4),
        audited=400,
    ),
}


@dataclass(frozen=True)
class Bench:
    """One measurement: its data, its two models, its folder."""

    data: Path
    model: str
    stories: str
    out: Path
    form: Form
    workers: int

    @property
    def trains(self) -> str:
        """What the frontier trains, in words."""
        named = self.stories if self.form.target == "stories" else self.model
        return f"{self.form.target} under {Path(named).name}"

    def kept(self, name: str, settings: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        return keep(self.out / "stages" / f"{name}.json", settings, make)

    def rows(self, name: str, rows: Sequence[Row]) -> Path:
        """A file of rows, left alone where it already holds them."""
        path = self.out / "data" / f"{name}.jsonl"
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_aside(path) as aside:
                aside.write_text(text)
        return path

    def tell(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def keep(path: Path, settings: Mapping[str, Any], make: Callable[[], Any]) -> Any:
    """What `make` gave as JSON; made once for the same settings, whatever stops in between."""
    wanted = json.loads(json.dumps(settings))
    if path.exists() and (found := json.loads(path.read_text()))["settings"] == wanted:
        return found["made"]
    made = json.loads(json.dumps(make()))
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as aside:
        aside.write_text(json.dumps({"settings": wanted, "made": made}))
    return made
