"""Run cells: ``python -m tests.invariant.worker`` reads lines ``NAME FOLDER`` and answers each with one JSON line.

The libraries are imported once. Each process of a cell is then forked from this one, which holds no model and has trained
nothing, so that a cell sees what it would in a fresh process, without the seconds that importing costs.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import yaml
from tests.invariant.cells import BY_NAME, HERE, Cell, is_timing

ROOT = HERE.parents[1]
TIMEOUT_S = 240.0

# One thread, no network, and one set of instructions, so that one machine computes what another does.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_CBWR": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
}


class CellError(RuntimeError):
    """A cell's run stopped with an error."""


class Worker:
    """A worker process, started with the first cell."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(self, cell: Cell, folder: Path) -> dict[str, list[Any]]:
        """The cell's metrics, see ``read``; ``folder`` takes its files. Raises ``CellError`` with the end of its output."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.invariant.worker"],
                cwd=ROOT,
                env=environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{cell.name} {folder}\n")
        answer = json.loads(self._process.stdout.readline())
        if any(answer["status"]):
            raise CellError(f"{cell.name}: exit status {answer['status']}\n{_logs(folder)}")
        return read(folder / "run" / "metrics.jsonl")

    def close(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait(timeout=30)


def run_fresh(cell: Cell, folder: Path) -> dict[str, list[Any]]:
    """The same by the command line itself: a fresh process, or two under ``torchrun``."""
    command = [sys.executable, "-m", "errata", *prepare(cell, folder)]
    if cell.processes > 1:
        launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={cell.processes}", "-m", "errata"]
        command = [sys.executable, "-m", *launcher, *command[3:]]
    env = {**environment(), "HF_DATASETS_CACHE": str(folder / "cache")}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode:
        raise CellError(f"{cell.name}: exit status {done.returncode}\n{done.stderr[-3000:]}")
    return read(folder / "run" / "metrics.jsonl")


def environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    path = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])  # this checkout's errata
    return {**kept, **ENVIRONMENT, "PYTHONPATH": path}


def prepare(cell: Cell, folder: Path) -> list[str]:
    """Write recipe and rows into ``folder``; errata's arguments."""
    shutil.rmtree(folder, ignore_errors=True)
    rows = folder / "rows"
    rows.mkdir(parents=True)
    (rows / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in cell.rows()))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(cell.recipe(rows)))
    return ["train", str(folder / "recipe.yaml"), "--output_dir", str(folder / "run")]


def read(path: Path) -> dict[str, list[Any]]:
    """Every metric that does not measure time, by name: its value at each step, ``"absent"`` where it was not logged."""
    steps = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    if [step["step"] for step in steps] != [1, 2, 3]:
        raise CellError(f"{path}: steps {[step['step'] for step in steps]}, not 1, 2, 3")
    names = dict.fromkeys(name for step in steps for name in step if not is_timing(name))
    return {name: [step.get(name, "absent") for step in steps] for name in names}


def main() -> None:
    # What takes long to import. Nothing of errata that may move.
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import torch  # noqa: F401
    import transformers.trainer  # noqa: F401
    import trl.scripts.grpo
    import trl.trainer.grpo_trainer  # noqa: F401

    for line in sys.stdin:
        name, folder = line.split(maxsplit=1)
        print(json.dumps({"name": name, "status": _run(BY_NAME[name], Path(folder.strip()))}), flush=True)


def _run(cell: Cell, folder: Path) -> list[int]:
    arguments = prepare(cell, folder)
    port = _free_port()
    children = [_fork(cell, rank, port, arguments, folder) for rank in range(cell.processes)]
    status: dict[int, int] = {}
    deadline = time.monotonic() + TIMEOUT_S
    while len(status) < len(children):
        for pid in children:
            if pid not in status:
                ended, code = os.waitpid(pid, os.WNOHANG)
                if ended:
                    status[pid] = os.waitstatus_to_exitcode(code)
        late = time.monotonic() > deadline or any(status.values())  # one that failed leaves the other waiting
        for pid in children:
            if late and pid not in status:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return [status[pid] for pid in children]


def _fork(cell: Cell, rank: int, port: int, arguments: list[str], folder: Path) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        log = os.open(folder / f"log{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for here, there in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(here, there)
        import datasets.config

        datasets.config.HF_DATASETS_CACHE = folder / f"cache{rank}"
        if cell.processes > 1:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(cell.processes),
                "LOCAL_WORLD_SIZE": str(cell.processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        from errata.cli import main as errata

        code = errata(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _logs(folder: Path) -> str:
    return "\n".join(f"-- {log.name}\n{log.read_text()[-2500:]}" for log in sorted(folder.glob("log*.txt")))


if __name__ == "__main__":
    main()
