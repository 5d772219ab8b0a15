"""Time and peak memory of the score op and of other ways to compute the same numbers, in one run on this machine.

    python benchmarks/scores.py                        # N = 1024 and 2048 valid tokens, H = 896, V = 151,936: minutes
    python benchmarks/scores.py --sweep                # the fused loss alone over N and V
    python benchmarks/scores.py --tokens 256 --vocabulary 8192 --rounds 1      # a quick look

Every measurement is a fresh process. Inputs are made in place. One forward and backward pass is made, as in a first
training step, and the next one is timed, as in all later steps. A first pass also waits until the operating system, and on
a virtual machine its host, provides memory that was never used before; its time is printed too. Memory is the peak resident
set of both passes less what was resident before (so gradients count, inputs do not).

There are two lower bounds. ``products`` is the time of the four matrix products that exact work needs (two logits, dhidden,
dhead), and nothing else, each as one product and in memory already used. ``square`` is the time of their operations at the
best rate of a square product within two seconds. Products of these shapes do not reach that rate.

Rounds go through all variants in turn, so that all are equally affected by changes of the machine's speed. Ratios are taken
within a round, and their median is reported. CPU seconds vary less on a machine that others use. With ``--patience`` a
measurement that others disturbed is repeated.

glibc returns a large tensor's memory to the operating system when it is freed, and requests it again, page by page, in the
next step. With ``--memory kept`` all variants tell it to keep the memory, as ``errata train`` does. The variants gain
differently, so run both.

All variants do one training step's work for forward cross-entropy plus a policy gradient, with gradients to hidden
states and head: log-probability and entropy of student and teacher, the divergence, the loss, backward. ``trl-topk``
alone approximates (k = 100 and tail).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FLOORS = ("matmul", "products")
VARIANTS = (*FLOORS, "fused", "composed", "naive", "trl", "trl-topk")
EXACT = ("fused", "composed", "naive", "trl")
QUIET = 0.05
"""Share of the machine's time that other processes may use before a measurement is repeated."""
MATMUL = 2048
"""Side of the square product."""


# -- one measurement, in its own process
# ---------------------------------------------------------------------------------


def measure(variant: str, n: int, h: int, v: int, threads: int, kind: str) -> dict[str, float]:
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if variant == "matmul":
        return matmul_rate()
    step = {
        "products": products,
        "fused": fused,
        "composed": composed,
        "naive": naive,
        "trl": trl_pair,
        "trl-topk": trl_topk,
    }[variant]
    step(inputs(8, 16, 64), kind)  # loads the libraries; nothing of size
    data = inputs(n, h, v)
    before = resident()
    first, _, loss = timed(step, data, kind)
    grads = [data[name].grad for name in ("hidden", "head") if data[name].grad is not None]
    norm = sum(grad.norm().item() for grad in grads)
    data["hidden"].grad = data["head"].grad = None
    del grads
    wall, cpu, _ = timed(step, data, kind)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"first": first, "wall": wall, "cpu": cpu, "bytes": peak - before, "loss": loss, "norm": norm}


