"""Teacher and student along real runs, beside what docs/theory.md computes exactly: monotone improvement and regret.

    python benchmarks/along.py --run        # the runs without a record (three seeds of each), one thread
    python benchmarks/along.py --render     # write the table of docs/results.md from the records

The house policy learns from 8 problems x 8 rollouts a step on chains of four operations. The teacher is shown the row's
solution. In the world ``rule`` ``*`` means x*n+3 in all problems, which the student can find out. In ``secret`` it
means x*n+s with a digit s of each problem's own, which the teacher reads in the solution and the student cannot know. Every
five steps, on 64 held-out problems with 8 samples each at temperature 1:

- ``student`` and ``teacher``: their accuracies J(pi) and J(pi_T), the teacher's with the solution shown;
- ``kl``: sum over an answer's tokens of KL(teacher || student) over the whole vocabulary, at the student's own states, in nats.

The bound of docs/theory.md is gap <= span * sqrt(H/2 * kl). Here the span is at most 1, since the reward is 0 or 1, and H is
22 tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from datasets import Dataset
from transformers import TrainerCallback

import errata
from errata import tasks
from errata.commands.train import quiet
from errata.contexts import Renderer
from errata.evaluation.sampling import sample
from errata.feedback.rulebook import RulebookVerifier, rule_of, solve
from errata.records import Rollout, TeacherContext, Verdict

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "benchmarks" / "results" / "along"
PAGE = ROOT / "docs" / "results.md"
SEEDS, STEPS, EVERY, PROBLEMS, K = 3, 60, 5, 64, 8
TOKENS = 22
"""H: an answer to a chain of four, ``7a+3=0b*4=3c-2=1d+1=2``, and its end."""
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "distil, frozen": ("rule", {"method": "distil", "teacher": "frozen"}),
    "sdpo, frozen": ("rule", {"method": "sdpo", "teacher": "frozen"}),
    "distil, ema": ("rule", {"method": "distil", "teacher": "ema"}),
    "distil, frozen, secret rule": ("secret", {"method": "distil", "teacher": "frozen"}),
}
SETTINGS: dict[str, Any] = {
    "model": "house",
    "method_args": {"sources": ["reference"]},
    "context_template": "house",
    "learning_rate": 2e-3,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 5,
    "max_steps": STEPS,
    "per_device_train_batch_size": 64,
    "num_generations": 8,
    "max_completion_length": 40,
    "gradient_checkpointing": False,
    "eval_strategy": "no",
    "save_strategy": "no",
    "rollouts_saved": 0,
    "use_cpu": True,
}


def rows_of(world: str, split: str) -> Dataset:
    """The rows of ``rulebook/new-rule``, in the world ``secret`` with a rule of its own in each."""
    rows = tasks.load("rulebook/new-rule", split=split)
    if world == "rule":
        return rows
    rng = random.Random(f"{split} secret")

    def with_secret(row: dict[str, Any]) -> dict[str, Any]:
        rulebook = f"x+n, x-n, x*n+{rng.randrange(1, 10)}"
        reference = solve(row["expression"], rule_of(rulebook))
        return {"rulebook": rulebook, "reference": reference, "answer": reference[-1]}

    return Dataset.from_list([row | with_secret(row) for row in rows])


class Along(TrainerCallback):  # type: ignore[misc]
    """Measures teacher and student before the first step and every ``EVERY`` steps."""

    def __init__(self, rows: Dataset, seed: int) -> None:
        self.rows, self.seed = rows, seed
        self.found: list[dict[str, Any]] = []
        self.trainer: Any = None
        renderer = Renderer("house")
        self.shown = [
            renderer.render(
                Rollout(0, "", row["prompt"], "", Verdict(0.0)), TeacherContext("reference", solution=row["reference"])
            ).prompt
            for row in rows
        ]

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._measure(0, model)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step % EVERY == 0:
            self._measure(state.global_step, model)

    def _measure(self, step: int, student: Any) -> None:
        with self.trainer.teacher.generating(student) as teacher:
            own, texts = self._accuracy(student, None)
            shown, _ = self._accuracy(teacher, self.shown)
            kl = self._kl(student, teacher, texts)
        self.found.append({"step": step, "student": own, "teacher": shown, "kl": kl})

    def _accuracy(self, model: Any, messages: Any) -> tuple[list[int], list[str]]:
        """How many of each problem's samples are right, and the samples."""
        found = sample(
            model,
            self.trainer.tokenizer,
            self.rows,
            RulebookVerifier(),
            k=K,
            max_completion_length=40,
            batch_size=256,
            seed=self.seed,
            messages=messages,
            progress=False,
        )
        right = np.array([row["score"] == 1.0 for row in found]).reshape(len(self.rows), K).sum(axis=1)
        return right.tolist(), [row["completion"] for row in found]

    @torch.no_grad()
    def _kl(self, student: Any, teacher: Any, texts: list[str]) -> float:
        """Mean over answers of sum_t KL(teacher || student), at the answers' states."""
        total = 0.0
        for start in range(0, len(texts), 128):
            part = range(start, min(start + 128, len(texts)))
            answers = [texts[i] for i in part]
            plain = self._logp(student, [self.rows[i // K]["prompt"] for i in part], answers)
            told = self._logp(teacher, [self.shown[i // K] for i in part], answers)
            total += sum(float((t.exp() * (t - s)).sum()) for t, s in zip(told, plain, strict=True))
        return total / len(texts)

    def _logp(self, model: Any, prompts: list[Any], answers: list[str]) -> list[torch.Tensor]:
        """(T,V) log-probs of the next token at each state of each answer, the end of the turn among them."""
        tokenizer = self.trainer.tokenizer
        heads = [tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=False) for p in prompts]
        tails = [[*tokenizer(a, add_special_tokens=False).input_ids, tokenizer.eos_token_id] for a in answers]
        inputs = tokenizer.pad(
            {"input_ids": [h + t for h, t in zip(heads, tails, strict=True)]}, padding_side="left", return_tensors="pt"
        )
        training = model.training
        logits = model.eval()(**inputs).logits.log_softmax(-1)
        model.train(training)
        return [row[-len(t) - 1 : -1] for row, t in zip(logits, tails, strict=True)]


def run(label: str, seed: int) -> dict[str, Any]:
    """Train once and measure; the record."""
    world, own = RUNS[label]
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        along = Along(rows_of(world, "test").select(range(PROBLEMS)), seed)
        args = {**SETTINGS, "teacher": own["teacher"], "seed": seed, "output_dir": f"{folder}/run"}
        method_args = args.pop("method_args")
        trainer = errata.Trainer(
            verifiers=RulebookVerifier(),
            args=args,
            train_dataset=rows_of(world, "train"),
            method=own["method"],
            method_args=method_args,
            callbacks=[along],
        )
        along.trainer = trainer
        trainer.train()
    return {
        "run": label,
        "seed": seed,
        "world": world,
        "settings": {**SETTINGS, **own},
        "found": along.found,
        "cpu_s": round(time.process_time() - began, 1),
        "machine": f"{platform.machine()}, one thread",
        "date": date.today().isoformat(),
    }


def shares(record: dict[str, Any], who: str) -> np.ndarray:
    """(evaluations,) accuracies."""
    return np.array([np.mean(row[who]) / K for row in record["found"]])


def falls(record: dict[str, Any]) -> int:
    """Evaluations at which the student is worse than at the one before by more than two standard errors, paired by problem."""
    solved = np.array([row["student"] for row in record["found"]]) / K
    change = np.diff(solved, axis=0)
    error = change.std(axis=1, ddof=1) / np.sqrt(change.shape[1])
    return int((change.mean(axis=1) < -2 * error).sum())


def regret(record: dict[str, Any]) -> np.ndarray:
    """(evaluations,) sum over the steps so far of the teacher's accuracy less the student's; trapezoids between evaluations."""
    gap = shares(record, "teacher") - shares(record, "student")
    return np.concatenate([[0.0], np.cumsum((gap[1:] + gap[:-1]) / 2 * EVERY)])


def growth(record: dict[str, Any]) -> float:
    """The exponent a of regret ~ step^a over the second half of the run, by least squares of the logarithms."""
    steps = np.array([row["step"] for row in record["found"]])
    late = steps >= STEPS / 2
    return float(np.polyfit(np.log(steps[late]), np.log(np.maximum(regret(record)[late], 1e-9)), 1)[0])


def within_bound(record: dict[str, Any]) -> float:
    """The largest share that the gap is of sqrt(H/2 * kl), over the evaluations."""
    gap = shares(record, "teacher") - shares(record, "student")
    kl = np.array([row["kl"] for row in record["found"]])
    return float((gap / np.sqrt(TOKENS / 2 * kl)).max())


def file_of(label: str, seed: int) -> Path:
    return RECORDS / label.replace(", ", "-").replace(" ", "-") / f"seed-{seed}.json"


def table() -> str:
    head = ["run", "seeds", "teacher", "student, step 0", "20", "40", "60", "kl, step 0", "20", "60", "falls"]
    head += ["regret", "grows as", "gap / bound"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    for label in RUNS:
        found = [json.loads(f.read_text()) for seed in range(SEEDS) if (f := file_of(label, seed)).is_file()]
        if not found:
            continue
        student = np.mean([shares(r, "student") for r in found], axis=0)
        teacher = np.mean([shares(r, "teacher") for r in found], axis=0)
        kl = np.mean([[row["kl"] for row in r["found"]] for r in found], axis=0)
        row = [f"`{label}`", str(len(found)), f"{teacher[0]:.2f} → {teacher[-1]:.2f}"]
        row += [f"{student[step // EVERY]:.2f}" for step in (0, 20, 40, 60)]
        row += [f"{kl[step // EVERY]:.1f}" for step in (0, 20, 60)]
        row += [f"{sum(map(falls, found))} of {len(found) * STEPS // EVERY}"]
        row += [f"{np.mean([regret(r)[-1] for r in found]):.0f}", f"n^{np.mean([growth(r) for r in found]):.2f}"]
        lines.append("| " + " | ".join([*row, f"{max(map(within_bound, found)):.2f}"]) + " |")
    return "\n".join(lines)


def page(text: str) -> str:
    """The page with the table between its markers."""
    begin, end = "<!-- benchmarks/along.py: begin -->\n", "\n<!-- benchmarks/along.py: end -->"
    before, _, rest = text.partition(begin)
    _, marker, after = rest.partition(end)
    if not marker:
        raise ValueError(f"docs/results.md: no place for the table of {Path(__file__).name}")
    return before + begin + table() + end + after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="with --run: only seeds below this")
    parser.add_argument("--render", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    quiet()
    if args.run:
        for seed in range(args.seeds):  # seeds outermost: an interrupted study has all runs of its first seeds
            for label in RUNS:
                if file_of(label, seed).is_file():
                    continue
                record = run(label, seed)
                file_of(label, seed).parent.mkdir(parents=True, exist_ok=True)
                file_of(label, seed).write_text(json.dumps(record) + "\n", encoding="utf-8")
                print(label, seed, *(f"{x:.2f}" for x in shares(record, "student")), f"{record['cpu_s']} s", flush=True)
    if args.render:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(table())


if __name__ == "__main__":
    main()
