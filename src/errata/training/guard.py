"""The guard: it watches a run for signs of collapse, and acts as the recipe's ``guard`` says.

After 100 to 400 steps self-distillation often makes a policy worse: lengths fall, the teacher loses its own accuracy, answers
copy what the teacher was shown. ``training/signs.py`` finds the signs in a run's log; ``Guard`` is the callback that acts.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from errata.experts import Teacher
from errata.methods import Method
from errata.records import State
from errata.training.signs import Sign, Steps, signs_of_evaluations

logger = logging.getLogger(__name__)

POLICIES = ("none", "warn", "freeze", "reward", "best", "stop")
BEST = "best.safetensors"
"""File of the best evaluation's weights, in the run directory and in every checkpoint."""


class Guarded(Protocol):
    """What the guard needs of the trainer."""

    model: nn.Module
    teacher: Teacher | None
    state: TrainerState
    stopped: bool

    def evaluate(self) -> dict[str, float]: ...

    def is_world_process_zero(self) -> bool: ...


class Guard(TrainerCallback):  # type: ignore[misc]
    """Logs every sign, and at the first that ``acts`` does what ``policy`` says.

    ``warn``: nothing more. ``freeze``: the teacher follows the student no longer. ``reward``: from the next generation batch on
    the policy learns from the rewards alone, as in GRPO. ``stop``: training ends. ``best``: training ends, and the policy is
    that of the best evaluation, also where no sign came: so no run ends below where it began. Its state is in every checkpoint.
    """

    def __init__(
        self,
        trainer: Guarded,
        policy: str,
        folder: Path,
        k: int,
        keep_row: Callable[[State], None] = lambda row: None,
        *,
        window: int = 10,
    ) -> None:
        self._trainer, self._policy, self._folder, self._k = trainer, policy, folder, k
        self._steps = Steps(window)
        self.acted: State | None = None
        """The step and the name of the sign the guard acted on."""
        self._best: State | None = None
        self._restored = False
        self._keep_row = keep_row

    @property
    def reward_only(self) -> bool:
        """Whether the policy learns from the rewards alone from now on."""
        return self._policy == "reward" and self.acted is not None

    # -- callbacks --------------------------------------------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._end_if_acted(control)  # a resumed run that had ended

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        if self._policy == "none" or not state.log_history or "reward" not in state.log_history[-1]:
            return
        self._steps.add(state.log_history[-1])
        if self._steps.count % self._steps.window:  # so that a sign is not said at every step
            return
        for sign in self._steps.signs(has_teacher=not self.reward_only):
            self._see(sign, state, control)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if self._policy == "none" or self._restored:
            return
        prefix = "eval_"
        rows = [
            {name.removeprefix(prefix): value for name, value in row.items()}
            for row in state.log_history
            if f"{prefix}avg@{self._k}" in row
        ]
        if not rows:  # an evaluation of another k, by hand
            return
        accuracy = rows[-1][f"avg@{self._k}"]
        if self._policy == "best" and self.acted is None and (self._best is None or accuracy > self._best["accuracy"]):
            self._best = {"accuracy": accuracy, "step": state.global_step}
            self._save_best()
        for sign in signs_of_evaluations(rows, self._k):
            self._see(sign, state, control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if self._policy != "best" or self._trainer.stopped or self._best is None:
            return
        last = next((row for row in reversed(state.log_history) if f"eval_avg@{self._k}" in row), None)
        if last is None or last["step"] != state.global_step:
            last = {f"eval_avg@{self._k}": self._trainer.evaluate()[f"eval_avg@{self._k}"]}
        if last[f"eval_avg@{self._k}"] < self._best["accuracy"]:
            self._load_best()
            self._restored = True
            said = f"the policy is again that of step {self._best['step']}, the best evaluation"
            self._say(state.global_step, {"did": "best", "said": said})
            self._trainer.evaluate()

    # -- what it does -----------------------------------------------------------------------------------------------

    def _see(self, sign: Sign, state: TrainerState, control: TrainerControl) -> None:
        acts = sign.acts and self.acted is None and self._policy != "warn"
        did = self._policy if acts else "warn"
        self._say(state.global_step, {"sign": sign.name, "acts": sign.acts, "said": sign.said, "did": did})
        if not acts:
            return
        self.acted = {"step": state.global_step, "sign": sign.name}
        if self._policy == "freeze" and self._trainer.teacher is not None:
            self._trainer.teacher.freeze()
        self._end_if_acted(control)

    def _end_if_acted(self, control: TrainerControl) -> None:
        if self.acted is not None and self._policy in ("best", "stop"):
            control.should_training_stop = True

    def _say(self, step: int, row: State) -> None:
        if self._trainer.is_world_process_zero():
            acts = {
                "warn": "",
                "freeze": "; guard: the teacher is frozen from here on",
                "reward": "; guard: from here on only the rewards count",
                "best": "; guard: training ends" if "sign" in row else "",
                "stop": "; guard: training ends",
            }
            logger.warning("step %d: %s%s", step, row["said"], acts[row["did"]])
            self._keep_row({"step": step, **row})

    def _weights(self) -> dict[str, torch.Tensor]:
        return {name: p.data for name, p in self._trainer.model.named_parameters() if p.requires_grad}

    def _save_best(self) -> None:
        if self._trainer.is_world_process_zero():
            self._folder.mkdir(parents=True, exist_ok=True)
            part = self._folder / f"{BEST}.part"
            save_file({name: w.cpu().contiguous() for name, w in self._weights().items()}, part)
            part.replace(self._folder / BEST)

    def _load_best(self) -> None:
        saved = load_file(self._folder / BEST)
        for name, weight in self._weights().items():
            weight.copy_(saved[name])

    # -- state ------------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> State:
        """The state of a checkpoint; the best weights are written to ``folder`` beside it, on the main process."""
        if self._best is not None and self._trainer.is_world_process_zero():
            linked(self._folder / BEST, folder / BEST)
        return {"policy": self._policy, "acted": self.acted, "best": self._best, "steps": self._steps.state_dict()}

    def load(self, state: State, folder: Path) -> None:
        """Restore what ``save`` returned and wrote. A run that is resumed with another ``guard`` begins a new watch."""
        if "steps" in state:
            self._steps.load_state_dict(state["steps"])
        if state.get("policy") != self._policy:
            return
        self.acted, self._best = state["acted"], state["best"]
        if self._best is not None and self._trainer.is_world_process_zero():
            self._folder.mkdir(parents=True, exist_ok=True)
            linked(folder / BEST, self._folder / BEST)


def linked(source: Path, target: Path) -> None:
    """``target`` with the content of ``source``: the same file where the file system can, else a copy."""
    part = target.with_name(f"{target.name}.part")
    part.unlink(missing_ok=True)
    try:
        part.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, part)
    part.replace(target)


def check_guard(policy: str, method: Method, teacher: Teacher | None, *, sharded: bool, evaluates: bool) -> None:
    """Raises ``ValueError`` where a guard could not do what it says.

    Args:
        teacher: the run's, where it is held here.
        sharded: whether FSDP or DeepSpeed shards the weights.
        evaluates: whether the run is evaluated, at its start too.
    """
    if policy not in POLICIES:
        raise ValueError(f"guard: {policy!r} is none of {', '.join(POLICIES)}")
    if policy == "freeze" and (teacher is None or teacher.kind not in ("ema", "sync")):
        kind = "no teacher here" if teacher is None else f"a {teacher.kind} teacher"
        raise ValueError(f"guard: freeze is for a teacher that follows the student (ema, sync), not {kind}; use reward")
    if policy == "reward" and not method.uses_teacher:
        raise ValueError(f"guard: reward turns the teacher off, and {type(method).__name__} has none; use best or stop")
    if policy == "best" and not evaluates:
        raise ValueError(
            "guard: best goes back to the best evaluation; set eval_strategy: steps and eval_on_start: true, or use stop"
        )
    if policy == "best" and sharded:
        raise ValueError("guard: best puts weights back, which FSDP and DeepSpeed shard; use stop, reward or freeze")
