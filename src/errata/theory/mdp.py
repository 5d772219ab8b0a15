"""3. The future term, in worlds of two steps: where it helps and where it harms, with cross-entropy or KL as its cost.

At s1 teacher and student agree, (½, ½), so every local gradient there is zero, whatever the divergence is. The second
term of DistIL's gradient, E[Σ_t ∇ℓS_t·C_t], lowers the probability of actions after which the expert disagrees. That is
useful only if disagreement costs reward. With ``ce`` as cost, CE = KL + H_T, it also lowers the probability of states
where the expert is uncertain, and of further tokens. With ``kl`` it does neither.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from errata.ops.credit import future_cost
from errata.theory.claims import COLOURS, OBJECTIVES, Claim, Part, Picture
from errata.theory.tabular import (
    World,
    descend,
    disagreement,
    gradient,
    log_likelihood,
    neutral_objective,
    objective,
    stopping_tree,
    tree,
    value,
    world,
)

KIND = {"ce": "forward_ce", "kl": "forward_kl"}


def hidden_bit() -> tuple[World, Tensor]:
    """L (0): both play (.9, .1), reward .9. R (1): the answer is a bit that only the expert sees, so the student gets ½."""
    t = tree([(a, b) for a in (0, 1) for b in (0, 1)], 2)
    right = [[0 if first == 0 else bit for first, _ in t.rollouts()] for bit in (0, 1)]
    reward = (t.tokens[:, 1] == torch.tensor(right)).double()
    expert = torch.stack([t.logits({(0,): (0.9, 0.1), (1,): bit}) for bit in ((1.0, 0.0), (0.0, 1.0))])
    return world(t, reward, expert), t.logits({(0,): (0.9, 0.1)})


def eight_ways() -> tuple[World, Tensor]:
    """L (0): eight good answers, both uniform over them (CE = log 8, KL = 0). R (1): one answer, and it fails."""
    t = tree([(0, b) for b in range(8)] + [(1, 0)], 8)
    return world(t, t.score(lambda y: float(y[0] == 0)), t.logits()), t.logits()


def matter_of_taste() -> tuple[World, Tensor]:
    """As ``eight_ways``, but the expert always gives the first of the eight answers. No reward depends on that."""
    w, student = eight_ways()
    return world(w.tree, w.reward[0], w.tree.logits({(0,): (1.0,)})), student


def essay(length: int = 7, words: int = 4) -> tuple[World, Tensor]:
    """Write at least ``words`` words; token 0 stops, 1 and 2 are words. The student equals its expert."""
    t = stopping_tree(3, length)
    expert = t.logits(dict.fromkeys(t.prefixes, (0.1, 0.45, 0.45)))
    return world(t, t.score(lambda y: float(sum(a != 0 for a in y) >= words)), expert), expert.clone()


def secret_bit(length: int = 7, needed: int = 4) -> tuple[World, Tensor]:
    """``essay`` with an expert that says word 1 or word 2 nine times in ten; which one, only it knows. Nothing can be learned."""
    w, student = essay(length, needed)
    rows = ((0.1, 0.81, 0.09), (0.1, 0.09, 0.81))
    expert = torch.stack([w.tree.logits(dict.fromkeys(w.tree.prefixes, row)) for row in rows])
    return world(w.tree, w.reward[0], expert), student


CASES = {"hidden_bit": hidden_bit(), "eight_ways": eight_ways(), "matter_of_taste": matter_of_taste()}


def future_of_first_token(world: World, student: Tensor, cost: str) -> dict[str, float]:
    """E[C_1 | first token] for L and R, by ``ops.credit.future_cost`` over all rollouts."""
    t = world.tree
    credit = sum(
        p * future_cost(d[t.state], t.mask)[:, 0]
        for p, d in zip(world.feedback, disagreement(world, student, KIND[cost]), strict=True)
    )
    weight = log_likelihood(t, student).exp()
    first = t.tokens[:, 0]
    return {
        name: float((weight * credit)[first == a].sum() / weight[first == a].sum()) for a, name in enumerate(("L", "R"))
    }


def local_gradient(world: World, student: Tensor, kind: str) -> float:
    """Largest entry of the local term's gradient at s1."""
    return float(gradient(lambda z: objective(world, z, kind, states_from=student.detach()), student)[0].abs().max())