def timed(step: Callable[[dict[str, Any], str], float], data: dict[str, Any], kind: str) -> tuple[float, float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    loss = step(data, kind)
    return time.perf_counter() - wall, time.process_time() - cpu, loss


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def matmul_rate() -> dict[str, float]:
    """Best rate of a square float32 product within two seconds, in FLOP per second and per CPU second."""
    import torch

    a, b, c = (torch.randn(MATMUL, MATMUL) for _ in range(3))
    best = {"wall": 0.0, "cpu": 0.0}
    end = time.perf_counter() + 2.0
    while time.perf_counter() < end:
        wall, cpu = time.perf_counter(), time.process_time()
        torch.mm(a, b, out=c)
        took = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        best = {key: max(best[key], 2 * MATMUL**3 / took[key]) for key in best}
    return best


def inputs(n: int, h: int, v: int) -> dict[str, Any]:
    """A student and a teacher near it: logits of deviation 1, about .1 apart. Made in place, so that the peak stays
    at the total."""
    import torch

    head = torch.empty(v, h).normal_().mul_(h**-0.5)
    hidden = torch.empty(1, n, h).normal_()
    teacher_head = torch.empty(v, h).normal_().mul_(0.1 * h**-0.5)
    for start in range(0, v, 4096):
        teacher_head[start : start + 4096].add_(head[start : start + 4096])
    return {
        "hidden": hidden.requires_grad_(),
        "head": head.requires_grad_(),
        "teacher_hidden": hidden.detach() + 0.1 * torch.randn(1, n, h),
        "teacher_head": teacher_head,
        "tokens": torch.randint(0, v, (1, n)),
        "advantage": torch.randn(1, n),
        "weight": torch.full((1, n), 1 / n),
    }


def products(d: dict[str, Any], kind: str) -> float:
    """The four products that every exact way needs, with memory for everything. The first call touches that memory."""
    import torch

    hidden, head = d["hidden"].detach()[0], d["head"].detach()
    if "logits" not in d:
        d["logits"], d["d_hidden"], d["d_head"] = (
            torch.zeros(*shape) for shape in ((len(head), len(hidden)), hidden.shape, head.shape)
        )
    logits = d["logits"]
    torch.mm(d["teacher_head"], d["teacher_hidden"][0].t(), out=logits)
    torch.mm(head, hidden.t(), out=logits)
    torch.mm(logits.t(), head, out=d["d_hidden"])
    torch.mm(logits, hidden, out=d["d_head"])
    return 0.0


def fused(d: dict[str, Any], kind: str) -> float:
    from errata.ops.scores import DivergenceSettings, ModelStates, Objective, Streams, fused_loss

    loss, _ = fused_loss(
        ModelStates(d["hidden"], d["head"]),
        ModelStates(d["teacher_hidden"], d["teacher_head"]),
        d["tokens"],
        Streams(d["advantage"], d["weight"], d["weight"]),
        objective=Objective(DivergenceSettings(kind)),
    )
    loss.backward()
    return loss.item()


def composed(d: dict[str, Any], kind: str) -> float:
    from errata.ops.scores import token_scores

    s = token_scores(d["hidden"], d["head"], d["teacher_hidden"], d["teacher_head"], d["tokens"], divergence=kind)
    return _backward(d, s.student_logp, s.divergence)


def naive(d: dict[str, Any], kind: str) -> float:
    """The plain way: both models' logits, their log-softmax, and autograd for the rest."""
    import torch

    from errata.ops.divergence import between

    student_logits = d["hidden"] @ d["head"].t()
    student_logp = student_logits.log_softmax(-1)
    with torch.no_grad():
        teacher_logits = d["teacher_hidden"] @ d["teacher_head"].t()
        teacher_logp = teacher_logits.log_softmax(-1)
        teacher_logp.gather(-1, d["tokens"][..., None])
        for logp in (student_logp, teacher_logp):
            (logp.exp() * logp).sum(-1)
    logp = student_logp.gather(-1, d["tokens"][..., None])[..., 0]
    return _backward(d, logp, between(student_logp, teacher_logp, kind))


def trl_pair(d: dict[str, Any], kind: str) -> float:
    """TRL's own kernels: its chunked divergence, and its chunked log-probability and entropy for student and
    teacher."""
    import torch
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    beta = {"forward_ce": 0.0, "forward_kl": 0.0, "reverse_kl": 1.0, "js": 0.5}[kind]
    hidden, teacher_hidden, tokens = d["hidden"][0], d["teacher_hidden"][0], d["tokens"][0]
    value, _ = ChunkedDivergenceFunction.apply(
        hidden, d["head"], None, teacher_hidden, d["teacher_head"], None, beta, 1.0, 1.0, None, 1.0, None
    )
    options = (None, tokens, 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, ("entropy",))
    logp = ChunkedLogProbFunction.apply(hidden, d["head"], *options)[0]
    with torch.no_grad():
        entropy = ChunkedLogProbFunction.apply(teacher_hidden, d["teacher_head"], *options)[1]
    if kind == "forward_ce":  # what TRL calls forward KL is less by the teacher's entropy
        value = value + entropy
    return _backward(d, logp[None], value[None])


def trl_topk(d: dict[str, Any], kind: str) -> float:
    """TRL's SDPO loss on the student's likeliest 100 tokens and a tail, from logits, as its trainer calls it."""
    import torch
    from trl.experimental.sdpo.loss_utils import compute_topk_self_distillation_loss
    from trl.trainer.utils import selective_log_softmax

    student = d["hidden"] @ d["head"].t()
    with torch.no_grad():
        teacher = d["teacher_hidden"] @ d["teacher_head"].t()
    value = compute_topk_self_distillation_loss(
        student,
        teacher,
        distillation_topk=min(100, student.shape[-1]),
        distillation_alpha=0.0,
        distillation_add_tail=True,
    )
    return _backward(d, selective_log_softmax(student, d["tokens"]), value)


def _backward(d: dict[str, Any], logp: Any, value: Any) -> float:
    loss = (d["weight"] * (value - d["advantage"] * (logp - logp.detach()).exp())).sum()
    loss.backward()
    return float(loss.item())


# -- the comparison
# ------------------------------------------------------------------------------------------------------


def fresh(variant: str, n: int, options: argparse.Namespace, v: int | None = None) -> dict[str, float]:
    """One measurement in its own process; on a machine that others use, the least disturbed of several tries."""
    command = [sys.executable, __file__, "--worker", variant, "--tokens", str(n), "--hidden", str(options.hidden)]
    command += ["--vocabulary", str(v or options.vocabulary), "--threads", str(options.threads)]
    command += ["--divergence", options.divergence, "--memory", options.memory]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "TRL_EXPERIMENTAL_SILENCE": "1"}

    def run() -> dict[str, float]:
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{variant} at N = {n} failed:\n{done.stderr[-2000:]}")
        return json.loads(done.stdout.splitlines()[-1])

    end, best = time.monotonic() + options.patience, None
    while best is None or (best["others"] > QUIET and time.monotonic() < end):
        while time.monotonic() < end and others_share(lambda: time.sleep(2.0))[0] > QUIET:
            pass
        share, result = others_share(run)
        if best is None or share < best["others"]:
            best = result | {"others": share}
    return best


