"""Checkpoints that are verified: a manifest, written last, lists every file with its size and checksum.

``seal`` writes the manifest, ``damage`` says what is wrong with a checkpoint, ``newest`` finds the one to resume from. This
module does not import torch: the trainer alone reads and writes the contents of the files.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import xxhash

from errata.records import State
from errata.reports.rundir import STREAMS, RunDirectory, write_whole

MANIFEST = "manifest.json"
KEPT_TEXTS = ("config.yaml", "env.json")
"""Small files of the run that each checkpoint keeps a copy of, in its manifest."""
TAIL = 1 << 20
"""A log's checksum covers at most this many bytes before the checkpoint: a log can be long, and is only appended to."""
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Found:
    """Where a run can resume."""

    checkpoint: Path | None
    """The newest undamaged one. ``None``: the run starts from the beginning."""
    notes: tuple[str, ...] = ()
    """What is wrong with newer ones, one sentence each."""


def step_of(checkpoint: Path) -> int:
    """The optimizer step a checkpoint was written after. Raises ``ValueError`` for a name without one."""
    match = _NAME.fullmatch(checkpoint.name)
    if match is None:
        raise ValueError(
            f"resume_from_checkpoint: {checkpoint}: is no checkpoint of a run, which is called checkpoint-STEP"
        )
    return int(match[1])


def complete_checkpoints(run: Path) -> list[Path]:
    """Checkpoints of ``run`` that were written to the end, oldest first. Their files are not verified."""
    return [path for path in _all(run) if (path / MANIFEST).is_file()]


def seal(checkpoint: Path) -> None:
    """Write the manifest, after every file of ``checkpoint`` and of the run's logs has reached the disk."""
    run = checkpoint.parent
    files = {str(path.relative_to(checkpoint)): _synced_size(path) for path in _files(checkpoint)}
    rows = {name: _synced_size(path) for name in STREAMS if (path := run / f"{name}.jsonl").is_file()}
    texts = {name: path.read_text(encoding="utf-8") for name in KEPT_TEXTS if (path := run / name).is_file()}
    for folder in {path.parent for path in _files(checkpoint)} | {checkpoint, run}:
        sync(folder)
    manifest = {
        "files": {name: [size, _checksum(checkpoint / name, 0, size)] for name, size in files.items()},
        "rows": {name: [size, _tail(run / f"{name}.jsonl", size)] for name, size in rows.items()},
        "texts": texts,
    }
    write_whole(checkpoint / MANIFEST, json.dumps({"checksum": _own_checksum(manifest), **manifest}, indent=1))


def damage(checkpoint: Path, *, files: bool = True, rows: bool = True) -> str | None:
    """What is wrong with a checkpoint, naming the file; ``None`` if nothing is.

    Args:
        files: verify its own files.
        rows: verify that the run's logs still begin with the rows written before this checkpoint.
    """
    if not checkpoint.is_dir():
        return f"there is no directory {checkpoint}"
    manifest = _manifest(checkpoint)
    if isinstance(manifest, str):
        return manifest
    for name, (size, checksum) in manifest["files"].items() if files else ():
        if (wrong := _wrong(checkpoint / name, size, exact=True)) is not None:
            return f"{name} {wrong}"
        if _checksum(checkpoint / name, 0, size) != checksum:
            return f"{name} does not hold what was written"
    for name, (size, checksum) in manifest["rows"].items() if rows else ():
        path = checkpoint.parent / f"{name}.jsonl"
        if (wrong := _wrong(path, size, exact=False)) is not None:
            return f"the run's {path.name} {wrong}"
        if _tail(path, size) != checksum:
            return f"the run's {path.name} does not hold the rows written before it"
    return None


def newest(run: Path) -> Found:
    """The checkpoint to resume from. Reads every file of the newest one, and older ones only if that one is damaged.

    A checkpoint without a manifest was not written to the end: the process was killed meanwhile.

    Raises:
        ValueError: there are checkpoints that were written to the end, and all of them are damaged.
    """
    notes: list[str] = []
    damaged = False
    for checkpoint in reversed(_all(run)):
        found = damage(checkpoint)
        if found is None:
            return Found(checkpoint, tuple(notes))
        damaged |= (checkpoint / MANIFEST).exists()
        notes.append(f"{checkpoint.name}: {found}")
    if damaged:
        raise ValueError(
            f"output_dir: {run}: every checkpoint is damaged ({'; '.join(notes)}); restore a file that is named, "
            "choose another --output_dir, or start again with --overwrite true"
        )
    return Found(None, tuple(notes))


