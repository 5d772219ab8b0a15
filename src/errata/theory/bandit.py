"""1. Which objectives raise reward when the expert is better? A three-armed bandit, and many random ones.

A bandit is one token, so forward CE, reverse KL and JS have no future term here. The first-order change of J = Σ π_a r_a
under a step down the objective's gradient g (with respect to the logits) is

    plain softmax step   dlogit = −g         dJ = −∇J·g
    natural step         dlogit = −F⁺g       dπ = −g, so dJ = −r·g        F = diag(π) − ππᵀ, the Fisher matrix

because F⁺g is g/π up to a constant, and a softmax moves by dπ = F·dlogit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from errata.ops.divergence import divergence
from errata.theory.claims import COLOURS, NAMES, OBJECTIVES, Claim, Part, Picture

REWARD, STUDENT, EXPERT = (1.0, 1.0, 0.0), (0.05, 0.25, 0.70), (0.40, 0.05, 0.55)
"""The counter-example. The expert is better (.45 against .30): it plays one good arm more, and the other good arm less."""
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


def rows(reward: Sequence[float], student: Sequence[float], expert: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Each as a (1,K) float64 tensor."""
    r, s, e = torch.tensor([[reward], [student], [expert]], dtype=torch.float64)
    return r, s, e


def example(kind: str) -> dict[str, float]:
    """The counter-example's two numbers."""
    return {k: float(v) for k, v in change_of_reward(*rows(REWARD, STUDENT, EXPERT), kind).items()}


def random_bandits(
    arms: int, draws: int = DRAWS, *, seed: int = 0, tilted: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Reward, student, expert (N,K) of those of ``draws`` random bandits whose expert is better.

    Student and expert are uniform on the simplex, rewards 0 or 1. ``tilted``: rewards uniform on [0,1] and the expert
    is the student's own distribution times exp(β·r) with a random β > 0, so π_T/π grows with the reward.
    """
    generator = torch.Generator().manual_seed(seed)
    exponential = -torch.rand(3, draws, arms, generator=generator, dtype=torch.float64).log()
    student, other = exponential[:2] / exponential[:2].sum(-1, keepdim=True)
    reward = (torch.rand(draws, arms, generator=generator) < 0.5).double()
    if tilted:
        reward = torch.rand(draws, arms, generator=generator, dtype=torch.float64)
        other = student * (3 * exponential[2, :, :1] * reward).exp()
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


def compute() -> dict[str, Any]:
    """The numbers of this part: ``bandit`` and ``random_bandits``."""
    shares = {str(k): {kind: how_often_worse(k, kind) for kind in OBJECTIVES} for k in ARMS}
    tilted = {str(k): {kind: how_often_worse(k, kind, tilted=True) for kind in OBJECTIVES} for k in ARMS}
    return {
        "bandit": {kind: example(kind) for kind in OBJECTIVES},
        "random_bandits": {
            "counted": {str(k): len(random_bandits(k)[0]) for k in ARMS},
            "share_lowered": shares,
            "counted_better_arm_by_arm": {str(k): len(random_bandits(k, tilted=True)[0]) for k in ARMS},
            "share_lowered_better_arm_by_arm": tilted,
        },
    }


def claims(n: dict[str, Any]) -> tuple[Claim, ...]:
    ce, rkl, js = (n["bandit"][kind] for kind in OBJECTIVES)
    random = n["random_bandits"]
    shares, tilted = random["share_lowered"], random["share_lowered_better_arm_by_arm"]
    numbers = "dJ {natural:+.4f} natural, {softmax:+.4f} plain"
    natural = {kind: [shares[str(k)][kind]["natural"] for k in ARMS[1:]] for kind in OBJECTIVES}
    span = {kind: f"{min(v):.1%}–{max(v):.1%}" for kind, v in natural.items()}
    return (
        Claim(
            "A small forward-CE step raises reward in the example, natural and plain",
            "the expert is better: J .30 → .45",
            ce["natural"] > 0 and ce["softmax"] > 0,
            numbers.format(**ce),
        ),
        Claim(
            "So does a reverse-KL step",
            "the same; the expert is worse at one good arm",
            rkl["natural"] > 0 or rkl["softmax"] > 0,
            numbers.format(**rkl),
            expected=False,
        ),
        Claim(
            "So does a JS step",
            "the same; the expert is worse at one good arm",
            js["natural"] > 0 or js["softmax"] > 0,
            numbers.format(**js),
            expected=False,
        ),
        Claim(
            "With two arms no objective lowers reward, under either step",
            "a better expert; two arms",
            not any(share for changes in shares["2"].values() for share in changes.values()),
            f"0 of {random['counted']['2']} random bandits",
        ),
        Claim(
            "A natural forward-CE step never lowers reward, with any number of arms",
            "a better expert",
            not any(natural["forward_ce"]),
            f"0 of {sum(random['counted'].values())} random bandits with {ARMS[0]}–{ARMS[-1]} arms",
        ),
        Claim(
            "Nor does natural reverse KL or JS",
            "a better expert; three arms or more",
            not any(natural["reverse_kl"] + natural["js"]),
            f"lower in {span['reverse_kl']} (reverse KL) and {span['js']} (JS) of bandits",
            expected=False,
        ),
        Claim(
            "Natural reverse KL and JS are safe too",
            "π_T/π grows with reward: better arm by arm, as a policy that conditions on success is",
            not any(tilted[str(k)][kind]["natural"] for k in ARMS for kind in OBJECTIVES),
            f"0 of {sum(random['counted_better_arm_by_arm'].values())} random bandits",
        ),
    )


def pictures(n: dict[str, Any]) -> tuple[Picture, ...]:
    def descents(axes: Any) -> None:
        for kind in OBJECTIVES:
            for step, style in (("natural", "-"), ("softmax", ":")):
                axes.plot(*flow(kind, step), style, color=COLOURS[kind])
        axes.axhline(0.45, color=COLOURS["other"], lw=0.8)
        axes.set(title="The example: following each gradient", xlabel="time (step size × steps)", ylabel="J")

    def shares(axes: Any) -> None:
        for kind in OBJECTIVES:
            for step, style in (("natural", "o-"), ("softmax", "o:")):
                share = [n["random_bandits"]["share_lowered"][str(k)][kind][step] for k in ARMS]
                axes.plot(ARMS, share, style, color=COLOURS[kind], label=f"{NAMES[kind]}, {step}")
        axes.set(title="Random bandits: how often a step lowers J", xlabel="arms", ylabel="share", ylim=(-0.01, 0.4))
        axes.legend(loc="upper left", ncols=2)

    caption = (
        "Left: all six descents reach the expert's .45 in the end, but reverse KL and JS lose reward first. Under the "
        "natural step forward CE closes the gap as exp(−t), whatever the bandit. Right: the expert is better in every "
        "bandit counted."
    )
    return (Picture("bandit", caption, (descents, shares)),)


def study() -> Part:
    n = compute()
    return Part("A better expert, and objectives that lower reward", __doc__ or "", claims(n), n, pictures(n))
