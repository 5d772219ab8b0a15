"""2. When is improvement monotone? The identity for forward cross-entropy, and its three assumptions.

In a bandit a natural step down forward CE moves π straight towards the expert, dπ = η(π_T − π), the first step of the
mixture (1−η)π + ηπ_T; so dJ = η(J(π_T) − J(π)), whatever the arms. The other objectives give covariances under the
student:

    reverse KL   dJ = η·Cov_π(r, log(π_T/π))           JS   dJ = −(η/2)·Cov_π(r, log(π/M)),   M = (π + π_T)/2

The identity needs (a) a natural or mixture step, (b) an expert whose reward the student would get by copying it,
so no feedback that only the expert sees, and (c) one step. Over a horizon, dJ = η·Σ_s d^π(s)·Σ_a (π_T −
π)(a|s)·Q^π(s,a), the advantage of the expert's first action if the student continues, which may be negative
although the expert is better.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from errata.theory.bandit import EXPERT, REWARD, STUDENT, change_of_reward, random_bandits, rows
from errata.theory.claims import COLOURS, Claim, Part, Picture
from errata.theory.tabular import World, expert_value, full_tree, gradient, objective, tree, value, visits, world

SOFTMAX_CASE = ((1.0, 0.0, 0.0), (0.10, 0.60, 0.30), (0.15, 0.85, 0.00))
"""Reward, student, expert: the expert is better (.15 against .10), yet a plain step down forward CE lowers J."""


def natural_direction(world: World, student: Tensor, kind: str = "forward_ce") -> Tensor:
    """(S,V) natural direction of the local term, −F⁺g with the Fisher matrix weighted by the visits: −g/(d(s)·π)."""
    g = gradient(lambda z: objective(world, z, kind, states_from=student), student)
    fisher = visits(world.tree, student)[:, None] * student.softmax(-1)
    return torch.where(fisher > 0, -g / fisher, 0.0)


def first_order(world: World, student: Tensor, direction: Tensor) -> float:
    """dJ along a direction of the logits."""
    return float((gradient(lambda z: value(world, z), student) * direction).sum())


def hidden_answer() -> tuple[World, Tensor]:
    """The expert knows which of two answers is right (J = 1). The student can guess, or play a third answer worth .6."""
    t = full_tree(3, 1)
    reward = torch.tensor([[1.0, 0.0, 0.6], [0.0, 1.0, 0.6]], dtype=torch.float64)
    expert = torch.stack([t.logits({(): row}) for row in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))])
    return world(t, reward, expert), t.logits({(): (0.1, 0.1, 0.8)})


def unfinished_skill() -> tuple[World, Tensor]:
    """Action 0 opens a task the expert finishes (J = 1) and the student fails 9 times of 10; action 1 is worth .5."""
    t = tree([(0, 0), (0, 1), (1, 0)], 2)
    reward = t.score(lambda y: 0.5 if y[0] == 1 else float(y[1] == 0))
    return world(t, reward, t.logits({(): (1.0, 0.0), (0,): (1.0, 0.0)})), t.logits({(): (0.1, 0.9), (0,): (0.1, 0.9)})


CASES = {"hidden_answer": hidden_answer(), "unfinished_skill": unfinished_skill()}


def identity_errors(arms: int = 6) -> dict[str, float]:
    """Largest deviation from the three identities over random bandits, and from the mixture step's at three sizes."""
    reward, student, expert = random_bandits(arms)

    def covariance(x: Tensor) -> Tensor:
        return (student * reward * x).sum(-1) - (student * reward).sum(-1) * (student * x).sum(-1)

    gain = ((expert - student) * reward).sum(-1)
    predicted = {
        "forward_ce": gain,
        "reverse_kl": covariance((expert / student).log()),
        "js": -covariance((2 * student / (student + expert)).log()) / 2,
    }
    errors = {k: change_of_reward(reward, student, expert, k)["natural"] - p for k, p in predicted.items()}
    mixed = torch.stack(
        [((1 - eta) * student + eta * expert - student).mul(reward).sum(-1) - eta * gain for eta in (0.1, 0.5, 1.0)]
    )
    return {k: float(e.abs().max()) for k, e in errors.items()} | {"mixture": float(mixed.abs().max())}


