"""5. Pass@N: why cross-entropy to an expert keeps rare answers, which bounds hold, and under which assumptions.

Let p be the probability of success. Since log p = −Σ_k (1−p)^k/k and pass@k = 1 − (1−p)^k, maximising log p maximises
all pass@k at once, with weights 1/k; maximising p maximises pass@1 alone. Three relations to the objective:

* per state, −CE_t = E_{a~π_T} log π_S(a) ≤ log E_{a~π_T} π_S(a) (Jensen): it bounds the teacher-weighted likelihood.
* per answer, if the expert always succeeds, −log p ≤ KL(π_T‖π_S) over whole answers, on the expert's states
  (data processing: the binary KL between success rates is at most the KL between policies).
* if the expert is the student conditioned on its own success, π_T ∝ π·Q, then on its states −∇CE = ∇log p exactly:
  reinforcement learning with weight 1/p for each problem.
"""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from errata.theory.claims import COLOURS, Claim, Part, Picture
from errata.theory.gradients import cosine
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
CE, REWARD = "DistIL (forward CE)", "reward (GRPO's expectation)"
TRAINED = {
    CE: ("forward_kl", COLOURS["forward_ce"]),
    "reverse KL": ("reverse_kl", COLOURS["reverse_kl"]),
    "Jensen–Shannon": ("js", COLOURS["js"]),
    REWARD: ("reward", COLOURS["reward"]),
}


