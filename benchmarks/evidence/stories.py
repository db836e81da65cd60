"""What a model of simple stories knows: samples of its own, and the same in another dialect."""

import json
import random
import re
from itertools import product

from eaft_probe import rollout
from evidence.bench import Bench, Row
from evidence.sources import drawn

NAMES = ("Lily", "Tim", "Ben", "Sara", "Max", "Mia", "Tom", "Lucy")
WHO = ("cat", "dog", "girl", "boy", "bird", "bear", "rabbit", "frog")
# The planted conflicts: words the model is sure of, replaced throughout, so that there is
# something to be learned and held-out stories can tell whether it was.
DIALECT = {
    "day": "night",
    "was": "is",
    "said": "sang",
    "mom": "queen",
    "happy": "angry",
    "big": "tiny",
    "play": "fight",
    "friend": "enemy",
    "little": "golden",
    "she": "they",
}
WORDS = re.compile(rf"\b({'|'.join(DIALECT)})\b")
WORD = re.compile(r"[A-Za-z]+")
NOISE = 0.2  # of the words


def sampled(bench: Bench, temperature: float = 1.0) -> list[Row]:
    """The story model's own stories, in a fixed random order."""
    form = bench.form
    openings = [
        f"Once upon a time, there was a little {who} named {name}."
        for name, who in product(NAMES, WHO)
    ]
    n = -(-form.stories // len(openings))
    prompts = drawn([{"prompt": o, "completion": ""} for o in openings], form.stories // n)
    name = "stories" if temperature == 1 else f"stories-{temperature:g}"
    done = rollout(
        bench.rows("openings", prompts),
        bench.out / "rollouts" / f"{name}.jsonl",
        model=bench.stories,
        n=n,
        temperature=temperature,
        max_new_tokens=form.story_tokens,
    )
    rows = [json.loads(line) for line in done.path.read_text().splitlines()]
    # With `finish`: the end of a story that was cut is not its end, and is not to be learned.
    kept = [{n: r[n] for n in ("prompt", "completion", "finish")} for r in rows]
    random.Random(1).shuffle(kept)  # or the answers to one opening would stand together
    return kept


def in_dialect(story: Row) -> Row:
    told = WORDS.sub(lambda found: DIALECT[found[1]], story["completion"])
    return story | {"completion": told}


def noisy(story: Row, words: list[str], random_: random.Random) -> Row:
    """The story with a share NOISE of its words exchanged for some of `words`."""

    def other(found: re.Match[str]) -> str:
        return random_.choice(words) if random_.random() < NOISE else found[0]

    return story | {"completion": WORD.sub(other, story["completion"])}
