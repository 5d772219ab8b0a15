"""Train every method with every teacher on every engine, and compare each with one process.

    python scripts/scale_matrix.py distil:ema:fsdp2 sdpo:live:zero3    # METHOD:TEACHER:ENGINE
    python scripts/scale_matrix.py --engines fsdp2 zero3 --minutes 10  # what the results lack, until the time is over
    python scripts/scale_matrix.py --pairs                             # fewer: each pair of method, teacher, engine once
    python scripts/scale_matrix.py --render                            # the table in docs/scale.md, from the results

Run it from the repository's root. What a cell does is in ``tests/training/matrix_worker.py``. Losses, gradient norms, final
weights, the resumed run's and the greedy evaluation must equal those of one process within 1e-5; a run that hangs has failed.
Results are kept in ``docs/figures/scale_matrix.json``. Exit status 1 if a cell that was run is neither equal nor refused.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

RESULTS = ROOT / "docs" / "figures" / "scale_matrix.json"
PAGE = ROOT / "docs" / "scale.md"
BEGIN, END = "<!-- engines: begin -->", "<!-- engines: end -->"
KINDS = ("live", "frozen", "ema", "sync", "trust_region", "lora-live", "lora-frozen", "lora-ema")
ROWS = [
    ("grpo", "none"),
    *((method, kind) for method in ("distil", "sdpo", "srpo", "drift", "replay") for kind in KINDS),
    ("local-expert", "none"),
    ("server-expert", "none"),
]
ENGINES = ("ddp2", "ddp4", "fsdp2", "fsdp1", "zero1", "zero2", "zero3")
TITLES = {"ddp2": "DDP, 2", "ddp4": "DDP, 4", "fsdp2": "FSDP2", "fsdp1": "FSDP1", "zero1": "ZeRO-1", "zero2": "ZeRO-2",
          "zero3": "ZeRO-3"}  # fmt: skip
TOLERANCE = 1e-5
WORDS = ("equal", "refused", "different", "failed")
Result = dict[str, Any]


def cells() -> list[str]:
    """All cells, those first that cover each method on each engine and each teacher on each engine."""
    ema_or_distil = [(m, t) for m, t in ROWS if m == "distil" or t in ("none", "ema")]
    rest = [row for row in ROWS if row not in ema_or_distil]
    return [f"{m}:{t}:{engine}" for rows in (ema_or_distil, rest) for engine in ENGINES for m, t in rows]


def pairs(cell: str) -> set[tuple[str, str]]:
    """The cell's pairs: method and teacher, method and engine, teacher and engine."""
    return set(itertools.combinations(cell.split(":"), 2))


def covering(results: dict[str, Result]) -> list[str]:
    """Cells that complete the pairs that some cell has; the one with most new pairs each time.

    A refused cell shows its teacher on its engine, and nothing of its method.
    """
    left = [cell for cell in cells() if cell not in results]
    missing = set().union(*map(pairs, left))
    for cell, result in results.items():
        missing -= {tuple(cell.split(":")[1:])} if result["result"] == "refused" else pairs(cell)
    chosen = []
    while missing:
        chosen.append(max(left, key=lambda cell: len(pairs(cell) & missing)))
        missing -= pairs(chosen[-1])
    return chosen


def stem(cell: str) -> str:
    """The name of a cell's files."""
    return cell.replace(":", "-")


def reference(cell: str) -> str:
    """The same cell on one process."""
    return f"{cell.rpartition(':')[0]}:one"


def launch(folder: Path, names: Sequence[str], processes: int, timeout_s: float) -> str:
    """Start the worker on these cells; the end of what it wrote to stderr."""
    environment = {
        k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    }
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [*start, "-m", "tests.training.matrix_worker", str(folder), *names]
    with (folder / "log").open("w") as log, contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=log, timeout=timeout_s, check=False)
    return (folder / "log").read_text(errors="replace")[-20_000:]