def pull_to_left(world: World, student: Tensor, cost: str) -> float:
    """Rate at which a step down the exact gradient raises the probability of L (0) at s1."""
    g = gradient(lambda z: objective(world, z, KIND[cost]), student)[0]
    p = student[0].softmax(-1)
    return float(-p[0] * (g[0] - (p * g).sum()))


def largest_gradient(world: World, student: Tensor, cost: str) -> float:
    """Largest entry of the exact gradient."""
    return float(gradient(lambda z: objective(world, z, KIND[cost]), student).abs().max())


def mean_length(world: World, student: Tensor) -> float:
    """Expected number of tokens."""
    return float(log_likelihood(world.tree, student).exp() @ world.tree.mask.sum(-1).double())


def train(world: World, student: Tensor, cost: str, *, steps: int = 200, rate: float = 0.5) -> Iterable[Tensor]:
    """The student before each step of exact gradient descent, and after the last."""
    return descend(lambda z: objective(world, z, KIND[cost]), student, steps=steps, rate=rate)


def probability_of_left(world: World, student: Tensor, cost: str) -> list[float]:
    """π(L) along the run."""
    return [float(z[0].softmax(-1)[0]) for z in train(world, student, cost)]


def compute() -> dict[str, Any]:
    """The numbers of this part."""
    w, z = essay()
    stopping = {}
    for cost in KIND:
        *_, end = train(w, z, cost)
        stopping[cost] = {
            "gradient": largest_gradient(w, z, cost),
            "tokens": [mean_length(w, z), mean_length(w, end)],
            "J": [float(value(w, z)), float(value(w, end))],
        }
    w, z = secret_bit()
    secret = {}
    for name, function in (("exact", objective), ("neutral", neutral_objective)):
        *_, end = descend(partial(function, w, kind=KIND["kl"]), z, steps=200, rate=0.5)
        secret[name] = {
            "tokens": [mean_length(w, z), mean_length(w, end)],
            "J": [float(value(w, z)), float(value(w, end))],
        }
    return {
        "secret_bit": secret,
        "local_gradient": {kind: local_gradient(*CASES["hidden_bit"], kind) for kind in OBJECTIVES},
        "future": {k: {c: future_of_first_token(*case, c) for c in KIND} for k, case in CASES.items()},
        "pull_to_L": {k: {c: pull_to_left(*case, c) for c in KIND} for k, case in CASES.items()},
        "P_L_end": {k: {c: probability_of_left(*case, c)[-1] for c in KIND} for k, case in CASES.items()},
        "stopping": stopping,
    }


