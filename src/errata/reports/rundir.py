"""The run directory: settings, environment and logs of one run, in files that survive a ``kill -9``.

config.yaml      the resolved settings
env.json         versions, git commit, device, dates, command line, and whether the run finished
metrics.jsonl    one object per logged step
rollouts.jsonl   sampled rollouts with verdict, context and per-token signals
eval.jsonl       one object per evaluation
guard.jsonl      what the guard saw, and what it did
eval_rollouts.jsonl  the attempts at a few of an evaluation's problems
code.patch       what of the code was not committed, if anything
checkpoint-N/    written by the trainer; manifest.json is its last file
policy.json      names of the trained policy's files, which are in this directory once training has ended
.lock            the process that writes here
"""

from __future__ import annotations

import errno
import importlib.metadata
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

STREAMS = ("metrics", "rollouts", "eval", "eval_rollouts", "guard")
"""The append-only logs; each is ``NAME.jsonl``."""

_PACKAGES = ("errata", "torch", "transformers", "trl", "accelerate", "peft", "datasets", "tokenizers", "vllm", "numpy")
_LENGTH = ("max_steps", "num_train_epochs")
"""Settings that may grow without making another run."""
_FIRST_READ = ("config.json", "adapter_config.json")
"""Files by which libraries recognise a model's directory."""
_TAIL_BYTES = 1 << 16
_PATCH_LIMIT = 200_000
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


