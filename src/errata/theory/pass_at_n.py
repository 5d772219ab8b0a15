"""5. Pass@N: why cross-entropy to an expert keeps the tail, what bounds what, and where the bound ends.

Let p be the probability of success. Since log p = −Σ_k (1−p)^k/k and pass@k = 1 − (1−p)^k, maximising log p maximises all
pass@k at once, with weights 1/k; maximising p weighs pass@1 alone. Three links to the objective:

* per state, −CE_t = E_{a~π_T} log π_S(a) ≤ log E_{a~π_T} π_S(a) (Jensen): the objective bounds the teacher-weighted likelihood.
* per answer, if the expert always succeeds, −log p ≤ KL(π_T‖π_S) over whole answers, *on the expert's states*
  (data processing: the binary KL between success rates is at most the KL between policies).
* if the expert is the student conditioned on its own success, π_T ∝ π·Q, then on the expert's states −∇CE = ∇log p exactly:
  reinforcement learning that weighs a problem by 1/p.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from errata.theory.claims import COLOURS, Claim, Part, Picture
from errata.theory.regret import random_problem
from errata.theory.tabular import (
    World,
    descend,
    disagreement,
    full_tree,
    gradient,
    log_likelihood,
    objective,
    posterior_expert,
    value,
    world,
)

SHARES = (0.4, 0.3, 0.2, 0.1)
"""How often each of four answers is the right one, in problems that look the same to the student."""
SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128)
TRAINED = {
    "DistIL (forward CE)": ("forward_kl", COLOURS["forward_ce"]),
    "reverse KL": ("reverse_kl", COLOURS["reverse_kl"]),
    "Jensen–Shannon": ("js", COLOURS["js"]),
    "reward (GRPO's expectation)": ("reward", COLOURS["reward"]),
}


def answers(*, stubborn: bool = False, sure: float = 0.99) -> tuple[World, Tensor]:
    """Name one of eight answers, then finish it (a second token, which must repeat the first). The expert knows the right one.

    Its second token finishes whatever was begun; a ``stubborn`` expert insists on the right answer, finished or not.
    """
    v, n = 8, len(SHARES)
    t = full_tree(v, 2)

    def expert(f: int) -> Tensor:
        aim = {prefix: f if stubborn or not prefix else prefix[0] for prefix in t.prefixes}
        return t.logits({p: [sure if a == aim[p] else (1 - sure) / (v - 1) for a in range(v)] for p in t.prefixes})

    reward = torch.stack([t.score(lambda y, f=f: float(y == (f, f))) for f in range(n)])
    student = torch.randn(len(t.prefixes), v, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 2
    return world(t, reward, torch.stack([expert(f) for f in range(n)]), SHARES), student


def solve_rates(world: World, student: Tensor) -> Tensor:
    """(F,) probability of success for each f."""
    return world.reward @ log_likelihood(world.tree, student).exp()


def pass_at(world: World, student: Tensor, n: int) -> float:
    """E_f 1 − (1−p_f)^n."""
    return float(world.feedback @ (1 - (1 - solve_rates(world, student)) ** n))


def train(
    world: World, student: Tensor, kind: str, *, steps: int = 400, rate: float = 5.0, off_policy: bool = False
) -> Tensor:
    """The student after descending the objective; ``off_policy``: cross-entropy on the expert's own rollouts, as fine-tuning does."""

    def loss(z: Tensor) -> Tensor:
        if kind == "reward":
            return -value(world, z)
        return fine_tuning(world, z) if off_policy else objective(world, z, kind)

    for z in descend(loss, student, steps=steps, rate=rate):
        student = z
    return student


def fine_tuning(world: World, student: Tensor) -> Tensor:
    """E_f E_{y~π_T} −log π_S(y) = E_f E_{y~π_T} Σ_t CE_t: the objective on the expert's states."""
    return -world.feedback @ (log_likelihood(world.tree, world.expert).exp() @ log_likelihood(world.tree, student))


def sequence_kl(world: World, student: Tensor) -> float:
    """E_f KL(π_T‖π_S) over whole rollouts."""
    logp = log_likelihood(world.tree, world.expert)
    return float(world.feedback @ (logp.exp() * (logp - log_likelihood(world.tree, student))).sum(-1))


def misled() -> tuple[World, Tensor]:
    """The only success is (0, 0) and the expert goes there. The student misses the first step, 99 in 100, and the second too."""
    t = full_tree(2, 2)
    expert = t.logits({(): (1.0, 0.0), (0,): (1.0, 0.0)})
    return world(t, t.score(lambda y: float(y == (0, 0))), expert), t.logits({(): (0.01, 0.99), (0,): (0.01, 0.99)})


