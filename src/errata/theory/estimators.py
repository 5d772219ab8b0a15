"""6. Which estimator of DistIL's gradient? Bias, variance and direction of each.

The exact gradient of L = E_y Σ_t CE_t weights ∇ℓS_t by the sum of all later costs. The released code divides the sum by
the tokens left (``mean``), or multiplies the local term by it (``reweight``), and uses no baseline. Each estimator is
compared, by exact enumeration on random worlds (student logits N(0,1), expert = student + N(0,1.5²)), with the gradient
of its own objective: Σ CE for ``ce``, Σ KL for ``kl``. The computation is in ``gradients.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from statistics import fmean as mean
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
"""Every different credit × cost × baseline. ``none`` has no cost, and ``reweight`` has no policy gradient to centre."""
SHOWN = {
    "sum, kl, leave-one-out (default)": (Estimator(), COLOURS["kl"], "-"),
    "sum, ce, leave-one-out": (Estimator("sum", "ce"), COLOURS["forward_ce"], "-"),
    "sum, kl, no baseline": (Estimator("sum", "kl", "none"), COLOURS["kl"], ":"),
    "sum, ce, no baseline": (Estimator("sum", "ce", "none"), COLOURS["forward_ce"], ":"),
    "mean, ce, no baseline (released)": (Estimator("mean", "ce", "none"), COLOURS["reverse_kl"], ":"),
    "reweight, ce (released)": (Estimator("reweight", "ce", "none"), COLOURS["js"], ":"),
    "local term only": (Estimator("none", "kl", "none"), COLOURS["other"], "--"),
}
DISCOUNTS = (0.25, 0.5, 0.75, 0.9)
SEEDS, GROWTH_WORLDS = range(10), 6
RESPONSES = (2, 4, 8, 16, 32, 64, 128, 256, 512)


def exact(world: World, student: Tensor, cost: str = "ce") -> Tensor:
    """(S,V) gradient of E Σ CE or E Σ KL, by differentiating the enumerated expectation itself."""
    return gradient(lambda z: objective(world, z, {"ce": "forward_ce", "kl": "forward_kl"}[cost]), student)


def cosine_table(
    vocabulary: int = 3, horizons: Sequence[int] = (3, 4, 5), worlds: int = 100
) -> dict[int, dict[str, float]]:
    """Mean cosine to the exact gradient of each credit with cost ``ce`` and no baseline (docs/theory.md, section 6)."""
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

    ``cosine`` and ``bias`` of its expectation, ``noise`` (standard deviation of the mean of eight responses), and
    ``alignment_G``: the cosine of an estimate from G responses.
    """
    total: dict[str, float] = {}
    for w, z in worlds:
        m, target = moments(w, z, estimator), exact(w, z, estimator.cost)
        length = float(target.norm())
        row = {
            "cosine": cosine(m.mean, target),
            "bias": float((m.mean - target).norm()) / length,
            "noise": m.variance(8) ** 0.5 / length,
            **{f"alignment_{g}": m.alignment(target, g) for g in RESPONSES},
        }
        total = {k: total.get(k, 0.0) + v / len(worlds) for k, v in row.items()}
    return total