class RunDirectory:
    """One run on disk. Making the object changes nothing; :meth:`open` begins or continues the run.

    A row is one line, written with one system call before :meth:`write` returns. So a kill leaves at most one incomplete
    last line: :meth:`read` skips it, and :meth:`open` removes it before more is written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    # -- the run as a whole ----------------------------------------------------------------------------------------

    def open(self, config: Mapping[str, Any], *, overwrite: bool = False, resume: bool = False) -> None:
        """Begin the run, or continue the one in this directory. Writes ``config.yaml`` and ``env.json``.

        Rows and checkpoints of a run with the same settings stay, and so do those of a run that is only made longer;
        :meth:`truncate_after` then removes the rows after its checkpoint. A run with other settings is removed if it has no
        checkpoint.

        Args:
            config: the settings, plain values.
            overwrite: remove an earlier run, whatever its state is.
            resume: continue the earlier run although the settings differ.
        Raises:
            ValueError: the path is a file, or has a ``config.yaml`` that is not a run's. Or it has a run with other
                settings that is finished or has checkpoints; the error names the settings that differ.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"output_dir: {self.path} is a file; choose another directory for the run")
        if self._config.is_file() and not self._env.is_file():
            raise ValueError(f"output_dir: {self.path} has a config.yaml that no run wrote; choose another directory")
        settings = plain(config)
        differing = self.differing(settings) if not overwrite else []
        if differing and not resume:
            if self.has_results:
                state = "a finished run" if self.finished else "an interrupted run"
                raise ValueError(
                    f"output_dir: {self.path} holds {state} with another {', '.join(differing)}; "
                    "name another directory with --run_name NAME or --output_dir DIR, replace the run with --overwrite true, "
                    "or use the same settings"
                )
            overwrite = True
        if overwrite:
            self._clear()
        self.path.mkdir(parents=True, exist_ok=True)
        dates: dict[str, Any] = {"started": _now()}
        if self._env.is_file():
            earlier = self.env()
            dates = {"started": earlier.get("started"), "resumed": [*(earlier.get("resumed") or []), _now()]}
        self._write_env({"status": "running", **dates, **environment()})
        write_whole(self._config, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
        if changes := _uncommitted():
            write_whole(self._patch, changes)
        self.truncate_after(math.inf)  # removes an incomplete last line

    def finish(self) -> None:
        """Record that the run is finished. A finished run is not overwritten by default."""
        self._write_env({**self.env(), "status": "finished", "finished": _now()})

    @property
    def finished(self) -> bool:
        """Whether :meth:`finish` was called for the run."""
        return self._env.is_file() and self.env().get("status") == "finished"

    @property
    def has_results(self) -> bool:
        """Whether the run is finished or has checkpoints: it is then never removed unasked."""
        return self.finished or bool(self.checkpoints())

    def differing(self, settings: Mapping[str, Any]) -> list[str]:
        """Names of the settings in which the run here differs from ``settings``; none where there is no run.

        A run that is only made longer is the same run.
        """
        return _differing(self.config(), plain(settings)) if self._config.is_file() else []

    def config(self) -> dict[str, Any]:
        """The resolved settings. Raises ``ValueError`` if this is no run directory."""
        return _mapping(self._config, yaml.safe_load)

    def env(self) -> dict[str, Any]:
        """Versions, device, dates and command of the run. Raises ``ValueError`` if this is no run directory."""
        return _mapping(self._env, json.loads)

    def patch(self) -> str:
        """What of the code was not committed when the run began or was last resumed, as ``git diff`` prints it."""
        return self._patch.read_text(encoding="utf-8", errors="replace") if self._patch.is_file() else ""

    def damaged(self) -> list[str]:
        """Which of ``config.yaml`` and ``env.json`` cannot be read."""
        found = []
        for path, read in ((self._config, self.config), (self._env, self.env)):
            try:
                read()
            except ValueError:
                found.append(path.name)
        return found

    def restore(self, name: str, text: str) -> None:
        """Write a copy of ``config.yaml`` or ``env.json`` back."""
        write_whole(self.path / name, text)

    def checkpoints(self) -> list[tuple[int, Path]]:
        """Step and directory of every checkpoint, by step."""
        found = [
            (match, path) for path in self.path.glob("checkpoint-*") if (match := _CHECKPOINT.fullmatch(path.name))
        ]
        return sorted((int(match[1]), path) for match, path in found)

    # -- the trained policy ----------------------------------------------------------------------------------------

    def publish_policy(self, folder: Path) -> None:
        """Move the files of a saved model from ``folder`` into this directory, and delete ``folder``.

        The model's configuration, which libraries look for first, is moved last. So a policy that is only partly moved is
        not taken for a model.
        """
        files = sorted((path for path in folder.iterdir() if path.is_file()), key=lambda path: path.name in _FIRST_READ)
        for path in files:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        write_whole(self._policy, json.dumps([path.name for path in files]) + "\n")
        for path in files:
            path.replace(self.path / path.name)
        shutil.rmtree(folder)

    def withdraw_policy(self) -> None:
        """Remove the files of :meth:`publish_policy`, before more training."""
        if not self._policy.is_file():
            return
        names = json.loads(self._policy.read_text(encoding="utf-8") or "[]")
        for name in sorted(names, key=lambda name: name not in _FIRST_READ):
            (self.path / Path(name).name).unlink(missing_ok=True)
        self._policy.unlink()

    # -- rows ------------------------------------------------------------------------------------------------------

    def write(self, stream: str, row: Mapping[str, Any]) -> None:
        """Append one row to ``metrics``, ``rollouts``, ``eval`` or ``eval_rollouts``. NaN and infinities become ``null``.

        Raises ``ValueError`` for another ``stream``.
        """
        # A tokenizer may decode to lone surrogates; they become JSON escapes.
        line = json.dumps(plain(row), ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")
        with self._stream(stream).open("ab", buffering=0) as file:
            start = file.seek(0, os.SEEK_END)
            if file.write(line + b"\n") <= len(line):  # the disk is full: only a part was written
                file.truncate(start)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._stream(stream)))

    def read(self, stream: str) -> list[dict[str, Any]]:
        """All rows of a stream; none if nothing was written yet. Raises ``ValueError`` naming a damaged line."""
        return [row for _, row in self._lines(stream)]

    def last(self, stream: str) -> dict[str, Any] | None:
        """The last whole row of a stream that may be growing; ``None`` if there is none."""
        path = self._stream(stream)
        if not path.exists():
            return None
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - _TAIL_BYTES, 0))
            lines = file.read().split(b"\n")[:-1]
        for line in reversed(lines):
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                return row
        return None

    def truncate_after(self, step: float) -> None:
        """Keep only the rows of steps up to ``step``, in all streams.

        A row without a step counts as the step of the row before it. ``truncate_after(-1)`` removes all.
        """
        for stream in STREAMS:
            if self._stream(stream).exists():
                write_whole(self._stream(stream), self._lines_up_to(stream, step))

    # -- inside ----------------------------------------------------------------------------------------------------

    @property
    def _config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def _policy(self) -> Path:
        return self.path / "policy.json"

    @property
    def _env(self) -> Path:
        return self.path / "env.json"

    @property
    def _patch(self) -> Path:
        return self.path / "code.patch"

    def _stream(self, stream: str) -> Path:
        if stream not in STREAMS:
            raise ValueError(f"stream: no {stream!r}; a run has {', '.join(STREAMS)}")
        return self.path / f"{stream}.jsonl"

    def _write_env(self, env: Mapping[str, Any]) -> None:
        write_whole(self._env, json.dumps(plain(env), indent=2, ensure_ascii=False) + "\n")

    def _lines(self, stream: str) -> Iterator[tuple[bytes, dict[str, Any]]]:
        path = self._stream(stream)
        if not path.exists():
            return
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):  # the incomplete last line
                    return
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                if not isinstance(row, dict):
                    raise ValueError(f"run: line {number} of {path} is no JSON object; remove that line")
                yield line, row

    def _lines_up_to(self, stream: str, step: float) -> Iterator[bytes]:
        current = 0.0
        for line, row in self._lines(stream):
            current = current if row.get("step") is None else row["step"]
            if current <= step:
                yield line

    def _clear(self) -> None:
        self.withdraw_policy()
        shutil.rmtree(self.path / "policy.part", ignore_errors=True)
        for name in (
            "config.yaml",
            "env.json",
            "code.patch",
            "report.html",
            "best.safetensors",
            *(f"{stream}.jsonl" for stream in STREAMS),
        ):
            (self.path / name).unlink(missing_ok=True)
        for _, checkpoint in self.checkpoints():
            shutil.rmtree(checkpoint)


