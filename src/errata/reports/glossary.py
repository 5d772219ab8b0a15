"""Every metric that a training or an evaluation logs: its unit, what it means, and what to watch for.

``python -m errata.reports.glossary > docs/metrics.md`` writes the page. A name may hold a placeholder in capitals: ``K`` stands
for a number, ``NAME`` and ``TASK`` for a name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One metric, or several with the same pattern of name."""

    name: str
    unit: str
    """``share`` (0 to 1), ``nats``, ``tokens``, ``seconds``, ``count``, ``number``."""
    meaning: str
    watch: str = ""
    """What a reader should notice."""


_OUTCOME = (
    Metric("reward", "number", "Mean reward of the step's rollouts.", "Flat from the start: nothing is learned; see reward_std."),
    Metric("reward_std", "number", "Standard deviation of the rewards, by group, as TRL computes it.", "0: all of a group alike; the reward teaches nothing."),
    Metric("frac_reward_zero_std", "share", "Groups whose rewards are all equal.", "Near 1: GRPO has no gradient; use feedback, or other problems."),
    Metric("rewards/NAME/mean", "number", "Mean reward of one verifier.", ""),
    Metric("rewards/NAME/std", "number", "Standard deviation of one verifier's rewards.", ""),
    Metric("groups/solve_all", "share", "Groups that were solved by every rollout.", "Near 1: the problems are too easy by now."),
    Metric("groups/solve_none", "share", "Groups that no rollout solved.", "Near 1: no sibling can be shown; use feedback or the reference."),
    Metric("rollouts/unjudged", "share", "Rollouts on which the verifier failed.", "Above 0: read the log for its error; these rollouts teach nothing."),
    Metric("rollouts/mentions_feedback", "share", "Completions that speak of feedback which the student was not shown.", "Rising: the student imitates the teacher's prompt."),
    Metric("rollouts/quotes_reference", "share", "Completions that quote the reference solution that only their teacher was shown.", "Rising: answers are copied, not reasoned."),
    Metric("tasks/TASK/solved", "share", "Solved rollouts of one task of a mixture.", ""),
    Metric("tasks/TASK/reward", "number", "Mean reward of one task of a mixture.", ""),
    Metric("tasks/TASK/stage", "count", "DRIFT: the stage of one task of a mixture; curriculum/stage is their mean.", ""),
)  # fmt: skip
_LENGTH = (
    Metric("completions/mean_length", "tokens", "Mean length of the completions.", "A fall while the reward does not rise: answers collapse."),
    Metric("completions/min_length", "tokens", "Shortest completion.", ""),
    Metric("completions/max_length", "tokens", "Longest completion.", ""),
    Metric("completions/clipped_ratio", "share", "Completions cut at max_completion_length.", "High: raise the limit; a cut answer is mostly wrong."),
    Metric("completions/mean_terminated_length", "tokens", "Mean length of those that ended by themselves.", ""),
    Metric("completions/min_terminated_length", "tokens", "Shortest of those that ended by themselves.", ""),
    Metric("completions/max_terminated_length", "tokens", "Longest of those that ended by themselves.", ""),
    Metric("num_tokens", "count", "Tokens of prompts and completions so far.", ""),
    Metric("tools/call_frequency", "number", "Tool calls of a rollout, on average.", ""),
    Metric("tools/failure_frequency", "share", "Tool calls that failed.", ""),
)  # fmt: skip
_SCORES = (
    Metric("entropy", "nats", "Mean entropy of the student over its tokens.", "Near 0: it no longer explores. A sharp rise: it becomes random."),
    Metric("teacher/entropy", "nats", "Mean entropy of the teacher over the tokens it scored.", ""),
    Metric("teacher/gap", "nats", "Teacher's less student's log-prob of the sampled token, on average.", "Near 0 from the start: the context tells the teacher nothing."),
    Metric("teacher/divergence", "nats", "Mean divergence of the method over the tokens that have a teacher.", "Not falling: the student cannot follow its teacher."),
    Metric("teacher/padding", "share", "Padding among the tokens of the teacher's forward passes.", "High: group prompts of like length, or lower the batch."),
    Metric("local_cost", "nats", "DistIL: mean cost of a token.", ""),
    Metric("future_credit", "nats", "DistIL: mean future cost after a token.", "Falling with the length: see docs/length.md."),
    Metric("persistent_share", "share", "DistIL: share of the future credit's variance that is more than noise of unrelated tokens; the credit is multiplied by it (`shrink`).", "Near 0: early tokens do not change later disagreement, so future credit adds nothing here."),
    Metric("future_share", "share", "DistIL: future credit as a share of it plus the local cost.", "Near 1: the future term drowns the local one; lower future_weight."),
    Metric("kl", "nats", "KL to the reference model, where beta is above 0.", ""),
)  # fmt: skip
_OPTIMIZER = (
    Metric("loss", "number", "Sum of the two streams.", "It need not fall."),
    Metric("grad_norm", "number", "Norm of the gradient before clipping.", "Peaks: lower the learning rate, or clip."),
    Metric("learning_rate", "number", "The optimizer's learning rate.", ""),
    Metric("clip_ratio/region_mean", "share", "Tokens whose importance ratio the two-sided clip cuts.", "High: the policy moves far from the one that sampled."),
    Metric("clip_ratio/low_mean", "share", "Of these, cut from below.", ""),
    Metric("clip_ratio/low_min", "share", "The same, of the process with the fewest.", ""),
    Metric("clip_ratio/high_mean", "share", "Of these, cut from above.", ""),
    Metric("clip_ratio/high_max", "share", "The same, of the process with the most.", ""),
    Metric("clip_ratio/token_clip", "share", "Tokens whose divergence token_clip cuts.", "Near 1: nothing is learned from them; raise it."),
    Metric("clip_ratio/importance_clip", "share", "Tokens whose importance ratio importance_clip cuts.", ""),
    Metric("sampling/sampling_logp_difference/mean", "nats", "Mean difference of log-probs between sampler and trainer (vLLM).", "Above 0.1: the engines disagree."),
    Metric("sampling/sampling_logp_difference/max", "nats", "Largest such difference.", ""),
    Metric("sampling/importance_sampling_ratio/min", "number", "Smallest correction for the sampler.", ""),
    Metric("sampling/importance_sampling_ratio/mean", "number", "Mean correction for the sampler.", "Far from 1: the engines disagree."),
    Metric("sampling/importance_sampling_ratio/max", "number", "Largest correction for the sampler.", ""),
    Metric("aux_loss", "number", "Balance loss of a mixture-of-experts router.", ""),
    Metric("step", "count", "Optimizer steps so far.", ""),
    Metric("epoch", "number", "Passes over the data so far.", ""),
    Metric("step_time", "seconds", "Time of a step, without evaluation.", ""),
)  # fmt: skip
_CONTEXT = (
    Metric("context/NAME", "share", "Rollouts whose teacher was shown a context of this source; `none`: nothing.", "`none` near 1: the teacher has nothing to say; add a source."),
    Metric("context/cut", "share", "Teacher prompts of which a part was cut to fit.", "High: raise the prompt's limit or shorten the feedback."),
    Metric("context/dropped", "share", "Rollouts without a teacher, because nothing fitted.", "Above 0: raise the prompt's limit."),
    Metric("correction/given", "share", "Failed rollouts that were corrected.", ""),
    Metric("critic/share", "share", "Failed rollouts that the critic wrote about.", ""),
    Metric("critic/tokens", "tokens", "Tokens that the critic wrote.", ""),
    Metric("critic/prompt_tokens", "tokens", "Tokens that the critic read.", ""),
)  # fmt: skip
_METHOD = (
    Metric("routing/hard", "share", "DRIFT: mean gate of hard problems. The three sum to 1.", ""),
    Metric("routing/medium", "share", "DRIFT: mean gate of medium problems.", ""),
    Metric("routing/easy", "share", "DRIFT: mean gate of easy problems.", ""),
    Metric("routing/reinforced", "share", "Rollouts with weight in the reward's stream.", ""),
    Metric("routing/distilled", "share", "Rollouts (SRPO: tokens) with weight in the distillation.", "Near 0: the teacher is not used."),
    Metric("routing/weight_rl", "number", "Mean weight of a token in the reward's stream.", ""),
    Metric("routing/weight_sd", "number", "Mean weight of a token in the distillation.", ""),
    Metric("rhythm/open", "share", "DRIFT: tokens of solved rollouts at which the rhythm gate is open.", ""),
    Metric("rhythm/bonus", "number", "DRIFT: mean further weight of solved rollouts' tokens.", ""),
    Metric("curriculum/stage", "count", "DRIFT: 1 distils everything, 2 routes.", "Never 2: the warm-up is longer than the run."),
    Metric("ledger/problems", "count", "Problems with a pass rate.", ""),
    Metric("buffer/problems", "count", "Problems with a stored success.", ""),
    Metric("buffer/texts", "count", "Stored successes.", ""),
    Metric("buffer/hits", "count", "Draws that found a success, since the start.", ""),
    Metric("buffer/misses", "count", "Draws that found none, since the start.", ""),
    Metric("buffer/evictions", "count", "Successes that were removed for better or newer ones.", ""),
    Metric("history/problems", "count", "Problems with stored failed rollouts.", ""),
    Metric("history/attempts", "count", "Stored failed rollouts.", ""),
    Metric("replay/rollouts", "count", "Stored rollouts that were learned from again.", ""),
    Metric("replay/reach", "share", "How far into a stored rollout the policies still agree.", "Near 0: the stored rollouts are too old."),
)  # fmt: skip
_EXPERT = (
    Metric("expert/states", "count", "States at which the expert answered.", ""),
    Metric("expert/share", "share", "Share of the step's states at which it answered.", ""),
    Metric("expert/unanswered", "share", "Queried rollouts without any answer.", "Above 0: the server fails or refuses."),
    Metric("expert/by_self", "share", "Rollouts for which the policy stood in as teacher.", ""),
    Metric("expert/calls", "count", "Requests so far.", ""),
    Metric("expert/tokens_in", "count", "Tokens sent so far.", ""),
    Metric("expert/tokens_out", "count", "Tokens received so far.", ""),
    Metric("expert/cached", "count", "Answers taken from the cache so far.", ""),
    Metric("expert/failed", "count", "Requests that failed after all retries.", ""),
    Metric("expert/refused", "count", "Requests that the budget refused.", "Above 0: raise max_calls or max_tokens."),
    Metric("expert/misaligned", "count", "Answers that could not be laid on the student's tokens.", ""),
    Metric("expert/seconds", "seconds", "Time in requests so far.", ""),
)  # fmt: skip
_EVALUATION = (
    Metric("avg@K", "share", "Chance that one completion is solved, from K for each problem.", "A fall below an earlier value: collapse; keep the best checkpoint."),
    Metric("pass@K", "share", "Chance that at least one of K completions is solved.", "Falling while avg@K rises: the answers lose variety."),
    Metric("maj@K", "share", "Problems whose most frequent answer is right.", ""),
    Metric("avg@K_low", "share", "Lower end of the 95 % interval over problems: Wilson's or the BCa bootstrap's.", ""),
    Metric("avg@K_high", "share", "Upper end.", ""),
    Metric("pass@K_low", "share", "Lower end of the 95 % interval over problems.", ""),
    Metric("pass@K_high", "share", "Upper end.", ""),
    Metric("maj@K_low", "share", "Lower end of the 95 % interval over problems.", ""),
    Metric("maj@K_high", "share", "Upper end.", ""),
    Metric("k", "count", "Completions of each problem.", ""),
    Metric("n_problems", "count", "Problems.", ""),
    Metric("length", "tokens", "Mean length of a completion.", ""),
    Metric("pass_curve", "share", "pass@1, pass@2, ... pass@K, as a list.", "Flat from the start: more completions do not help."),
    Metric("format_rate", "share", "Completions whose answer could be read; absent where a verdict does not tell.", "Low: the format is the problem, not the skill."),
    Metric("unjudged", "count", "Completions on which the verifier failed.", ""),
    Metric("teacher_accuracy", "share", "The teacher's accuracy with what it is shown.", "Not above the student's: there is nothing to learn. Falling: lower teacher_rate."),
    Metric("student_accuracy", "share", "The student's accuracy on the problems on which the teacher was tried, without the context.", ""),
    Metric("teacher_problems", "count", "Problems on which the teacher was tried.", ""),
    Metric("teacher_lead", "share", "The teacher's accuracy less the student's on the same problems, without the context.", "Not above 0: nothing to learn from this teacher."),
    Metric("teacher_lead_se", "share", "Standard error of teacher_lead.", ""),
    Metric("score", "number", "Mean score of the judged completions.", ""),
    Metric("TASK/avg@K", "share", "avg@K of one task of a mixture.", ""),
    Metric("TASK/pass@K", "share", "pass@K of one task of a mixture.", ""),
    Metric("TASK/avg@K_low", "share", "Lower end of its 95 % interval.", ""),
    Metric("TASK/avg@K_high", "share", "Upper end.", ""),
    Metric("TASK/pass@K_low", "share", "Lower end of its 95 % interval.", ""),
    Metric("TASK/pass@K_high", "share", "Upper end.", ""),
)  # fmt: skip

