"""What to know about errata on a GPU, in under ten minutes: correctness, the score op's speed, one step of a 1.7B model.

    python scripts/gpu_check.py                      # on a machine with one CUDA device
    python scripts/gpu_check.py --device cpu         # a rehearsal with tiny sizes: that every stage runs

Stages, each in a process of its own: the device and its matmul rates; ``pytest -m gpu``; the fused loss at N = 8,192 tokens,
H = 4,096 and V = 151,936 in bfloat16, beside the plain way, TRL's kernels (Triton on a GPU) and Liger's where it is installed;
one optimizer step of a Qwen3-shaped 1.7B model with errata's DistIL and GRPO and with TRL's GRPO.

After each stage the results are in one JSON file. After nine minutes the running stage is ended, and the table shows what
there is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SIZES = {
    "cuda": {"tokens": 8192, "hidden": 4096, "vocabulary": 151_936, "rows": 8, "length": 1024, "seconds": 2.0},
    "cpu": {"tokens": 48, "hidden": 32, "vocabulary": 512, "rows": 8, "length": 8, "seconds": 0.1},
}
MODELS = {
    "cuda": {"hidden": 2048, "layers": 28, "heads": 16, "keys": 8, "head": 128, "width": 6144, "vocabulary": 151_936},
    "cpu": {"hidden": 32, "layers": 2, "heads": 2, "keys": 1, "head": 16, "width": 64, "vocabulary": 256},
}
KERNELS = ("fused", "naive", "trl", "liger")
STEPS = ("grpo", "distil", "trl grpo")
STAGES = ("device", "tests", *(f"scores {k}" for k in KERNELS), *(f"step {k}" for k in STEPS))
GOAL = 0.7
"""Share of the measured matmul rate that the four products of the fused loss should reach."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"))
    parser.add_argument("--minutes", type=float, default=9.0, help="after these it ends with what it has")
    parser.add_argument("--only", nargs="*", choices=STAGES, default=list(STAGES))
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        print(json.dumps(run_stage(args.stage, args.device)))
        return 0
    if args.device == "cuda" and not _has_cuda():
        print("gpu_check: no CUDA device; --device cpu rehearses the stages", file=sys.stderr)
        return 2
    deadline = time.monotonic() + 60 * args.minutes
    results: dict[str, Any] = {"device": args.device, "stages": {}}
    for stage in args.only:
        left = deadline - time.monotonic()
        results["stages"][stage] = {"skipped": "no time left"} if left < 1 else child(stage, args.device, left)
        write(args.out, results)
        print(f"{stage}: {json.dumps(results['stages'][stage])[:300]}", file=sys.stderr, flush=True)
    print("\n".join(table(results)))
    print(f"all numbers: {args.out}")
    failed = [name for name, found in results["stages"].items() if "failed" in found or found.get("failures")]
    return 1 if failed else 0


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def child(stage: str, device: str, seconds: float) -> dict[str, Any]:
    """The results of one stage, run in a process of its own and ended after ``seconds``."""
    command = [sys.executable, str(Path(__file__).resolve()), "--stage", stage, "--device", device]
    paths = [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
        "HF_HUB_OFFLINE": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    started = time.monotonic()
    # Its own session, so that what it started ends with it.
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        return {"failed": f"ended after {seconds:.0f} s"}
    took = round(time.monotonic() - started, 1)
    if process.returncode:
        return {"failed": " ".join(err.split())[-600:], "took": took}
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found | {"took": took}


def write(path: Path, results: dict[str, Any]) -> None:
    """Replace the file at once, so that it is whole whenever this process ends."""
    with tempfile.NamedTemporaryFile("w", dir=path.resolve().parent, suffix=".json", delete=False) as file:
        json.dump(results, file, indent=1)
    Path(file.name).replace(path)


def run_stage(stage: str, device: str) -> dict[str, Any]:
    kind, _, what = stage.partition(" ")
    if kind == "device":
        return describe(device)
    if kind == "tests":
        return gpu_tests()
    return scores(what, device) if kind == "scores" else step(what, device)


# -- the device -----------------------------------------------------------------------------------------------------------


def describe(device: str) -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {"torch": torch.__version__, "name": "cpu"}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {"name": properties.name, "memory_gb": properties.total_memory / 1e9}
        found |= {"capability": list(torch.cuda.get_device_capability()), "cuda": torch.version.cuda}
    for dtype in ("bfloat16", "float32"):
        found[f"matmul_{dtype}_tflops"] = matmul_rate(device, getattr(torch, dtype)) / 1e12
    return found


def matmul_rate(device: str, dtype: Any) -> float:
    """Best FLOP per second of a square product within two seconds."""
    import torch

    side = 8192 if device == "cuda" else 256
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best, end = 0.0, time.perf_counter() + SIZES[device]["seconds"]
    while time.perf_counter() < end:
        took = timed(lambda: torch.mm(a, b), device)
        best = max(best, 2 * side**3 / took)
    return best


def timed(act: Callable[[], object], device: str) -> float:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    act()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


# -- the tests ------------------------------------------------------------------------------------------------------------


def gpu_tests() -> dict[str, Any]:
    import xml.etree.ElementTree as Tree

    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu", "-p", "no:cacheprovider"]
        done = subprocess.run([*command, f"--junitxml={report}"], cwd=ROOT, capture_output=True, text=True, check=False)
        if not report.is_file():
            return {"failures": ["pytest did not run"], "said": done.stdout[-500:] + done.stderr[-500:]}
        cases = list(Tree.parse(report).iter("testcase"))
    failed = [c.get("name") for c in cases if c.find("failure") is not None or c.find("error") is not None]
    skipped = sum(c.find("skipped") is not None for c in cases)
    return {"passed": len(cases) - len(failed) - skipped, "skipped": skipped, "failures": failed}


# -- the score op ---------------------------------------------------------------------------------------------------------


def scores(kernel: str, device: str) -> dict[str, Any]:
    """Seconds and peak memory of one forward and backward pass of forward cross-entropy and a policy gradient."""
    import torch

    sys.path.insert(0, str(ROOT / "benchmarks"))
    import scores as benchmark

    if kernel == "liger":
        try:
            from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
        except ImportError:
            return {"skipped": "liger-kernel is not installed"}

        def act(data: dict[str, Any], kind: str) -> float:
            loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0)(
                *(data["hidden"][0], data["head"], data["teacher_hidden"][0], data["teacher_head"]),
                data["tokens"][0],
            )
            loss.backward()
            return float(loss)
    else:
        act = {"fused": benchmark.fused, "naive": benchmark.naive, "trl": benchmark.trl_pair}[kernel]
    sizes = SIZES[device]
    n, h, v = int(sizes["tokens"]), int(sizes["hidden"]), int(sizes["vocabulary"])
    torch.manual_seed(0)
    with torch.device(device):
        data = benchmark.inputs(n, h, v)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    for name in ("hidden", "head", "teacher_hidden", "teacher_head"):
        data[name] = data[name].detach().to(dtype).requires_grad_(data[name].requires_grad)
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    times = []
    for _ in range(4):  # the first compiles and allocates
        data["hidden"].grad = data["head"].grad = None
        times.append(timed(lambda: act(data, "forward_ce"), device))
    peak = torch.cuda.max_memory_allocated() - before if device == "cuda" else 0
    operations = 4 * 2 * n * h * v
    return {
        "seconds": min(times[1:]),
        "first_seconds": times[0],
        "peak_gb": peak / 1e9,
        "tflops": operations / min(times[1:]) / 1e12,
        "loss": act(data, "forward_ce"),
    }


