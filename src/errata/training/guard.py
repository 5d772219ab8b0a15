"""The guard: it watches a run for signs of collapse, and acts as the recipe's ``guard`` says.

After 100 to 400 steps self-distillation often makes a policy worse: lengths fall, the teacher loses its own accuracy, answers
copy what the teacher was shown. ``signs_of_steps`` and ``signs_of_evaluations`` read a run's log and are pure; ``Guard`` is the
callback that acts. Their thresholds are ours (docs/collapse.md).
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Literal, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from errata.experts import Teacher
from errata.methods import Method
from errata.records import Row, State
from errata.training.length_warning import length_warning

logger = logging.getLogger(__name__)

POLICIES = ("none", "warn", "freeze", "reward", "best", "stop")
BEST = "best.safetensors"
"""File of the best evaluation's weights, in the run directory and in every checkpoint."""
LEAST_PROBLEMS = 8
"""Accuracies on fewer problems are not judged: their standard error is not known well enough."""


@dataclass(frozen=True, slots=True)
class Sign:
    """One sign of collapse."""

    name: Literal["accuracy", "teacher", "reward", "length", "entropy", "quotes", "context", "judge"]
    said: str
    """In one line."""
    acts: bool = True
    """Whether the guard acts on it, or only says it."""


def signs_of_evaluations(rows: Sequence[Row], k: int) -> list[Sign]:
    """Signs at the last of a run's evaluations.

    - ``accuracy``: avg@k is below its best by more than two standard errors of the difference, each evaluation's by itself. It
      acts where it is below half of the best at two evaluations in a row: learning has its dips.
    - ``teacher``: the teacher solves fewer of the problems on which it was tried than the student does without what it is
      shown, by more than two standard errors, while the student does not improve.

    Args:
        rows: as in ``eval.jsonl``, oldest first.
        k: completions per problem.
    """
    if not rows:
        return []
    *before, now = rows
    name, found = f"avg@{k}", []
    best = max(before, key=lambda row: row[name], default=now)
    if _fell(now, best, name):
        said = f"{name} fell from {best[name]:.3f} at step {best.get('step', 0)} to {now[name]:.3f}"
        low = all(_fell(row, best, name) and row[name] < 0.5 * best[name] for row in rows[-2:])
        found.append(Sign("accuracy", said, low))
    if now.get("teacher_problems", 0) < LEAST_PROBLEMS:
        return found
    improves = bool(before) and now[name] > before[-1][name]
    if not improves and now["teacher_lead"] + 2 * now["teacher_lead_se"] < 0:
        found.append(
            Sign(
                "teacher",
                f"the teacher solves {now['teacher_accuracy']:.3f} of the problems on which the student solves "
                f"{now['student_accuracy']:.3f} without it",
            )
        )
    return found


def _fell(now: Row, best: Row, name: str) -> bool:
    error = math.hypot(_error(best, name), _error(now, name))
    return bool(now["n_problems"] >= LEAST_PROBLEMS and best[name] - now[name] > 2 * error)


def _error(row: Row, name: str) -> float:
    """Standard error of an accuracy, from its 95 % interval."""
    return float(row.get(f"{name}_high", row[name]) - row.get(f"{name}_low", row[name])) / 3.92


