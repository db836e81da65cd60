"""A scan that is written into a store: made in a folder of this machine, put there part by part.

    plan.json → of each unit tokens/ and examples/ → rejected.jsonl → manifest.json

Of a scan that does not keep all of its tokens a unit's files stand in units/ until the manifest
does, and totals.parquet comes before it.

Nobody owns a store, so several runs may write the same scan: a name is put once, a second put of
the same bytes is no error, and one of other bytes is refused. The folder is lost without harm: the
next run fetches what the store has.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eaft_probe.columns.manifest import MANIFEST, parsed_json
from eaft_probe.columns.mirror import WORK, place
from eaft_probe.columns.part_files import (
    GRADIENTS,
    PLAN,
    PLAN_BYTES,
    REJECTED,
    TOTALS,
    UNITS,
    part_name,
)
from eaft_probe.data.units import Unit
from eaft_probe.engines.job import Scorer
from eaft_probe.errors import BadInput, NothingScored, ProbeError, ScanError
from eaft_probe.progress import Progress
from eaft_probe.store import Infos, Store, local, same, written_here
from eaft_probe.verbs.ownership import Ownership, owned
from eaft_probe.verbs.plan import RESULTS, SCAN_FILES, remove_results, require_same

PART = re.compile(rf"(tokens|examples|{UNITS}/(tokens|examples|totals))/part-[0-9]{{5,9}}\.parquet")
KINDS = ("tokens", "examples")  # in the order in which they are put: examples/ makes a part whole


@contextmanager
def sight(out: str | Path) -> Iterator[Path]:
    """The folder `out`; for a store a sketch of it, with its plan and else the names alone."""
    store = Store.of(out)
    if store is None:
        yield local(out)
        return
    with tempfile.TemporaryDirectory() as made:
        _sketch(store, Path(made))
        try:
            yield Path(made)
        except ProbeError as error:
            raise type(error)(str(error).replace(made, store.shown)) from error


def _sketch(store: Store, folder: Path) -> None:
    there = store.names()
    for name in {n.split("/")[0] for n in there} - {*KINDS, UNITS}:
        (folder / (name if name in SCAN_FILES else "something-else")).touch()
    if part := next((n for n in there if "examples/" in n and PART.fullmatch(n)), None):
        (folder / part).parent.mkdir(parents=True)
        (folder / part).touch()
    if plan := store.get(PLAN, PLAN_BYTES):
        (folder / PLAN).write_bytes(plan)


@contextmanager
def at_work(
    out: str | Path, plan: Mapping[str, Any], overwrite: bool, progress: Progress
) -> Iterator[tuple[Ownership, "Deposit | None"]]:
    """The folder to make a scan in, for this run alone, and how it gets into the store."""
    store = Store.of(out)
    if store is None:
        with owned(local(out), progress) as mine:
            yield mine, None
        return
    deposit = Deposit(store, plan)
    with owned(store.cache / WORK, progress) as mine:
        store.require_writable()
        if not overwrite:
            deposit.pull(mine, progress)
        try:
            yield mine, deposit
        except NothingScored as error:
            deposit.give_up(mine.folder)
            said = str(error).replace(str(mine.folder), store.shown)
            raise NothingScored(said) from error
    _keep(store, store.cache / WORK)


def _keep(store: Store, work: Path) -> None:
    """What was made here need not be fetched to be read."""
    with suppress(OSError):  # another run has taken the folder; it finds the scan finished
        target = place(store, (work / MANIFEST).read_bytes())
        if not target.exists():
            os.replace(work, target)
        shutil.rmtree(work, ignore_errors=True)


@dataclass(frozen=True)
class Deposit:
    """What of a scan in a folder goes into a store. It travels to workers, which put parts."""

    store: Store
    plan: Mapping[str, Any]
    process: int = field(default_factory=os.getpid)

    @property
    def units(self) -> list[str]:
        """The folders of a unit's files, in the order in which they are put."""
        keeps_all = self.plan.get("settings", {}).get("keep_tokens", "all") == "all"
        return [*KINDS] if keeps_all else [f"{UNITS}/{kind}" for kind in ("totals", *KINDS)]

    def pull(self, mine: Ownership, progress: Progress) -> None:
        """The folder as the store has the scan. Parts that the store lacks stay; those of another
        plan than the store's go."""
        folder, there = mine.folder, self._files()
        plan = folder / PLAN
        if plan.exists() and plan.read_bytes() != self.store.get(PLAN, PLAN_BYTES):
            remove_results(folder, mine.scratch)
            plan.unlink()
        for name in (MANIFEST, REJECTED, TOTALS):
            if name not in there:
                (folder / name).unlink(missing_ok=True)
        wanted = [n for n in there if not same(there[n], folder / n)]
        if wanted:
            progress.note(f"fetching {len(wanted):,} files from {self.store.shown}")
        self._fetch(wanted, mine)

    def begin(self, mine: Ownership, overwrite: bool) -> None:
        """The plan, and the parts that an earlier run had no time to put. Raises `ScanError` where
        the store has another plan by now."""
        there = self.store.names()
        if overwrite or PLAN not in there:
            self.clear(there)
            there = {}
        theirs = self.store.create(PLAN, (mine.folder / PLAN).read_bytes())
        if theirs is not None:
            require_same(self._parsed(PLAN, theirs), self.plan, f"{self.store.shown} holds a scan")
            _write(mine, PLAN, theirs)
        self._put_lacking(mine.folder, there, self.units)

    def put_part(self, folder: Path, name: str, kinds: Sequence[str] | None = None) -> None:
        """Raises `ScanError` where the store has another plan by now, or other bytes."""
        self._require_plan()
        kinds = kinds or self.units
        for kind in kinds:
            data, path = (folder / kind / name).read_bytes(), f"{kind}/{name}"
            if self.store.create(path, data) in (None, data):
                continue
            if kind == kinds[-1] or self.store.has(f"{kinds[-1]}/{name}"):
                raise ScanError(f"another run has put other bytes as {self.store.shown}/{path}: "
                                f"it has another kind of device; let one of them finish, the same "
                                f"command goes on from there")  # fmt: skip
            self.store.put(path, data)  # half of a part, by a run that died between its two puts

    def gather(self, mine: Ownership) -> None:
        """The parts that workers on other machines have put."""
        self._fetch([n for n in self._files() if not (mine.folder / n).exists()], mine)

    def close(self, mine: Ownership) -> None:
        """The manifest, once every part is there. Another run's may stand already."""
        folder, there = mine.folder, self._files()
        self._put_lacking(folder, there, KINDS)
        for name in (n for n in there if PART.fullmatch(n)):
            if (folder / name).exists() and same(there[name], folder / name) is False:
                raise ScanError(f"{self.store.shown}/{name} was written by somebody else; "
                                f"--overwrite starts anew")  # fmt: skip
        self._require_plan()
        for name in (TOTALS, REJECTED, GRADIENTS, MANIFEST):
            if not (folder / name).exists():
                continue
            theirs = self.store.create(name, (folder / name).read_bytes())
            if theirs is not None:  # it may name the same data by another path
                self._require_alike(name, theirs, (folder / name).read_bytes())
                _write(mine, name, theirs)
        self.store.remove(n for n in there if n.startswith(f"{UNITS}/"))

    def give_up(self, folder: Path) -> None:
        """Nothing was scored: only why stays."""
        self.clear(self.store.names())
        self.store.put(REJECTED, (folder / REJECTED).read_bytes())

    def clear(self, there: Infos) -> None:
        """The manifest first, so that no half of a scan looks complete, and the plan last."""
        rest = [n for n in there if n.split("/")[0] in RESULTS and n != MANIFEST]
        for names in ([MANIFEST], rest, [PLAN]):
            self.store.remove(names)

    def require_here(self) -> None:
        """Raises `BadInput` in a worker process that cannot see the store."""
        if self.store.of_this_process and os.getpid() != self.process:
            raise BadInput(f"{self.store.shown} is the memory of one process: scan into it with "
                           f"one worker and --engine local")  # fmt: skip

    def _put_lacking(self, folder: Path, there: Infos, kinds: Sequence[str]) -> None:
        for file in sorted((folder / kinds[-1]).glob("part-*.parquet")):
            here = all((folder / kind / file.name).exists() for kind in kinds)
            if here and f"{kinds[-1]}/{file.name}" not in there:
                self.put_part(folder, file.name, kinds)

    def _fetch(self, names: Iterable[str], mine: Ownership) -> None:
        """A part's examples last, as they make it whole."""
        names = list(names)
        last = [n for n in names if "examples/" in n]
        for some in ([n for n in names if n not in {*last}], last):
            self.store.fetch({n: mine.folder / n for n in some}, within=mine.scratch)

    def _files(self) -> Infos:
        """What a run reads of a scan; whatever else is there has a name that leads who knows
        where."""
        own = (PLAN, REJECTED, TOTALS, MANIFEST)
        return {n: i for n, i in self.store.names().items() if n in own or PART.fullmatch(n)}

    def _require_plan(self) -> None:
        theirs = self.store.get(PLAN, PLAN_BYTES)
        if theirs is None:
            raise ScanError(f"another run has removed the scan from {self.store.shown}")
        said = f"{self.store.shown} by now holds a scan"
        require_same(self._parsed(PLAN, theirs), self.plan, said)

    def _parsed(self, name: str, data: bytes) -> dict[str, Any]:
        try:
            return parsed_json(data, f"{self.store.shown}/{name}")
        except ScanError as error:
            raise ScanError(f"{error}; --overwrite starts anew") from error

    def _require_alike(self, name: str, theirs: bytes, ours: bytes) -> None:
        if name == MANIFEST:
            a, b = (self._parsed(MANIFEST, data) for data in (theirs, ours))
            made = ("parts", "counts", "columns", "totals")
            if any(a.get(what) != b.get(what) for what in made):
                raise ScanError(f"{self.store.shown} was finished by another run with other parts; "
                                f"--overwrite starts anew")  # fmt: skip


class Depositing:
    """A scorer whose parts go into a store as well."""

    def __init__(self, scorer: Scorer, deposit: Deposit, folder: Path, own: Any = None) -> None:
        self.scorer, self.deposit, self.folder = scorer, deposit, folder
        self.own = own  # keeps a worker's temporary folder as long as the worker

    @property
    def facts(self) -> Mapping[str, Any]:
        return self.scorer.facts

    def read(self, unit: Unit) -> Any:
        return self.scorer.read(unit)

    def score(self, unit: Unit, rows: Any) -> None:
        self.scorer.score(unit, rows)
        name = part_name(unit.index)
        self.deposit.put_part(self.folder, name)
        if self.own is not None:
            for kind in self.deposit.units:
                (self.folder / kind / name).unlink()


def _write(mine: Ownership, name: str, data: bytes) -> None:
    with written_here(mine.folder / name, mine.scratch) as aside:
        aside.write_bytes(data)