def series(p: float, terms: int) -> float:
    """−Σ_{k≤terms} (1−p)^k/k."""
    return -math.fsum((1 - p) ** k / k for k in range(1, terms + 1))


def jensen_gap(seeds: int = 50) -> tuple[float, int]:
    """Smallest log E_{a~π_T} π_S(a) + CE_t over the states of random worlds, and how many states."""
    gaps = []
    for seed in range(seeds):
        w, z = random_problem(4, 3, seed)
        likelihood = (w.expert.softmax(-1) * z.softmax(-1)).sum(-1).log()
        gaps.append(likelihood + disagreement(w, z))
    every = torch.cat([g.flatten() for g in gaps])
    return float(every.min()), every.numel()


def sparse(seed: int, horizon: int = 3) -> tuple[World, Tensor, Tensor]:
    """A random world with about one success in five: world with a random expert, student, and the reward (B,)."""
    w, z = random_problem(3, horizon, seed)
    return w, z, (w.reward[0] > 0.8).double()


def success_gap(seeds: int = 50) -> float:
    """Smallest KL(π_T‖π_S) + log p over random worlds whose expert always succeeds."""
    gaps = []
    for seed in range(seeds):
        w, z, reward = sparse(seed)
        sure = world(w.tree, reward, posterior_expert(world(w.tree, reward, w.expert))(w.expert[0]))
        gaps.append(sequence_kl(sure, z) + math.log(float(value(sure, z))))
    return min(gaps)


def posterior_cosines(horizon: int, seed: int = 0) -> dict[str, float]:
    """Cosine of −∇CE to ∇log p for the expert π·Q, with the states of either policy."""
    w, z, reward = sparse(seed, horizon)
    w = world(w.tree, reward, posterior_expert(world(w.tree, reward, w.expert))(z))
    target = gradient(lambda s: value(w, s).log(), z)
    descents = {
        "expert": -gradient(lambda s: fine_tuning(w, s), z),
        "student": -gradient(lambda s: objective(w, s, states_from=z), z),
    }
    return {k: float((g * target).sum() / (g.norm() * target.norm())) for k, g in descents.items()} | {
        "relative_error": float((descents["expert"] - target).norm() / target.norm())
    }