def own_trace(seed: int, *, size: int = 4) -> dict[str, float]:
    """Feedback that depends on the rollout: its last token decides which of two experts is its teacher.

    Cosine to the exact gradient of the expected one, with the costs after t (``later``) and with all (``all``).
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
    """Relative bias of ``sum``, ``kl`` if each response of a pair is the other's context.

    There is one expert for each rollout: the one that is shown that rollout. The target holds the contexts fixed.
    """
    tree = full_tree(3, 3)
    b = len(tree.tokens)
    w, z = random_policies(tree, seed, experts=b)
    w = replace(w, feedback=log_likelihood(tree, z).exp())
    target = exact(w, z, "kl")
    rows = groups(replace(w, expert=w.expert[:1], feedback=torch.ones(1, dtype=torch.float64), reward=w.reward[:1]), z)
    first, second = torch.cartesian_prod(torch.arange(b), torch.arange(b)).unbind(-1)
    other = torch.stack([second, first], -1).flatten()  # the sibling of each row
    rows = replace(rows, teacher=w.expert[other[:, None], rows.state])
    estimate = expectation(rows, rollout_gradients(rows, Estimator(baseline=baseline)), z)
    return float((estimate - target).norm() / target.norm())


def lengths(seed: int, *, per_length: bool) -> float:
    """Relative bias of ``sum``, ``kl``, leave-one-out if rollouts differ in length."""
    w, z = random_policies(stopping_tree(3, 4), seed)
    target = exact(w, z, "kl")
    estimate = expected_gradient(w, z, Estimator(per_length=per_length))
    estimate = estimate * (estimate * target).sum() / estimate.square().sum()  # the best rescaling
    return float((estimate - target).norm() / target.norm())


@cache
def growth() -> dict[str, dict[int, dict[str, dict[str, float]]]]:
    """Qualities of the shown estimators for growing T and V: {axis: {value: {name: qualities}}}."""
    shapes = {"horizon": {t: (2, t) for t in range(2, 8)}, "vocabulary": {v: (v, 3) for v in range(2, 6)}}
    return {
        axis: {
            x: {
                name: qualities(e, [random_world(*shape, s) for s in range(GROWTH_WORLDS)])
                for name, (e, *_) in SHOWN.items()
            }
            for x, shape in row.items()
        }
        for axis, row in shapes.items()
    }


def claims(cosines: dict[int, dict[str, float]], table: Mapping[Estimator, dict[str, float]]) -> tuple[Claim, ...]:
    default, released = table[Estimator()], table[Estimator("mean", "ce", "none")]
    least = min(q["noise"] for q in table.values() if q["bias"] < 1e-9)
    noise = {e: f"{q['noise']:.2f}" for e, q in table.items()}
    low = {c: min(row[c] for row in cosines.values()) for c in CREDITS}
    listed = "; ".join(
        f"{c} " + "/".join(f"{row[c]:.3f}" for row in cosines.values()) for c in ("none", "mean", "reweight")
    )
    traces = [own_trace(seed) for seed in SEEDS]
    trace = {k: mean([t[k] for t in traces]) for k in ("later", "all")}
    pairs = {b: mean([sibling(s, b) for s in SEEDS]) for b in ("none", "leave_one_out")}
    ragged = {p: mean([lengths(s, per_length=p) for s in SEEDS]) for p in (False, True)}
    return (
        Claim(
            "`sum` is the exact gradient",
            "feedback that does not depend on the rollout",
            low["sum"] > 1 - 1e-9 and default["bias"] < 1e-9,
            f"cosine {low['sum']:.6f} at T = 3, 4, 5 (`ce`); relative bias {default['bias']:.0e} (`kl`, leave-one-out)",
        ),
        Claim(
            "So are `none`, `mean` or `reweight`",
            "the same",
            max(low["none"], low["mean"], low["reweight"]) > 1 - 1e-6,
            f"cosine at T = 3/4/5: {listed}",
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
            ragged[False] < 1e-9,
            f"relative bias {ragged[False]:.0e} on worlds where rollouts differ in length",
        ),
        Claim(
            "Leave-one-out changes no expectation",
            "missing: the other response was shown this one (a sibling's success)",
            pairs["leave_one_out"] < 1e-6,
            f"relative bias {pairs['leave_one_out']:.2f} in pairs that are each other's context; "
            f"no baseline {pairs['none']:.0e}",
            expected=False,
        ),
        Claim(
            "Dividing by a rollout's own length keeps the direction",
            "missing: rollouts of one length",
            ragged[True] < 1e-6,
            f"relative bias {ragged[True]:.2f} after the best rescaling",
            expected=False,
        ),
        Claim(
            "Among the unbiased, `sum`, `kl`, leave-one-out has the least noise",
            "groups of eight (within 5 % of the least)",
            default["noise"] <= 1.05 * least,
            f"noise/gradient {noise[Estimator()]}; `ce` {noise[Estimator('sum', 'ce')]}; no baseline: "
            f"`kl` {noise[Estimator('sum', 'kl', 'none')]}, `ce` {noise[Estimator('sum', 'ce', 'none')]}",
        ),
        Claim(
            "It points better than the released mean",
            "eight responses or more",
            all(default[f"alignment_{g}"] > released[f"alignment_{g}"] for g in RESPONSES if g >= 8),
            "cosine "
            + "; ".join(
                f"G = {g}: {default[f'alignment_{g}']:.2f}, {released[f'alignment_{g}']:.2f}" for g in (8, 64, 512)
            ),
        ),
    )


def pictures(table: Mapping[Estimator, dict[str, float]]) -> tuple[Picture, ...]:
    markers = {"none": ("other", "s"), "sum": ("kl", "o"), "mean": ("reverse_kl", "^"), "reweight": ("js", "v")}

    def trade(axes: Any) -> None:
        for e, q in ((e, q) for e, q in table.items() if e.discount == 1):
            colour, marker = markers[e.credit]
            axes.plot(
                q["noise"], q["bias"], marker, color=COLOURS[colour], mfc=COLOURS[colour] if e.cost == "kl" else "none"
            )
            if e.credit in ("sum", "mean") and e.baseline == "none":
                axes.annotate("no baseline", (q["noise"], q["bias"]), (0, 7), textcoords="offset points", ha="center")
        for credit, (colour, marker) in markers.items():
            axes.plot([], [], marker, color=COLOURS[colour], label=credit)
        path = [table[Estimator(discount=g)] for g in (*DISCOUNTS, 1.0)]
        axes.plot(
            [q["noise"] for q in path], [q["bias"] for q in path], color=COLOURS["kl"], lw=1, label="sum, γ = ¼ … 1"
        )
        axes.set(
            title="Filled: kl, open: ce. V = 3, T = 4", xlabel="noise of eight / gradient", ylabel="bias / gradient"
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

    def grows(axis: str, quality: str, title: str, label: str, *, legend: bool = False) -> Callable[[Any], None]:
        def draw(axes: Any) -> None:
            growing = growth()
            for name, (_, colour, style) in SHOWN.items():
                curve = [row[name][quality] for row in growing[axis].values()]
                axes.plot(list(growing[axis]), curve, style, color=colour, label=name)
            axes.set(title=title, xlabel=label, ylim=(0, None), xticks=list(growing[axis]))
            if legend:
                axes.legend()

        return draw

    trade_off = (
        "Left: a baseline moves an estimator left, for `ce` by a factor of three, and changes no bias; dividing by "
        "the tokens left (`mean`) lowers the noise with more bias than a discount γ. Right: the cosine of an "
        "estimate from so many responses to one problem."
    )
    grown = (
        "As answers grow (V = 2) the biased credits leave the gradient, and the noise of the exact one rises: "
        "slowly with `kl` or a baseline, fast with neither. The vocabulary (T = 3) matters less."
    )
    return (
        Picture("estimators", trade_off, (trade, aim)),
        Picture(
            "growth",
            grown,
            (
                grows("horizon", "bias", "Bias / gradient", "horizon T"),
                grows("horizon", "noise", "Noise of eight / gradient", "horizon T", legend=True),
                grows("vocabulary", "bias", "Bias / gradient", "vocabulary V"),
                grows("vocabulary", "noise", "Noise of eight / gradient", "vocabulary V"),
            ),
        ),
    )


def listing(table: Mapping[Estimator, dict[str, float]]) -> Table:
    columns = ("cosine", "bias", "noise", "alignment_8", "alignment_64", "alignment_512")
    return Table(
        "Every estimator, V = 3, T = 4, mean of eight worlds. Bias and noise are relative to the gradient of the "
        "estimator's own objective; aim is the cosine with G responses to one problem; position averages over eight.",
        ("credit", "cost", "baseline", "γ", "cosine", "bias", "noise, G=8", "aim, G=8", "aim, G=64", "aim, G=512"),
        tuple(
            (
                e.credit,
                "–" if e.credit == "none" else e.cost,
                e.baseline.replace("_", " "),
                f"{e.discount:g}",
                *(f"{q[c]:.3f}" for c in columns),
            )
            for e, q in table.items()
        ),
    )


def study() -> Part:
    cosines = cosine_table()
    worlds = [random_world(3, 4, seed) for seed in range(8)]
    table = {e: qualities(e, worlds) for e in (*EVERY, *(Estimator(discount=g) for g in DISCOUNTS))}
    numbers = {"estimators": {str(horizon): row for horizon, row in cosines.items()}}
    title = "Estimators of the gradient"
    return Part(title, __doc__ or "", claims(cosines, table), numbers, pictures(table), (listing(table),))
