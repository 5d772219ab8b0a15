"""Trains cells of the matrix method x teacher x engine, many in one process group; ``scripts/scale_matrix.py`` starts it.

``[torchrun ...] -m tests.training.matrix_worker FOLDER METHOD:TEACHER:ENGINE...`` leaves ``FOLDER/CELL.json`` and the final
weights in ``FOLDER/CELL/``. A cell trains three steps of three micro-batches each, evaluates and writes a checkpoint after the
second, writes the policy, and then trains the third step again from the checkpoint. What is "sampled" depends on a rollout's
index alone, so that one process and several learn from the same rollouts, which are ragged.
"""

from __future__ import annotations

import faulthandler
import functools
import gc
import importlib.metadata
import json
import os
import sys
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from tests.experts.remote.fake_server import FakeServer, PolicyAnswers
from tests.tiny import build_model
from tests.training.distributed_worker import ROLLOUTS, completions, solved
from tests.training.worlds import TOKENIZER, rows, settings
from torch.distributed.fsdp import FullyShardedDataParallel

from errata import methods
from errata.experts import Access, LocalExpert
from errata.methods.distil import DistIL
from errata.recipe.config import ErrataConfig
from errata.recipe.models import load_model
from errata.records import TeacherContext
from errata.training.batch import TokenBatch
from errata.training.trainer import ErrataTrainer

