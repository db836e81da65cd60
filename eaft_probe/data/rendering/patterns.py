"""Conversations of the same shape, rendered by what is known of one of them.

Most data has nothing but contents under the same roles in the same order. What a template writes
around them is then the same text every time; where that text with the contents in between spells a
row's rendering to the letter, each boundary lies where it lay before. Everything else is located
anew. It saves three quarters of the time that finding the trained text takes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from eaft_probe.data.messages import Message
from eaft_probe.data.rendering.layout import Span

Edge = tuple[int, int]  # number of a text of the template's, and how far in it


@dataclass(frozen=True, slots=True)
class Pattern:
    """What a template writes around n contents, and which spans of it are trained."""

    around: tuple[str, ...]  # n + 1 texts of the template's
    edges: dict[int, list[tuple[Edge, Edge]]]  # turn → its spans
    closer: str  # what is put behind a last turn that the template leaves open

    @classmethod
    def of(
        cls, text: str, contents: Sequence[Span], spans: dict[int, list[Span]], closer: str
    ) -> "Pattern | None":
        """Of a text with the spans of its contents; None where a trained span begins or ends
        inside of a content."""
        starts = [0, *(end for _, end in contents)]
        ends = [*(start for start, _ in contents), len(text) + len(closer)]

        def edge(at: int) -> Edge:
            return next(
                (k, at - a)
                for k, (a, b) in enumerate(zip(starts, ends, strict=True))
                if a <= at <= b
            )

        try:
            edges = {t: [(edge(a), edge(b)) for a, b in s] for t, s in spans.items()}
        except StopIteration:
            return None
        around = tuple(text[a:b] for a, b in zip(starts, ends, strict=True))
        return cls(around, edges, closer)

    def fit(self, text: str, messages: Sequence[Message]) -> dict[int, list[Span]] | None:
        """The trained spans of another conversation's text; None where it is spelled otherwise."""
        at, starts = 0, [0]
        for message, behind in zip(messages, self.around[1:], strict=True):
            at += len(self.around[len(starts) - 1])
            forms = (message.content, message.content.strip())
            form = next((f for f in forms if text.startswith(f + behind, at)), None)
            if form is None:
                return None
            at += len(form)
            starts.append(at)
        if not text.startswith(self.around[0]) or at + len(self.around[-1]) != len(text):
            return None
        return {
            t: [(starts[i] + a, starts[j] + b) for (i, a), (j, b) in spans]
            for t, spans in self.edges.items()
        }
