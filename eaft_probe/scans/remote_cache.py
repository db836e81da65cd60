"""A finished scan in a store as a folder of this machine, from which every verb then reads.

    CACHE/stores/<url>/<manifest>/     of one manifest, by its sha256; its parts never change

So a part is fetched once, and only the one that the manifest describes by its hash. What `flag` and
`gradients` rewrite is fetched anew, unless the store says that it is what stands here.
"""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from eaft_probe.errors import ScanError
from eaft_probe.scans.manifest import MANIFEST, MOST_BYTES, read_manifest
from eaft_probe.scans.verification import FIELDS
from eaft_probe.storage.remote import Infos, Store, same, written_here

WORK = "work"  # beside the mirrors: the folder of a scan on its way into the store


def mirrored(store: Store, written_once: Sequence[str], rewritten: Sequence[str]) -> Path:
    """The folder; the arguments name its files beside the parts and the manifest.

    Raises `ScanError` where the store holds no finished scan, or a damaged one.
    """
    infos = store.top()
    manifest = store.get(MANIFEST, MOST_BYTES) if MANIFEST in infos else None
    if manifest is None:
        raise not_finished(store.shown, begun=bool({*written_once} & {*infos}))
    folder = mirror_folder(store, manifest)
    with written_here(folder / MANIFEST) as aside:
        aside.write_bytes(manifest)
    _forget_others(folder)
    _fetch_parts(store, folder)
    once = {n: folder / n for n in written_once if n in infos and not (folder / n).exists()}
    store.fetch(once | _changed(folder, infos, rewritten))
    return folder


def not_finished(shown: str, begun: bool) -> ScanError:
    """What is said of a place without a manifest."""
    what = "an unfinished scan: run the same scan command again" if begun else "no scan"
    return ScanError(f"{shown} holds {what}")


def mirror_folder(store: Store, manifest: bytes) -> Path:
    """The folder for the scan of that manifest."""
    return store.cache / hashlib.sha256(manifest).hexdigest()[:16]


def _fetch_parts(store: Store, folder: Path) -> None:
    """Those that are not here yet, under their hashes."""
    parts = read_manifest(folder)["parts"]
    hashes = {f"{kind}/{p['file']}": p[hash] for kind, hash in FIELDS.items() for p in parts}
    store.fetch({n: folder / n for n in hashes if not (folder / n).exists()}, hashes)
    for kind in FIELDS:
        (folder / kind).mkdir(exist_ok=True)


def _changed(folder: Path, infos: Infos, rewritten: Sequence[str]) -> dict[str, Path]:
    """Those that the store has and this folder has not; what the store lacks goes here as well."""
    for name in {*rewritten} - {*infos}:
        (folder / name).unlink(missing_ok=True)
    return {n: folder / n for n in rewritten if n in infos and not same(infos[n], folder / n)}


def _forget_others(folder: Path) -> None:
    """What the store held before it was overwritten."""
    for other in folder.parent.iterdir():
        if other.name not in (folder.name, WORK):
            shutil.rmtree(other, ignore_errors=True)