def others_share(run: Callable[[], Any]) -> tuple[float, Any]:
    """The share of the machine's time that other processes used during ``run``, and its return value."""

    def ticks() -> tuple[float, float]:
        fields = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        mine = (children.ru_utime + children.ru_stime) * os.sysconf("SC_CLK_TCK")
        return sum(fields), sum(fields) - fields[3] - fields[4] - mine

    before = ticks()
    result = run()
    after = ticks()
    return max(after[1] - before[1], 0.0) / (after[0] - before[0]), result


def compare(n: int, options: argparse.Namespace) -> None:
    rounds: list[dict[str, dict[str, float]]] = []
    for i in range(options.rounds):
        rounds.append({variant: fresh(variant, n, options) for variant in options.variants})
        print(
            f"round {i + 1}: "
            + ", ".join(
                f"{k} {r['wall']:.2f} s {r['bytes'] / 1e9:.2f} GB" for k, r in rounds[-1].items() if k not in FLOORS
            ),
            flush=True,
        )
    operations = 4 * 2 * n * options.hidden * options.vocabulary

    def median(of: Callable[[dict[str, dict[str, float]]], float]) -> float:
        return statistics.median(of(r) for r in rounds)

    rate, alone = median(lambda r: r["matmul"]["wall"]), median(lambda r: r["products"]["wall"])
    print(
        f"\nN = {n}, H = {options.hidden}, V = {options.vocabulary}, {options.divergence}, {options.threads} threads, "
        f"memory {options.memory}"
    )
    print(f"floor: the four products alone take {alone:.2f} s ({operations / alone / 1e9:.0f} GFLOP/s)")
    print(f"       at a square product's best rate, {rate / 1e9:.0f} GFLOP/s, {operations / rate:.2f} s")
    reference = next(k for k in EXACT if k in rounds[0])
    print(
        "| variant | first, s | time, s | × products | × square | CPU, s | memory, GB | fused / it: time | CPU | memory |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for variant in (k for k in options.variants if k not in FLOORS):
        of = {key: median(lambda r: r[variant][key]) for key in ("first", "wall", "cpu", "bytes")}  # noqa: B023
        times = median(lambda r: r[variant]["wall"] / r["products"]["wall"])  # noqa: B023
        square = median(lambda r: r[variant]["wall"] * r["matmul"]["wall"] / operations)  # noqa: B023
        cells = [f"{x:.2f}" for x in (of["first"], of["wall"], times, square, of["cpu"], of["bytes"] / 1e9)]
        cells += [f"{median(lambda r: r['fused'][key] / r[variant][key]):.2f}" for key in ("wall", "cpu", "bytes")]  # noqa: B023
        print("| " + " | ".join([variant, *cells]) + " |")
    for variant in (k for k in EXACT if k in rounds[0]):
        for key in ("loss", "norm"):
            a, b = rounds[0][variant][key], rounds[0][reference][key]
            assert abs(a - b) <= 1e-4 * abs(b), f"{variant}'s {key} {a} is not {reference}'s {b}"
    others = max(r["others"] for by_variant in rounds for r in by_variant.values())
    print(f"Other processes used up to {others:.0%} of the machine during a measurement.")
    print("All exact variants agree on the loss and on both gradients' norms to 1e-4.\n", flush=True)


def sweep(options: argparse.Namespace) -> None:
    """Memory must not grow with N·V: what remains is dhead, the one tile's logits and the hidden states' gradient."""
    print("| N | V | time, s | × products | memory, GB | of it dhead |\n|---|---|---|---|---|---|")
    for v in (32_000, 64_000, 151_936, 262_144):
        for n in (256, 1024, 4096):
            floor = fresh("products", n, options, v)["wall"]
            r = fresh("fused", n, options, v)
            dhead = 4 * options.hidden * v / 1e9
            print(
                f"| {n} | {v} | {r['wall']:.2f} | {r['wall'] / floor:.2f} | {r['bytes'] / 1e9:.2f} | {dhead:.2f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048], help="valid tokens N")
    parser.add_argument("--hidden", type=int, default=896)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--patience", type=float, default=0.0, help="seconds to wait for a quiet machine, per measurement"
    )
    parser.add_argument("--divergence", default="forward_ce", choices=["forward_ce", "forward_kl", "reverse_kl", "js"])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--memory", choices=("returned", "kept"), default="returned")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        if options.memory == "kept":
            from errata.commands.allocator import keep_memory

            keep_memory()
        size = (options.tokens[0], options.hidden, options.vocabulary)
        print(json.dumps(measure(options.worker, *size, options.threads, options.divergence)))
    elif options.sweep:
        sweep(options)
    else:
        options.variants = sorted({*options.variants, *FLOORS, "fused"}, key=VARIANTS.index)
        for n in options.tokens:
            compare(n, options)


if __name__ == "__main__":
    main()
