"""What long work reports while it runs; the command line fills it, libraries may ignore it."""

from typing import Protocol


class Progress(Protocol):
    """Receives the state of a long piece of work."""

    def start(self, what: str, rows: int) -> None:
        """`what` begins and will go through `rows` rows, or steps."""

    def advance(self, rows: int, tokens: int) -> None:
        """`rows` more rows with `tokens` scored tokens are done."""

    def note(self, text: str) -> None:
        """One line that the user should see."""


class Silent:
    """A `Progress` that shows nothing."""

    def start(self, what: str, rows: int) -> None: ...

    def advance(self, rows: int, tokens: int) -> None: ...

    def note(self, text: str) -> None: ...
