"""4. Regret: how much less reward than the expert can a student get, given their disagreement on its own states?

By the performance-difference lemma and Pinsker's inequality, over a horizon of H tokens,

    J(π_T) − J(π) = Σ_t E_{d^π}[Σ_a (π_T − π)(a)·Q^{π_T}(s_t,a)] ≤ μ·sqrt((H/2)·Σ_t E_{d^π} KL_t),  μ = span of Q^{π_T},

which holds for an expert that sees f as well (Q and KL then depend on f, and the root is concave). The bound needs the
states of the student: with imitation on the expert's states (supervised fine-tuning) an error can cost reward to the end
of the answer. The regret of a run is sublinear only if the student can reach KL = 0. If the expert sees something that the
student cannot see, every step costs reward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from errata.theory.claims import COLOURS, Claim, Part, Picture
from errata.theory.mdp import KIND, eight_ways, hidden_bit
from errata.theory.tabular import (
    World,
    action_values,
    descend,
    expert_value,
    full_tree,
    objective,
    posterior_expert,
    value,
    world,
)

STEPS, RATE = 500, 1.0
HORIZONS = range(1, 11)
KL, CE, LOCAL, HIDDEN = "DistIL, kl", "DistIL, ce", "local reverse KL", "DistIL, kl, hidden bit"
LOSSES = {
    KL: ("forward_kl", True, COLOURS["kl"]),
    CE: ("forward_ce", True, COLOURS["forward_ce"]),
    LOCAL: ("reverse_kl", False, COLOURS["reverse_kl"]),
}
"""Divergence, with the future term or without, colour."""


def loss(world: World, student: Tensor, kind: str, future: bool) -> Tensor:
    """Scalar objective of a run; without ``future`` its gradient is the local term alone."""
    return objective(world, student, kind, states_from=None if future else student.detach())


def span(world: World) -> float:
    """μ: largest difference that one token of the expert's choice can make, max over f and s of max_a Q − min_a Q."""
    q, allowed = action_values(world, world.expert), world.tree.allowed
    return float((q.where(allowed, -math.inf).amax(-1) - q.where(allowed, math.inf).amin(-1)).max())


def bound(world: World, student: Tensor, *, states_from: Tensor | None = None) -> float:
    """The right-hand side. ``states_from``: take the states of that policy instead (then it is no bound)."""
    return span(world) * root(world, student, states_from)


def root(world: World, student: Tensor, states_from: Tensor | None = None) -> float:
    """sqrt((H/2)·Σ_t E KL_t)."""
    total = float(objective(world, student, "forward_kl", states_from=states_from))
    return math.sqrt(world.tree.tokens.shape[1] / 2 * max(total, 0.0))


def gap(world: World, student: Tensor) -> float:
    """J(π_T) − J(π)."""
    return float(expert_value(world) - value(world, student))


def random_problem(vocabulary: int, horizon: int, seed: int, *, feedbacks: int = 1) -> tuple[World, Tensor]:
    """Random rewards in [0,1], a random student and a random expert for each f."""
    t, g = full_tree(vocabulary, horizon), torch.Generator().manual_seed(seed)
    reward = torch.rand(feedbacks, len(t.tokens), generator=g, dtype=torch.float64)
    student, *experts = 1.5 * torch.randn(1 + feedbacks, len(t.prefixes), vocabulary, generator=g, dtype=torch.float64)
    return world(t, reward, torch.stack(experts)), student


def shown_feedback(vocabulary: int = 3, horizon: int = 4, seed: int = 0) -> tuple[World, Tensor]:
    """One rollout in ten succeeds. The expert is the student conditioned on success, π·(Q + .05)."""
    t, g = full_tree(vocabulary, horizon), torch.Generator().manual_seed(seed)
    student = torch.randn(len(t.prefixes), vocabulary, generator=g, dtype=torch.float64)
    reward = (torch.rand(len(t.tokens), generator=g, dtype=torch.float64) < 0.1).double()
    hint = world(t, reward + 0.05, student)
    return world(t, reward, posterior_expert(hint, student)), student