# -- a whole step ---------------------------------------------------------------------------------------------------------


def step(name: str, device: str) -> dict[str, Any]:
    """Seconds of one optimizer step after a first one, without generation, and the peak memory."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, PrinterCallback, Qwen3Config, Qwen3ForCausalLM, TrainerCallback, logging

    from errata.house import HOUSE_PATH

    logging.set_verbosity_error()
    shape, sizes, cuda = MODELS[device], SIZES[device], device == "cuda"
    rows, length = int(sizes["rows"]), int(sizes["length"])
    tokenizer = AutoTokenizer.from_pretrained(HOUSE_PATH, padding_side="left")
    config = Qwen3Config(
        vocab_size=shape["vocabulary"],
        hidden_size=shape["hidden"],
        intermediate_size=shape["width"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["keys"],
        head_dim=shape["head"],
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen3ForCausalLM(config).to(torch.bfloat16 if cuda else torch.float32)
    ids = torch.randint(10, 100, (rows, length), generator=torch.Generator().manual_seed(0)).to(device)
    model.generate = lambda input_ids, **kwargs: torch.cat([input_ids, ids[: len(input_ids)]], dim=1)
    problems = [
        {"problem_id": str(i), "prompt": [{"role": "user", "content": f"{i % 10}+3*4-2=?"}], "reference": "a" * 16}
        for i in range(64)
    ]
    common = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": rows,
        "num_generations": 4,
        "max_completion_length": length,
        "max_steps": 3,
        "learning_rate": 1e-6,
        "gradient_checkpointing": cuda,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": cuda,
        "use_cpu": not cuda,
    }

    def reward(completions: list[Any], **columns: Any) -> list[float]:
        return [float(i % 2 == 0) for i in range(len(completions))]

    parts = {"train_dataset": Dataset.from_list(problems), "processing_class": tokenizer}
    if name == "trl grpo":
        from trl import GRPOConfig, GRPOTrainer

        trainer: Any = GRPOTrainer(model=model, reward_funcs=[reward], args=GRPOConfig(**common), **parts)
    else:
        from errata import methods
        from errata.recipe.config import ErrataConfig
        from errata.training.trainer import ErrataTrainer

        arguments = ErrataConfig(**common, rollouts_saved=0, context_template="sdpo")
        trainer = ErrataTrainer(model, [reward], arguments, method=methods.get(name), **parts)
    times: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *a: Any, **k: Any) -> None:
            if cuda:
                torch.cuda.synchronize()
            times.append(-time.perf_counter())

        def on_step_end(self, *a: Any, **k: Any) -> None:
            if cuda:
                torch.cuda.synchronize()
            times[-1] += time.perf_counter()

    trainer.add_callback(Clock())
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    return {
        "seconds": min(times[1:]),
        "first_seconds": times[0],
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if cuda else 0.0,
        "tokens_per_second": rows * length / min(times[1:]),
        "loss": losses[-1],
    }


# -- the table ------------------------------------------------------------------------------------------------------------


def table(results: dict[str, Any]) -> list[str]:
    stages = results["stages"]
    about = stages.get("device", {})
    rate = about.get("matmul_bfloat16_tflops" if results["device"] == "cuda" else "matmul_float32_tflops")
    lines = [f"{about.get('name', results['device'])}, torch {about.get('torch', '?')}"]
    if rate:
        lines.append(f"best square product: {rate:.3g} TFLOP/s")
    if (tests := stages.get("tests")) is not None:
        said = tests.get("failed") or tests.get("skipped") if "passed" not in tests else None
        lines.append(
            f"tests: {said}"
            if said
            else f"tests: {tests['passed']} passed, {tests['skipped']} skipped, failed: {', '.join(tests['failures']) or 'none'}"
        )
    lines += ["", "| | seconds | peak GB | share of the matmul rate |", "|---|---|---|---|"]
    for name in stages:
        if not name.startswith(("scores", "step")):
            continue
        found = stages[name]
        if "seconds" not in found:
            lines.append(f"| {name} | {found.get('failed') or found.get('skipped')} | | |")
            continue
        share = f"{found['tflops'] / rate:.0%}" if rate and "tflops" in found else ""
        lines.append(f"| {name} | {found['seconds']:.4g} | {found['peak_gb']:.2f} | {share} |")
    fused, trl = stages.get("scores fused", {}), stages.get("scores trl", {})
    if "seconds" in fused and rate:
        lines.append(f"fused loss: {fused['tflops'] / rate:.0%} of the matmul rate, goal {GOAL:.0%}")
    if "seconds" in fused and "seconds" in trl:
        lines.append(
            f"fused loss: {fused['seconds'] / trl['seconds']:.2f} of the time of TRL's kernels, goal at most 1"
        )
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