def signs_of_steps(rows: Sequence[Row], *, window: int = 10, has_teacher: bool = True) -> list[Sign]:
    """Signs at the last of a run's logged steps, from the medians of the first and the last ``window`` of them.

    - ``reward``: in the last three windows its mean was less than half of its best window's, by more than two standard errors.
    - ``length``: answers became shorter, their divergence from the teacher did not (``length_warning``).
    - ``entropy``: it fell to less than a third, or rose to more than three times.
    - ``quotes``: the share of answers that quote the reference, or speak of feedback, rose by more than .2.
    - ``context``, ``judge``: nine in ten rollouts have no context; every second one has no verdict. Only said.

    Where the reward rose by a tenth and .01, none of length, entropy and quotes is a sign: a policy that learns may become
    shorter and surer. Where it did not fall by a tenth they are only said.

    Args:
        rows: as in ``metrics.jsonl``, oldest first. What a row does not hold is not judged.
        has_teacher: whether rollouts should have contexts now.
    Raises:
        ValueError: a window below 1.
    """
    if window < 1:
        raise ValueError(f"window: {window} is below 1")
    if len(rows) < 2 * window:
        return []

    def ends(name: str) -> tuple[float, float] | None:
        values = [row[name] for row in rows if isinstance(row.get(name), int | float)]
        return None if len(values) < 2 * window else (median(values[:window]), median(values[-window:]))

    reward = ends("reward")
    rose = reward is not None and reward[1] > 1.1 * reward[0] + 0.01
    fell = reward is not None and reward[1] < 0.9 * reward[0] - 0.01
    found = _reward_fell([row["reward"] for row in rows if "reward" in row], window)
    if not rose:
        names = ("completions/mean_length", "teacher/divergence")
        both = [[row[name] for row in rows if all(n in row for n in names)] for name in names]
        if (said := length_warning(*both, window=window)) is not None:
            found.append(Sign("length", said, fell))
        entropy = ends("entropy")
        if entropy is not None and not entropy[0] / 3 <= entropy[1] <= 3 * entropy[0]:
            found.append(Sign("entropy", f"the policy's entropy went from {entropy[0]:.3f} to {entropy[1]:.3f}", fell))
        for name, said in (
            ("rollouts/quotes_reference", "quote the reference"),
            ("rollouts/mentions_feedback", "speak of feedback that the policy never saw"),
        ):
            share = ends(name)
            if share is not None and share[1] > share[0] + 0.2:
                found.append(Sign("quotes", f"{share[1]:.0%} of the answers {said}, at first {share[0]:.0%}", fell))
    without, solved, unjudged = (ends(n) for n in ("context/none", "groups/solve_all", "rollouts/unjudged"))
    if has_teacher and without is not None and without[1] > 0.9 and (solved is None or solved[1] < 0.5):
        found.append(Sign("context", f"{without[1]:.0%} of the rollouts have no context, so no teacher", acts=False))
    if unjudged is not None and unjudged[1] > 0.5:
        found.append(Sign("judge", f"{unjudged[1]:.0%} of the rollouts have no verdict", acts=False))
    return found


def _reward_fell(rewards: Sequence[float], window: int) -> list[Sign]:
    if len(rewards) < 4 * window:
        return []
    windows = [rewards[i : i + window] for i in range(len(rewards) - 4 * window + 1)]
    best, last = max(windows, key=fmean), [rewards[-n * window :][:window] for n in (3, 2, 1)]
    if all(_below_half(now, best) for now in last):
        return [Sign("reward", f"the mean reward fell from {fmean(best):.3f} to {fmean(last[-1]):.3f}")]
    return []


def _below_half(now: Sequence[float], best: Sequence[float]) -> bool:
    error = math.hypot(*(stdev(w) / math.sqrt(len(w)) if len(w) > 1 else 0.0 for w in (now, best)))
    return fmean(now) < 0.5 * fmean(best) and fmean(best) - fmean(now) > 2 * error


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
        self._trainer, self._policy, self._folder, self._k, self._window = trainer, policy, folder, k, window
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
        rows = [row for row in state.log_history if "reward" in row]
        if len(rows) % self._window:  # so that a sign is not said at every step
            return
        for sign in signs_of_steps(rows, window=self._window, has_teacher=not self.reward_only):
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
        return {"policy": self._policy, "acted": self.acted, "best": self._best}

    def load(self, state: State, folder: Path) -> None:
        """Restore what ``save`` returned and wrote. A run that is resumed with another ``guard`` begins a new watch."""
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
