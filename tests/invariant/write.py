"""Write the references: ``python -m tests.invariant.write [CELL...]`` (all unless named).

``--check`` writes nothing and lists what differs, ``--fresh`` runs each cell by the command line in processes of its own.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.invariant.cells import BY_NAME, REFERENCES, Cell
from tests.invariant.worker import CellError, Worker, run_fresh

PROCESSOR = REFERENCES.parent / "processor.txt"
"""The processor that wrote the references: only there are they repeated bit for bit."""


def processor() -> str:
    """This machine's processor and its instruction sets."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    found = dict(line.split("\t: ", 1) for line in lines if line.startswith(("model name", "flags")) and "\t: " in line)
    return "\n".join([*found.values(), platform.machine()]) + "\n"


def as_text(metrics: dict[str, list[Any]]) -> str:
    """JSON with one metric a line."""
    lines = [f"  {json.dumps(name)}: {json.dumps(values)}" for name, values in metrics.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def load(cell: Cell) -> dict[str, list[Any]]:
    return dict(json.loads(cell.reference.read_text()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cells", nargs="*", metavar="CELL")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--write", action="store_true", help="the default")
    args = parser.parse_args()
    unknown = [name for name in args.cells if name not in BY_NAME]
    if unknown:
        parser.error(f"no cell {unknown[0]!r}; known are {', '.join(BY_NAME)}")
    worker, bad = Worker(), 0
    with tempfile.TemporaryDirectory() as folder:
        for name in args.cells or BY_NAME:
            cell, started = BY_NAME[name], time.perf_counter()
            try:
                metrics = (run_fresh if args.fresh else worker.run)(cell, Path(folder) / name)
            except CellError as error:
                bad += 1
                print(error, flush=True)
                continue
            said = ""
            if args.check:
                before = load(cell)
                differing = [k for k in {**before, **metrics} if before.get(k) != metrics.get(k)]
                bad += bool(differing)
                said = f"differs in {', '.join(differing)}" if differing else "equal"
            else:
                cell.reference.parent.mkdir(exist_ok=True)
                cell.reference.write_text(as_text(metrics))
                PROCESSOR.write_text(processor())
            print(f"{name}  {time.perf_counter() - started:.1f} s  {said}", flush=True)
        worker.close()
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