def environment() -> dict[str, Any]:
    """Versions, git commit, device and command line of this process, JSON-serialisable."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name)) is not None},
        "git": _git(),
        "device": _device(),
        "cpus": os.cpu_count(),
        "argv": sys.argv,
    }


def plain(value: Any) -> Any:
    """``value`` in JSON's types: NaN and infinities become ``None``, arrays and tuples lists, other objects text."""
    if isinstance(value, Enum):
        return plain(value.value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    for kind in (int, str):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(map(plain, value), key=str)
    if hasattr(value, "tolist"):  # arrays, tensors and their scalars, without importing their libraries
        return plain(value.tolist())
    return str(value)


def _differing(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of the settings that differ. A run that is only made longer is the same run."""
    return sorted(
        key
        for key in {*earlier, *now}
        if earlier.get(key) != now.get(key) and not (key in _LENGTH and _more(earlier.get(key), now.get(key)))
    )


def _more(earlier: Any, now: Any) -> bool:
    return isinstance(earlier, int | float) and isinstance(now, int | float) and now > earlier > 0


def _mapping(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """The mapping in a file of settings. Raises ``ValueError`` naming a file without one."""
    if not path.is_file():
        raise ValueError(f"run: {path.parent} has no {path.name}; is it a run directory?")
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(
            f"run: {path} is damaged: it holds no settings; restore it, or start again with --overwrite true"
        )
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """Commit of the working directory and whether it has changes; ``None`` where there is no git or no repository."""
    try:
        commit, changes = (
            subprocess.run(["git", *command], capture_output=True, text=True, timeout=10, check=True).stdout.strip()
            for command in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed": bool(changes)}


def _uncommitted() -> str:
    """``git diff HEAD`` of the working directory, cut to ``_PATCH_LIMIT`` characters; empty without git or changes."""
    try:
        found = subprocess.run(["git", "diff", "HEAD"], capture_output=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    text = found.decode("utf-8", "replace")
    return text if len(text) <= _PATCH_LIMIT else f"{text[:_PATCH_LIMIT]}\n[cut: {len(text):,} characters in all]\n"


def _device() -> str:
    torch = sys.modules.get("torch")  # not imported for this alone
    if torch is not None and torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return "cpu"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_whole(path: Path, content: str | Iterable[bytes]) -> None:
    """Write a file in one step: at any moment the old file or the new one is there, never a part.

    This also holds if the process is killed or the machine stops.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        with temporary.open("wb") as file:
            file.writelines([content.encode("utf-8", "backslashreplace")] if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
