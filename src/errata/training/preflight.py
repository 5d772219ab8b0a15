"""A preflight: before training, is the teacher worth listening to?

The policy answers some problems plainly, and again in each context its teacher could be shown. At the student's own states,
where a wrong attempt parts from a right answer, the teacher's two log-probabilities are compared with the student's. Nothing is
learned.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from errata.contexts import choose
from errata.experts import SelfTeacher, Teacher
from errata.feedback.critique import Critic
from errata.methods import TeacherMethod
from errata.records import Group, Prompt, Rollout, Row, TeacherContext, Verdict, groups_of
from errata.training.compat import Shown
from errata.training.evaluation import judged_rollouts, sampling_of
from errata.training.findings import KINDS, Findings, Pairs, Problem
from errata.training.forward import head_of
from errata.training.signals import checked_context
from errata.training.teacher_forward import hidden_at_completions, teacher_sequences

if TYPE_CHECKING:
    from errata.training.trainer import ErrataTrainer

Contexts = dict[str, TeacherContext]
"""The context of a rollout, by problem."""

CRITIQUE_PER_ANSWER = 4
"""The longest critique where the recipe names no critic, in longest answers."""
SAYS_WAIT_S = 20.0
"""Seconds still to wait above which a preflight says how many they are."""


def chosen_rows(rows: Sequence[Row], n: int, seed: int) -> list[Row]:
    """``n`` of the rows, drawn by the seed, in the data's order; all where there are fewer. Problems occur once."""
    unique = list({str(row["problem_id"]): row for row in rows}.values())
    return [unique[i] for i in sorted(random.Random(seed).sample(range(len(unique)), min(n, len(unique))))]


def measure(
    trainer: ErrataTrainer,
    rows: Sequence[Row],
    k: int,
    kinds: Sequence[str] = (*KINDS, "own"),
    says: Callable[[str], None] = lambda _: None,
) -> Findings:
    """Accuracies in each kind of context, and pairs of tokens. Collective: call on every rank. Random numbers are as before.

    Args:
        rows: of training; each problem once.
        k: attempts at each problem, plain and in each context.
        kinds: of contexts to try, out of ``KINDS`` and ``own``.
        says: is told what begins, since with a large model each part may take minutes.
    Raises:
        ValueError: under FSDP or DeepSpeed, where the teacher cannot generate.
    """
    if trainer.sharded:
        raise ValueError("preflight: not possible where FSDP or DeepSpeed shards the weights; run it on one GPU")
    config, threshold = trainer.args, trainer.method.success_threshold
    # As training samples: these are the student's own states.
    sampling = replace(sampling_of(config), temperature=config.temperature, top_p=config.top_p)
    due = trainer.evaluation_due  # of the run's own, which this is none of
    devices = [trainer.accelerator.device] if trainer.accelerator.device.type == "cuda" else []
    with trainer.evaluating(), torch.random.fork_rng(devices=devices):
        says(f"answers without a context, {len(rows)} problems")
        started = time.perf_counter()
        rollouts = judged_rollouts(trainer, rows, k, sampling, batch_size=config.eval_batch_size)
        groups, round_s = groups_of(rollouts, k), time.perf_counter() - started
        tried = {g.problem_id: _failed(g, threshold) for g in groups}
        # A critique is sampled, so each process would show its own.
        (contexts,) = broadcast_object_list([_contexts(trainer, groups, tried, kinds, says)])
        teacher = trainer.teacher or SelfTeacher(trainer.model, "live")
        own = {g.problem_id: len(g.successes(threshold)) / k for g in groups}
        shown: dict[str, dict[str, float]] = {problem: {} for problem in own}
        pairs: dict[str, Pairs] = {}
        rendered = {kind: _prompts(trainer, tried, by_problem) for kind, by_problem in contexts.items()}
        tasks = {kind: prompts for kind, prompts in rendered.items() if prompts}
        # What the method chooses is often one of the other kinds, and the same seed would give the same answers.
        first = {kind: next(k for k in tasks if tasks[k] == prompts) for kind, prompts in tasks.items()}
        different = list(dict.fromkeys(first.values()))
        if (left := len(different) * round_s) > SAYS_WAIT_S:
            says(
                f"{len(different)} contexts to try, {round_s:.0f} s or more each: at least {left:.0f} s (fewer problems, less)"
            )
        for kind, prompts in tasks.items():
            if first[kind] != kind:
                pairs[kind] = pairs[first[kind]]
                for problem in prompts:
                    shown[problem][kind] = shown[problem][first[kind]]
                continue
            title = "what the method chooses" if kind == "own" else KINDS[kind]
            number = f"{different.index(kind) + 1} of {len(different)} contexts"
            says(f"answers with {title}, {len(prompts)} problems ({number})")
            asked = [row for row in rows if str(row["problem_id"]) in prompts]
            kwargs = _template_kwargs(trainer)
            with teacher.generating(trainer.accelerator.unwrap_model(trainer.model)) as model:
                told = Shown([prompts[str(r["problem_id"])] for r in asked], _other(trainer, teacher, model), kwargs)
                answers = judged_rollouts(trainer, asked, k, sampling, batch_size=config.eval_batch_size, shown=told)
            for group in groups_of(answers, k):
                shown[group.problem_id][kind] = sum(r.solved(threshold) for r in group) / k
            pairs[kind] = _pairs(trainer, teacher, groups, prompts, tried, threshold)
    trainer.evaluation_due = due
    return Findings(
        [
            Problem(
                own[g.problem_id], 0 < own[g.problem_id] < 1, shown[g.problem_id], bool(tried[g.problem_id].reference)
            )
            for g in groups
        ],
        pairs,
    )


