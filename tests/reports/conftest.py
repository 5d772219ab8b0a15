"""Run directories in the exact format training writes, made without training."""

import math
import random

import pytest

from errata.reports.rundir import RunDirectory

HOSTILE = '</script><script>window.pwned = true</script><img src=x onerror="window.pwned = true">'
LEVELS = {"grpo": 0.12, "sdpo": 0.55, "distil": 0.85, "drift": 0.83}
"""Where the made-up learning curves of the methods end."""


def make_run(path, *, method="distil", seed=0, steps=60, every=15, k=8, finished=True, rollouts=True, **settings):
    """One synthetic run; the same arguments give the same run."""
    rng = random.Random(f"{method} {seed}")
    run = RunDirectory(path)
    run.open(
        {
            "model": "house", "task": "rulebook/new-rule", "method": method, "max_steps": steps, "eval_k": k,
            "seed": seed, "learning_rate": 1e-3, "per_device_train_batch_size": 128, "num_generations": 8,
            **settings,
            "method_settings": {"divergence": "forward_ce" if method == "distil" else "js", "sources": ["sibling", "feedback"]},
        }
    )  # fmt: skip
    has_teacher, tokens = method != "grpo", 0
    for step in range(steps + 1):
        skill = 0.05 + (LEVELS[method] - 0.05) / (1 + math.exp(6 - 11 * step / steps)) + rng.gauss(0, 0.01)
        if step:
            tokens += 3600 + rng.randrange(200)
            run.write("metrics", _metrics(rng, step, skill, tokens, method))
            if rollouts:
                for number in range(4):
                    run.write("rollouts", rollout(rng, step, skill, method=method, hostile=step == 2 and number == 0))
        if step % every == 0:
            run.write("eval", _evaluation(rng, step, skill, k, has_teacher))
    if finished:
        run.finish()
    return run.path


def _metrics(rng, step, skill, tokens, method):
    row = {
        "step": step, "loss": 0.4 - 0.2 * skill, "grad_norm": 1 + rng.random(), "learning_rate": 1e-3,
        "num_tokens": float(tokens), "completions/mean_length": 22 + 4 * skill + rng.random(), "reward": skill,
        "reward_std": (skill * (1 - skill)) ** 0.5, "frac_reward_zero_std": 0.5, "groups/solve_all": skill**4,
        "groups/solve_none": (1 - skill) ** 4, "rollouts/unjudged": 0.0,
        "entropy": 0.5 - 0.3 * skill + 0.02 * rng.random(), "step_time": 0.4 + 0.1 * rng.random(), "epoch": step / 64,
    }  # fmt: skip
    if method != "grpo":
        row |= {
            "context/sibling": skill * 0.8, "context/feedback": 1 - skill, "context/none": 0.2 * skill,
            "teacher/entropy": 0.1, "teacher/gap": 0.4 * (1 - skill), "teacher/divergence": 0.6 * (1 - skill),
            "context/cut": 0.0, "context/dropped": 0.0,
        }  # fmt: skip
    if method == "distil":
        row |= {"future_credit": 3 * (1 - skill), "local_cost": 0.3 * (1 - skill), "future_share": 0.8}
    if method == "drift":
        row |= {
            "curriculum/stage": 1.0 if step < 15 else 2.0, "ledger/problems": min(16 * step, 1024),
            "buffer/problems": 3 * step, "buffer/texts": 5 * step, "buffer/hits": 2 * step,
            "buffer/misses": step, "buffer/evictions": 0,
            "routing/hard": 1 - skill, "routing/medium": skill / 2, "routing/easy": skill / 2,
        }  # fmt: skip
    return row


def _evaluation(rng, step, skill, k, has_teacher):
    row = {"step": step, "task": "rulebook/new-rule", "split": "test", "n_problems": 64, "k": k}
    for name, value in {f"avg@{k}": skill, f"pass@{k}": 1 - (1 - skill) ** 3}.items():
        row |= {name: value, f"{name}_low": max(value - 0.05, 0.0), f"{name}_high": min(value + 0.05, 1.0)}
    row |= {"length": 24 + 4 * skill, "format_rate": 0.9, "unjudged": 0}
    return row | ({"teacher_accuracy": 0.9 + 0.05 * rng.random()} if has_teacher else {})


