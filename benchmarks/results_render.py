"""Write the tables of docs/results.md and the figures from the records under ``benchmarks/results/``: no number is typed.

    python benchmarks/results_render.py            # rewrite the page's parts between its markers, and the figures
    python benchmarks/results_render.py --check    # exit status 1 if the page is not what the records give

An interval over seeds is Student's at 95 %. A comparison is paired by seed. Tables name the cells that are missing.
"""

from __future__ import annotations

import argparse
import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from results_cells import (
    CELLS,
    CREDIT,
    DISTIL,
    DRIFT,
    METHODS,
    PEERS,
    ROOT,
    SHOWN,
    SMOLLM2,
    TAUGHT,
    TWO_METHODS,
    TWO_RATES,
    UNTAUGHT,
    Cell,
)

from errata.evaluation.metrics import pass_at_k
from errata.reports.compare import T_975, interval
from errata.reports.plots import COLOURS

PAGE = ROOT / "docs" / "results.md"
FIGURE = ROOT / "docs" / "figures" / "pass-at-n.svg"
NOT_DRAWN = ("grpo-group", "trl-grpo", "opsd", "distil-science")
"""The first two lie on `grpo`, the third on 0, the last on `distil`."""
ALL = (*METHODS, *PEERS)
KINDS = ("explained", "graded")
Record = dict[str, Any]


def records(table: str, label: str) -> list[Record]:
    """The records of a label's runs, trials left out, by seed."""
    cells = [c for c in CELLS.values() if c.table == table and c.label == label and "rate-" not in c.name]
    return [r for c in cells if (r := c.record()) is not None]


def at_k(record: Record, k: int) -> float:
    """pass@k of the last evaluation."""
    return float(np.mean(pass_at_k(record["samples"], record["solved"], k)))


def at_step(record: Record, step: int) -> float:
    """avg@1 at a step."""
    return float(next(row["pass@k"]["1"] for row in record["curve"] if row["step"] == step))


def cool(record: Record, k: int) -> float | None:
    """pass@k of the last evaluation at temperature .6; ``None`` where it was not measured."""
    solved = record.get("cool", {}).get("solved")
    return None if solved is None else float(np.mean(pass_at_k(CELLS[record["cell"]].cool, solved, k)))


def seconds_to(record: Record, target: float) -> float | None:
    """CPU seconds of training until the first evaluation with at least this accuracy."""
    return next((row["cpu_s"] for row in record["curve"] if row["pass@k"]["1"] >= target), None)


def shown(values: Sequence[float]) -> str:
    """A mean with its interval over seeds, in hundredths."""
    if not values:
        return "–"
    found = interval(values, share=True)
    if found.low is None or found.high is None:
        return short(found.mean)
    return f"{short(found.mean)} [{short(found.low)}, {short(found.high)}]"