TRAINING: dict[str, tuple[Metric, ...]] = {
    "How the rollouts fare": _OUTCOME,
    "Length": _LENGTH,
    "Student and teacher": _SCORES,
    "What the teacher is shown": _CONTEXT,
    "Optimizer": _OPTIMIZER,
    "Decisions of a method": _METHOD,
    "Experts that are not the policy": _EXPERT,
}
"""Metrics of ``metrics.jsonl`` by heading."""
EVALUATION = _EVALUATION
"""Metrics of ``eval.jsonl``."""
_PLACES = {"NAME": r"[^/]+", "TASK": r"[^/]+(?:/[^/]+)?", "K": r"\d+"}


def find(name: str) -> Metric | None:
    """The entry of a logged metric's name; ``None`` if there is none."""
    return next((m for m in (*(m for ms in TRAINING.values() for m in ms), *EVALUATION) if _fits(m.name, name)), None)


def _fits(pattern: str, name: str) -> bool:
    parts = re.split(r"(NAME|TASK|K)", pattern)
    return re.fullmatch("".join(_PLACES.get(part, re.escape(part)) for part in parts), name) is not None


def page() -> str:
    """``docs/metrics.md``."""
    lines = [
        "# Metrics",
        "",
        "Every number that a run logs. Training metrics are in `metrics.jsonl`, evaluations in `eval.jsonl`. In TensorBoard, trackio and Weights &",
        "Biases (`report_to`) the same names stand under `train/` and `eval/`: `reward` is `train/reward`, `avg@8` is `eval/avg@8`. Means over",
        "tokens are over all of a step's tokens, of all processes. `K`, `NAME` and `TASK` stand for a number, a name and a task.",
        "",
        "This page is written by `python -m errata.reports.glossary`; a test compares it.",
    ]  # fmt: skip
    for title, metrics in {**TRAINING, "Evaluation": EVALUATION}.items():
        lines += ["", f"## {title}", "", "| metric | unit | meaning | watch for |", "|---|---|---|---|"]
        lines += [f"| `{m.name}` | {m.unit} | {m.meaning} | {m.watch or '–'} |" for m in metrics]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