def rollout(rng, step, skill, *, method="distil", hostile=False):
    """One row of ``rollouts.jsonl``: a chain of sums mod 10 under the new rule, digits as tokens."""
    problem = random.Random(f"problem {rng.randrange(40)}")
    first, operations = problem.randrange(10), [(problem.choice("+-*"), problem.randrange(1, 10)) for _ in range(4)]
    question = str(first) + "".join(f"{o}{n}" for o, n in operations) + "=?"
    value, text, slips, expected = first, "", [], []
    for operator, n in operations:
        right = {"+": value + n, "-": value - n, "*": value * n + 3}[operator] % 10
        wrong = value * n % 10 if operator == "*" else (right + 1) % 10
        given = right if rng.random() < skill**0.2 else wrong
        if given != right:
            slips.append((len(text) + 4, str(right), str(given)))
            expected.append(f"{value}{operator}{n}={right} not {value}{operator}{n}={given}")
        text += f"{value}{operator}{n}={given};"
        value = given
    text += f"={value}"
    if hostile:
        text = f"{text}\n{HOSTILE}"
    solved = not slips and not hostile
    has_teacher = method != "grpo" and not (solved and rng.random() < 0.3)
    prompt = [{"role": "user", "content": question}]
    shown = f"{question}\ntried:{text}\ntold:{';'.join(expected)}"
    row = {
        "step": step, "problem_id": f"rulebook/new-rule/train/{sum(map(ord, question)) % 1024}", "prompt": prompt,
        "completion": text, "tokens": [*text, "<|end|>"], "generated": [1] * (len(text) + 1), "reward": float(solved),
        "kind": "" if solved else "trace", "feedback": "" if solved else ";".join(expected), "info": {},
        "pass_rate": round(min(max(skill + rng.gauss(0, 0.2), 0), 1), 4) if method == "drift" else 0.5,
        "group_rate": rng.choice([0.0, 0.125, 0.5, 0.75, 1.0]),
        "context": {
            "kind": "none" if not has_teacher else "sibling" if solved else "feedback",
            "why": "no success in its group, no feedback, no reference" if not has_teacher
            else "rollout 3 of its group succeeded (reward 1)" if solved else "trace on its own attempt",
            "leaks_answer": has_teacher and solved, "cut": [], "dropped": False,
            "prompt": [{"role": "user", "content": shown}] if has_teacher else None,
        },
        "signals": {},
    }  # fmt: skip
    _mark(rng, row, {at: (right, given) for at, right, given in slips}, method, has_teacher, solved)
    return row


def _mark(rng, row, slips, method, has_teacher, solved):
    length = len(row["tokens"])
    p_student = [0.6 + 0.35 * rng.random() for _ in range(length)]
    p_teacher = [0.03 if t in slips else min(p + 0.05, 0.999) for t, p in enumerate(p_student)]
    cost = [
        max(math.log(s / q) if (s := p) > (q := pt) else 0.01, 0) for p, pt in zip(p_student, p_teacher, strict=True)
    ]
    future = [sum(cost[t + 1 :]) for t in range(length)]
    advantage = (
        [0.4 if solved else -0.1] * length if method in ("grpo", "drift") else [round(0.5 - c, 4) for c in future]
    )
    signals = {
        "student_logp": [round(math.log(p), 4) for p in p_student],
        "student_entropy": [round(0.9 * (1 - p), 4) for p in p_student],
        "advantage": advantage,
        "rl_weight": [float(solved or method == "grpo")] * length
        if method != "distil"
        else [float(has_teacher)] * length,
        "sd_weight": [float(has_teacher and (method != "drift" or not solved))] * length,
    }
    if has_teacher:
        signals |= {
            "teacher_logp": [round(math.log(p), 4) for p in p_teacher],
            "teacher_entropy": [round(0.5 * (1 - p), 4) for p in p_student],
            "divergence": [round(c + 0.1, 4) for c in cost],
        }
        others = "0123456789+-*=;"
        row["alternatives"] = []
        for t, token in enumerate(row["tokens"]):
            best = slips[t][0] if t in slips else token
            rest = [c for c in rng.sample(others, 4) if c not in (best, token)][:3]
            row["alternatives"].append(
                [[best, 0.9], [token if best != token else rest.pop(), 0.05], *([c, 0.01] for c in rest)]
            )
    if method == "distil":
        signals["future_credit"] = [round(c, 4) for c in future]
    if method == "drift":
        signals["rhythm"] = [1.0 + (0.8 if solved and rng.random() < 0.2 else 0) for _ in range(length)]
        signals["rhythm_gate"] = [float(m > 1) for m in signals["rhythm"]]
    row["signals"] = signals


@pytest.fixture
def make():
    """``make(path, method=..., seed=..., steps=...)``."""
    return make_run


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Three methods, two seeds each, by name."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        f"{method}-{seed}": make_run(folder / f"{method}-{seed}", method=method, seed=seed, steps=40, every=10)
        for method in ("grpo", "distil", "drift")
        for seed in (0, 1)
    }
