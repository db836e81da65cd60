"""The folder in which a scan is made, and how the scan gets from there into a store, part by part.

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
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa

from eaft_probe.engines.torchrun import Ranks
from eaft_probe.errors import BadInput, NothingScored, ScanError
from eaft_probe.progress import Progress
from eaft_probe.scans.folder import Plan, begin, clear, plan_digest, require_plan
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
    write_part,
)
from eaft_probe.scans.remote_cache import WORK, mirror_folder
from eaft_probe.storage.atomic import locked
from eaft_probe.storage.folder import Folder, writing_into
from eaft_probe.storage.remote import Infos, Store, local, same

PART = re.compile(rf"(tokens|examples|{UNITS}/(tokens|examples|totals))/part-[0-9]{{5,9}}\.parquet")
KINDS = ("tokens", "examples")  # in the order in which they are put: examples/ makes a part whole


def destination(out: str | Path) -> Folder | Store:
    """What `out` names: a folder of this machine, or a store."""
    return Store.of(out) or Folder(local(out))


@dataclass(frozen=True)
class Workspace:
    """A folder in which a scan is made. It travels to workers, which write parts."""

    folder: Folder
    plan: Plan

    @property
    def units(self) -> Path:
        """Where a unit's part is written: into its place, or aside to be joined with others."""
        return self.folder.path if self._keeps_all else self.folder.path / UNITS

    @property
    def _keeps_all(self) -> bool:
        settings: Mapping[str, str] = self.plan.get("settings", {})
        return settings.get("keep_tokens", "all") == "all"

    def begin(self, overwrite: bool) -> None:
        """Puts the plan, before any part. Raises `ScanError` where another plan stands there."""
        begin(self.folder, self.plan, overwrite)

    def in_worker(self) -> "Workspace":
        """The same for a worker, whose machine may not have the folder."""
        return self

    def write(
        self,
        index: int,
        tokens: pa.Table,
        examples: pa.Table,
        report: Mapping[str, object],
        totals: pa.Table | None = None,
        last_row: int | None = None,
    ) -> None:
        """One unit's part; see `write_part`. Raises `ScanError` where another run has replaced the
        scan by now."""
        self._require_plan()
        digest = plan_digest(self.plan)
        write_part(Folder(self.units), index, tokens, examples, report, digest, totals, last_row)
        self._put_unit(index)

    def _require_plan(self) -> None:
        require_plan(self.folder, self.plan)

    def _put_unit(self, index: int) -> None:
        """The part of a unit is written."""

    def gather(self) -> None:
        """Brings the parts here that workers have written elsewhere."""

    def close(self) -> None:
        """After the manifest is written."""