def short(value: float) -> str:
    """.05, 1.00"""
    text = f"{value:.2f}"
    return text.replace("0.", ".", 1) if abs(value) < 0.995 else text


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "(No run yet.)"
    lines = ["| " + " | ".join(header) + " |", "|---|" + "--:|" * (len(header) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def missing(cells: Sequence[Cell]) -> str:
    """A sentence that names the cells without a record: ``table/label (all)``, or ``table/label/seed-1, 2``."""
    whole: dict[str, list[str]] = {}
    without: dict[str, list[str]] = {}
    for cell in cells:
        label, _, run = cell.name.rpartition("/")
        whole.setdefault(label, []).append(run)
        if cell.record() is None:
            without.setdefault(label, []).append(run)
    if not without:
        return "No run is missing."
    named = [
        f"`{label}` (all)" if runs == whole[label] else f"`{label}/{_folded(runs)}`" for label, runs in without.items()
    ]
    return f"Missing: {', '.join(named)}."


def _folded(runs: Sequence[str]) -> str:
    """``seed-1, seed-2`` as ``seed-1, 2``."""
    by_kind: dict[str, list[str]] = {}
    for run in runs:
        kind, _, number = run.rpartition("-")
        by_kind.setdefault(kind, []).append(number)
    return ", ".join(f"{kind}-{', '.join(numbers)}" for kind, numbers in by_kind.items())


def main_table() -> str:
    rows = []
    for label in ALL:
        found = records("new-rule", label)
        if not found:
            continue
        settings = found[0]["settings"]
        rows.append(
            [
                f"`{label}`",
                f"{settings['learning_rate']:g}{' ema' if settings.get('teacher') == 'ema' else ''}",
                str(len(found)),
                *(shown([at_step(r, step) for r in found]) for step in (20, 30)),
                *(shown([at_k(r, k) for r in found]) for k in (8, 32, 128)),
                *(shown([v for r in found if (v := cool(r, k)) is not None]) for k in (1, 8, 32)),
                f"{np.mean([r['cpu_s'] for r in found]):.0f}",
                f"{np.mean([r['tokens'] for r in found]) / 1000:.0f}",
            ]
        )
    header = ["method", "rate", "seeds", "avg@1, step 20", "avg@1, step 30", "pass@8", "pass@32", "pass@128"]
    header += ["avg@1, T .6", "pass@8, T .6", "pass@32, T .6"]
    cells = [c for c in CELLS.values() if c.table == "new-rule"]
    return markdown([*header, "CPU s", "1000 tokens"], rows) + "\n\n" + missing(cells)


def tuning_table() -> str:
    names = sorted({*UNTAUGHT, *TAUGHT}, key=lambda name: (name.startswith("ema"), float(name.rpartition("rate-")[2])))
    rows = []
    for label in ALL:
        cells = [CELLS.get(f"new-rule/{label}/{name}") for name in names]
        found = [None if cell is None else cell.record() for cell in cells]
        if any(found):
            best = max(r["avg@1"] for r in found if r is not None)
            texts = ["–" if r is None else short(r["avg@1"]) for r in found]
            rows.append([f"`{label}`", *(f"**{t}**" if t == short(best) else t for t in texts)])
    return markdown(["method", *(name.replace("rate-", "").replace("-", " ") for name in names)], rows)


def shown_table() -> str:
    rows = []
    for kind in ("solution", *SHOWN):
        row = [kind]
        for method in ("distil", "sdpo"):
            found = records("new-rule", method) if kind == "solution" else records("shown", f"{method}, {kind}")
            row += [str(len(found)), *(shown([at_step(r, step) for r in found]) for step in (20, 30))]
        if row[1] != "0" or row[4] != "0":
            rows.append(row)
    header = ["shown"]
    for method in ("distil", "sdpo"):
        header += [f"`{method}`: seeds", "step 20", "step 30"]
    return markdown(header, rows) + "\n\n" + missing([c for c in CELLS.values() if c.table == "shown"])


def credit_table() -> str:
    rows = []
    for kind in CREDIT:
        found = records("credit", f"credit, {kind}")
        if found:
            measured = [[at_step(r, 20) for r in found], [at_k(r, 1) for r in found], [at_k(r, 16) for r in found]]
            measured += [[v for r in found if (v := cool(r, k)) is not None] for k in (1, 32)]
            rows.append([kind, str(len(found)), *map(shown, measured)])
    header = ["second term", "seeds", "avg@1, step 20", "avg@1", "pass@16", "avg@1, T .6", "pass@32, T .6"]
    return markdown(header, rows) + "\n\n" + missing([c for c in CELLS.values() if c.table == "credit"])


def two_signals_table() -> str:
    """Accuracy by kind of problem; the untrained policy is the first evaluation, before which the rate was 0."""
    every = [r for label in TWO_METHODS for r in records("two-signals", label)]
    rows = []
    if every:
        rows.append(["none", "–", "–", *(shown([of_kind(every[0], kind, 1)]) for kind in KINDS), "–", "–", "–"])
    for label in TWO_METHODS:
        found = records("two-signals", label)
        if found:
            row = [f"`{label}`", f"{found[0]['settings']['learning_rate']:g}", str(len(found)), *_by_kind(found)]
            rows.append([*row, f"{np.mean([r['cpu_s'] for r in found]):.0f}"])
    header = ["method", "rate", "seeds", *KINDS, "the worse kind", "both", "CPU s"]
    return markdown(header, rows) + "\n\n" + missing([c for c in CELLS.values() if c.table == "two-signals"])


def two_tuning_table() -> str:
    rows = []
    for label in TWO_METHODS:
        found = [CELLS[f"two-signals/{label}/{name}"].record() for name in TWO_RATES]
        if any(found):
            best = max(r["avg@1"] for r in found if r is not None)
            rows.append([f"`{label}`"])
            for r in found:
                kinds = [] if r is None else [short(r["curve"][-1]["kinds"][kind]) for kind in KINDS]
                bold = "**" if r is not None and r["avg@1"] == best else ""
                rows[-1].append("–" if r is None else f"{bold}{short(r['avg@1'])}{bold} ({' / '.join(kinds)})")
    return markdown(["method", *(name.replace("rate-", "") for name in TWO_RATES)], rows)


def drift_table() -> str:
    rows = []
    for kind in ("whole", *DRIFT):
        found = records("two-signals", "drift") if kind == "whole" else records("drift", f"drift, {kind}")
        if found:
            rows.append([kind, str(len(found)), *_by_kind(found)])
    header = ["DRIFT", "seeds", *KINDS, "the worse kind", "both"]
    return markdown(header, rows) + "\n\n" + missing([c for c in CELLS.values() if c.table == "drift"])


def of_kind(record: Record, kind: str, step: int) -> float:
    """avg@1 at the problems of a kind."""
    return float(next(row["kinds"][kind] for row in record["curve"] if row["step"] == step))


def _by_kind(found: Sequence[Record]) -> list[str]:
    """Of the last evaluations: avg@1 of each kind, of each run's worse one, and of all problems."""
    last = [r["curve"][-1] for r in found]
    worse = [min(row["kinds"].values()) for row in last]
    kinds = [shown([row["kinds"][kind] for row in last]) for kind in KINDS]
    return [*kinds, shown(worse), shown([row["pass@k"]["1"] for row in last])]


def settings_table() -> str:
    rows = []
    for kind in DISTIL:
        found = records("credit", "credit, default") if kind == "default" else records("settings", f"distil, {kind}")
        if found:
            measured = [[at_step(r, 20) for r in found], [at_k(r, 1) for r in found], [at_k(r, 16) for r in found]]
            measured += [[v for r in found if (v := cool(r, k)) is not None] for k in (1, 32)]
            rows.append([kind, str(len(found)), *map(shown, measured), f"{np.mean([r['cpu_s'] for r in found]):.0f}"])
    header = ["DistIL with", "seeds", "avg@1, step 20", "avg@1", "pass@16", "avg@1, T .6", "pass@32, T .6", "CPU s"]
    return markdown(header, rows) + "\n\n" + missing([c for c in CELLS.values() if c.table == "settings"])


def demo_table() -> str:
    rows = [
        [str(r["seed"]), *(short(at_step(r, s)) for s in (40, 80)), short(at_k(r, 8)), f"{r['cpu_s']:.0f}"]
        for r in records("demo", "demo")
    ]
    header = ["seed", "avg@8, step 40", "avg@8, step 80", "pass@8", "CPU s"]
    return markdown(header, rows) + "\n\n" + missing([c for c in CELLS.values() if c.table == "demo"])


def smollm2_table() -> str:
    rows = []
    for label in SMOLLM2:
        found = records("smollm2", label)
        if found:
            row = [f"`{label}`", str(len(found)), *(shown([at_step(r, step) for r in found]) for step in (15, 30))]
            rows.append([*row, shown([at_k(r, 4) for r in found]), f"{np.mean([r['cpu_s'] for r in found]):.0f}"])
    header = ["method", "seeds", "avg@1, step 15", "avg@1, step 30", "pass@4", "CPU s"]
    return markdown(header, rows) + "\n\n" + missing([c for c in CELLS.values() if c.table == "smollm2"])


def equal_table() -> str:
    """pass@8 where a method first reaches an accuracy, by straight lines between its evaluations."""
    targets = (0.1, 0.2, 0.3)
    rows = []
    for label in ALL:
        found = records("new-rule", label)
        row = [[v for r in found if (v := at_equal(r, target)) is not None] for target in targets]
        if any(row):
            rows.append([f"`{label}`", *(f"{shown(v)} ({len(v)})" if v else "–" for v in row)])
    return markdown(["method", *(f"at avg@1 {short(t)}" for t in targets)], rows)


def at_equal(record: Record, target: float) -> float | None:
    """pass@8 at the first time that avg@1 is ``target``."""
    points = [(row["pass@k"]["1"], row["pass@k"]["8"]) for row in record["curve"]]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 <= target <= x1 and x1 > x0:
            return y0 + (y1 - y0) * (target - x0) / (x1 - x0)
    return None


Number = Callable[[Record], float | None]
LAST: tuple[str, Number] = ("avg@1", lambda r: at_k(r, 1))
EARLY: tuple[str, Number] = ("avg@1 at step 20", lambda r: at_step(r, 20))
WIDE: tuple[str, Number] = ("pass@128", lambda r: at_k(r, 128))
COOL: tuple[str, Number] = ("avg@1 at T .6", lambda r: cool(r, 1))
COOL_WIDE: tuple[str, Number] = ("pass@32 at T .6", lambda r: cool(r, 32))
EQUAL: tuple[str, Number] = ("pass@8 at avg@1 .20", lambda r: at_equal(r, 0.2))
CLAIMS: tuple[tuple[str, str, str, tuple[str, Number]], ...] = (
    ("SDPO learns more than GRPO from as many rollouts (2601.20802)", "sdpo", "grpo", LAST),
    ("OPSD learns more than GRPO (2601.18734, paper's form)", "opsd-paper", "grpo", LAST),
    ("OPSD's clip of each entry helps (2601.18734, released)", "opsd", "opsd-paper", LAST),
    ("OPSD learns more than SFT on the same solutions (2601.18734)", "opsd-paper", "sft", LAST),
    ("SRPO learns more than GRPO (2604.02288)", "srpo", "grpo", LAST),
    ("SRPO learns more than SDPO (2604.02288)", "srpo", "sdpo", LAST),
    ("SRPO with forward KL learns more than SDPO (ours)", "srpo-forward", "sdpo", LAST),
    ("The same at the papers' temperature", "srpo-forward", "sdpo", COOL),
    ("It learns more than SRPO (ours)", "srpo-forward", "srpo", LAST),
    ("The same at the papers' temperature", "srpo-forward", "srpo", COOL),
    ("It solves more problems in many attempts than SRPO (ours)", "srpo-forward", "srpo", WIDE),
    ("It learns more than DistIL (ours)", "srpo-forward", "distil", LAST),
    ("The same at the papers' temperature", "srpo-forward", "distil", COOL),
    ("It learns more than TRL's SDPO (ours)", "srpo-forward", "trl-sdpo", LAST),
    ("It learns more than TRL's SDPO early (ours)", "srpo-forward", "trl-sdpo", EARLY),
    ("The same at the papers' temperature", "srpo-forward", "trl-sdpo", COOL),
    ("DistIL learns more than GRPO (2606.05152)", "distil", "grpo", LAST),
    ("DistIL learns more than SDPO (2606.05152)", "distil", "sdpo", LAST),
    ("The same at the papers' temperature", "distil", "sdpo", COOL),
    ("DistIL learns more than OPSD as published (2606.05152)", "distil", "opsd-paper", LAST),
    ("The same at the papers' temperature", "distil", "opsd-paper", COOL),
    ("DistIL solves more problems in many attempts than SDPO (2606.05152)", "distil", "sdpo", WIDE),
    ("The same at the papers' temperature", "distil", "sdpo", COOL_WIDE),
    ("The same at equal accuracy", "distil", "sdpo", EQUAL),
    ("DistIL solves more problems in many attempts than SFT", "distil", "sft", WIDE),
    ("Future credit adds to plain forward KL in many attempts", "distil", "opsd-paper", WIDE),
    ("The same at equal accuracy", "distil", "opsd-paper", EQUAL),
    ("The exact gradient learns more than the released credit (2606.05152)", "distil-exact", "distil-science", LAST),
    ("Length-neutral credit loses nothing against the exact gradient (ours)", "distil", "distil-exact", LAST),
    ("DRIFT learns more than GRPO (2606.30345)", "drift", "grpo", LAST),
    ("DRIFT learns more than SDPO (2606.30345)", "drift", "sdpo", LAST),
    ("DRIFT learns more than SRPO (2606.30345)", "drift", "srpo", LAST),
    ("errata's SDPO is ahead of TRL's", "sdpo", "trl-sdpo", LAST),
    ("errata's DistIL is ahead of TRL's SDPO", "distil", "trl-sdpo", LAST),
    ("The same at the papers' temperature", "distil", "trl-sdpo", COOL),
    ("errata's DistIL is ahead of TRL's SDPO early", "distil", "trl-sdpo", EARLY),
    ("errata's DistIL is ahead of TRL's SDPO in many attempts", "distil", "trl-sdpo", WIDE),
    ("errata's GRPO is ahead of TRL's", "grpo", "trl-grpo", LAST),
)
"""Claim, the method it is made for, the one it is compared with, and the number."""


def claims_table() -> str:
    rows = []
    for claim, ours, theirs, (name, number) in CLAIMS:
        values = {
            label: {r["seed"]: v for r in records("new-rule", label) if (v := number(r)) is not None}
            for label in (ours, theirs)
        }
        seeds = sorted(values[ours].keys() & values[theirs].keys())
        differences = [values[ours][s] - values[theirs][s] for s in seeds]
        cells = [claim, f"`{ours}` − `{theirs}`, {name}", str(len(seeds))]
        rows.append([*cells, *verdict(differences)])
    return markdown(["claim", "measured", "seeds", "difference", "p", "verdict"], rows)


def verdict(differences: Sequence[float]) -> list[str]:
    """Difference with its interval, the paired t-test's p, and what follows."""
    if not differences:
        return ["–", "–", "not run"]
    found = interval(differences)
    if found.low is None or found.high is None:
        return [f"{found.mean:+.2f}", "–", "open: one seed"]
    text = f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
    if found.low > 0:
        said = "holds here"
    elif found.high < 0:
        said = "does not hold here: the opposite"
    else:
        said = "not shown: may be chance"
    return [text, f"{p_value(differences):.3f}", said]


def p_value(differences: Sequence[float]) -> float:
    """Two-sided p of the paired t-test: Student's distribution integrated numerically."""
    n = len(differences)
    deviation = float(np.std(differences, ddof=1))
    if deviation == 0:
        return 0.0 if differences[0] else 1.0
    t = abs(float(np.mean(differences))) / (deviation / math.sqrt(n))
    freedom = n - 1
    # t = sqrt(freedom) tan(a) makes the density cos(a) ** (freedom - 1) on a finite interval.
    angles = np.linspace(math.atan(t / math.sqrt(freedom)), math.pi / 2, 20_001)
    whole = np.linspace(-math.pi / 2, math.pi / 2, 20_001)
    area = [float(np.trapezoid(np.cos(a) ** (freedom - 1), a)) for a in (angles, whole)]
    return min(2 * area[0] / area[1], 1.0)


def figure() -> None:
    """pass@N after training, a line for each method, with the interval over seeds."""
    import matplotlib
    from matplotlib.figure import Figure

    style = {
        "font.size": 8,
        "svg.hashsalt": "errata",
        "svg.fonttype": "none",
        "axes.grid": True,
        "grid.color": "#e6e6e6",
    }
    with matplotlib.rc_context({**style, "axes.spines.top": False, "axes.spines.right": False}):
        drawing = Figure(figsize=(7.2, 3.8), layout="constrained")
        left, right = drawing.subplots(1, 2)
        ks = [2**i for i in range(8)]
        for index, label in enumerate(label for label in ALL if label not in NOT_DRAWN):
            found = records("new-rule", label)
            if not found:
                continue
            style_of = {"color": COLOURS[index % len(COLOURS)], "linestyle": ("-", "--")[index // len(COLOURS)]}
            _line(left, ks, [[at_k(r, k) for r in found] for k in ks], label, style_of)
            steps = [row["step"] for row in found[0]["curve"]]
            _line(right, steps, [[at_step(r, s) for r in found] for s in steps], label, style_of)
        left.set(xscale="log", xticks=ks, xlabel="attempts N", ylabel="pass@N after 30 steps", ylim=(0, 1))
        left.set_xticklabels(map(str, ks))
        left.minorticks_off()
        right.set(xlabel="step", ylabel="avg@1", ylim=(0, 1))
        right.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
        FIGURE.parent.mkdir(parents=True, exist_ok=True)
        drawing.savefig(FIGURE, metadata={"Date": None})


def _line(axes: Any, x: Sequence[int], values: Sequence[Sequence[float]], label: str, style: dict[str, Any]) -> None:
    means = [float(np.mean(v)) for v in values]
    axes.plot(x, means, label=label, linewidth=1.6, **style)
    n = len(values[0])
    if n > 1:
        half = [T_975[n - 2] * float(np.std(v, ddof=1)) / math.sqrt(n) for v in values]
        low, high = (np.clip(np.array(means) + sign * np.array(half), 0, 1) for sign in (-1, 1))
        axes.fill_between(x, low, high, color=style["color"], alpha=0.08, linewidth=0)


PARTS: dict[str, Callable[[], str]] = {
    "main": main_table,
    "tuning": tuning_table,
    "equal": equal_table,
    "shown": shown_table,
    "credit": credit_table,
    "settings": settings_table,
    "two-signals": two_signals_table,
    "two-tuning": two_tuning_table,
    "drift": drift_table,
    "demo": demo_table,
    "smollm2": smollm2_table,
    "claims": claims_table,
}


def page(text: str) -> str:
    """The page with its parts filled in. Raises ``ValueError`` for a marker without an end or of an unknown part."""
    for name, part in PARTS.items():
        pattern = re.compile(rf"(<!-- {name}: [^>]* -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        text, n = pattern.subn(lambda m, p=part: f"{m[1]}{p()}\n{m[2]}", text)  # type: ignore[misc]
        if n != 1:
            raise ValueError(f"docs/results.md: {n} places for {name!r}; there must be one")
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    old = PAGE.read_text(encoding="utf-8")
    new = page(old)
    if args.check:
        print("docs/results.md is what the records give" if new == old else "docs/results.md differs from the records")
        return int(new != old)
    PAGE.write_text(new, encoding="utf-8")
    figure()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
