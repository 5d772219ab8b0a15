"""1. Which objectives raise reward when the expert is better? A three-armed bandit, and many random ones.

A bandit is one token: forward CE, reverse KL and JS differ here in nothing but what they ask of the student. The first-order
change of J = Σ π_a r_a under a step down the objective's gradient g (with respect to the logits) is

    plain softmax step   dlogit = −g         dJ = −∇J·g
    natural step         dlogit = −F⁺g       dπ = −g, so dJ = −r·g        F = diag(π) − ππᵀ, the Fisher matrix

because F⁺g is g/π up to a constant, and a softmax moves by dπ = F·dlogit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from errata.ops.divergence import divergence
from errata.theory.claims import COLOURS, NAMES, OBJECTIVES, Claim, Part, Picture

REWARD, STUDENT, EXPERT = (1.0, 1.0, 0.0), (0.05, 0.25, 0.70), (0.40, 0.05, 0.55)
"""The counter-example: the expert is better (.45 against .30), by one arm, and worse at another."""
ARMS = (2, 3, 4, 6, 10)
DRAWS = 20_000


def change_of_reward(reward: Tensor, student: Tensor, expert: Tensor, kind: str) -> dict[str, Tensor]:
    """First-order change of J under a unit step, for N bandits with K arms: ``{"natural": (N,), "softmax": (N,)}``.

    All arguments (N,K); ``student`` and ``expert`` are probabilities.
    """
    logits = student.log().requires_grad_(True)
    (g,) = torch.autograd.grad(divergence(logits[:, None], expert.log()[:, None], kind).sum(), logits)
    gradient_of_value = student * (reward - (student * reward).sum(-1, keepdim=True))
    return {"natural": -(reward * g).sum(-1), "softmax": -(gradient_of_value * g).sum(-1)}


def rows(*values: tuple[float, ...]) -> tuple[Tensor, ...]:
    """Each as a (1,K) float64 tensor."""
    return tuple(torch.tensor([v], dtype=torch.float64) for v in values)


def example(kind: str) -> dict[str, float]:
    """The counter-example's two numbers."""
    return {k: float(v) for k, v in change_of_reward(*rows(REWARD, STUDENT, EXPERT), kind).items()}