def answers(*, stubborn: bool = False, sure: float = 0.99) -> tuple[World, Tensor]:
    """Name one of eight answers, then finish it: the second token must repeat the first. The expert knows the answer.

    Its second token finishes whatever was begun. A ``stubborn`` expert gives the right answer's token even if another was begun.
    """
    v, n = 8, len(SHARES)
    t = full_tree(v, 2)

    def expert(f: int) -> Tensor:
        aim = {prefix: f if stubborn or not prefix else prefix[0] for prefix in t.prefixes}
        return t.logits({p: [sure if a == aim[p] else (1 - sure) / (v - 1) for a in range(v)] for p in t.prefixes})

    reward = torch.tensor([[float(y == (f, f)) for y in t.rollouts()] for f in range(n)], dtype=torch.float64)
    student = torch.randn(len(t.prefixes), v, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 2
    return world(t, reward, torch.stack([expert(f) for f in range(n)]), SHARES), student


def solve_rates(world: World, student: Tensor) -> Tensor:
    """(F,) probability of success for each f."""
    return world.reward @ log_likelihood(world.tree, student).exp()


def average_success(world: World) -> Tensor:
    """(F,) probability of success for each f of the policy E_f π_T(y|f)."""
    return world.reward @ (world.feedback @ log_likelihood(world.tree, world.expert).exp())


def pass_at(world: World, student: Tensor, n: int) -> float:
    """E_f 1 − (1−p_f)^n."""
    return float(world.feedback @ (1 - (1 - solve_rates(world, student)) ** n))


def train(
    world: World, student: Tensor, kind: str, *, steps: int = 400, rate: float = 5.0, off_policy: bool = False
) -> Tensor:
    """The student after descending an objective; ``off_policy``: ``fine_tuning`` instead."""

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
    """The only success is (0, 0) and the expert goes there. The student misses either step 99 times in 100."""
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
        sure = world(w.tree, reward, posterior_expert(world(w.tree, reward, w.expert), w.expert[0]))
        gaps.append(sequence_kl(sure, z) + math.log(float(value(sure, z))))
    return min(gaps)


def distilled_success(seed: int) -> tuple[float, float]:
    """−∇CE against ∇log p for the expert π·Q: relative error on the expert's states, cosine on the student's."""
    w, z, reward = sparse(seed)
    w = world(w.tree, reward, posterior_expert(world(w.tree, reward, w.expert), z))
    target = gradient(lambda s: value(w, s).log(), z)
    theirs = -gradient(lambda s: fine_tuning(w, s), z)
    own = -gradient(lambda s: objective(w, s, states_from=z), z)
    return float((theirs - target).norm() / target.norm()), cosine(own, target)


def compute(trained: dict[str, tuple[World, Tensor]]) -> dict[str, Any]:
    """The numbers of this part, given the trained policies that are also drawn."""
    smallest, states = jensen_gap()
    lost = misled()
    tree = lost[0].tree
    coin = world(tree, lost[0].reward[0], tree.logits({(): (0.5, 0.5), (0,): (1.0, 0.0)}))
    stubborn = answers(stubborn=True)
    learned = {
        "student": train(*stubborn, "forward_kl"),
        "expert": train(*stubborn, "forward_kl", steps=1000, rate=3.0, off_policy=True),
    }
    errors, cosines = zip(*map(distilled_success, range(20)), strict=True)
    return {
        "curves": {name: {str(k): pass_at(*case, k) for k in SAMPLES} for name, case in trained.items()},
        "series_error": max(abs(series(p, 4000) - math.log(p)) for p in (0.01, 0.1, 0.5, 0.9)),
        "jensen": {"states": states, "smallest_gap": smallest},
        "smallest_success_gap": success_gap(),
        "misled": {
            "minus_log_p": -math.log(float(value(*lost))),
            "kl_expert_states": sequence_kl(*lost),
            "kl_student_states": float(objective(*lost, "forward_kl")),
        },
        "perfect_copy": {"kl": sequence_kl(coin, coin.expert[0]), "p": float(value(coin, coin.expert[0]))},
        "distilled_success": {"error": max(errors), "cosine": fmean(cosines)},
        "average_of_experts": {
            "pass@1": float(stubborn[0].feedback @ average_success(stubborn[0])),
            **{f"{states}_states": pass_at(stubborn[0], policy, 1) for states, policy in learned.items()},
        },
    }


def claims(n: dict[str, Any]) -> tuple[Claim, ...]:
    lost, posterior, average, curves = n["misled"], n["distilled_success"], n["average_of_experts"], n["curves"]
    ce, reward = curves[CE], curves[REWARD]
    small = "−log p ≤ Σ_t KL_t: a small objective means success"
    mixture = "Forward CE learns the average of the experts, E_f π_T(y|f)"
    return (
        Claim(
            "log p = −Σ_k (1 − pass@k)/k: all pass@k at once",
            "0 < p ≤ 1",
            n["series_error"] < 1e-8,
            f"largest error {n['series_error']:.0e}, 4000 terms",
        ),
        Claim(
            "−CE_t ≤ log E_{a~π_T} π_S(a): the objective bounds the teacher-weighted likelihood",
            "none (Jensen), state by state",
            n["jensen"]["smallest_gap"] >= 0,
            "{states} random states, smallest gap {smallest_gap:.3f}".format(**n["jensen"]),
        ),
        Claim(
            small,
            "an expert that always succeeds; the expert's states",
            n["smallest_success_gap"] > -1e-9,
            f"50 random worlds, smallest gap {n['smallest_success_gap']:.3f}",
        ),
        Claim(
            small,
            "missing: the expert's states. With DistIL's, the student's own, states that it never reaches do not count",
            lost["minus_log_p"] <= lost["kl_student_states"],
            "−log p = {minus_log_p:.2f}, Σ KL {kl_student_states:.2f}; expert's states {kl_expert_states:.2f}".format(
                **lost
            ),
            expected=False,
        ),
        Claim(
            small,
            "missing: an expert that always succeeds",
            -math.log(n["perfect_copy"]["p"]) <= n["perfect_copy"]["kl"],
            "a perfect copy: KL {kl:.2f}, p = {p:.2f}".format(**n["perfect_copy"]),
            expected=False,
        ),
        Claim(
            "−∇CE = ∇log p: distilling one's own success is reinforcement learning with weight 1/p",
            "the expert is π conditioned on success; the expert's states",
            posterior["error"] < 1e-9,
            f"20 random worlds: relative error below {max(posterior['error'], 1e-15):.0e}",
        ),
        Claim(
            "−∇CE = ∇log p",
            "missing: the expert's states. The local term's are the student's",
            posterior["cosine"] > 1 - 1e-9,
            f"mean cosine {posterior['cosine']:.3f}",
            expected=False,
        ),
        Claim(
            "After training forward CE has the best pass@N (N ≥ 4); reward's does not rise with N",
            "which answer is right is not visible in the problem; the expert sees it",
            all(ce[str(k)] >= c[str(k)] for c in curves.values() for k in SAMPLES[2:])
            and reward["128"] < reward["1"] + 0.01,
            "at N = 16: " + "; ".join(f"{name} {c['16']:.2f}" for name, c in curves.items()),
        ),
        Claim(
            "It also has the best pass@1",
            "the same. The rare answers cost pass@1",
            all(ce["1"] >= c["1"] for c in curves.values()),
            "; ".join(f"{name} {c['1']:.2f}" for name, c in curves.items()),
            expected=False,
        ),
        Claim(
            mixture,
            "the expert's states",
            abs(average["expert_states"] - average["pass@1"]) < 0.01,
            "pass@1 {expert_states:.3f}, average of the experts {pass@1:.3f}".format(**average),
        ),
        Claim(
            mixture,
            "missing: the expert's states. The student's own text says nothing about f",
            abs(average["student_states"] - average["pass@1"]) < 0.01,
            "pass@1 {student_states:.3f}: the experts do not continue what was begun, so every token is an average".format(
                **average
            ),
            expected=False,
        ),
    )


def pictures(trained: dict[str, tuple[World, Tensor]]) -> tuple[Picture, ...]:
    def pass_curves(axes: Any) -> None:
        for name, (_, colour) in TRAINED.items():
            curve = [pass_at(*trained[name], k) for k in SAMPLES]
            axes.semilogx(SAMPLES, curve, "o-", base=2, color=colour, label=name)
        axes.set(title="Pass@N after training", xlabel="N", ylabel="pass@N", ylim=(0, 1.02), xticks=SAMPLES)
        axes.set_xticklabels([str(k) for k in SAMPLES])
        axes.legend()

    def shares(axes: Any) -> None:
        width = 0.2
        for i, (name, (_, colour)) in enumerate(TRAINED.items()):
            rates = solve_rates(*trained[name]).tolist()
            axes.bar([k + (i - 1.5) * width for k in range(len(SHARES))], rates, width, color=colour)
        ends = [(k - 0.45, k + 0.45) for k in range(len(SHARES))]
        axes.hlines(SHARES, *zip(*ends, strict=True), color=COLOURS["other"], label="how often it is right")
        axes.set(title="What they answer", ylabel="probability", xticks=range(len(SHARES)))
        axes.set_xticklabels(["A", "B", "C", "D"])
        axes.legend()

    caption = (
        "Four answers are right in 40, 30, 20 and 10 per cent of problems that look alike; only the expert knows "
        "which. Reward puts all on one answer and more samples buy nothing; forward CE answers as often as each is "
        "right; reverse KL and JS lie between and give up the rare ones."
    )
    return (Picture("pass_at_n", caption, (pass_curves, shares)),)


def study() -> Part:
    w, student = answers()
    trained = {name: (w, train(w, student, kind)) for name, (kind, _) in TRAINED.items()}
    n = compute(trained)
    return Part("Pass@N", __doc__ or "", claims(n), {"pass_at_n": n}, pictures(trained))
