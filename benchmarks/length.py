"""DistIL's future credit where answers end when they like: direction, scale and what becomes of their length.

    python benchmarks/length.py                 # all three tables of docs/length.md, about five minutes on one core
    python benchmarks/length.py direction --lengths 20 128

A world is a Markov chain that can end at every token. The teacher is shown one of eight references, each of which prefers other
words: a disagreement that no student can remove. In the second mode ("lost") it disagrees more; there the student is to slip
less often into it and to leave it sooner. The credits are those of ``errata.ops``.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from errata.ops.credit import center, excess_cost, future_cost, limit_scale, persistent_share

WORDS, REFERENCES, GROUPS, SIZE = 6, 8, 16, 8
ESTIMATORS: dict[str, tuple[str, str, float, float]] = {
    "credit none": ("none", "none", 1.0, 1.0),
    "distil-exact": ("sum", "leave_one_out", 1.0, 1.0),
    "exact, weight .3": ("sum", "leave_one_out", 1.0, 0.3),
    "exact, γ = .98": ("sum", "leave_one_out", 0.98, 1.0),
    "exact, γ = .9": ("sum", "leave_one_out", 0.9, 1.0),
    "mean, leave-one-out": ("mean", "leave_one_out", 1.0, 1.0),
    "group's rate, γ = 1": ("sum", "rate", 1.0, 1.0),
    "per token, γ = 1": ("sum", "per_token", 1.0, 1.0),
    "per token, γ = .98": ("sum", "per_token", 0.98, 1.0),
    "limit 1": ("sum", "limited", 0.98, 1.0),
    "limit .5": ("sum", "limited", 0.98, 0.5),
    "distil": ("sum", "shrunk", 0.98, 0.5),
}
"""Name: credit, baseline, discount, weight (of ``limited`` and ``shrunk``: the largest root mean square)."""


def advantage(cost: Tensor, mask: Tensor, group: Tensor, name: str) -> Tensor:
    """A_t = -weight·credit_t of one estimator, (B,T)."""
    kind, baseline, discount, weight = ESTIMATORS[name]
    if kind == "none":
        return torch.zeros_like(cost)
    if baseline == "per_token":
        return -weight * future_cost(excess_cost(cost, mask, group), mask, kind=kind, discount=discount)
    if baseline in ("limited", "shrunk"):
        excess = excess_cost(cost, mask, group)
        credit = future_cost(excess, mask, discount=discount)
        if baseline == "shrunk":  # the default
            credit = credit * persistent_share(excess, mask, discount=discount)
        return -limit_scale(credit, mask, weight)
    if baseline == "rate":  # Σ(c_i − the other responses' mean cost per token)
        total, count = (x.sum(1).view(-1, SIZE) for x in (cost * mask, mask))
        rate = (total.sum(1, keepdim=True) - total) / (count.sum(1, keepdim=True) - count)
        return -weight * future_cost(cost - rate.view(-1, 1), mask, discount=discount)
    return -weight * center(future_cost(cost, mask, kind=kind, discount=discount), mask, group, baseline=baseline)


@dataclass(frozen=True)
class Chain:
    """States are (mode, last word). Actions: 0 ends, 1 changes the mode, the others are words."""

    student: Tensor
    """(S,V) logits."""
    teacher: Tensor
    """(F,S,V) logits, one table for each reference."""
    following: Tensor
    """(S,V) next state, -1 at the end."""


def chain(
    length: int, *, slip: float, recover: float, spread: tuple[float, float] = (0.35, 0.8), seed: int = 0
) -> Chain:
    """Ends with probability 1/length at every token; KL grows with ``spread`` (normal, lost)."""
    generator = torch.Generator().manual_seed(seed)
    states = 2 * WORDS
    change = torch.tensor([slip] * WORDS + [recover] * WORDS, dtype=torch.float64)
    noise = torch.randn(REFERENCES + 1, states, WORDS, generator=generator, dtype=torch.float64)

    def table(words: Tensor, change: Tensor) -> Tensor:
        end = torch.full_like(change, 1 / length)
        rest = (1 - end - change).unsqueeze(-1) * words.softmax(-1)
        return torch.cat([end.unsqueeze(-1), change.unsqueeze(-1), rest], -1).log()

    student = table(0.7 * noise[0], change)
    scale = torch.tensor([spread[0]] * WORDS + [spread[1]] * WORDS, dtype=torch.float64)[:, None]
    better = change * torch.tensor([0.5] * WORDS + [2.0] * WORDS)
    teacher = torch.stack([table(0.7 * noise[0] + scale * n, better.clamp(max=0.9)) for n in noise[1:]])
    following = torch.full((states, WORDS + 2), -1)
    for mode in (0, 1):
        rows = slice(mode * WORDS, (mode + 1) * WORDS)
        following[rows, 1] = (1 - mode) * WORDS
        following[rows, 2:] = mode * WORDS + torch.arange(WORDS)
    return Chain(student, teacher, following)


def disagreement(world: Chain, student: Tensor) -> Tensor:
    """(F,S) KL(teacher ‖ student)."""
    teacher = world.teacher.log_softmax(-1)
    return (teacher.exp() * (teacher - student.log_softmax(-1))).sum(-1)


@dataclass(frozen=True)
class Rollouts:
    """B rollouts of at most T tokens; adjacent ones answer one problem under one reference."""

    state: Tensor
    action: Tensor
    mask: Tensor
    group: Tensor
    reference: Tensor
    """(B,)."""

    @property
    def length(self) -> Tensor:
        return self.mask.sum(1)


def sample(world: Chain, student: Tensor, limit: int, generator: torch.Generator) -> Rollouts:
    """16 groups of 8 rollouts."""
    count = GROUPS * SIZE
    steps = student.softmax(-1).cumsum(-1)
    state, alive = torch.zeros(count, dtype=torch.long), torch.arange(count)
    states, actions = torch.zeros(2, count, limit, dtype=torch.long)
    mask = torch.zeros(count, limit, dtype=torch.bool)
    for t in range(limit):
        draw = torch.rand(len(alive), 1, generator=generator, dtype=torch.float64)
        action = (draw > steps[state]).sum(1).clamp(max=WORDS + 1)
        states[alive, t], actions[alive, t], mask[alive, t] = state, action, True
        state = world.following[state, action]
        alive, state = alive[state >= 0], state[state >= 0]
        if len(alive) == 0:
            break
    last = int(mask.any(0).sum())
    reference = torch.randint(REFERENCES, (GROUPS,), generator=generator).repeat_interleave(SIZE)
    group = torch.arange(GROUPS).repeat_interleave(SIZE)
    return Rollouts(states[:, :last], actions[:, :last], mask[:, :last], group, reference)


def gradients(
    world: Chain, student: Tensor, rollouts: Rollouts, names: list[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradient (S,V) of the loss summed over a batch's tokens, and the advantages (B,T), of each estimator."""
    r, p = rollouts, student.softmax(-1)
    cost = disagreement(world, student)[r.reference[:, None], r.state] * r.mask
    visits = torch.zeros(REFERENCES, len(p), dtype=torch.float64)
    visits.index_put_((r.reference[:, None].expand_as(r.state), r.state), r.mask.double(), accumulate=True)
    local = (visits[..., None] * (p - world.teacher.softmax(-1))).sum(0)
    advantages = {name: advantage(cost, r.mask, r.group, name) for name in names}
    found = {}
    for name, a in advantages.items():
        push = torch.zeros_like(p).index_put_((r.state, r.action), -a * r.mask, accumulate=True)
        found[name] = local + push - push.sum(-1, keepdim=True) * p
    return found, advantages


