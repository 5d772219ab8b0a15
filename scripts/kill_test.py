"""Kill runs at random moments and see that each finishes as the run that nobody killed.

    python scripts/kill_test.py --kills 200 --seed 0

Each trial starts a run of the house policy, kills it up to three times (SIGKILL, SIGTERM or SIGINT; after a random time, or while
a checkpoint is being written), and starts the same command again until it finishes. Compared with the uninterrupted run, bit
for bit: the policy's weights, and every row of metrics, rollouts and evaluations without its times. Exit status 1 if any differs.

Runs are forked from this process, which has imported everything once; every fifth is a process of its own, as a user starts it.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VERIFIER = '''
def judge(completions, **columns):
    """Even length passes: about half of the policy's attempts."""
    from errata.records import Verdict
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [Verdict(float(len(t) % 2 == 0), f"{len(t)} characters, an odd number", "trace") for t in texts]
'''
BASE: dict[str, Any] = {
    "model": "house", "reward_funcs": [], "context_template": "{{ prompt }} {{ solution }}{{ feedback }}", "num_generations": 4,
    "per_device_train_batch_size": 8, "max_completion_length": 6, "max_steps": 10, "learning_rate": 1e-3,
    "gradient_checkpointing": False, "eval_strategy": "steps", "eval_steps": 3, "eval_on_start": True, "eval_problems": 2,
    "preflight": 0, "eval_k": 2, "eval_teacher_problems": 1, "save_steps": 3, "use_cpu": True, "seed": 1,
}  # fmt: skip
"""Eight problems, two a step: past the end of the data twice."""
RUNS: dict[str, dict[str, Any]] = {
    "an EMA teacher and replay": {"method": "distil", "teacher": "ema", "teacher_rate": 0.3, "replay_capacity": 6},
    "drift's memory": {"method": "drift", "method_args": {"warmup_steps": 2}},
    "inside a generation batch": {"method": "sdpo", "steps_per_generation": 2, "logging_steps": 4},
    "LoRA": {"method": "distil", "use_peft": True, "lora_r": 4, "lora_target_modules": ["q_proj", "v_proj"]},
}
TIMES = ("time", "runtime", "per_second")
TOO_LATE = "not killed: it had finished"
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@dataclass
class Running:
    pid: int
    status: int | None = None

    def ended(self) -> int | None:
        """The exit status, negative for a signal; ``None`` while it runs."""
        if self.status is None:  # a process can be waited for once
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status


def write_recipes(folder: Path) -> None:
    """One data set, one verifier and a recipe for each kind of run."""
    import yaml

    data = folder / "data"
    data.mkdir(parents=True)
    for split, n in (("train", 8), ("test", 2)):
        rows = [{"problem_id": f"{split}{i}", "prompt": f"{i}+{i}=", "reference": str(2 * i)} for i in range(n)]
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "verifier.py").write_text(VERIFIER)
    for number, changes in enumerate(RUNS.values()):
        settings = {k: v for k, v in {**BASE, **changes}.items() if k != "reward_funcs"}
        settings |= {"dataset_name": str(data), "verifier": [f"{folder / 'verifier.py'}:judge"]}
        (folder / f"{number}.yaml").write_text(yaml.safe_dump(settings))


def start(recipe: Path, run: Path, log: Path, *, fork: bool) -> Running:
    words = ["train", str(recipe), "--output_dir", str(run)]
    if not fork:
        with log.open("ab") as out:
            command = [sys.executable, "-m", "errata", *words]
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        return Running(process.pid)
    pid = os.fork()
    if pid:
        return Running(pid)
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    status = 1
    try:
        from errata.cli import main

        status = main(words)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def finish(running: Running, limit_s: float = 300.0) -> int:
    """The exit status."""
    deadline = time.monotonic() + limit_s
    while (status := running.ended()) is None:
        if time.monotonic() > deadline:
            os.kill(running.pid, signal.SIGKILL)
            raise RuntimeError(f"a run did not end in {limit_s:.0f} s")
        time.sleep(0.01)
    return status


def where(run: Path) -> str:
    """What a run was doing when it was killed, as far as its directory tells."""
    if not (run / "metrics.jsonl").is_file():
        return "starting" if not (run / "eval.jsonl").is_file() else "first step"
    torn = [p for p in run.glob("checkpoint-*") if not (p / "manifest.json").is_file()]
    if torn:
        return "writing a checkpoint"
    return "at its end" if (run / "policy.part").exists() or (run / "policy.json").exists() else "between checkpoints"


def kill(running: Running, run: Path, rng: random.Random, typical_s: float) -> tuple[str, int | None]:
    """Kill after a random time, or within a random checkpoint's writing; what was hit, and the status if it ended first."""
    deadline = time.monotonic() + rng.uniform(0.0, 0.9 * typical_s)
    writing = rng.random() < 0.3
    known = {p.name for p in run.glob("checkpoint-*")}
    number = rng.choice(SIGNALS)
    while (status := running.ended()) is None:
        if writing and {p.name for p in run.glob("checkpoint-*")} - known:
            time.sleep(rng.uniform(0.0, 0.05))
            break
        if not writing and time.monotonic() > deadline:
            break
        time.sleep(0.001)
    if status is not None:
        return TOO_LATE, status
    found = where(run)
    os.kill(running.pid, number)
    if number != signal.SIGKILL and rng.random() < 0.2:  # twice in a row
        time.sleep(rng.uniform(0.0, 0.1))
        if running.ended() is None:
            os.kill(running.pid, signal.SIGKILL)
    return f"{signal.Signals(number).name} {found}", None


def result(run: Path) -> dict[str, Any]:
    """What must not depend on interruptions."""
    weights = next(p for p in (run / "model.safetensors", run / "adapter_model.safetensors") if p.is_file())
    found: dict[str, Any] = {"weights": hashlib.sha256(weights.read_bytes()).hexdigest()}
    for stream in ("metrics", "rollouts", "eval"):
        lines = (run / f"{stream}.jsonl").read_text(encoding="utf-8").splitlines()
        found[stream] = [{k: v for k, v in json.loads(line).items() if not k.endswith(TIMES)} for line in lines]
    return found


def difference(a: dict[str, Any], b: dict[str, Any]) -> str:
    for name in a:
        if a[name] == b[name]:
            continue
        if name == "weights":
            return "weights"
        for x, y in zip(a[name], b[name], strict=False):
            if x != y:
                return f"{name}, step {x.get('step')}: {[k for k in {*x, *y} if x.get(k) != y.get(k)]}"
        return f"{name}: {len(b[name])} rows, not {len(a[name])}"
    return ""


def trial(
    folder: Path, number: int, rng: random.Random, expected: dict[str, Any], typical_s: float, kills: int
) -> list[str]:
    """One run, killed ``kills`` times. What was hit; raises ``RuntimeError`` if it does not finish the same."""
    kind = number % len(RUNS)
    recipe, run, log = folder / f"{kind}.yaml", folder / f"run{number}", folder / f"run{number}.log"
    hit = []
    for attempt in range(kills):
        running = start(recipe, run, log, fork=(number + attempt) % 5 != 4)
        found, status = kill(running, run, rng, typical_s)
        hit.append(found)
        if status is None:
            status = finish(running)
        if status not in (0, 130, 143, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT):
            raise RuntimeError(f"{hit}: exit status {status}; see {log}")
    status = finish(start(recipe, run, log, fork=True))
    if status != 0:
        raise RuntimeError(f"{hit}: the last start ended with status {status}; see {log}")
    if said := difference(expected, result(run)):
        raise RuntimeError(f"{hit}: another run: {said}; see {run}")
    shutil.rmtree(run)
    log.unlink()
    return hit


def main(argv: list[str] | None = None, say: Callable[[str], None] = print) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the runs go; a temporary directory unless given")
    args = parser.parse_args(argv)
    for name, value in {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}.items():
        os.environ[name] = value  # before torch is loaded
    folder = (args.folder or Path(tempfile.mkdtemp(prefix="errata-kills-"))).resolve()
    os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
    write_recipes(folder)
    import torch

    import errata.commands.train  # noqa: F401

    torch.set_num_threads(1)
    rng = random.Random(args.seed)
    expected, seconds = [], []
    for number, name in enumerate(RUNS):
        run = folder / f"whole{number}"
        begun = time.monotonic()
        status = finish(start(folder / f"{number}.yaml", run, folder / f"whole{number}.log", fork=True))
        if status:
            say(f"{name}: the uninterrupted run ended with status {status}; see {folder / f'whole{number}.log'}")
            return 1
        seconds.append(time.monotonic() - begun)
        expected.append(result(run))
    done, number, failed = 0, 0, 0
    hits: collections.Counter[str] = collections.Counter()
    while done < args.kills:
        kills = min(rng.choice((1, 1, 2, 3)), args.kills - done)
        kind = number % len(RUNS)
        try:
            hit = trial(folder, number, rng, expected[kind], seconds[kind], kills)
            hits.update(hit)
            kills = sum(name != TOO_LATE for name in hit)
        except RuntimeError as error:
            failed += 1
            say(f"trial {number} ({list(RUNS)[kind]}): {error}")
        done, number = done + kills, number + 1
        if number % 10 == 0:
            say(f"{done} kills, {number} runs, {failed} that did not finish the same")
    for name, count in sorted(hits.items()):
        say(f"  {count:4d}  {name}")
    say(
        f"{done} kills in {number} runs (seed {args.seed}): {number - failed} finished bit for bit as the uninterrupted one"
    )
    if not failed and args.folder is None:
        shutil.rmtree(folder)
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