def claims(n: dict[str, Any]) -> tuple[Claim, ...]:
    secret = n["secret_bit"]
    local, future, pull, end, stop = (n[k] for k in ("local_gradient", "future", "pull_to_L", "P_L_end", "stopping"))

    def at(case: str, cost: str) -> str:
        return "future {} {L:.3f} at L, {R:.3f} at R".format(cost.upper(), **future[case][cost])

    return (
        Claim(
            "At s1 every local gradient is zero, though L earns .9 and R .5",
            "teacher = student = (½, ½) at s1",
            max(local.values()) < 1e-12,
            f"largest entry {max(local.values()):.0e} over forward CE, reverse KL and JS",
        ),
        Claim(
            "The future term prefers L, with `ce` and with `kl`",
            "disagreement costs reward: at R the expert knows a hidden bit",
            min(pull["hidden_bit"].values()) > 0,
            f"{at('hidden_bit', 'ce')}; {at('hidden_bit', 'kl')}",
        ),
        Claim(
            "… and alone decides where the student ends",
            "missing: no other term. The local term holds the student at the expert's ½",
            max(end["hidden_bit"].values()) > 0.95,
            "P(L) ends at {ce:.2f} (`ce`), {kl:.2f} (`kl`)".format(**end["hidden_bit"]),
            expected=False,
        ),
        Claim(
            "The future term with `ce` prefers the better branch",
            "missing: an expert that is surer on the better branch (here L has eight good answers, R one that fails)",
            pull["eight_ways"]["ce"] > 0,
            at("eight_ways", "ce"),
            expected=False,
        ),
        Claim(
            "The future term with `kl` does not prefer the worse branch there",
            "student and expert agree after L and after R",
            abs(pull["eight_ways"]["kl"]) < 1e-12,
            at("eight_ways", "kl"),
        ),
        Claim(
            "The future term with `kl` never prefers the worse branch",
            "missing: disagreement costs reward (here the expert's preference changes no reward; L succeeds, R fails)",
            pull["matter_of_taste"]["kl"] >= 0,
            at("matter_of_taste", "kl"),
            expected=False,
        ),
        Claim(
            "A student equal to its expert does not change",
            "cost `kl`",
            stop["kl"]["gradient"] < 1e-12,
            f"largest gradient {stop['kl']['gradient']:.0e}; J {stop['kl']['J'][1]:.2f} throughout",
        ),
        Claim(
            "A student equal to its expert does not change",
            "missing: cost `kl`. With `ce` it does not, under any baseline",
            stop["ce"]["gradient"] < 1e-12,
            "it learns to stop: {:.2f} → {:.2f} tokens, J {:.2f} → {:.2f}".format(
                *stop["ce"]["tokens"], *stop["ce"]["J"]
            ),
            expected=False,
        ),
        Claim(
            "The best student that there can be keeps its length",
            "missing: an expert without a secret, with `kl` and the exact gradient",
            secret["exact"]["tokens"][1] > secret["exact"]["tokens"][0] - 0.01,
            "{:.2f} → {:.2f} tokens, J {:.2f} → {:.2f}".format(*secret["exact"]["tokens"], *secret["exact"]["J"]),
            expected=False,
        ),
        Claim(
            "The best student that there can be keeps its length",
            "each cost less the mean cost at its position (`baseline: per_token`), the expert having a secret",
            abs(secret["neutral"]["tokens"][1] - secret["neutral"]["tokens"][0]) < 0.01,
            "{:.2f} → {:.2f} tokens, J {:.2f} → {:.2f}".format(*secret["neutral"]["tokens"], *secret["neutral"]["J"]),
        ),
    )


def pictures() -> tuple[Picture, ...]:
    def left(axes: Any) -> None:
        for cost, style in (("ce", "-"), ("kl", "--")):
            for name, colour in (("hidden_bit", "kl"), ("eight_ways", "reverse_kl"), ("matter_of_taste", "js")):
                steps = probability_of_left(*CASES[name], cost)
                axes.plot(steps, style, color=COLOURS[colour], label=f"{name.replace('_', ' ')}, {cost}")
        axes.set(title="Probability of L, the better branch", xlabel="step", ylabel="π(L)", ylim=(0, 1))
        axes.legend(ncols=2, loc="upper right")

    def stopping(axes: Any) -> None:
        w, z = essay()
        for cost, colour in (("ce", "forward_ce"), ("kl", "kl")):
            runs = list(train(w, z, cost))[::5]
            steps = range(0, 5 * len(runs), 5)
            axes.plot(steps, [mean_length(w, s) for s in runs], color=COLOURS[colour], label=f"tokens, {cost}")
            axes.plot(steps, [float(value(w, s)) for s in runs], ":", color=COLOURS[colour], label=f"reward, {cost}")
        axes.set(title="A student that equals its expert, trained on", xlabel="step", ylim=(0, None))
        axes.legend()

    caption = (
        "Left: from ½, exact gradient descent. Where the expert knows a hidden bit at R both costs go left. Where L "
        "has eight good answers `ce` goes right and `kl` does not move. Where the expert only has a preference both go right "
        "until the student has learned it. Right: under `ce` a perfect student learns to stop early."
    )
    return (Picture("mdp", caption, (left, stopping)),)


def study() -> Part:
    n = compute()
    title = "The future term in two steps: cross-entropy or KL"
    return Part(title, __doc__ or "", claims(n), {"mdp": n}, pictures())
