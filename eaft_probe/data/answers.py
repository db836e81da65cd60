"""Answers without their prompts: what is read for the column `logprob_alone`."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from eaft_probe.data.batches import Window, windows
from eaft_probe.data.formats import Example
from eaft_probe.data.rendering.render import Renderer
from eaft_probe.data.rendering.rendered import Rendered


class Answers:
    """Cuts rendered examples into their answers."""

    def __init__(self, renderer: Renderer, max_length: int, stride: int) -> None:
        self.renderer, self.max_length, self.stride = renderer, max_length, stride

    def __call__(self, example: int, rendered: Rendered) -> list[Window]:
        """Each run of trained tokens of one turn as windows that see nothing but a beginning and
        the run itself. Their places are those in the example."""
        beginning = self._bos or ([] if rendered.plain else self._header)
        cuts = np.diff(rendered.trained) | (np.diff(rendered.turn) != 0)
        found = list[Window]()
        for run in np.split(np.arange(len(rendered.ids)), np.flatnonzero(cuts) + 1):
            if rendered.trained[run[0]]:
                brings_its_own = beginning[:1] == [rendered.ids[run[0]]]
                before = [] if brings_its_own else beginning
                found += self._behind(before, example, rendered, int(run[0]), int(run[-1]) + 1)
        return found

    def _behind(
        self, before: Sequence[int], example: int, rendered: Rendered, start: int, past: int
    ) -> list[Window]:
        ids = np.concatenate([np.asarray(before, np.int32), rendered.ids[start:past]])
        alone = replace(rendered, ids=ids, trained=np.arange(len(ids)) >= len(before))
        pieces = windows(example, alone, self.max_length, self.stride)[0]
        return [replace(w, start=start - len(before) + w.start) for w in pieces]

    @cached_property
    def _bos(self) -> list[int]:
        """BOS where the tokenizer puts it before plain text, else nothing."""
        first = self.renderer.encode("", plain=True)[0][:1]
        return [i for i in first if i == self.renderer.tokenizer.bos_token_id]

    @cached_property
    def _header(self) -> list[int]:
        """The generation prompt of an empty conversation."""
        header = self.renderer.locator(Example("", ())).generation_header
        return self.renderer.encode(header, plain=False)[0]