def cliff(horizon: int) -> tuple[World, Tensor]:
    """The reward counts zeros. The expert always says 0. The student errs 1 time in 10, and after an error almost always."""
    t = full_tree(2, horizon)
    student = t.logits({prefix: (0.05, 0.95) if 1 in prefix else (0.9, 0.1) for prefix in t.prefixes})
    return world(t, t.score(lambda y: float(y.count(0))), t.logits(dict.fromkeys(t.prefixes, (1.0, 0.0)))), student


@dataclass(frozen=True)
class Run:
    """Exact gradient descent: after each step n, (STEPS,) each."""

    value: Tensor
    """J(π_n)."""
    regret: Tensor
    """Σ_{m≤n} J(π_T) − J(π_m)."""
    bound: Tensor
    """Σ_{m≤n} of the right-hand side."""

    @property
    def exponent(self) -> float:
        """Slope of log cumulative regret over the second half of the run: 1 is linear."""
        return float(torch.log2(self.regret[-1] / self.regret[len(self.regret) // 2 - 1]))


def run(world: World, student: Tensor, kind: str, future: bool, steps: int = STEPS) -> Run:
    """Follow one objective from the given student."""
    tables = list(descend(lambda z: loss(world, z, kind, future), student, steps=steps - 1, rate=RATE))
    reward = torch.tensor([float(value(world, z)) for z in tables], dtype=torch.float64)
    right = span(world) * torch.tensor([root(world, z) for z in tables], dtype=torch.float64)
    return Run(reward, (expert_value(world) - reward).cumsum(0), right.cumsum(0))


def summary(run: Run) -> dict[str, float | None]:
    """A run's last row; no exponent where regret is negative."""
    last = {"J": float(run.value[-1]), "regret": float(run.regret[-1]), "bound": float(run.bound[-1])}
    return last | {"exponent": run.exponent if run.regret[-1] > 0 and run.regret.min() > 0 else None}


def final_value(world: World, student: Tensor, kind: str) -> float:
    """J after 300 steps of DistIL."""
    return float(run(world, student, kind, True, steps=300).value[-1])


def above_expert(problems: int = 8) -> list[bool]:
    """Whether DistIL with cost ``ce`` ends above its expert, for random worlds with an expert told to succeed."""
    worlds = (shown_feedback(seed=seed) for seed in range(problems))
    return [final_value(w, z, "forward_ce") > float(expert_value(w)) for w, z in worlds]


def compute(runs: dict[str, Run]) -> dict[str, Any]:
    """The numbers of this part, given the runs that are also drawn."""
    checked = [random_problem(3, h, seed, feedbacks=f) for h in (1, 2, 3, 4) for f in (1, 2) for seed in range(25)]
    w, z = cliff(HORIZONS[-1])
    return {
        "worlds": len(checked),
        "largest_gap_over_bound": max(gap(*problem) / bound(*problem) for problem in checked),
        "expert_states": {
            "horizon": HORIZONS[-1],
            "gap": gap(w, z),
            "formula": bound(w, z, states_from=w.expert[0]),
            "bound": bound(w, z),
        },
        "expert_value": float(expert_value(shown_feedback()[0])),
        "runs": {name: summary(r) for name, r in runs.items()},
        "above_expert": above_expert(),
        "eight_ways": {c: final_value(*eight_ways(), kind) for c, kind in KIND.items()},
    }


def claims(n: dict[str, Any]) -> tuple[Claim, ...]:
    states, kl, ce, hidden = n["expert_states"], n["runs"][KL], n["runs"][CE], n["runs"][HIDDEN]
    growth = "after {steps} steps {regret:.1f}, growing as n^{exponent:.2f}; bound {bound:.1f}"
    return (
        Claim(
            "J(π_T) − J(π) ≤ μ·sqrt((H/2)·Σ E_{d^π} KL_t)",
            "states of the student; any expert, also one that sees f",
            n["largest_gap_over_bound"] <= 1,
            f"{n['worlds']} random worlds, H = 1–4: the gap is at most {n['largest_gap_over_bound']:.2f} of the bound",
        ),
        Claim(
            "The same with KL on the expert's states (supervised fine-tuning)",
            "missing: the student's states; after an error it makes only errors",
            states["gap"] <= states["formula"],
            "H = {horizon}: gap {gap:.2f}, formula {formula:.2f}; with the student's states {bound:.2f}".format(
                **states
            ),
            expected=False,
        ),
        Claim(
            "Cumulative regret of a DistIL run grows sublinearly",
            "the student can represent the expert",
            kl["exponent"] < 0.9,
            growth.format(steps=STEPS, **kl),
        ),
        Claim(
            "Cumulative regret of a DistIL run grows sublinearly",
            "missing: the expert sees a bit that the student does not",
            hidden["exponent"] < 0.9,
            growth.format(steps=STEPS, **hidden),
            expected=False,
        ),
        Claim(
            "With `ce` the student ends above its expert",
            "the expert is sure where success is near, like one conditioned on success",
            all(n["above_expert"]),
            f"{sum(n['above_expert'])} of {len(n['above_expert'])} random worlds; in the first J {ce['J']:.2f}, "
            f"expert {n['expert_value']:.2f}, `kl` {kl['J']:.2f}",
        ),
        Claim(
            "With `ce` the student ends above its expert",
            "missing: certainty near success (eight good answers against one bad one)",
            n["eight_ways"]["ce"] > 0.5,
            "J {ce:.2f}, expert 0.50, `kl` {kl:.2f}".format(**n["eight_ways"]),
            expected=False,
        ),
    )


def pictures(runs: dict[str, Run], expert: float) -> tuple[Picture, ...]:
    steps = range(1, STEPS + 1)

    def rewards(axes: Any) -> None:
        for name, (_, _, colour) in LOSSES.items():
            axes.semilogx(steps, runs[name].value, color=colour, label=name)
        axes.axhline(expert, color=COLOURS["other"], lw=0.8)
        axes.text(1, expert, "the expert", va="bottom")
        axes.set(title="Reward along a run", xlabel="step n", ylabel="J(π_n)", ylim=(0, 1))
        axes.legend(loc="lower right")

    def cumulative(axes: Any) -> None:
        for name, colour in ((KL, "kl"), (LOCAL, "reverse_kl"), (HIDDEN, "reward")):
            axes.loglog(steps, runs[name].regret, color=COLOURS[colour], label=name)
            if name != LOCAL:
                axes.loglog(steps, runs[name].bound, ":", color=COLOURS[colour], label=f"its bound ({name})")
        axes.set(title="Cumulative regret of a run", xlabel="step n", ylabel="Σ J(π_T) − J(π_n)", ylim=(0.1, 1e4))
        axes.legend(loc="upper left")

    def compounding(axes: Any) -> None:
        falls = [cliff(h) for h in HORIZONS]
        theirs = [bound(w, z, states_from=w.expert[0]) for w, z in falls]
        axes.plot(HORIZONS, [gap(*f) for f in falls], "o-", color=COLOURS["reward"], label="gap J(π_T) − J(π)")
        axes.plot(HORIZONS, [bound(*f) for f in falls], ":", color=COLOURS["kl"], label="bound, the student's states")
        axes.plot(HORIZONS, theirs, ":", color=COLOURS["reverse_kl"], label="same formula, the expert's states")
        axes.set(title="A student whose errors compound", xlabel="horizon H", ylabel="reward", ylim=(0, 11))
        axes.legend(loc="upper left")

    caption = (
        "Left and middle: one rollout in ten succeeds, and the expert is the student told to succeed. With `kl` the "
        "student approaches it and regret flattens, unless the expert sees what the student cannot (straight line). "
        "With `ce` it passes its expert, because this expert is sure where success is near. Right: on the expert's "
        "states a student that errs 1 time in 10 looks good, and for long answers the formula is too small. On "
        "its own states it stays a bound."
    )
    return (Picture("regret", caption, (rewards, cumulative, compounding)),)


def study() -> Part:
    problem = shown_feedback()
    runs = {name: run(*problem, kind, future) for name, (kind, future, _) in LOSSES.items()}
    runs[HIDDEN] = run(*hidden_bit(), "forward_kl", True)
    n = compute(runs)
    return Part("Regret", __doc__ or "", claims(n), {"regret": n}, pictures(runs, n["expert_value"]))
