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
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eaft_probe.data.units import Unit
from eaft_probe.engines.torchrun import Ranks
from eaft_probe.engines.unit_queue import Scorer
from eaft_probe.errors import BadInput, NothingScored, ProbeError, ScanError
from eaft_probe.progress import Progress
from eaft_probe.scans.folder import SCAN_FILES, begin, clear, require_plan
from eaft_probe.scans.manifest import MANIFEST, require_same_scan
from eaft_probe.scans.part_writer import (
    GRADIENTS,
    LOCK,
    PLAN,
    PLAN_BYTES,
    REJECTED,
    TOTALS,
    UNITS,
    part_name,
    put_once,
)
from eaft_probe.scans.remote_cache import WORK, place
from eaft_probe.storage.atomic import locked
from eaft_probe.storage.folder import Folder, writing_into
from eaft_probe.storage.remote import Infos, Store, local, same

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
    out: str | Path, plan: Mapping[str, Any], overwrite: bool, progress: Progress, ranks: Ranks
) -> Iterator[tuple[Folder, "Deposit | None"]]:
    """The folder to make a scan in, and how it gets into the store."""
    store = Store.of(out)
    folder = Folder(local(out) if store is None else store.cache / WORK)
    if not ranks.writes:
        yield folder, None
        return
    alone = locked(folder.path / LOCK, out, progress.note, shared=True)
    with writing_into(folder.path), alone if not ranks.rank else nullcontext():
        if store is None:
            yield folder, None
        else:
            yield from _in_store(store, folder, plan, overwrite, progress)


def _in_store(
    store: Store, folder: Folder, plan: Mapping[str, Any], overwrite: bool, progress: Progress
) -> Iterator[tuple[Folder, "Deposit"]]:
    store.require_writable()
    deposit = Deposit(store, plan)
    if not overwrite:
        deposit.pull(folder, progress)
    try:
        yield folder, deposit
    except NothingScored as error:
        deposit.give_up(folder.path)
        raise NothingScored(str(error).replace(folder.shown, store.shown)) from error
    _keep(store, folder.path)


def _keep(store: Store, work: Path) -> None:
    """What was made here need not be fetched to be read."""
    with suppress(OSError):  # another run of this machine was quicker
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

    def pull(self, folder: Folder, progress: Progress) -> None:
        """The folder as the store has the scan. Parts that the store lacks stay; those of another
        plan than the store's go."""
        there = self._files()
        stored = self.store.get(PLAN, PLAN_BYTES)
        if folder.get(PLAN, PLAN_BYTES) not in (None, stored):
            clear(folder, folder.names())
        folder.remove(n for n in (MANIFEST, REJECTED, TOTALS) if n not in there)
        wanted = [n for n in there if not same(there[n], folder.path / n)]
        if wanted:
            progress.note(f"fetching {len(wanted):,} files from {self.store.shown}")
        self._fetch(wanted, folder)

    def begin(self, folder: Folder, overwrite: bool) -> None:
        """The plan, and the parts that an earlier run had no time to put. Raises `ScanError` where
        the store has another plan by now."""
        begin(self.store, self.plan, overwrite)
        folder.put(PLAN, self.store.get(PLAN, PLAN_BYTES) or b"")
        self._put_lacking(folder.path, self.store.names(), self.units)

    def put_part(self, folder: Path, name: str, kinds: Sequence[str] | None = None) -> None:
        """Raises `ScanError` where the store has another plan by now, or other bytes."""
        require_plan(self.store, self.plan)
        paths = [f"{kind}/{name}" for kind in kinds or self.units]
        files = {path: (folder / path).read_bytes() for path in paths}
        put_once(self.store, files, lambda: self.store.has(paths[-1]))

    def gather(self, folder: Folder) -> None:
        """The parts that workers on other machines have put."""
        self._fetch([n for n in self._files() if not folder.has(n)], folder)

    def close(self, folder: Folder) -> None:
        """The manifest, once every part is there. Another run's may stand already."""
        there = self._files()
        self._put_lacking(folder.path, there, KINDS)
        for name in (n for n in there if PART.fullmatch(n)):
            if folder.has(name) and same(there[name], folder.path / name) is False:
                raise ScanError(
                    f"{self.store.shown}/{name} was written by somebody else; "
                    f"--overwrite starts anew"
                )
        require_plan(self.store, self.plan)
        for name in (TOTALS, REJECTED, GRADIENTS, MANIFEST):
            if not folder.has(name):
                continue
            ours = (folder.path / name).read_bytes()
            theirs = self.store.create(name, ours)
            if theirs is not None:  # it may name the same data by another path
                if name == MANIFEST:
                    require_same_scan(theirs, ours, self.store.shown)
                folder.put(name, theirs)
        self.store.remove(n for n in there if n.startswith(f"{UNITS}/"))

    def give_up(self, folder: Path) -> None:
        """Nothing was scored: only why stays."""
        clear(self.store, self.store.names())
        self.store.put(REJECTED, (folder / REJECTED).read_bytes())

    def require_here(self) -> None:
        """Raises `BadInput` in a worker process that cannot see the store."""
        if self.store.of_this_process and os.getpid() != self.process:
            raise BadInput(
                f"{self.store.shown} is the memory of one process: scan into it with "
                f"one worker and --engine local"
            )

    def _put_lacking(self, folder: Path, there: Infos, kinds: Sequence[str]) -> None:
        for file in sorted((folder / kinds[-1]).glob("part-*.parquet")):
            here = all((folder / kind / file.name).exists() for kind in kinds)
            if here and f"{kinds[-1]}/{file.name}" not in there:
                self.put_part(folder, file.name, kinds)

    def _fetch(self, names: Iterable[str], folder: Folder) -> None:
        """A part's examples last, as they make it whole."""
        names = list(names)
        last = [n for n in names if "examples/" in n]
        for some in ([n for n in names if n not in {*last}], last):
            self.store.fetch({n: folder.path / n for n in some})

    def _files(self) -> Infos:
        """What a run reads of a scan; whatever else is there has a name that leads who knows
        where. Without a plan there is no scan."""
        own, there = (PLAN, REJECTED, TOTALS, MANIFEST), self.store.names()
        known = {n: i for n, i in there.items() if n in own or PART.fullmatch(n)}
        return known if PLAN in there else {}


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