def _failed(group: Group, threshold: float) -> Rollout:
    """The attempt whose teacher is tried: the first that failed, else the first."""
    failed = [r for r in group if r.reward is not None and not r.solved(threshold)]
    return (failed or list(group))[0]


def _other(trainer: ErrataTrainer, teacher: Teacher, model: nn.Module) -> nn.Module | None:
    """The model that answers, or ``None`` where it is the policy as it stands, which its own engine samples from."""
    return None if teacher.kind == "live" else trainer.accelerator.unwrap_model(model)


def _template_kwargs(trainer: ErrataTrainer) -> Mapping[str, object]:
    method = trainer.method
    return method.teacher_chat_template_kwargs if isinstance(method, TeacherMethod) else {}


def _prompts(
    trainer: ErrataTrainer, tried: Mapping[str, Rollout], contexts: Mapping[str, TeacherContext]
) -> dict[str, Prompt]:
    """The teacher's prompt of each problem whose context fits into it."""
    rendered = {problem: trainer.renderer.render(tried[problem], context) for problem, context in contexts.items()}
    return {problem: r.prompt for problem, r in rendered.items() if not r.dropped}


def _contexts(
    trainer: ErrataTrainer,
    groups: Sequence[Group],
    tried: Mapping[str, Rollout],
    kinds: Sequence[str],
    says: Callable[[str], None],
) -> dict[str, Contexts]:
    """What the teacher of each problem's tried attempt could be shown, by kind."""
    method, threshold = trainer.method, trainer.method.success_threshold
    keep = method.keep_thinking if isinstance(method, TeacherMethod) else False
    attempts = [tried[g.problem_id] for g in groups]
    feedback: dict[str, list[Rollout]] = {"feedback": attempts}
    if "correction" in kinds and trainer.comments.corrections is not None and trainer.args.correction != "person":
        rows = [{"problem_id": r.problem_id, **r.row} for r in attempts]
        feedback["correction"] = _changed(attempts, trainer.comments(attempts, rows, 0)[0])
    if "critique" in kinds:
        says(f"critiques of {len(_failures(trainer, attempts))} failed attempts")
        feedback["critique"] = _changed(attempts, _critiqued(trainer, attempts))
    found: dict[str, Contexts] = {}
    memory, rng = method.memory(), random.Random(trainer.args.seed)
    for kind in kinds:
        by_problem: Contexts = {}
        for i, group in enumerate(groups):
            rollout = feedback[kind][i] if kind in feedback else attempts[i]
            if kind == "own":
                context = checked_context(method, method.context(rollout, group, memory=memory, epoch=0.0, rng=rng))
            elif kind in ("correction", "critique") and kind not in feedback:
                continue
            else:
                source = {"both": "reference", "correction": "feedback", "critique": "feedback"}.get(kind, kind)
                context = choose(
                    rollout,
                    group,
                    sources=(source,),
                    threshold=threshold,
                    with_feedback=kind == "both",
                    keep_thinking=keep,
                )
            complete = context.solution and context.feedback if kind == "both" else context.is_informative
            if complete:
                by_problem[group.problem_id] = context
        found[kind] = by_problem
    return found


def _changed(before: Sequence[Rollout], after: Sequence[Rollout]) -> list[Rollout]:
    """The rollouts that were commented on; the others without feedback."""
    return [
        new if new.verdict.feedback != old.verdict.feedback else replace(new, verdict=Verdict(new.reward))
        for old, new in zip(before, after, strict=True)
    ]


def _failures(trainer: ErrataTrainer, attempts: Sequence[Rollout]) -> list[int]:
    threshold = trainer.method.success_threshold
    return [i for i, r in enumerate(attempts) if r.reward is not None and not r.solved(threshold)]