def path(world: World, student: Tensor, *, length: float = 4.0, rate: float = 0.02) -> tuple[list[float], list[float]]:
    """Time and J while following the natural direction of local forward CE."""
    times, values = [], []
    for n in range(int(length / rate)):
        times.append(n * rate)
        values.append(float(value(world, student)))
        student = student + rate * natural_direction(world, student)
    return times, values


def compute() -> dict[str, Any]:
    """The numbers of this part."""
    reward, student, expert = rows(*SOFTMAX_CASE)
    plain = change_of_reward(reward, student, expert.clamp_min(1e-300), "forward_ce")
    return {
        "identity_error": identity_errors(),
        "plain_softmax": {k: float(v) for k, v in plain.items()},
        **{
            name: {
                "student": float(value(w, z)),
                "expert": float(expert_value(w)),
                "change": first_order(w, z, natural_direction(w, z)),
                "end": path(w, z, length=12.0)[1][-1],
            }
            for name, (w, z) in CASES.items()
        },
    }


def claims(n: dict[str, Any]) -> tuple[Claim, ...]:
    error, plain, hidden, unfinished = (
        n[k] for k in ("identity_error", "plain_softmax", "hidden_answer", "unfinished_skill")
    )
    better = "a better expert: J {student:.2f} → {expert:.2f}"
    return (
        Claim(
            "A natural or mixture forward-CE step gains η(J(π_T) − J(π)), exactly",
            "a bandit",
            max(error["forward_ce"], error["mixture"]) < 1e-9,
            f"largest error {max(error['forward_ce'], error['mixture']):.0e} over random bandits; mixture for any η",
        ),
        Claim(
            "Reverse KL gains η·Cov_π(r, log π_T/π), JS −(η/2)·Cov_π(r, log π/M)",
            "a bandit, natural step",
            max(error["reverse_kl"], error["js"]) < 1e-9,
            f"largest error {max(error['reverse_kl'], error['js']):.0e} over random bandits",
        ),
        Claim(
            "Forward CE is monotone",
            better.format(student=0.10, expert=0.15) + "; but a plain softmax step",
            plain["softmax"] > 0,
            f"dJ {plain['softmax']:+.4f} plain, {plain['natural']:+.4f} natural",
            expected=False,
        ),
        Claim(
            "Forward CE is monotone",
            better.format(**hidden) + "; but it sees what the student cannot",
            hidden["change"] > 0,
            f"dJ {hidden['change']:+.4f}; copying it ends at {hidden['end']:.2f}",
            expected=False,
        ),
        Claim(
            "Forward CE is monotone",
            better.format(**unfinished) + "; but over two steps",
            unfinished["change"] > 0,
            f"dJ {unfinished['change']:+.4f}: Q^π decides, not Q^π_T; it ends at {unfinished['end']:.2f}",
            expected=False,
        ),
    )


def pictures() -> tuple[Picture, ...]:
    def paths(axes: Any) -> None:
        t = full_tree(3, 1)
        bandit = world(t, torch.tensor(REWARD, dtype=torch.float64), t.logits({(): EXPERT}))
        axes.plot(
            *path(*CASES["hidden_answer"]), color=COLOURS["reverse_kl"], label="the expert sees a hidden answer (J = 1)"
        )
        axes.plot(*path(*CASES["unfinished_skill"]), color=COLOURS["js"], label="two steps, expert J = 1")
        axes.plot(*path(bandit, t.logits({(): STUDENT})), color=COLOURS["forward_ce"], label="bandit, expert J = .45")
        axes.set(title="Following natural forward CE towards a better expert", xlabel="time", ylabel="J", ylim=(0, 1))
        axes.legend()

    caption = (
        "All three experts are better than the student. In the bandit reward grows from the first step on. Over two "
        "steps it falls before it rises. Where the expert knows what the student cannot know, the student learns "
        "the average of the experts and stays worse than it was."
    )
    return (Picture("monotone", caption, (paths,)),)


def study() -> Part:
    n = compute()
    return Part("Monotone improvement, and what it assumes", __doc__ or "", claims(n), {"monotone": n}, pictures())