@dataclass(frozen=True)
class Deposit(Workspace):
    """A folder whose scan goes into a store."""

    store: Store
    process: int = field(default_factory=os.getpid)
    temporary: tempfile.TemporaryDirectory[str] | None = None  # the folder, if it is a worker's own

    @property
    def kinds(self) -> list[str]:
        """The folders of a unit's files, in the order in which they are put."""
        return [*KINDS] if self._keeps_all else [f"{UNITS}/{kind}" for kind in ("totals", *KINDS)]

    def pull(self, progress: Progress) -> None:
        """The folder as the store has the scan. Parts that the store lacks stay; those of another
        plan than the store's go."""
        infos, plan = self._files(), self.store.get(PLAN, PLAN_BYTES)
        if self.folder.get(PLAN, PLAN_BYTES) not in (None, plan):
            clear(self.folder, self.folder.names())
        self.folder.remove(n for n in (MANIFEST, REJECTED, TOTALS) if n not in infos)
        wanted = [n for n in infos if not same(infos[n], self.folder.path / n)]
        if wanted:
            progress.note(f"fetching {len(wanted):,} files from {self.store.shown}")
        self._fetch(wanted)

    def begin(self, overwrite: bool) -> None:
        """Also puts the parts that an earlier run had no time to put."""
        super().begin(overwrite)
        begin(self.store, self.plan, overwrite)
        self.folder.put(PLAN, self.store.get(PLAN, PLAN_BYTES) or b"")
        self._put_missing(self.store.names(), self.kinds)

    def in_worker(self) -> "Deposit":
        """In a folder of its own where the run's is on another machine. Raises `BadInput` where the
        worker cannot see the store."""
        if self.store.of_this_process and os.getpid() != self.process:
            raise BadInput(
                f"{self.store.shown} is the memory of one process: scan into it with "
                f"one worker and --engine local"
            )
        if self.folder.path.is_dir():
            return self
        temporary = tempfile.TemporaryDirectory(prefix="eaft-probe-")
        return replace(self, folder=Folder(Path(temporary.name)), temporary=temporary)

    def _put_unit(self, index: int) -> None:
        self.put_part(part_name(index))
        if self.temporary is not None:
            self.folder.remove(f"{kind}/{part_name(index)}" for kind in self.kinds)

    def _require_plan(self) -> None:
        """`put_part` does it; a worker's own folder has no plan."""

    def put_part(self, name: str, kinds: Sequence[str] | None = None) -> None:
        """Raises `ScanError` where the store has another plan by now, or other bytes."""
        require_plan(self.store, self.plan)
        paths = [f"{kind}/{name}" for kind in kinds or self.kinds]
        files = {path: (self.folder.path / path).read_bytes() for path in paths}
        put_once(self.store, files, lambda: self.store.has(paths[-1]))

    def gather(self) -> None:
        self._fetch(n for n in self._files() if not self.folder.has(n))

    def close(self) -> None:
        """Puts the manifest, once every part is there. Another run's may stand already."""
        infos = self._files()
        self._put_missing(infos, KINDS)
        for name in filter(PART.fullmatch, infos):
            if self.folder.has(name) and same(infos[name], self.folder.path / name) is False:
                raise ScanError(
                    f"{self.store.shown}/{name} was written by another run; "
                    f"--overwrite starts a new scan"
                )
        require_plan(self.store, self.plan)
        for name in filter(self.folder.has, (TOTALS, REJECTED, GRADIENTS, MANIFEST)):
            ours = (self.folder.path / name).read_bytes()
            theirs = self.store.create(name, ours)
            if theirs is not None:  # it may name the same data by another path
                if name == MANIFEST:
                    require_same_scan(theirs, ours, self.store.shown)
                self.folder.put(name, theirs)
        self.store.remove(n for n in infos if n.startswith(f"{UNITS}/"))

    def give_up(self) -> None:
        """Nothing was scored: only the reasons stay."""
        clear(self.store, self.store.names())
        self.store.put(REJECTED, (self.folder.path / REJECTED).read_bytes())

    def keep_mirror(self) -> None:
        """What was made here need not be fetched to be read."""
        work = self.folder.path
        with suppress(OSError):  # another run of this machine was quicker
            mirror = mirror_folder(self.store, (work / MANIFEST).read_bytes())
            if not mirror.exists():
                os.replace(work, mirror)
            shutil.rmtree(work, ignore_errors=True)

    def _put_missing(self, names: Infos, kinds: Sequence[str]) -> None:
        for file in sorted((self.folder.path / kinds[-1]).glob("part-*.parquet")):
            whole = all(self.folder.has(f"{kind}/{file.name}") for kind in kinds)
            if whole and f"{kinds[-1]}/{file.name}" not in names:
                self.put_part(file.name, kinds)

    def _fetch(self, names: Iterable[str]) -> None:
        """A part's examples last, as they make it whole."""
        names = list(names)
        last = [n for n in names if "examples/" in n]
        for batch in ([n for n in names if n not in {*last}], last):
            self.store.fetch({n: self.folder.path / n for n in batch})

    def _files(self) -> Infos:
        """What a run reads of a scan; whatever else is there has a name that leads who knows
        where. Without a plan there is no scan."""
        infos, single = self.store.names(), (PLAN, REJECTED, TOTALS, MANIFEST)
        if PLAN not in infos:
            return {}
        return {n: i for n, i in infos.items() if n in single or PART.fullmatch(n)}


@contextmanager
def workspace(
    out: str | Path, plan: Plan, overwrite: bool, progress: Progress, ranks: Ranks
) -> Iterator[Workspace]:
    """The folder to make a scan in, from which it gets into the store where `out` is one's URL."""
    place = destination(out)
    folder = place if isinstance(place, Folder) else Folder(place.cache / WORK)
    if not ranks.writes:
        yield Workspace(folder, plan)
        return
    alone = locked(folder.path / LOCK, out, progress.note, shared=True)
    with writing_into(folder.path), alone if not ranks.rank else nullcontext():
        if isinstance(place, Folder):
            yield Workspace(folder, plan)
        else:
            yield from _depositing(Deposit(folder, plan, place), overwrite, progress)


def _depositing(deposit: Deposit, overwrite: bool, progress: Progress) -> Iterator[Deposit]:
    deposit.store.require_writable()
    if not overwrite:
        deposit.pull(progress)
    try:
        yield deposit
    except NothingScored as error:
        deposit.give_up()
        message = str(error).replace(deposit.folder.shown, deposit.store.shown)
        raise NothingScored(message) from error
    deposit.keep_mirror()