def study() -> Part:
    smallest, n_states = jensen_gap()
    error = max(abs(series(p, 4000) - math.log(p)) for p in (0.01, 0.1, 0.5, 0.9))
    w, z = misled()
    p = float(value(w, z))
    on_policy, whole = float(objective(w, z, "forward_kl")), sequence_kl(w, z)
    smallest_kl = success_gap()
    half = world(w.tree, w.reward[0], w.tree.logits({(): (0.5, 0.5), (0,): (1.0, 0.0)}))
    copied = half.expert[0]
    posterior = posterior_cosines(3)
    setting = answers()
    trained = {name: train(*setting, kind) for name, (kind, _) in TRAINED.items()}
    curves = {name: {n: pass_at(setting[0], s, n) for n in SAMPLES} for name, s in trained.items()}
    ce, best = curves["DistIL (forward CE)"], curves["reward (GRPO's expectation)"]
    stubborn = answers(stubborn=True)
    mixture = {
        "on_policy": pass_at(stubborn[0], train(*stubborn, "forward_kl"), 1),
        "expert_states": pass_at(stubborn[0], train(*stubborn, "forward_kl", steps=1000, rate=3.0, off_policy=True), 1),
        "mixture": sum(q * q for q in SHARES) * 0.99**2,
    }
    claims = (
        Claim(
            "log p = −Σ_k (1 − pass@k)/k, all pass@k at once",
            "0 < p ≤ 1",
            error < 1e-8,
            f"largest error {error:.0e}, 4000 terms",
        ),
        Claim(
            "−CE_t ≤ log E_{a~π_T} π_S(a): the objective bounds the teacher-weighted likelihood",
            "none (Jensen), state by state",
            smallest >= 0,
            f"{n_states} random states, smallest gap {smallest:.3f}",
        ),
        Claim(
            "−log p ≤ Σ_t KL_t: a small objective means success",
            "an expert that always succeeds; the expert's states",
            smallest_kl >= 0 and whole + math.log(p) > -1e-9,
            f"50 random worlds, smallest gap {smallest_kl:.3f}",
        ),
        Claim(
            "−log p ≤ Σ_t KL_t: a small objective means success",
            "missing: the expert's states (DistIL's are the student's)",
            -math.log(p) <= on_policy,
            f"−log p = {-math.log(p):.2f}, KL on the student's states {on_policy:.2f}: what it never reaches is not counted",
            expected=False,
        ),
        Claim(
            "−log p ≤ Σ_t KL_t: a small objective means success",
            "missing: an expert that always succeeds",
            -math.log(float(value(half, copied))) <= sequence_kl(half, copied),
            f"a perfect copy has KL 0 and p = {float(value(half, copied)):.2f}",
            expected=False,
        ),
        Claim(
            "−∇CE = ∇log p: distilling one's own success is reinforcement learning with weight 1/p",
            "the expert is π conditioned on success; the expert's states",
            posterior["relative_error"] < 1e-9,
            f"three tokens: relative error below {max(posterior['relative_error'], 1e-15):.0e}",
        ),
        Claim(
            "−∇CE = ∇log p",
            "missing: the expert's states (the local term's are the student's)",
            posterior["student"] > 1 - 1e-9,
            f"three tokens: cosine {posterior['student']:.3f}",
            expected=False,
        ),
        Claim(
            "After training forward CE has the best pass@N (N ≥ 4); reward's does not rise with N",
            "which answer is right is not visible in the problem; the expert sees it",
            all(ce[n] >= c[n] for c in curves.values() for n in SAMPLES[2:]) and best[128] - best[1] < 0.01,
            "; ".join(f"{name} {c[16]:.2f} @16" for name, c in curves.items()),
        ),
        Claim(
            "It also has the best pass@1",
            "the same: keeping the tail is paid for at N = 1",
            all(ce[1] >= c[1] for c in curves.values()),
            "; ".join(f"{name} {c[1]:.2f}" for name, c in curves.items()),
            expected=False,
        ),
        Claim(
            "Forward CE learns the average of the experts, E_f π_T(y|f)",
            "the expert's states",
            abs(mixture["expert_states"] - mixture["mixture"]) < 0.01,
            f"pass@1 {mixture['expert_states']:.3f}, average of the experts {mixture['mixture']:.3f}",
        ),
        Claim(
            "Forward CE learns the average of the experts, E_f π_T(y|f)",
            "missing: the expert's states. What the student itself wrote is no evidence of f",
            abs(mixture["on_policy"] - mixture["mixture"]) < 0.01,
            f"pass@1 {mixture['on_policy']:.3f}: an expert that does not take up the student's beginning splits every token",
            expected=False,
        ),
    )

    def pass_curves(axes: Any) -> None:
        for name, (_, colour) in TRAINED.items():
            axes.semilogx(SAMPLES, list(curves[name].values()), "o-", base=2, color=colour, label=name)
        axes.set(title="Pass@N after training", xlabel="N", ylabel="pass@N", ylim=(0, 1.02), xticks=SAMPLES)
        axes.set_xticklabels([str(n) for n in SAMPLES])
        axes.legend()

    def shares(axes: Any) -> None:
        width = 0.2
        for i, (name, (_, colour)) in enumerate(TRAINED.items()):
            rates = solve_rates(setting[0], trained[name]).tolist()
            axes.bar([k + (i - 1.5) * width for k in range(len(SHARES))], rates, width, color=colour)
        axes.plot(range(len(SHARES)), SHARES, "_", ms=36, color=COLOURS["other"], label="how often it is right")
        axes.set(title="What they answer", ylabel="probability", xticks=range(len(SHARES)))
        axes.set_xticklabels(["A", "B", "C", "D"])
        axes.legend()

    caption = (
        "Four answers are right in 40, 30, 20 and 10 per cent of problems that look alike; only the expert knows which. Reward puts "
        "all on one answer and more samples buy nothing; forward CE answers as often as each is right; reverse KL and JS lie "
        "between and give up the rare ones."
    )
    return Part(
        about=__doc__ or "",
        title="Pass@N",
        claims=claims,
        numbers={
            "pass_at_n": {
                "curves": {name: {str(n): v for n, v in c.items()} for name, c in curves.items()},
                "series_error": error,
                "smallest_jensen_gap": smallest,
                "misled": {"minus_log_p": -math.log(p), "kl_expert_states": whole, "kl_student_states": on_policy},
                "posterior": posterior,
                "average_of_experts": mixture,
            }
        },
        pictures=(Picture("pass_at_n", caption, (pass_curves, shares)),),
    )