def random_bandits(
    arms: int, draws: int = DRAWS, *, seed: int = 0, tilted: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Reward, student, expert (N,K) of those of ``draws`` random bandits whose expert is better.

    Student and expert are uniform on the simplex, rewards 0 or 1. ``tilted``: rewards uniform on [0,1] and the expert is the
    student's own distribution times exp(β·r) with a random β > 0, so that it is better arm by arm.
    """
    generator = torch.Generator().manual_seed(seed)
    uniform = lambda: -torch.rand(draws, arms, generator=generator, dtype=torch.float64).log()  # noqa: E731
    student, other = (x / x.sum(-1, keepdim=True) for x in (uniform(), uniform()))
    reward = (torch.rand(draws, arms, generator=generator) < 0.5).double()
    if tilted:
        reward = torch.rand(draws, arms, generator=generator, dtype=torch.float64)
        other = student * (3 * uniform()[:, :1] * reward).exp()
        other = other / other.sum(-1, keepdim=True)
    better = (reward * other).sum(-1) > (reward * student).sum(-1)
    return reward[better], student[better], other[better]


def how_often_worse(arms: int, kind: str, **options: Any) -> dict[str, float]:
    """Share of bandits with a better expert in which a small step lowers J."""
    change = change_of_reward(*random_bandits(arms, **options), kind)
    return {k: float((v < -1e-12).double().mean()) for k, v in change.items()}


def flow(kind: str, step: str, *, length: float = 6.0, rate: float = 0.01) -> tuple[list[float], list[float]]:
    """Time and J along the continuous descent of the counter-example, by small Euler steps."""
    reward, student, expert = rows(REWARD, STUDENT, EXPERT)
    logits, times, values = student.log(), [], []
    for n in range(int(length / rate)):
        p = logits.softmax(-1)
        times.append(n * rate)
        values.append(float((p * reward).sum()))
        leaf = logits.clone().requires_grad_(True)
        (g,) = torch.autograd.grad(divergence(leaf[:, None], expert.log()[:, None], kind).sum(), leaf)
        logits = logits - rate * (g / p if step == "natural" else g)
    return times, values


def study() -> Part:
    changes = {kind: example(kind) for kind in OBJECTIVES}
    worse = {k: {kind: how_often_worse(k, kind) for kind in OBJECTIVES} for k in ARMS}
    tilted = {k: {kind: how_often_worse(k, kind, tilted=True) for kind in OBJECTIVES} for k in ARMS}
    two = [worse[2][kind][step] for kind in OBJECTIVES for step in ("natural", "softmax")]
    many = {
        kind: f"{min(worse[k][kind]['natural'] for k in ARMS[1:]):.1%}–{max(worse[k][kind]['natural'] for k in ARMS[1:]):.1%}"
        for kind in OBJECTIVES
    }
    ce, rkl, js = (changes[kind] for kind in OBJECTIVES)
    claims = (
        Claim(
            "A small forward-CE step raises reward in the example, natural and plain",
            "the expert is better: J .30 → .45",
            ce["natural"] > 0 and ce["softmax"] > 0,
            f"dJ {ce['natural']:+.4f} natural, {ce['softmax']:+.4f} plain",
        ),
        Claim(
            "So does a reverse-KL step",
            "the same; the expert is worse at one good arm",
            rkl["natural"] > 0 or rkl["softmax"] > 0,
            f"dJ {rkl['natural']:+.4f} natural, {rkl['softmax']:+.4f} plain",
            expected=False,
        ),
        Claim(
            "So does a JS step",
            "the same; the expert is worse at one good arm",
            js["natural"] > 0 or js["softmax"] > 0,
            f"dJ {js['natural']:+.4f} natural, {js['softmax']:+.4f} plain",
            expected=False,
        ),
        Claim(
            "With two arms no objective lowers reward, under either step",
            "a better expert; two arms",
            not any(two),
            f"0 of {len(random_bandits(2)[0])} random bandits",
        ),
        Claim(
            "A natural forward-CE step never lowers reward, with any number of arms",
            "a better expert",
            not any(worse[k]["forward_ce"]["natural"] for k in ARMS),
            f"0 of {sum(len(random_bandits(k)[0]) for k in ARMS)} random bandits with {ARMS[0]}–{ARMS[-1]} arms",
        ),
        Claim(
            "Nor does natural reverse KL or JS",
            "a better expert; three arms or more",
            not any(worse[k][kind]["natural"] for k in ARMS[1:] for kind in ("reverse_kl", "js")),
            f"lower in {many['reverse_kl']} (reverse KL) and {many['js']} (JS) of bandits",
            expected=False,
        ),
        Claim(
            "Natural reverse KL and JS are safe too",
            "π_T/π grows with reward: better arm by arm, as a policy that conditions on success is",
            not any(tilted[k][kind]["natural"] for k in ARMS for kind in OBJECTIVES),
            f"0 of {sum(len(random_bandits(k, tilted=True)[0]) for k in ARMS)} random bandits",
        ),
    )

    def dips(axes: Any) -> None:
        for kind in OBJECTIVES:
            for step, style in (("natural", "-"), ("softmax", ":")):
                axes.plot(*flow(kind, step), style, color=COLOURS[kind], label=f"{NAMES[kind]}, {step}")
        axes.axhline(0.45, color=COLOURS["other"], lw=0.8)
        axes.set(
            title="The example: reward while following each gradient", xlabel="time (step size × steps)", ylabel="J"
        )
        axes.legend()

    def shares(axes: Any) -> None:
        for kind in OBJECTIVES:
            for step, style in (("natural", "o-"), ("softmax", "o:")):
                axes.plot(
                    ARMS,
                    [worse[k][kind][step] for k in ARMS],
                    style,
                    color=COLOURS[kind],
                    label=f"{NAMES[kind]}, {step}",
                )
        axes.set(
            title="Random bandits: how often a step lowers reward",
            xlabel="arms",
            ylabel="share of bandits",
            ylim=(-0.01, None),
        )

    caption = (
        "Left: all six descents end at the expert's .45, but reverse KL and JS first pay for it. Under the natural step forward CE "
        "closes the gap as exp(−t), whatever the bandit. Right: the expert is better in every bandit counted."
    )
    return Part(
        about=__doc__ or "",
        title="A better expert, and objectives that lower reward",
        claims=claims,
        numbers={
            "bandit": changes,
            "random_bandits": {
                "draws": DRAWS,
                "share_lowered": {str(k): worse[k] for k in ARMS},
                "share_lowered_expert_better_arm_by_arm": {str(k): tilted[k] for k in ARMS},
            },
        },
        pictures=(Picture("bandit", caption, (dips, shares)),),
    )