def run(folder: Path, names: Sequence[str], deadline: float = float("inf")) -> Iterator[tuple[str, Result]]:
    """Run cells in as few starts as possible; yields each with its result.

    A cell that fails or hangs ends its processes; the cells after it are started anew.
    """
    from tests.training.matrix_worker import PROCESSES, TIMEOUT_S, prepare

    prepare(folder)
    for name in names:
        (folder / f"{stem(name)}.json").unlink(missing_ok=True)  # of an earlier run in this folder
    wanted = {reference(name) for name in names}
    left = [name for name in wanted if not (folder / f"{stem(name)}.json").is_file()] + list(names)
    while left and time.monotonic() < deadline:
        processes = PROCESSES.get(left[0].rpartition(":")[2], 2)
        group = [name for name in left if PROCESSES.get(name.rpartition(":")[2], 2) == processes][:12]
        log = launch(folder, group, processes, 60 + TIMEOUT_S * len(group))
        for name in group:
            left.remove(name)
            if (folder / f"{stem(name)}.json").is_file():
                if name in names:
                    yield name, compare(folder, name)
                continue
            result = {"result": "failed", "why": _why(folder, name, log)}
            if name in names:
                yield name, result
            else:
                raise RuntimeError(f"{name}: {result['why']}")
            left = [*group[group.index(name) + 1 :], *(other for other in left if other not in group)]
            break


def _why(folder: Path, name: str, log: str) -> str:
    found = sorted(folder.glob(f"{stem(name)}.failed.*"))
    # The process that failed first says why; the others say that they lost it.
    said = [text for path in found if "gloo" not in (text := path.read_text())] or [p.read_text() for p in found]
    if said:
        return " ".join(said[0].split())[:300]
    if "Timeout (" in log:
        return "hangs: no result in time"
    return "the processes ended: " + " ".join(log.split())[-200:]


def compare(folder: Path, cell: str) -> Result:
    """A cell's result against one process's."""
    import torch
    from safetensors.torch import load_file

    here, one = (json.loads((folder / f"{stem(c)}.json").read_text()) for c in (cell, reference(cell)))
    if here["status"] == "refused":
        return {"result": "refused", "why": here["why"]}
    if one["status"] == "refused":
        return {"result": "different", "why": f"one process refuses: {one['why']}"}
    wrong, largest = [], {"loss": 0.0, "grad_norm": 0.0, "weights": 0.0}
    if len(here["again"]) != len(here["logs"]) or len(here["logs"]) != len(one["logs"]):
        wrong.append("another number of log rows")
    for name, logs in (("the run", here["logs"]), ("the resumed run", here["again"])):
        for a, b in zip(logs, one["logs"], strict=False):
            for key in ("loss", "grad_norm"):
                if key in b:
                    off = abs(a[key] - b[key]) / max(abs(b[key]), 0.1)
                    largest[key] = max(largest[key], off)
                    if not off <= TOLERANCE:
                        wrong.append(f"{name}'s {key} of step {b['step']} is {a[key]:.7g}, not {b[key]:.7g}")
            # The teacher's own accuracy, and the student's beside it, are not measured where weights are sharded.
            left_out = ("teacher", "student_accuracy")
            evaluated = {k: v for k, v in b.items() if k.startswith("eval") and not any(w in k for w in left_out)}
            if evaluated != {k: a.get(k) for k in evaluated}:
                wrong.append(f"{name}'s evaluation of step {b['step']} differs")
    places = ["final", "again", "checkpoint-3/errata_state"]
    for place in places:
        for path in sorted((folder / stem(reference(cell)) / place).glob("*.safetensors")):
            there = folder / stem(cell) / place / path.name
            if not there.is_file():
                wrong.append(f"{place}/{path.name} was not written")
                continue
            a, b = load_file(there), load_file(path)
            for key in b:
                # A checkpoint may hold tied weights once or twice.
                if key not in a and key != "lm_head.weight":
                    wrong.append(f"{place}/{path.name} lacks {key}")
                if key in a:
                    off = float((a[key].float() - b[key].float()).abs().max())
                    largest["weights"] = max(largest["weights"], off)
                    if not torch.allclose(a[key].float(), b[key].float(), rtol=TOLERANCE, atol=TOLERANCE):
                        wrong.append(f"{place}/{path.name}: {key} differs by {off:.2g}")
    if here["memory"] != one["memory"] and not _near(here["memory"], one["memory"]):
        wrong.append("the method's memory differs")
    if wrong:
        return {"result": "different", "why": "; ".join(wrong[:3]), "differences": len(wrong), **largest}
    return {"result": "equal", **largest}


