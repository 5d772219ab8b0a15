"""A few rollouts of each logged step, with everything that was decided about their tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from errata.contexts import Rendered
from errata.ops.scores import TokenScores
from errata.records import Rollout, TeacherContext


class RolloutLog:
    """Writes ``keep`` rollouts of each step's first micro-batch to ``rollouts.jsonl``, of as many problems as can be."""

    def __init__(self, write: Callable[[str, dict[str, Any]], None], processing_class: Any, keep: int) -> None:
        self._write, self._keep, self._last = write, keep, -1
        self._tokenizer = getattr(processing_class, "tokenizer", processing_class)

    @torch.no_grad()
    def write(
        self,
        step: int,
        inputs: dict[str, Any],
        scores: TokenScores,
        mask: Tensor,
        rollouts: Sequence[Rollout],
        contexts: Sequence[TeacherContext],
        rendered: Sequence[Rendered],
        top_tokens: Callable[[int], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        if step == self._last:
            return
        self._last = step
        groups: dict[str, list[Rollout]] = {}
        for rollout in rollouts:
            groups.setdefault(rollout.problem_id, []).append(rollout)
        for row in self._varied([rollouts[i].problem_id for i in inputs["rollout"].tolist()]):
            rollout = rollouts[int(inputs["rollout"][row])]
            context = contexts[int(inputs["rollout"][row])]
            prompt = rendered[int(inputs["rollout"][row])]
            length = int(inputs["completion_mask"][row].sum())
            ids = inputs["completion_ids"][row, :length].tolist()
            named: dict[str, Tensor | None] = {
                **scores._asdict(),
                "advantage": inputs["advantage"],
                "rl_weight": inputs["rl_weight"],
                "sd_weight": inputs["sd_weight"],
                **{k.removeprefix("extra/"): v for k, v in inputs.items() if k.startswith("extra/")},
                **({"asked": inputs["asked"]} if "asked" in inputs else {}),
            }
            taught = bool(inputs["has_teacher"][row])
            signals = {
                name: [round(x, 4) for x in values[row, :length].float().tolist()]
                for name, values in named.items()
                if values is not None and (taught or not name.startswith(("teacher", "divergence")))
            }
            record: dict[str, Any] = {
                "step": step,
                "problem_id": rollout.problem_id,
                "prompt": rollout.prompt,
                "completion": rollout.completion,
                **({"turns": list(rollout.turns)} if rollout.turns else {}),
                "tokens": [self._tokenizer.decode([i]) for i in ids],
                "generated": mask[row, :length].int().tolist(),
                "reward": rollout.reward,
                "kind": rollout.verdict.kind,
                "feedback": rollout.verdict.feedback,
                "leaks_answer": rollout.verdict.leaks_answer,
                "info": dict(rollout.verdict.info),
                "pass_rate": round(float(inputs["pass_rate"][row]), 4),
                "group_rate": round(_solved(groups[rollout.problem_id]), 4),
                "context": {
                    "kind": context.kind,
                    "why": context.why,
                    "leaks_answer": context.leaks_answer,
                    "cut": list(prompt.cut),
                    "dropped": prompt.dropped,
                    "prompt": prompt.prompt if context.informs else None,
                },
                "signals": signals,
            }
            if top_tokens is not None and taught:
                tokens, probabilities = top_tokens(row)
                record["alternatives"] = [
                    [[self._tokenizer.decode([i]), round(p, 4)] for i, p in _likeliest(ids, ps)]
                    for ids, ps in zip(tokens[:length].tolist(), probabilities[:length].tolist(), strict=True)
                ]
            self._write("rollouts", record)

    def _varied(self, problems: Sequence[str]) -> list[int]:
        """Rows to keep: one of each problem first, in the batch's order."""
        seen: dict[str, int] = {}
        turn = []
        for row, problem in enumerate(problems):
            turn.append((seen.get(problem, 0), row))
            seen[problem] = seen.get(problem, 0) + 1
        return [row for _, row in sorted(turn)[: self._keep]]


def _likeliest(ids: Sequence[int], probabilities: Sequence[float], n: int = 4) -> list[tuple[int, float]]:
    """At most ``n`` tokens, each once with all its mass, likeliest first; none where nobody was asked."""
    mass: dict[int, float] = {}
    for i, p in zip(ids, probabilities, strict=True):
        if p > 0:
            mass[i] = mass.get(i, 0.0) + p
    return sorted(mass.items(), key=lambda pair: -pair[1])[:n]


def _solved(group: Sequence[Rollout]) -> float:
    """Share of this process's rollouts of a problem that were rewarded at all."""
    return sum((r.reward or 0) > 0 for r in group) / len(group)
