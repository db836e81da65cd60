"""`--for tokens`: the ids that the model read, labels where it is trained, and weights."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from eaft_probe.data.batches import window_start
from eaft_probe.data.rendering.render import Renderer
from eaft_probe.errors import BadInput
from eaft_probe.model.loading import load_tokenizer
from eaft_probe.scans.folder import stored_plan
from eaft_probe.scans.manifest import is_loaded
from eaft_probe.scans.scan import Scan
from eaft_probe.settings import ExportSettings
from eaft_probe.verbs.export.files import Row
from eaft_probe.verbs.export.renderings import Rendering
from eaft_probe.verbs.gradients.token_contexts import scanned_ids

NOT_TRAINED = -100
SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("attention_mask", pa.list_(pa.int8())),
        ("labels", pa.list_(pa.int64())),
    ]
)
WEIGHTS = pa.field("weights", pa.list_(pa.float32()))
OTHER_TOKENS = "row{s} of which the text does not give the scanned tokens"


@dataclass(frozen=True)
class TokenRows:
    """A rendering → a row for each window in which it was read."""

    renderer: Renderer
    longest: int
    stride: int
    weighted: bool

    @classmethod
    def of(cls, scan: Scan, settings: ExportSettings) -> "TokenRows":
        """With the tokenizer of the scan's model. Raises `ModelError` where it does not load."""
        scanned, plan = scan.manifest["model"], stored_plan(scan)
        paths = plan.get("opened") or plan.get("settings") or {}
        if settings.model is None and is_loaded(scanned):
            raise BadInput(
                f"{scan.place} was made under a model that a program held; give its tokenizer's "
                f"folder as --model"
            )
        tokenizer = load_tokenizer(
            settings.model or paths.get("model") or scanned["name"],
            revision=scanned["revision"],
            adapter=paths.get("adapter") or scanned["adapter"],
        )
        stride = int(scan.manifest["config"].get("stride") or 1)
        longest = int(scanned["max_length"])
        return cls(Renderer(tokenizer), longest, stride, settings.objective is not None)

    @property
    def schema(self) -> pa.Schema:
        return SCHEMA.append(WEIGHTS) if self.weighted else SCHEMA

    def __call__(
        self, rendering: Rendering, labelled: Sequence[int] | None, lost: Counter[str]
    ) -> Iterator[Row]:
        """`labelled`: the ids of a row that came as ids."""
        tokens = rendering.tokens
        ids = self._ids(rendering, labelled)
        if ids is None:
            lost[OTHER_TOKENS] += 1
            return
        starts = np.array(
            [window_start(p, self.longest, self.stride) for p in tokens["position"].tolist()]
        )
        for start in np.unique(starts).tolist():
            own = starts == start
            if rendering.kept[own].any():
                window = ids[start : start + self.longest]
                yield self._row(window, tokens["position"][own] - start, rendering, own)
            else:
                lost["window{s} without a token that is still trained"] += 1

    def _ids(
        self, rendering: Rendering, labelled: Sequence[int] | None
    ) -> NDArray[np.int32] | None:
        positions, labels = (rendering.tokens[n] for n in ("position", "token_id"))
        if labelled is not None:
            return np.asarray(labelled, np.int32)
        place = rendering.text, rendering.length, positions, labels, self.longest
        return scanned_ids(self.renderer, *place)

    def _row(
        self,
        ids: NDArray[np.int32],
        positions: NDArray[np.int32],
        rendering: Rendering,
        own: NDArray[np.bool_],
    ) -> Row:
        kept = rendering.kept[own]
        labels = np.full(len(ids), NOT_TRAINED, np.int64)
        labels[positions[kept]] = ids[positions[kept]]
        row = {
            "input_ids": ids.tolist(),
            "attention_mask": [1] * len(ids),
            "labels": labels.tolist(),
        }
        if self.weighted:
            weights = np.zeros(len(ids), np.float32)
            weights[positions] = rendering.gates[own]
            row["weights"] = weights.tolist()
        return row
