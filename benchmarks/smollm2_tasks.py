"""What SmolLM2 can do, and what it can read: accuracy plain, with a solution shown, and with feedback shown.

    python benchmarks/smollm2_tasks.py [--only TASK ...] [--problems 24] [--threads 1]
    python benchmarks/smollm2_tasks.py --table

A policy can teach itself a task only where the shown model is better than the plain one. For each task one attempt is sampled
at each of the first held-out problems. Then the model is asked again, shown the reference (`solution`), or its own wrong attempt
with what the judge said of it (`feedback`; a problem solved at once is not asked again and counts as solved). The wording is
recipes/smollm2.jinja. The records are kept in benchmarks/results/smollm2_tasks.json after every task, and a task that has its
records is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "smollm2_tasks.json"
WORDING = Path(__file__).parents[1] / "recipes" / "smollm2.jinja"
ARMS = ("plain", "solution", "feedback")
TASKS = {
    "instructions/length": 32,
    "instructions/include": 32,
    "instructions/exclude": 32,
    "instructions/order": 32,
    "instructions/case": 24,
    "instructions/json": 64,
    "instructions/mixed": 32,
    "reasoning-gym/spell_backward?min_word_len=3&max_word_len=5": 12,
    "reasoning-gym/chain_sum?min_terms=2&max_terms=2&min_digits=1&max_digits=1": 12,
    "reasoning-gym/word_sorting?min_words=3&max_words=3": 32,
    "reasoning-gym/word_sequence_reversal?min_words=3&max_words=3": 24,
    "reasoning-gym/number_sorting?min_numbers=3&max_numbers=3&min_value=0&max_value=9&max_decimals=0": 24,
    "reasoning-gym/letter_counting": 12,
    "reasoning-gym/simple_equations": 12,
    "reasoning-gym/sentence_reordering?max_words_in_sentence=6": 24,
    "reasoning-gym/caesar_cipher?max_rotation=3&min_words=3&max_words=4": 24,
    "reasoning-gym/syllogism": 8,
    "reasoning-gym/family_relationships": 8,
}
"""Task -> longest completion in tokens."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(TASKS))
    parser.add_argument("--problems", type=int, default=24)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the records as a Markdown table and run nothing")
    args = parser.parse_args()
    records = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else []
    if not args.table:
        run(args, records)
    print(table(records))


def run(args: argparse.Namespace, records: list[dict[str, Any]]) -> None:
    """Measure the tasks that have no records yet."""
    missing = [task for task in args.only if not any(r["task"] == task for r in records)]
    if not missing:
        return
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from errata.models.smollm2 import smollm2_path

    torch.set_num_threads(args.threads)
    path = smollm2_path(args.model)
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=args.dtype).eval()
    for task in missing:
        records += measured(task, model, tokenizer, args, weights="q4" if "q4" in path else "hub")
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(table(records[-len(ARMS) :]).splitlines()[-1], flush=True)


def measured(task: str, model: Any, tokenizer: Any, args: argparse.Namespace, *, weights: str) -> list[dict[str, Any]]:
    """One record for each arm."""
    from errata import tasks
    from errata.contexts import Renderer
    from errata.evaluation.sampling import sample
    from errata.records import Rollout, TeacherContext, Verdict

    length = TASKS[task]
    rows = tasks.load(task, split="test")
    rows = rows.select(range(min(args.problems, len(rows))))
    settings = {"temperature": args.temperature, "top_p": 1.0, "max_completion_length": length, "dtype": args.dtype}
    renderer = Renderer(str(WORDING), max_tokens=None, count_tokens=len)

    def attempts(rows: Any, messages: Any = None) -> tuple[list[dict[str, Any]], float, int]:
        started = time.process_time()
        found = sample(
            model,
            tokenizer,
            rows,
            tasks.verifier(task),
            k=1,
            temperature=args.temperature,
            max_completion_length=length,
            batch_size=args.problems,
            seed=args.seed,
            messages=messages,
            progress=False,
        )
        tokens = sum(len(tokenizer(r["completion"])["input_ids"]) for r in found)
        return found, time.process_time() - started, tokens

    def shown(row: Any, attempt: Any, **context: str) -> Any:
        rollout = Rollout(0, row["problem_id"], row["prompt"], attempt["completion"], Verdict(0.0))
        return renderer.render(rollout, TeacherContext("reference", **context)).prompt

    plain = attempts(rows)
    both = list(zip(rows, plain[0], strict=True))
    solution = attempts(rows, [shown(row, a, solution=row["reference"]) for row, a in both])
    wrong = [i for i, a in enumerate(plain[0]) if a["score"] != 1.0]
    told = [shown(*both[i], feedback=plain[0][i].get("feedback") or "It is wrong.") for i in wrong]
    again = attempts(rows.select(wrong), told)
    feedback = (again[0] + [a for a in plain[0] if a["score"] == 1.0], *again[1:])
    return [
        {
            "model": "smollm2",
            "weights": weights,
            "task": task,
            "arm": arm,
            "seed": args.seed,
            "settings": settings,
            "problems": len(rows),
            "avg@1": sum(a["score"] == 1.0 for a in found) / len(rows),
            "tokens": tokens,
            "cpu_seconds": round(seconds, 1),
            "example": found[0]["completion"],
            "versions": {name: version(name) for name in ("torch", "transformers", "trl")},
            "machine": f"{platform.processor() or platform.machine()}, {args.threads} thread",
            "date": date.today().isoformat(),
        }
        for arm, (found, seconds, tokens) in zip(ARMS, (plain, solution, feedback), strict=True)
    ]


def table(records: list[dict[str, Any]]) -> str:
    """Rows of tasks, best gain by a shown solution first."""
    by_task: dict[str, dict[str, dict[str, Any]]] = {}
    for record in records:
        by_task.setdefault(record["task"], {})[record["arm"]] = record
    lines = ["| task | problems | plain | solution shown | feedback shown |", "|---|--:|--:|--:|--:|"]
    for task, arms in sorted(
        by_task.items(), key=lambda item: item[1]["plain"]["avg@1"] - item[1]["solution"]["avg@1"]
    ):
        numbers = [f"{arms[arm]['avg@1']:.2f}" for arm in ARMS]
        lines.append(f"| `{task}` | {arms['plain']['problems']} | {' | '.join(numbers)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
