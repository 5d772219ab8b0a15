"""Train for many steps and see that memory, descriptors, threads, step time and disk do not grow.

    python scripts/soak.py --steps 10000 --seed 0

A tiny run of the house policy, with a checkpoint and an evaluation every 500 steps. Another process looks at it from outside,
once a second. Step time is CPU time, in the lower quartile of a tenth's seconds: other work on the machine slows some of them.
Prints a row for each tenth of the run, and what grew per 1,000 steps in its second half.
Exit status 1 if something grew that should not (``LIMITS``).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

VERIFIER = '''
def judge(completions, **columns):
    """Even length passes: about half of the policy's attempts."""
    from errata.records import Verdict
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [Verdict(float(len(t) % 2 == 0), f"{len(t)} characters, an odd number", "trace") for t in texts]
'''
SETTINGS: dict[str, Any] = {
    "model": "house", "method": "distil", "teacher": "ema", "teacher_rate": 0.01, "replay_capacity": 4,
    "context_template": "{{ prompt }} {{ solution }}{{ feedback }}", "num_generations": 2, "per_device_train_batch_size": 2,
    "max_completion_length": 3, "learning_rate": 1e-5, "gradient_checkpointing": False, "eval_strategy": "steps",
    "eval_steps": 500, "eval_problems": 1, "eval_k": 1, "eval_teacher_problems": 0, "save_steps": 500, "save_total_limit": 1,
    "rollouts_saved": 1, "rollouts_max_mb": 4, "use_cpu": True,
}  # fmt: skip
LIMITS = {"memory": 1.0, "descriptors": 0.0, "threads": 0.0, "step": 0.5, "checkpoint": 0.01, "rollouts": 0.6}
"""What may grow per 1,000 steps in the second half: MB, numbers, ms, MB, MB."""


@dataclass(frozen=True)
class Look:
    """A run seen from outside."""

    step: int
    seconds: float
    """Time that the process has computed, so that other work on the machine does not count."""
    memory: float
    """Resident memory in MB."""
    descriptors: int
    threads: int
    metrics: float
    """Size of metrics.jsonl in MB; so are the next two."""
    rollouts: float
    checkpoint: float
    """The newest whole checkpoint; 0 without one."""


def write_recipe(folder: Path, steps: int, seed: int) -> Path:
    """A data set, a verifier and a recipe."""
    import yaml

    data = folder / "data"
    data.mkdir(parents=True)
    for split, n in (("train", 8), ("test", 1)):
        rows = [{"problem_id": f"{split}{i}", "prompt": f"{i}+{i}=", "reference": str(2 * i)} for i in range(n)]
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "verifier.py").write_text(VERIFIER)
    own = {"dataset_name": str(data), "verifier": [f"{folder / 'verifier.py'}:judge"], "max_steps": steps, "seed": seed}
    (folder / "soak.yaml").write_text(yaml.safe_dump({**SETTINGS, **own, "output_dir": str(folder / "run")}))
    return folder / "soak.yaml"


def look(pid: int, run: Path) -> Look | None:
    """``None`` before the first step, and once the process has ended."""
    from errata.reports.rundir import RunDirectory

    row = RunDirectory(run).last("metrics")
    try:
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
        )
        if row is None or "VmRSS" not in status:
            return None
        found = [p for p in run.glob("checkpoint-*") if (p / "manifest.json").is_file()]
        return Look(
            step=int(row["step"]),
            seconds=computed(pid),
            memory=int(status["VmRSS"].split()[0]) / 1024,
            descriptors=len(os.listdir(f"/proc/{pid}/fd")),
            threads=int(status["Threads"]),
            metrics=size(run / "metrics.jsonl"),
            rollouts=size(run / "rollouts.jsonl"),
            checkpoint=sum(map(size, max(found, key=lambda p: p.stat().st_mtime).rglob("*"))) if found else 0.0,
        )
    except OSError:  # a checkpoint was deleted meanwhile, or the process has ended
        return None


def computed(pid: int) -> float:
    """CPU seconds of a process, those of its threads and of the processes that it waited for included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def size(path: Path) -> float:
    """MB of a file."""
    return path.stat().st_size / 1e6 if path.is_file() else 0.0


def slope(looks: Sequence[Look], name: str) -> float:
    """Growth per 1,000 steps, as the median over pairs of looks half their range apart (Theil and Sen)."""
    half = len(looks) // 2
    slopes = [
        (getattr(b, name) - getattr(a, name)) / (b.step - a.step) * 1000
        for a, b in zip(looks[:half], looks[len(looks) - half :], strict=True)
        if b.step > a.step
    ]
    return statistics.median(slopes) if slopes else 0.0


def report(looks: Sequence[Look], steps: int) -> bool:
    """Print the table and the growth. Whether nothing grew that should not."""
    print("   step  ms/step  memory MB  descriptors  threads  metrics MB  rollouts MB  checkpoint MB")
    before, times = looks[0], []
    for tenth in range(1, 11):
        rows = [x for x in looks if x.step > before.step and x.step <= steps * tenth / 10]
        if not rows:
            continue
        now = rows[-1]
        each = [
            (b.seconds - a.seconds) / (b.step - a.step) * 1000 for a, b in pairwise([before, *rows]) if b.step > a.step
        ]
        times.append((now.step, statistics.quantiles(each, n=4)[0] if len(each) > 1 else each[0]))
        print(
            f"{now.step:7d}  {times[-1][1]:7.1f}  {now.memory:9.1f}  {now.descriptors:11d}  {now.threads:7d}  "
            f"{now.metrics:10.2f}  {now.rollouts:11.2f}  {now.checkpoint:13.3f}"
        )
        before = now
    late = [x for x in looks if x.step >= steps / 2]
    grown = {name: slope(late, name) for name in ("memory", "descriptors", "threads", "metrics", "rollouts")}
    grown["checkpoint"] = slope([x for x in late if x.checkpoint], "checkpoint")
    halves = [t for s, t in times if s > steps / 2]
    grown["step"] = (halves[-1] - halves[0]) / (steps * 0.4) * 1000 if len(halves) > 1 else 0.0
    print("growth per 1,000 steps, second half: " + ", ".join(f"{name} {value:.3f}" for name, value in grown.items()))
    bad = [name for name, limit in LIMITS.items() if grown[name] > limit]
    print(f"grew more than it may: {', '.join(bad)}" if bad else "nothing grew that should not")
    return not bad


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the run goes; a temporary directory unless given")
    args = parser.parse_args(argv)
    folder = (args.folder or Path(tempfile.mkdtemp(prefix="errata-soak-"))).resolve()
    recipe, log = write_recipe(folder, args.steps, args.seed), folder / "soak.log"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    environment["HF_DATASETS_CACHE"] = str(folder / "cache")
    started, looks = time.monotonic(), []
    with log.open("wb") as out:
        command = [sys.executable, "-m", "errata", "train", str(recipe)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment)
    while process.poll() is None:
        time.sleep(1.0)
        if (seen := look(process.pid, folder / "run")) is not None:
            looks.append(seen)
    if process.returncode or len(looks) < 20:
        print(f"the run ended with status {process.returncode} after {len(looks)} looks; see {log}")
        return 1
    print(f"{args.steps} steps in {time.monotonic() - started:.0f} s (seed {args.seed})")
    good = report(looks, args.steps)
    if args.folder is None:
        shutil.rmtree(folder)
    return int(not good)


if __name__ == "__main__":
    raise SystemExit(main())