def exact(world: Chain, student: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """(S,V) gradients of Σ_i P_i·m_i per rollout: the whole one, and the one with P_i, the chance to get to i, held fixed."""
    z = student.clone().requires_grad_(True)
    p, cost = z.softmax(-1), disagreement(world, z).mean(0)
    rows = torch.arange(len(z))[:, None].expand_as(p)
    stays = world.following >= 0
    move = torch.zeros(len(z), len(z), dtype=torch.float64)
    move = move.index_put((rows[stays], world.following[stays]), p[stays], accumulate=True)
    at = torch.zeros(len(z), dtype=torch.float64)
    at[0] = 1
    fixed, whole, neutral = torch.zeros_like(at), torch.zeros(()), torch.zeros(())
    for _ in range(limit):
        fixed = fixed + at.detach()
        here = at @ cost.detach()
        whole, neutral = whole + here, neutral + here * (at.sum().detach() / at.sum())
        at = at @ move
        if at.sum() < 1e-7:
            break
    local = fixed @ cost
    return tuple(torch.autograd.grad(local + f, z, retain_graph=True)[0] for f in (whole, neutral))  # type: ignore[return-value]


def cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()))


def direction(lengths: list[int], batches: int, estimators: list[str]) -> None:
    """Cosine of one batch's gradient, of the mean over batches, and noise, to the exact gradient at fixed lengths."""
    print("\n## Direction: 16 x 8 rollouts of mean length T; the lost mode is left after m tokens\n")
    print(
        "| T | m | estimator | cosine, one batch | cosine, mean | noise | cosine to the whole | size of A | A at the end |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    names = [n for n in estimators if n not in ("exact, weight .3", "exact, γ = .9", "group's rate, γ = 1")]
    for length in lengths:
        for stay in (8, 300) if length == lengths[-1] else (30,):
            world = chain(length, slip=0.25 / stay, recover=1 / stay)
            limit = min(4 * length, 16384)
            whole, neutral = exact(world, world.student, limit)
            generator = torch.Generator().manual_seed(1)
            found: dict[str, list[Tensor]] = {n: [] for n in names}
            size, end = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
            n = max(8, min(batches, 40000 // length))
            for _ in range(n):
                r = sample(world, world.student, limit, generator)
                g, a = gradients(world, world.student, r, names)
                final = torch.arange(r.mask.shape[1]) == r.length[:, None] - 1
                for name in names:
                    found[name].append(g[name] / (GROUPS * SIZE))
                    size[name] += float(a[name][r.mask].abs().mean()) / n
                    end[name] += float(a[name][final].mean()) / n
            for name in names:
                stack = torch.stack(found[name])
                mean = stack.mean(0)
                noise = math.sqrt(float((stack - mean).square().sum((1, 2)).mean())) / float(neutral.norm())
                one = sum(cosine(x, neutral) for x in stack) / n
                print(
                    f"| {length} | {stay} | {name} | {one:.2f} | {cosine(mean, neutral):.2f} | {noise:.2f} "
                    f"| {cosine(mean, whole):.2f} | {size[name]:.2f} | {end[name] + 0:+.2f} |",
                    flush=True,
                )


WORLDS = {
    "nothing to learn": {"slip": 1e-9, "recover": 0.4},
    "lost, recovers": {"slip": 1 / 60, "recover": 1 / 30},
    "lost for good": {"slip": 1 / 60, "recover": 1e-4},
    "two phases, the first costs more": {"slip": 1 / 25, "recover": 1e-6, "spread": (0.8, 0.3)},
}


def free(steps: int, seeds: int, estimators: list[str]) -> None:
    """Train (Adam, learning rate .03) and say what becomes of length, KL, time in the second mode, and of reward: at least 20
    tokens, ended by itself in the first mode."""
    print(
        f"\n## Free lengths: {steps} steps of 16 x 8 rollouts that end with probability 1/50 at first, mean of {seeds} seeds\n"
    )
    print("| world | estimator | length | KL a token | second mode | reward |")
    print("|---|---|---|---|---|---|")
    for title, settings in WORLDS.items():
        for name in estimators:
            rows = []
            for seed in range(seeds):
                world = chain(50, seed=seed, **settings)  # type: ignore[arg-type]
                z = world.student.clone().requires_grad_(True)
                adam = torch.optim.Adam([z], lr=0.03)
                generator = torch.Generator().manual_seed(100 + seed)
                for step in range(steps + 1):
                    now = z.detach()
                    r = sample(world, now, 400, generator)
                    if step in (0, steps):
                        cost = disagreement(world, now)[r.reference[:, None], r.state][r.mask]
                        last = r.state.gather(1, r.length[:, None] - 1)[:, 0]
                        good = (r.length >= 20) & (r.length < 400) & (last < WORDS)
                        lost = (r.state >= WORDS)[r.mask].double()
                        rows.append([float(x.double().mean()) for x in (r.length, cost, lost, good)])
                    g, _ = gradients(world, now, r, [name])
                    z.grad = g[name] / r.mask.sum()
                    adam.step()
            before, after = torch.tensor(rows).view(seeds, 2, 4).mean(0).tolist()
            cells = [f"{a:.{d}f} → {b:.{d}f}" for a, b, d in zip(before, after, (0, 3, 2, 2), strict=True)]
            print(f"| {title} | {name} | {' | '.join(cells)} |", flush=True)


def scale(lengths: list[int]) -> None:
    """Costs without any structure (exponential, mean .02 nats) on log-normal lengths: how large is pure noise?"""
    print(
        "\n## Scale: costs are independent, exponential with mean .02; lengths log-normal (σ = .6), at most 2T; 16 x 8\n"
    )
    print("| T | estimator | mean size of A | largest | A of the last token |")
    print("|---|---|---|---|---|")
    for length in lengths:
        generator = torch.Generator().manual_seed(0)
        count = GROUPS * SIZE
        drawn = (length * torch.exp(0.6 * torch.randn(count, generator=generator) - 0.18)).long().clamp(1, 2 * length)
        mask = torch.arange(int(drawn.max())) < drawn[:, None]
        cost = torch.empty(mask.shape, dtype=torch.float64).exponential_(50, generator=generator) * mask
        group = torch.arange(GROUPS).repeat_interleave(SIZE)
        final = torch.arange(mask.shape[1]) == drawn[:, None] - 1
        for name in (
            "distil-exact",
            "exact, γ = .98",
            "mean, leave-one-out",
            "per token, γ = 1",
            "distil",
        ):
            a = advantage(cost, mask, group, name)
            print(
                f"| {length} | {name} | {a[mask].abs().mean():.3f} | {a.abs().max():.2f} | {float(a[final].mean()) + 0:+.3f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # "all" is in the choices because argparse checks the default of an empty list against them as well.
    parser.add_argument("parts", nargs="*", choices=("scale", "free", "direction", "all"), default="all")
    parser.add_argument("--lengths", type=int, nargs="+", default=[20, 128, 1024, 4096])
    parser.add_argument("--batches", type=int, default=200, help="at most, at the shortest length")
    parser.add_argument("--estimators", nargs="+", choices=list(ESTIMATORS), default=list(ESTIMATORS), metavar="NAME")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    parts = ("scale", "free", "direction") if "all" in args.parts else args.parts
    if "scale" in parts:
        scale([*args.lengths, 8192] if args.lengths[-1] == 4096 else args.lengths)
    if "free" in parts:
        free(args.steps, args.seeds, args.estimators)
    if "direction" in parts:
        direction(args.lengths, args.batches, args.estimators)


if __name__ == "__main__":
    main()
