"""6. Which estimator of DistIL's gradient? Bias, variance and direction of every one.

The exact gradient of L = E_y Σ_t CE_t weighs ∇ℓS_t by the *sum* of all later costs. The released code divides it by the tokens
left (``mean``), folds it into the local term (``reweight``) and centres nothing. All are compared by exact enumeration on random
worlds (student N(0,1), expert = student + N(0,1.5²) in logits), each to the gradient of its own objective: that of Σ CE for
``ce``, of Σ KL for ``kl``. ``gradients.py`` says how.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from errata.ops.divergence import divergence
from errata.ops.policy_gradient import clipped_surrogate
from errata.theory.claims import COLOURS, Claim, Part, Picture, Table
from errata.theory.gradients import (
    Estimator,
    cosine,
    expectation,
    expected_gradient,
    groups,
    moments,
    random_policies,
    random_world,
    rollout_gradients,
)
from errata.theory.tabular import World, disagreement, full_tree, gradient, log_likelihood, objective, stopping_tree

CREDITS = ("none", "sum", "mean", "reweight")
EVERY = (
    Estimator("none", "kl", "none"),
    *(Estimator(c, k, b) for c in ("sum", "mean") for k in ("ce", "kl") for b in ("none", "position", "leave_one_out")),
    *(Estimator("reweight", k, "none") for k in ("ce", "kl")),
)
"""Every credit × cost × baseline that differs: ``none`` has no cost, and ``reweight`` no score function to centre."""
SHOWN = {
    "sum, kl, leave-one-out (default)": (Estimator(), COLOURS["kl"], "-"),
    "sum, ce, leave-one-out": (Estimator("sum", "ce"), COLOURS["forward_ce"], "-"),
    "sum, kl, no baseline": (Estimator("sum", "kl", "none"), COLOURS["kl"], ":"),
    "sum, ce, no baseline": (Estimator("sum", "ce", "none"), COLOURS["forward_ce"], ":"),
    "mean, ce, no baseline (released)": (Estimator("mean", "ce", "none"), COLOURS["reverse_kl"], ":"),
    "reweight, ce (released)": (Estimator("reweight", "ce", "none"), COLOURS["js"], ":"),
    "local term only": (Estimator("none", "kl", "none"), COLOURS["other"], "--"),
}
RESPONSES = (2, 4, 8, 16, 32, 64, 128, 256, 512)


def exact(world: World, student: Tensor, cost: str = "ce") -> Tensor:
    """(S,V) gradient of E Σ CE or E Σ KL, by differentiating the enumerated expectation itself."""
    return gradient(lambda z: objective(world, z, {"ce": "forward_ce", "kl": "forward_kl"}[cost]), student)


def cosine_table(
    vocabulary: int = 3, horizons: Sequence[int] = (3, 4, 5), worlds: int = 100
) -> dict[int, dict[str, float]]:
    """Mean cosine to the exact gradient of each credit with cost ``ce`` and no baseline, as in METHODS section 4."""
    table = {horizon: dict.fromkeys(CREDITS, 0.0) for horizon in horizons}
    for horizon, row in table.items():
        for seed in range(worlds):
            w, z = random_world(vocabulary, horizon, seed)
            target = exact(w, z)
            for credit in CREDITS:
                row[credit] += cosine(expected_gradient(w, z, Estimator(credit, "ce", "none")), target) / worlds
    return table


def qualities(estimator: Estimator, worlds: Sequence[tuple[World, Tensor]]) -> dict[str, float]:
    """Means over worlds, relative to the length of the estimator's own exact gradient.

    ``cosine`` and ``bias`` of its expectation, ``noise`` (standard deviation of the mean of eight responses), ``noise_pair``,
    and ``alignment_G``: the cosine one gets with G responses.
    """
    total: dict[str, float] = {}
    for w, z in worlds:
        m, target = moments(w, z, estimator), exact(w, z, estimator.cost)
        length = float(target.norm())
        row = {
            "cosine": cosine(m.mean, target),
            "bias": float((m.mean - target).norm()) / length,
            "noise": m.variance(8) ** 0.5 / length,
            "noise_pair": m.variance(2) ** 0.5 / length,
            **{f"alignment_{g}": m.alignment(target, g) for g in RESPONSES},
        }
        total = {k: total.get(k, 0.0) + v / len(worlds) for k, v in row.items()}
    return total


def own_trace(seed: int, *, size: int = 4) -> dict[str, float]:
    """Feedback that depends on the rollout: its last token decides which of two experts marks it.

    Cosine to the exact gradient of the expected gradient with the costs after t (``later``), and with all of them (``all``).
    """
    w, z = random_policies(full_tree(3, size), seed, experts=2)
    t, b = w.tree, len(w.tree.tokens)
    shown = (t.tokens[:, -1] == 0).long()
    own = shown * b + torch.arange(b)  # rows of ``groups`` in which the expert is the one this rollout is shown

    def trace_objective(student: Tensor) -> Tensor:
        per_rollout = disagreement(w, student)[:, t.state].sum(-1)  # (F,B)
        return log_likelihood(t, student).exp() @ per_rollout.flatten()[own]

    every = groups(w, z, 1)
    rows = replace(
        every,
        student=every.student.detach()[own].requires_grad_(True),
        teacher=every.teacher[own],
        **{k: getattr(every, k)[own] for k in ("tokens", "mask", "state", "group")},
        weight=log_likelihood(t, z).exp(),
    )
    later = rollout_gradients(rows, Estimator("sum", "ce", "none"))
    cost = divergence(rows.student, rows.teacher, "forward_ce").detach()
    past = cost.cumsum(-1)  # what ``future_cost`` leaves out: the costs up to and including t
    logp = rows.student.log_softmax(-1).gather(-1, rows.tokens[..., None]).squeeze(-1)
    (rest,) = torch.autograd.grad(clipped_surrogate(logp, logp.detach(), -past).sum(), rows.student)
    target = gradient(trace_objective, z)
    estimates = {"later": later, "all": later + rest}
    return {k: cosine(expectation(rows, g, z), target) for k, g in estimates.items()}


def sibling(seed: int, baseline: str) -> float:
    """Feedback that is the other response of a pair: relative bias of ``sum``, ``kl``.

    Every rollout has an expert of its own, the one it makes when it is shown. The target holds what is shown fixed.
    """
    tree = full_tree(3, 3)
    b = len(tree.tokens)
    w, z = random_policies(tree, seed, experts=b)
    w = replace(w, feedback=log_likelihood(tree, z).exp())
    target = exact(w, z, "kl")
    rows = groups(replace(w, expert=w.expert[:1], feedback=torch.ones(1, dtype=torch.float64), reward=w.reward[:1]), z)
    mine, theirs = torch.cartesian_prod(torch.arange(b), torch.arange(b)).unbind(-1)
    other = torch.stack([theirs, mine], -1).flatten()  # the sibling of each row
    rows = replace(rows, teacher=w.expert[other[:, None], rows.state])
    estimate = expectation(rows, rollout_gradients(rows, Estimator(baseline=baseline)), z)
    return float((estimate - target).norm() / target.norm())


def lengths(seed: int, **options: Any) -> float:
    """Relative bias of ``sum``, ``kl`` where rollouts end when they like."""
    w, z = random_policies(stopping_tree(3, 4), seed)
    target = exact(w, z, "kl")
    estimate = expected_gradient(w, z, Estimator(**options))
    estimate = estimate * (estimate * target).sum() / estimate.square().sum()  # forgive the scale
    return float((estimate - target).norm() / target.norm())


def study() -> Part:
    cosines = cosine_table()
    worlds = [random_world(3, 4, seed) for seed in range(8)]
    table = {e: qualities(e, worlds) for e in EVERY}
    unbiased = {e: q for e, q in table.items() if q["bias"] < 1e-9}
    quietest = min(unbiased.values(), key=lambda q: q["noise"])["noise"]
    default, released = table[Estimator()], table[Estimator("mean", "ce", "none")]
    ce_none, ce_loo = table[Estimator("sum", "ce", "none")], table[Estimator("sum", "ce")]
    kl_none = table[Estimator("sum", "kl", "none")]
    seeds = range(10)
    mean = lambda values: sum(values) / len(seeds)  # noqa: E731
    trace = {k: mean([own_trace(s)[k] for s in seeds]) for k in ("later", "all")}
    shown = {b: mean([sibling(s, b) for s in seeds]) for b in ("none", "leave_one_out")}
    ragged = {
        "sum": mean([lengths(s) for s in seeds]),
        "per_length": mean([lengths(s, per_length=True) for s in seeds]),
    }
    growth = {
        "horizon": {
            t: {k: qualities(e, [random_world(2, t, s) for s in range(4)]) for k, (e, *_) in SHOWN.items()}
            for t in range(2, 8)
        },
        "vocabulary": {
            v: {k: qualities(e, [random_world(v, 3, s) for s in range(4)]) for k, (e, *_) in SHOWN.items()}
            for v in range(2, 6)
        },
    }
    low = {c: min(cosines[h][c] for h in cosines) for c in CREDITS}
    claims = (
        Claim(
            "`sum` is the exact gradient",
            "feedback that does not depend on the rollout",
            low["sum"] > 1 - 1e-9 and default["bias"] < 1e-9,
            f"cosine {low['sum']:.6f} at T = 3, 4, 5 (`ce`); relative bias {default['bias']:.0e} (`kl`, leave-one-out)",
        ),
        Claim(
            "`none`, `mean` or `reweight` are the exact gradient",
            "the same",
            max(low["none"], low["mean"], low["reweight"]) > 1 - 1e-6,
            "cosine "
            + "; ".join(
                f"{c} " + "/".join(f"{cosines[h][c]:.3f}" for h in cosines) for c in ("none", "mean", "reweight")
            ),
            expected=False,
        ),
        Claim(
            "`sum` is the exact gradient",
            "missing: the feedback is the rollout's own trace",
            trace["later"] > 1 - 1e-6,
            f"cosine {trace['later']:.3f}; with the earlier costs as well {trace['all']:.6f}",
            expected=False,
        ),
        Claim(
            "Leave-one-out changes no expectation, with rollouts of any length",
            "the others' costs do not depend on this rollout",
            ragged["sum"] < 1e-9,
            f"relative bias {ragged['sum']:.0e} on worlds where rollouts stop when they like",
        ),
        Claim(
            "Leave-one-out changes no expectation",
            "missing: the other response was shown this one (a sibling's success)",
            shown["leave_one_out"] < 1e-6,
            f"relative bias {shown['leave_one_out']:.2f} in pairs that teach each other; without a baseline {shown['none']:.0e}",
            expected=False,
        ),
        Claim(
            "Dividing by a rollout's own length keeps the direction",
            "missing: rollouts of one length",
            ragged["per_length"] < 1e-6,
            f"relative bias {ragged['per_length']:.2f} after the best rescaling",
            expected=False,
        ),
        Claim(
            "Among the unbiased, `sum`, `kl`, leave-one-out has the least noise",
            "groups of eight (within 5 % of the least)",
            default["noise"] <= 1.05 * quietest,
            f"noise/gradient {default['noise']:.2f}; `ce` {ce_loo['noise']:.2f}; no baseline: `kl` {kl_none['noise']:.2f}, `ce` {ce_none['noise']:.2f}",
        ),
        Claim(
            "It points better than the released mean",
            "eight responses or more",
            all(default[f"alignment_{g}"] > released[f"alignment_{g}"] for g in RESPONSES if g >= 8),
            "cosine "
            + "; ".join(
                f"G={g}: {default[f'alignment_{g}']:.2f} against {released[f'alignment_{g}']:.2f}" for g in (8, 64, 512)
            ),
        ),
    )
    discounted = {g: qualities(Estimator(discount=g), worlds) for g in (0.25, 0.5, 0.75, 0.9)}

    def trade(axes: Any) -> None:
        for credit, colour, marker in (
            ("none", "other", "s"),
            ("sum", "kl", "o"),
            ("mean", "reverse_kl", "^"),
            ("reweight", "js", "v"),
        ):
            for e, q in table.items():
                if e.credit == credit:
                    filled = {"ce": "none", "kl": COLOURS[colour]}[e.cost]
                    axes.plot(q["noise"], q["bias"], marker, color=COLOURS[colour], mfc=filled)
                    if e.centred or credit in ("none", "reweight"):
                        continue
                    axes.annotate(
                        "no baseline", (q["noise"], q["bias"]), (0, 7), textcoords="offset points", ha="center"
                    )
            axes.plot([], [], marker, color=COLOURS[colour], label=credit)
        path = [*discounted.values(), default]
        axes.plot(
            [q["noise"] for q in path],
            [q["bias"] for q in path],
            "-",
            color=COLOURS["kl"],
            lw=1,
            label="sum with γ = ¼ … 1",
        )
        axes.set(
            title="Filled: kl, open: ce. V = 3, T = 4",
            xlabel="noise of eight responses / gradient",
            ylabel="bias / gradient",
            xlim=(0.3, None),
        )
        axes.legend()

    def aim(axes: Any) -> None:
        for name, (e, colour, style) in SHOWN.items():
            axes.semilogx(
                RESPONSES, [table[e][f"alignment_{g}"] for g in RESPONSES], style, base=2, color=colour, label=name
            )
        axes.set(title="Cosine to the exact gradient", xlabel="responses", ylim=(0, 1.02), xticks=RESPONSES[::2])
        axes.set_xticklabels([str(g) for g in RESPONSES[::2]])
        axes.legend()

    def grows(axis: str, quality: str, title: str, label: str, *, legend: bool = False) -> Any:
        def draw(axes: Any) -> None:
            for name, (_, colour, style) in SHOWN.items():
                axes.plot(
                    list(growth[axis]),
                    [row[name][quality] for row in growth[axis].values()],
                    style,
                    color=colour,
                    label=name,
                )
            axes.set(title=title, xlabel=label, ylim=(0, None))
            if legend:
                axes.legend()

        return draw

    return Part(
        about=__doc__ or "",
        title="Estimators of the gradient",
        claims=claims,
        numbers={"estimators": {str(h): row for h, row in cosines.items()}},
        pictures=(
            Picture(
                "estimators",
                "Left: a baseline moves an estimator left, for `ce` by a factor three, and changes no bias; dividing by the tokens left "
                "(`mean`) buys less noise with more bias than a discount γ does. Right: what one gets with so many responses to one "
                "problem.",
                (trade, aim),
            ),
            Picture(
                "growth",
                "As answers grow (V = 2) the biased credits drift from the gradient and the noise of the exact one rises, slowly if it is "
                "centred. The vocabulary (T = 3) matters little.",
                (
                    grows("horizon", "bias", "Bias / gradient", "horizon T", legend=True),
                    grows("horizon", "noise", "Noise of eight / gradient", "horizon T"),
                    grows("vocabulary", "bias", "Bias / gradient", "vocabulary V"),
                    grows("vocabulary", "noise", "Noise of eight / gradient", "vocabulary V"),
                ),
            ),
        ),
        tables=(
            Table(
                "Every estimator, V = 3, T = 4, mean of eight worlds. Bias and noise are relative to the gradient of the estimator's own "
                "objective; G is the number of responses to one problem; position averages over eight of them.",
                (
                    "credit",
                    "cost",
                    "baseline",
                    "γ",
                    "cosine",
                    "bias",
                    "noise, G = 8",
                    "aim, G = 8",
                    "aim, G = 64",
                    "aim, G = 512",
                ),
                tuple(_row(e, q) for e, q in table.items())
                + tuple(_row(Estimator(discount=g), q) for g, q in discounted.items()),
            ),
        ),
    )


def _row(e: Estimator, q: dict[str, float]) -> tuple[str, ...]:
    columns = ("cosine", "bias", "noise", "alignment_8", "alignment_64", "alignment_512")
    cost = "–" if e.credit == "none" else e.cost
    return (e.credit, cost, e.baseline.replace("_", " "), f"{e.discount:g}", *(f"{q[c]:.3f}" for c in columns))