_FSDP1_STATE_DICT_TYPE = FullyShardedDataParallel.set_state_dict_type
STEPS, SAVED = 3, 2
TIMEOUT_S = 60
"""A cell that takes longer hangs: it prints where every thread stands and ends the process."""
_SIBLING = {"sources": ["sibling"]}
_EXPERT = {"sources": ["expert"]}
METHODS: dict[str, dict[str, Any]] = {
    "grpo": {"method": "grpo"},
    "sdpo": {"method": "sdpo", "method_args": _SIBLING},
    "srpo": {"method": "srpo", "method_args": _SIBLING},
    "distil": {"method": "distil", "method_args": _SIBLING},
    "drift": {"method": "drift", "method_args": {"warmup_steps": 1, "margin": 0.0, "anchor_scale": 20.0} | _SIBLING},
    # All of the past, so that no draw depends on the process; within a step each process has a past of its own.
    "replay": {
        "method": "distil",
        "method_args": _SIBLING,
        "replay_capacity": 100,
        "replay_share": 100.0,
        "micro_batches": 1,
    },
    # Each of the policy's turns has a teacher's prompt of its own, so processes have different numbers of sequences.
    "turns": {"method": "turns"},
    "local-expert": {"method": "distil", "method_args": _EXPERT, "expert": "local"},
    "server-expert": {"method": "distil", "method_args": _EXPERT, "expert": "server"},
}
TEACHERS: dict[str, dict[str, Any]] = {
    "none": {},  # of a method without a teacher, and where the teacher is another model
    "live": {"teacher": "live"},
    "frozen": {"teacher": "frozen"},
    "ema": {"teacher": "ema", "teacher_rate": 0.3},
    "sync": {"teacher": "sync", "teacher_sync_steps": 2},
    "trust_region": {"teacher": "trust_region", "teacher_base_weight": 0.5},
    "lora-live": {"teacher": "live", "lora": True},
    "lora-frozen": {"teacher": "frozen", "lora": True},
    "lora-ema": {"teacher": "ema", "teacher_rate": 0.3, "lora": True},
}
_FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Qwen3DecoderLayer",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}
ENGINES: dict[str, dict[str, Any]] = {
    "one": {},
    "ddp2": {},
    "ddp4": {},
    "fsdp2": {"environment": {**_FSDP, "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}},
    "fsdp1": {"environment": {**_FSDP, "FSDP_VERSION": "1", "FSDP_RESHARD_AFTER_FORWARD": "FULL_SHARD",
                              "FSDP_USE_ORIG_PARAMS": "true", "FSDP_SYNC_MODULE_STATES": "false"}},
    "zero1": {"stage": 1},
    "zero2": {"stage": 2},
    "zero3": {"stage": 3},
}  # fmt: skip
PROCESSES = {"one": 1, "ddp4": 4}
"""Of each engine; two unless given."""


@dataclass(frozen=True, kw_only=True)
class Turns(DistIL):
    """DistIL whose teacher is shown something else at each turn. A ``c`` counts as what a tool said between two turns."""

    sources: tuple[str, ...] = ("turns",)
    own_sources: ClassVar[dict[str, Any]] = {
        "turns": lambda rollout, group: TeacherContext("turns", by_turn=("one", "", "three"))
    }

    @staticmethod
    def cut(tokens: TokenBatch) -> TokenBatch:
        return replace(tokens, mask=tokens.mask & (tokens.completion_ids != TOKENIZER.convert_tokens_to_ids("c")))


def prepare(folder: Path) -> None:
    """Write the policy and the other model that cells load."""
    for name, seed in (("policy", 0), ("expert", 1)):
        model = build_model(len(TOKENIZER), seed=seed)
        model.generation_config.eos_token_id = TOKENIZER.eos_token_id
        model.save_pretrained(folder / name)
        TOKENIZER.save_pretrained(folder / name)


def made(cell: str, folder: Path, output: Path, server: FakeServer | None) -> ErrataTrainer:
    """The trainer of a cell, under its engine."""
    method, teacher, engine = cell.split(":")
    case = {"micro_batches": 3, **METHODS[method], **TEACHERS[teacher]}
    micro_batches, lora, expert = case.pop("micro_batches"), case.pop("lora", False), case.pop("expert", None)
    name, arguments = case.pop("method"), case.pop("method_args", {})
    decided = Turns() if name == "turns" else methods.get(name, **arguments)
    stage = ENGINES[engine].get("stage")
    for name in list(os.environ):
        if name.startswith(("ACCELERATE_", "FSDP_")):
            del os.environ[name]
    os.environ.update(ENGINES[engine].get("environment", {}))
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    config = ErrataConfig(
        **settings(
            output,
            per_device_train_batch_size=ROLLOUTS // (processes * micro_batches),
            gradient_accumulation_steps=micro_batches,
            max_steps=STEPS,
            mask_truncated_completions=True,
            optim="sgd",  # Adam would make steps of the learning rate out of rounding errors
            optim_args="momentum=0.9",
            learning_rate=0.1,
            save_strategy="steps",
            save_steps=SAVED,
            eval_strategy="steps",
            eval_steps=SAVED,
            eval_temperature=0.0,  # the likeliest tokens, which do not depend on the processes
            eval_k=2,
            eval_batch_size=4,
            context_template="{{ prompt }} {{ solution }}{{ feedback }}",
            deepspeed=None if stage is None else _deepspeed(stage),
            **case,
        )
    )
    if engine.startswith("fsdp"):
        _let_accelerate_shard_on_cpus()
    access = None
    if expert == "local":
        expert = LocalExpert(str(folder / "expert"), TOKENIZER).prepared_by
    elif server is not None and expert == "server":
        from errata.experts.remote.server import ServerExpert

        served = ServerExpert(server.url, "house", TOKENIZER, gives="topk", top_k=20, retries=0)
        access = Access(gives="topk", top_k=20)
        expert = lambda prepare: served  # noqa: E731
    torch.manual_seed(0)
    peft_config = None
    if lora:
        from peft import LoraConfig

        peft_config = LoraConfig(r=4, lora_alpha=64, target_modules=["q_proj", "v_proj", "down_proj"])
    return ErrataTrainer(
        load_model(str(folder / "policy"), dtype="float32"),
        [solved],
        config,
        method=decided,
        train_dataset=rows(8),
        eval_dataset=rows(3),
        processing_class=TOKENIZER,
        peft_config=peft_config,
        access=access,
        expert=expert,
    )


def _deepspeed(stage: int) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": stage}
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
        zero["stage3_param_persistence_threshold"] = (
            40  # of this small model's weights, some are sharded and some are not
        )
    return {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
    }


def _let_accelerate_shard_on_cpus() -> None:
    """Accelerate leaves FSDP out where the processes have no GPU; torch's FSDP itself runs on CPUs."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    PartialState._shared_state["device"] = torch.device("cpu")  # torch's FSDP1 calls no other device the same
    FullyShardedDataParallel.set_state_dict_type = _set_state_dict_type


def _set_state_dict_type(module: Any, kind: Any, config: Any = None, optim_config: Any = None) -> Any:
    """FSDP1's, without "offloading" to the CPU: of a tensor there it makes no copy, and then it frees the tensor."""
    for c in (config, optim_config):
        if c is not None:
            c.offload_to_cpu = False
    return _FSDP1_STATE_DICT_TYPE(module, kind, config, optim_config)


def start_deepspeed() -> None:
    """DeepSpeed's CPU accelerator, without its kernel for collectives in shared memory, which would be compiled first."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)  # on CPUs accelerate leaves that out


def train(t: ErrataTrainer, first: int, checkpoint: Path | None = None) -> list[dict[str, float]]:
    """Train on the scripted rollouts from the generation batch ``first``; the logs of the steps."""
    batches = iter(range(first, 100))
    sample = t._generate_single_turn

    def scripted(prompts: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        if not t.model.training:  # evaluation samples as in any run
            return sample(prompts, *args, **kwargs)
        return completions(next(batches), t.accelerator.process_index * len(prompts), len(prompts)), None

    t._generate_single_turn = scripted
    if isinstance(t.method, Turns):
        on_rollouts = t.on_rollouts
        t.on_rollouts = lambda rows, tokens: on_rollouts(rows, Turns.cut(tokens))
    t.train(**({} if checkpoint is None else {"resume_from_checkpoint": str(checkpoint)}))
    return [log for log in t.state.log_history if "loss" in log or any(k.startswith("eval") for k in log)]


def run(cell: str, folder: Path, server: FakeServer | None, rank: int) -> dict[str, Any]:
    """Train a cell twice: whole, and from its checkpoint."""
    output = folder / cell.replace(":", "-")
    try:
        t = made(cell, folder, output, server)
    except ValueError as error:
        return {"status": "refused", "why": str(error)}
    enabled = {"fsdp": t.is_fsdp_enabled, "zero": t.is_deepspeed_enabled}
    assert enabled == {k: k in cell.split(":")[2] for k in enabled}, enabled
    logs = train(t, 0)
    t.save_policy(output / "final")
    t = made(cell, folder, output, server)
    # ``log_history`` of a resumed run begins with that of the checkpoint.
    again = train(t, SAVED, output / f"checkpoint-{SAVED}")
    t.save_policy(output / "again")
    return {"status": "ran", "logs": logs, "again": again, "memory": t.memory.state_dict()}


def main(folder: Path, cells: list[str]) -> None:
    torch.set_num_threads(1)
    faulthandler.enable()
    gc.freeze()  # accelerate collects garbage after each run; what was imported is none
    importlib.metadata.metadata = functools.cache(importlib.metadata.metadata)  # which it reads at every unwrapping
    rank = int(os.environ.get("RANK", "0"))
    server = None
    if any(cell.startswith("server") for cell in cells):
        server = FakeServer(PolicyAnswers(build_model(len(TOKENIZER), seed=1).eval(), TOKENIZER))
    if any("zero" in cell for cell in cells):
        start_deepspeed()
    for cell in cells:
        faulthandler.dump_traceback_later(TIMEOUT_S, exit=True)
        print(f"cell {cell}", file=sys.stderr, flush=True)  # the last one named is the one that failed
        try:
            found = run(cell, folder, server, rank)
        except Exception as error:
            traceback.print_exc()
            place = folder / f"{cell.replace(':', '-')}.failed.{rank}"
            place.write_text(f"{type(error).__name__}: {error}")
            sys.stderr.flush()
            os._exit(1)  # the other processes may wait for this one in a collective
        if rank == 0:
            (folder / f"{cell.replace(':', '-')}.json").write_text(json.dumps(found))
        gc.collect()
    faulthandler.cancel_dump_traceback_later()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
