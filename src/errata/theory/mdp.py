"""3. What the future term knows that no local gradient can, and what it gets wrong: cross-entropy or KL as its cost.

Two steps. At s1 teacher and student agree, (½, ½): every *local* gradient there is zero, whatever the divergence. The second
term of DistIL's gradient, E[Σ_t ∇ℓS_t·C_t], moves away from actions after which the expert will disagree. That is useful when
disagreement costs reward, and only then. With ``ce`` as cost it also flees every state where the *expert* is uncertain, since
CE = KL + H_T, and stops early to save tokens; ``kl`` does neither.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
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
    objective,
    stopping_tree,
    tree,
    value,
    world,
)

KIND = {"ce": "forward_ce", "kl": "forward_kl"}


def hidden_bit() -> tuple[World, Tensor]:
    """L (0): both play (.9, .1), reward .9. R (1): guess a bit that the expert sees and the student does not, reward ½."""
    t = tree([(a, b) for a in (0, 1) for b in (0, 1)], 2)
    reward = torch.stack([t.score(lambda y, bit=bit: float(y[1] == (0 if y[0] == 0 else bit))) for bit in (0, 1)])
    expert = torch.stack([t.logits({(0,): (0.9, 0.1), (1,): bit}) for bit in ((1.0, 0.0), (0.0, 1.0))])
    return world(t, reward, expert), t.logits({(0,): (0.9, 0.1)})


def eight_ways() -> tuple[World, Tensor]:
    """L (0): eight good answers, expert and student uniform over them (CE = log 8, KL = 0). R (1): one answer, and it fails."""
    t = tree([(0, b) for b in range(8)] + [(1, 0)], 8)
    return world(t, t.score(lambda y: float(y[0] == 0)), t.logits()), t.logits()


def matter_of_taste() -> tuple[World, Tensor]:
    """As ``eight_ways``, but the expert always says the first of the eight: it disagrees, and nothing depends on it."""
    w, student = eight_ways()
    return world(w.tree, w.reward[0], w.tree.logits({(0,): (1.0,)})), student


def essay(length: int = 7, needed: int = 4) -> tuple[World, Tensor]:
    """Write at least ``needed`` words, two to choose from; token 0 stops. The student *is* the expert, who stops 1 time in 10."""
    t = stopping_tree(3, length)
    expert = t.logits({prefix: (0.1, 0.45, 0.45) for prefix in t.prefixes})
    return world(t, t.score(lambda y: float(sum(a != 0 for a in y) >= needed)), expert), expert.clone()


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


def mean_length(world: World, student: Tensor) -> float:
    return float(log_likelihood(world.tree, student).exp() @ world.tree.mask.sum(-1).double())


def train(world: World, student: Tensor, cost: str, *, steps: int = 300, rate: float = 0.5) -> Iterable[Tensor]:
    return descend(lambda z: objective(world, z, KIND[cost]), student, steps=steps, rate=rate)


def study() -> Part:
    cases = {"hidden_bit": hidden_bit(), "eight_ways": eight_ways(), "matter_of_taste": matter_of_taste()}
    future = {k: {c: future_of_first_token(w, z, c) for c in KIND} for k, (w, z) in cases.items()}
    pull = {k: {c: pull_to_left(w, z, c) for c in KIND} for k, (w, z) in cases.items()}
    local = {kind: local_gradient(*cases["hidden_bit"], kind) for kind in OBJECTIVES}
    w, z = essay()
    lengths, rewards = {}, {}
    for cost in KIND:
        runs = list(islice(train(w, z, cost), 0, None, 10))
        lengths[cost], rewards[cost] = [mean_length(w, s) for s in runs], [float(value(w, s)) for s in runs]
    bit_runs = {c: [float(s[0].softmax(-1)[0]) for s in train(*cases["hidden_bit"], c, steps=200)] for c in KIND}
    still = {c: float(gradient(lambda s, c=c: objective(w, s, KIND[c]), z).abs().max()) for c in KIND}
    bit = future["hidden_bit"]["ce"]
    claims = (
        Claim(
            "At s1 every local gradient is zero, though L earns .9 and R .5",
            "teacher = student = (½, ½) at s1",
            max(local.values()) < 1e-12,
            f"largest entry {max(local.values()):.0e} over forward CE, reverse KL and JS",
        ),
        Claim(
            "The future term prefers L",
            "disagreement costs reward: at R the expert knows a hidden bit",
            pull["hidden_bit"]["ce"] > 0 and pull["hidden_bit"]["kl"] > 0,
            f"future CE {bit['L']:.3f} at L, {bit['R']:.3f} at R; KL {future['hidden_bit']['kl']['L']:.3f}, {future['hidden_bit']['kl']['R']:.3f}",
        ),
        Claim(
            "… and takes the student there",
            "nothing else pulls: but the local term holds it to the expert's ½",
            bit_runs["ce"][-1] > 0.95,
            f"P(L) ends at {bit_runs['ce'][-1]:.2f} (ce), {bit_runs['kl'][-1]:.2f} (kl), not 1",
            expected=False,
        ),
        Claim(
            "The future term with `ce` prefers the better branch",
            "missing: the better branch has the surer expert (here eight good answers, log 8)",
            pull["eight_ways"]["ce"] > 0,
            f"future CE {future['eight_ways']['ce']['L']:.3f} at L (reward 1), {future['eight_ways']['ce']['R']:.3f} at R (reward 0)",
            expected=False,
        ),
        Claim(
            "The future term with `kl` does not push the wrong way there",
            "student and expert agree after L and after R",
            abs(pull["eight_ways"]["kl"]) < 1e-12,
            f"future KL {future['eight_ways']['kl']['L']:.3f} at L, {future['eight_ways']['kl']['R']:.3f} at R",
        ),
        Claim(
            "The future term with `kl` never prefers the worse branch",
            "missing: disagreement costs reward (here a matter of taste)",
            pull["matter_of_taste"]["kl"] >= 0,
            f"future KL {future['matter_of_taste']['kl']['L']:.3f} at L (reward 1), {future['matter_of_taste']['kl']['R']:.3f} at R (reward 0)",
            expected=False,
        ),
        Claim(
            "A student equal to its expert stays: `kl`",
            "cost `kl`",
            still["kl"] < 1e-12,
            f"largest gradient {still['kl']:.0e}; {lengths['kl'][0]:.2f} tokens, J {rewards['kl'][-1]:.2f} throughout",
        ),
        Claim(
            "A student equal to its expert stays: `ce`",
            "cost `ce`, sum; no baseline helps, the expectation is the same",
            still["ce"] < 1e-12,
            f"it learns to stop: {lengths['ce'][0]:.2f} → {lengths['ce'][-1]:.2f} tokens, J {rewards['ce'][0]:.2f} → {rewards['ce'][-1]:.2f}",
            expected=False,
        ),
    )

    def left(axes: Any) -> None:
        for cost, style in (("ce", "-"), ("kl", "--")):
            for name, colour in (("hidden_bit", "kl"), ("eight_ways", "reverse_kl"), ("matter_of_taste", "js")):
                runs = [float(s[0].softmax(-1)[0]) for s in train(*cases[name], cost, steps=200)]
                axes.plot(runs, style, color=COLOURS[colour], label=f"{name.replace('_', ' ')}, {cost}")
        axes.set(title="Probability of L, the better branch", xlabel="step", ylabel="π(L)", ylim=(0, 1))
        axes.legend()

    def stopping(axes: Any) -> None:
        for cost, colour in (("ce", "forward_ce"), ("kl", "kl")):
            axes.plot(
                range(0, 10 * len(lengths[cost]), 10), lengths[cost], color=COLOURS[colour], label=f"tokens, {cost}"
            )
            axes.plot(
                range(0, 10 * len(lengths[cost]), 10),
                rewards[cost],
                ":",
                color=COLOURS[colour],
                label=f"reward, {cost}",
            )
        axes.set(title="A student that equals its expert, trained on", xlabel="step", ylim=(0, None))
        axes.legend()

    caption = (
        "Left: from ½, exact gradient descent. Where the expert knows a hidden bit at R both costs go left; where L merely has "
        "eight good answers `ce` goes right and `kl` stays; where they differ in taste both go right. Right: under `ce` a perfect "
        "student unlearns to finish."
    )
    return Part(
        about=__doc__ or "",
        title="The future term in two steps: cross-entropy or KL",
        claims=claims,
        numbers={
            "mdp": {
                "local_gradient": local,
                "future": future,
                "pull_to_L": pull,
                "P_L_end": {c: r[-1] for c, r in bit_runs.items()},
                "stopping": {
                    c: {"tokens": [lengths[c][0], lengths[c][-1]], "J": [rewards[c][0], rewards[c][-1]]} for c in KIND
                },
            }
        },
        pictures=(Picture("mdp", caption, (left, stopping)),),
    )