def _near(a: Any, b: Any) -> bool:
    """Whether two states are equal but for rounding."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_near(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_near(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= TOLERANCE * max(abs(b), 1)
    return bool(a == b)


def table(results: dict[str, Result]) -> str:
    """The table in Markdown; cells without a result say so."""
    notes: list[str] = []
    lines = [
        "| method | teacher | " + " | ".join(TITLES[e] for e in ENGINES) + " |",
        "|---|---|" + "---|" * len(ENGINES),
    ]
    for method, teacher in ROWS:
        shown = []
        for engine in ENGINES:
            found = results.get(f"{method}:{teacher}:{engine}")
            if found is None:
                shown.append("not run")
            elif found["result"] == "equal":
                shown.append("equal")
            else:
                if found["why"] not in notes:
                    notes.append(found["why"])
                shown.append(f"{found['result']} ({notes.index(found['why']) + 1})")
        lines.append(f"| {method} | {'–' if teacher == 'none' else teacher} | " + " | ".join(shown) + " |")
    equal = [r for r in results.values() if r["result"] == "equal"]
    of = collections.Counter(r["result"] for r in results.values())
    largest = [max((r[k] for r in equal), default=0.0) for k in ("loss", "grad_norm", "weights")]
    lines += [
        "",
        f"{len(results)} of {len(ROWS) * len(ENGINES)} cells were run: {', '.join(f'{of[k]} {k}' for k in WORDS if of[k])}. "
        "The equal ones differ from one process by at most "
        f"{largest[0]:.0e} of the loss, {largest[1]:.0e} of the gradient's norm and {largest[2]:.0e} in a weight.",
    ]
    if len(results) < len(cells()):
        left = covering(results)
        lines[-1] += (
            f" {len(left)} more would show each pair of method, teacher and engine once."
            if left
            else " Every pair of method and teacher, method and engine, teacher and engine is in a cell that was run."
        )
    lines += ["", *(f"{i}. {note}" for i, note in enumerate(notes, 1))] if notes else []
    return "\n".join(lines)


def render(results: dict[str, Result], page: str) -> str:
    """The page with the table between its two comment lines."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(results)}\n{END}{after}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("cells", nargs="*", help="METHOD:TEACHER:ENGINE; those without a result unless given")
    parser.add_argument("--engines", nargs="*", default=ENGINES, choices=ENGINES, help="only these engines")
    parser.add_argument("--pairs", action="store_true", help="a covering set instead of all")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no further cells after this time")
    parser.add_argument("--folder", type=Path, help="where the runs go; a temporary directory unless given")
    parser.add_argument("--render", action="store_true", help="run nothing, write the table")
    args = parser.parse_args(argv)
    results: dict[str, Result] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    bad = 0
    if not args.render:
        wanted = covering(results) if args.pairs else [c for c in cells() if c not in results]
        chosen = args.cells or [c for c in wanted if c.rpartition(":")[2] in args.engines]
        unknown = [c for c in chosen if c not in cells()]
        if unknown:
            parser.error(f"{unknown[0]!r} is no cell; one is {cells()[0]!r}")
        folder = args.folder or Path(tempfile.mkdtemp(prefix="errata-matrix-"))
        folder.mkdir(parents=True, exist_ok=True)
        for cell, result in run(folder, chosen, time.monotonic() + 60 * args.minutes):
            results[cell] = result
            bad += result["result"] not in ("equal", "refused")
            print(cell, *(f"{k}={v:.2g}" if isinstance(v, float) else v for k, v in result.items() if k), flush=True)
            # Read again: another process may have added to it.
            kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
            kept[cell] = result
            results = {c: kept[c] for c in cells() if c in kept}
            RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(render(results, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return bool(bad)


if __name__ == "__main__":
    raise SystemExit(main())