def cut_rows(run: RunDirectory, checkpoint: Path | None) -> None:
    """Cut the run's logs to their length when ``checkpoint`` was written; without a checkpoint, to nothing."""
    manifest = (
        None if checkpoint is None or checkpoint.parent.resolve() != run.path.resolve() else _manifest(checkpoint)
    )
    if checkpoint is None or not isinstance(manifest, dict) or damage(checkpoint, files=False) is not None:
        run.truncate_after(-1 if checkpoint is None else step_of(checkpoint))
        return
    for name in STREAMS:
        if (path := run.path / f"{name}.jsonl").is_file():
            os.truncate(path, manifest["rows"].get(name, [0])[0])


def repair(run: RunDirectory) -> list[str]:
    """Restore a damaged ``config.yaml`` or ``env.json`` from the copies in checkpoints.

    Returns what was done, one sentence for each file. Raises ``ValueError`` if no checkpoint has a copy.
    """
    found = _all(run.path)
    notes: list[str] = []
    if not found and not all((run.path / name).is_file() for name in KEPT_TEXTS):
        return notes  # killed while the directory was created, or no run
    for name in run.damaged():
        for checkpoint in reversed(found):
            manifest = _manifest(checkpoint)
            if not isinstance(manifest, str) and name in manifest["texts"]:
                run.restore(name, manifest["texts"][name])
                notes.append(f"{name} was damaged or missing; restored from {checkpoint.name}")
                break
        else:
            raise ValueError(
                f"output_dir: {run.path / name} is damaged or missing, and no checkpoint has a copy; restore it, choose another "
                "--output_dir, or start again with --overwrite true"
            )
    return notes


def rotate(run: Path, limit: int | None, *, current: Path, keep: Path | None = None) -> None:
    """Delete the checkpoints that are not needed any more, except ``current`` and ``keep``.

    These are: the ones that were not written to the end; the ones after ``current``, from before the run was resumed; and the
    oldest, where there are more than ``limit``.
    """
    for path in _all(run):
        if path != current and (not (path / MANIFEST).is_file() or step_of(path) > step_of(current)):
            remove(path)
    kept = complete_checkpoints(run)
    for path in kept[: max(len(kept) - limit, 0)] if limit else ():
        if path not in (current, keep):
            remove(path)


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint, its manifest first, so that a partly deleted one does not count as complete."""
    (checkpoint / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


@contextmanager
def writing(checkpoint: Path) -> Iterator[None]:
    """A context for writing ``checkpoint``: if that fails, the incomplete one is deleted and the error says what remains.

    Raises:
        OSError: a one-line message, with the system's errno, or ``EIO`` where a library hid it.
    """
    try:
        yield
    except Exception as error:  # safetensors and torch have errors of their own for a full disk
        if not isinstance(error, OSError) and not _about_disk(error):
            raise
        remove(checkpoint)
        before = complete_checkpoints(checkpoint.parent)
        kept = (
            f"{before[-1].name} is kept, and the same command resumes from it" if before else "there is none before it"
        )
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())[:200]
        number = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
        raise OSError(number, f"could not write {checkpoint}: {reason}; {kept}") from error


def sync(path: Path) -> None:
    """Wait until a file or directory is on the disk. A file system that cannot sync a directory is no error."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def _all(run: Path) -> list[Path]:
    found = [path for path in run.glob("checkpoint-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def _files(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file() and path != checkpoint / MANIFEST)


def _synced_size(path: Path) -> int:
    sync(path)
    return path.stat().st_size


def _manifest(checkpoint: Path) -> State | str:
    """The manifest, or what is wrong with it."""
    path = checkpoint / MANIFEST
    if not path.is_file():
        return f"it was not written to the end ({MANIFEST} is missing)"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.pop("checksum") == _own_checksum(found):
            return dict(found)
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    return f"{MANIFEST} is damaged"


def _own_checksum(manifest: State) -> str:
    return xxhash.xxh3_128(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _wrong(path: Path, size: int, *, exact: bool) -> str | None:
    if not path.is_file():
        return "is missing"
    there = path.stat().st_size
    if there < size or (exact and there != size):
        return f"has {there} bytes, not {size}" if there else "is empty"
    return None


def _tail(path: Path, size: int) -> str:
    return _checksum(path, max(size - TAIL, 0), size)


def _checksum(path: Path, start: int, end: int) -> str:
    """XXH3 of the bytes from ``start`` to ``end``: a fast checksum, not a cryptographic one."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        file.seek(start)
        left = end - start
        while left > 0 and (part := file.read(min(left, 1 << 22))):
            digest.update(part)
            left -= len(part)
    return digest.hexdigest()


def _about_disk(error: Exception) -> bool:
    text = str(error).lower()
    words = (
        "no space left",
        "quota",
        "read-only file system",
        "file too large",
        "permission denied",
        "file write failed",
    )
    return any(word in text for word in words) or "pytorchstreamwriter" in text or "unexpected pos" in text
