"""The files of a rollout: its plan, the parts of an unfinished one, and what they are joined to.

F.jsonl                  the answers, one a line, once all are there
F.jsonl.plan             the settings that a rerun must repeat; the counts once it is finished
F.jsonl.parts/           one part a unit, until they are joined
F.jsonl.rejected.jsonl   every row that was not answered, with the reason; where there are any
F.jsonl.lock             while a run works on it
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eaft_probe.data.prompts import json_line
from eaft_probe.errors import BadInput, DataError, ScanError, one_line
from eaft_probe.scans.folder import read_plan, require_no_links, require_same
from eaft_probe.storage.atomic import locked, write_json, written_aside

# Neither name ends as a data file does: a folder of rollouts can be scanned as it is.
PLAN, PARTS, REJECTED, LOCK = ".plan", ".parts", ".rejected.jsonl", ".lock"


@dataclass(frozen=True, slots=True)
class RolloutFiles:
    """The files that belong to the rollout at `path`."""

    path: Path

    def file(self, ending: str) -> Path:
        return self.path.with_name(self.path.name + ending)

    def _part(self, index: int, ending: str) -> Path:
        return self.file(PARTS) / f"part-{index:05d}{ending}"

    def finished(self, plan: Mapping[str, object], overwrite: bool) -> dict[str, int] | None:
        """The counts of this very rollout, done; None where there is something to do.

        Raises `ScanError` where the files hold anything else that is worth keeping.
        """
        if not self.file(PLAN).exists():
            if any(p.exists() for p in (self.path, self.file(PARTS), self.file(REJECTED))):
                raise ScanError(f"{self.path} exists and is no rollout; choose another --out")
            return None
        if overwrite:
            return None
        try:
            stored = read_plan(self.file(PLAN))
        except ScanError as error:
            raise ScanError(f"{error}; give --overwrite to start again") from error
        counts: dict[str, int] | None = stored.pop("counts", None)
        if self.path.exists() or self._begun():
            require_same(stored, plan, f"{self.path} is a rollout")
        return counts if self.path.exists() else None

    def _begun(self) -> bool:
        return any(self.file(PARTS).glob("part-*.json"))

    @contextmanager
    def alone(self, note: Callable[[str], object]) -> Iterator[None]:
        """For one run at a time. Raises `BadInput`."""
        with ExitStack() as held:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(self.file(LOCK), self.path, note))
            except OSError as error:
                raise BadInput(
                    f"cannot write {self.path}: {error.strerror or one_line(error)}"
                ) from error
            yield

    def require_unused(self) -> None:
        """Before the long work. Raises `BadInput` where another run works on it."""
        if self.file(LOCK).exists():
            with self.alone(str):
                pass

    def prepare(self, plan: Mapping[str, object], overwrite: bool) -> None:
        """Ready for this plan: removes what --overwrite gives up, and a plan without a part.
        Raises `BadInput`."""
        try:
            if overwrite or not self._begun():
                self.clear()
            require_no_links([self.file(PARTS)])
            write_json(self.file(PLAN), plan)
            self.file(PARTS).mkdir(exist_ok=True)
        except OSError as error:
            raise BadInput(
                f"cannot write {self.path}: {error.strerror or one_line(error)}"
            ) from error

    def clear(self) -> None:
        """The answers go first, so that old ones are not taken for those of a new plan."""
        self.path.unlink(missing_ok=True)
        self.file(REJECTED).unlink(missing_ok=True)
        if self.file(PARTS).is_symlink():
            self.file(PARTS).unlink()
        shutil.rmtree(self.file(PARTS), ignore_errors=True)
        self.file(PLAN).unlink(missing_ok=True)

    def has(self, index: int) -> bool:
        """Whether a unit is done: its report is written after its lines."""
        return self._part(index, ".json").exists()

    def write(self, index: int, lines: Iterable[str], report: Mapping[str, object]) -> None:
        """A unit's part, whole or not at all. Raises `OSError`."""
        with written_aside(self._part(index, ".jsonl")) as aside, aside.open("w") as file:
            file.writelines(lines)
        write_json(self._part(index, ".json"), report)

    def join(self, count: int, plan: Mapping[str, Any]) -> dict[str, int]:
        """Makes the parts one file and gives the counts of all. Raises `DataError` for no answer
        at all, and `OSError`."""
        reports = [json.loads(self._part(i, ".json").read_text()) for i in range(count)]
        counts = Counter[str]()
        for report in reports:
            counts.update(report["counts"])
        rejected = [json_line(row) for report in reports for row in report["rejected"]]
        if rejected:
            with written_aside(self.file(REJECTED)) as aside, aside.open("w") as file:
                file.writelines(rejected)
        if not counts["answers"]:
            self._give_up(counts, plan)
        with written_aside(self.path) as aside, aside.open("wb") as joined:
            for index in range(count):
                with self._part(index, ".jsonl").open("rb") as part:
                    shutil.copyfileobj(part, joined)
        write_json(self.file(PLAN), {**plan, "counts": counts})
        shutil.rmtree(self.file(PARTS))
        return dict(counts)

    def _give_up(self, counts: Mapping[str, int], plan: Mapping[str, Any]) -> None:
        """Leaves nothing that a corrected command must respect: a plan without a part is void.
        Raises `DataError`."""
        shutil.rmtree(self.file(PARTS))
        raise DataError(
            f"nothing to answer in {plan['data']['source']}: no row of "
            f"{counts['rows']:,} can be used; {self.file(REJECTED)} says why"
        )