def _critiqued(trainer: ErrataTrainer, attempts: Sequence[Rollout]) -> list[Rollout]:
    """The attempts with the critique of the recipe's critic, or of the policy where it names none."""
    if trainer.comments.critiques is not None:
        return trainer.comments.critiques(list(attempts), _failures(trainer, attempts), 0)[0]
    tokenizer, config = trainer.tokenizer, trainer.args
    # The recipe asks for no critique, so one much longer than its answers is not worth the wait.
    longest = min(config.critic_max_tokens, max(64, CRITIQUE_PER_ANSWER * (config.max_completion_length or 0)))

    def write(prompts: list[list[dict[str, object]]]) -> list[str]:
        ids = trainer.write(prompts, temperature=config.temperature, top_p=config.top_p, max_tokens=longest)
        return list(tokenizer.batch_decode(ids, skip_special_tokens=True))

    critic = Critic(
        write,
        count_tokens=lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]),
        template=config.critic_template,
        threshold=trainer.method.success_threshold,
    )
    return [replace(r, verdict=v) for r, v in zip(attempts, critic(attempts), strict=True)]


def _pairs(
    trainer: ErrataTrainer,
    teacher: Teacher,
    groups: Sequence[Group],
    prompts: Mapping[str, Prompt],
    tried: Mapping[str, Rollout],
    threshold: float,
) -> Pairs:
    """Where each tried attempt first parts from a right answer: is the right token raised, the wrong one lowered?"""
    places = []
    for group in groups:
        wrong = tried[group.problem_id]
        if group.problem_id not in prompts or wrong.solved(threshold) or wrong.reward is None or wrong.turns:
            continue
        right = [r.completion for r in group.successes(threshold)] or [wrong.reference or ""]
        place = parting(_tokens(trainer, wrong.completion), [_tokens(trainer, text) for text in right if text])
        if place is not None:
            places.append((wrong.prompt, prompts[group.problem_id], *place))
    if not places:
        return Pairs()
    plain, shown, befores, wrongs, rights = zip(*places, strict=True)
    students = _next(trainer, SelfTeacher(trainer.model, "live"), trainer.encode_prompts(list(plain)), befores)
    kwargs = _template_kwargs(trainer)
    teachers = _next(trainer, teacher, trainer.encode_prompts(list(shown), kwargs), befores)
    raises = lowers = 0
    for student, its, wrong_token, right_token in zip(students, teachers, wrongs, rights, strict=True):
        raises += int(its[right_token] > student[right_token])
        lowers += int(its[wrong_token] < student[wrong_token])
    return Pairs(len(places), raises, lowers)


def parting(wrong: Sequence[int], rights: Sequence[Sequence[int]]) -> tuple[list[int], int, int] | None:
    """Where ``wrong`` follows one of ``rights`` the longest and then parts: the tokens before, its own token and the right one.

    ``None`` where it parts from none.
    """
    best: tuple[list[int], int, int] | None = None
    for right in rights:
        t = next((i for i, (a, b) in enumerate(zip(wrong, right, strict=False)) if a != b), None)
        if t is not None and (best is None or t > len(best[0])):
            best = (list(wrong[:t]), wrong[t], right[t])
    return best


def _tokens(trainer: ErrataTrainer, text: str) -> list[int]:
    return [*trainer.tokenizer(text, add_special_tokens=False)["input_ids"], trainer.turn_end]


def _next(
    trainer: ErrataTrainer, teacher: Teacher, prompts: Sequence[list[int]], befores: Sequence[list[int]]
) -> list[Tensor]:
    """(V,) log-probabilities of the token after each prompt and what was written before."""
    # One token more, any: the last state is the one that predicts it.
    sequences = teacher_sequences(prompts, [[*before, trainer.turn_end] for before in befores])
    device, by_part = trainer.accelerator.device, []
    with torch.no_grad(), trainer.no_checkpointing():
        for part in range(teacher.parts):
            with teacher.acting(trainer.model, part) as acting:
                module = trainer.accelerator.unwrap_model(acting)

                def forward(inputs: dict[str, Tensor], module: nn.Module = module) -> Tensor:
                    with trainer.accelerator.autocast():
                        hidden: Tensor = module(**inputs, with_head=lambda hidden, head: hidden)
                    return hidden

                rows = trainer.args.per_device_train_batch_size
                found, _ = hidden_at_completions(forward, sequences, max_rows=rows, device=device)
            by_part.append([state[-1:] for state in found])
        head = teacher.head(head_of(trainer.accelerator.unwrap_model(trainer.model)), head_of)
        return [
            (head.logits(state)[0].float() / trainer.temperature).log_softmax(-1) for state in teacher.join(by_part)
        ]
