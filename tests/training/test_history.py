"""Demonstrations and the feedback history in a run: what the teachers were shown, and that a resumed run is the same run."""

import shutil

import pytest
import torch
from tests.training.worlds import history, trainer, weights

from errata.training.checkpoint import complete_checkpoints

TEMPLATE = (
    "{{ prompt }} {% for s in solutions %}<s>{{ s }}</s>{% endfor %}"
    "{% for e in earlier %}<e>{{ e.attempt }}|{{ e.feedback }}</e>{% endfor %}{{ feedback }}"
)
ARGS = {"history": 2, "demonstrations": 2, "with_feedback": True}


def run(folder, method="sdpo", **changes):
    return trainer(folder, method, method_args=ARGS, context_template=TEMPLATE, **changes)


def remembering(run, seen):
    """Keeps every step's rollouts and contexts."""
    choose = run._choose_contexts

    def kept(groups, step):
        contexts = choose(groups, step)
        seen.append(([r for g in groups for r in g], contexts))
        return contexts

    run._choose_contexts = kept
    return run


@pytest.mark.parametrize("method", ["sdpo", "drift"])
def test_teachers_see_attempts_of_earlier_steps_and_never_of_their_own(tmp_path, method):
    seen = []
    remembering(run(tmp_path, method, max_steps=8), seen).train()
    told = {}
    shown = several = 0
    for rollouts, contexts in seen:
        for rollout, context in zip(rollouts, contexts, strict=True):
            past = told.get(rollout.problem_id, [])
            for earlier in context.earlier:
                assert (earlier.attempt, earlier.feedback) in past
                assert earlier.attempt != rollout.completion
            assert len(context.earlier) <= 2
            shown += len(context.earlier)
            several += len(context.solutions) == 2
            assert len(set(context.solutions)) == len(context.solutions)
        for rollout in rollouts:
            if rollout.reward == 0:
                told.setdefault(rollout.problem_id, []).append((rollout.completion, rollout.verdict.feedback))
    assert shown > 0
    assert several > 0


def test_the_prompt_in_the_run_directory_shows_them(tmp_path):
    kept = []
    run(tmp_path, max_steps=8, keep=kept, rollouts_saved=8).train()
    prompts = [row["context"]["prompt"] for stem, row in kept if stem == "rollouts" and row["context"]["prompt"]]
    assert any(prompt[-1]["content"].count("<e>") == 2 for prompt in prompts)
    assert any(prompt[-1]["content"].count("<s>") == 2 for prompt in prompts)


def test_a_resumed_run_remembers_the_same(tmp_path):
    whole = run(tmp_path / "whole", max_steps=6)
    whole.train()
    first = run(tmp_path / "cut", max_steps=6, save_strategy="steps", save_steps=3)
    first.train()
    shutil.rmtree(tmp_path / "cut" / "checkpoint-6")
    (checkpoint,) = complete_checkpoints(tmp_path / "cut")
    second = run(tmp_path / "cut", max_steps=6)
    second.train(resume_from_checkpoint=str(checkpoint))
    assert second.memory.state_dict() == whole.memory.state_dict()
    assert second.memory.state_dict()["history"]["problems"]
    assert history(second, "loss", "reward")[-3:] == history(whole, "loss", "reward")[-3:]
    for a, b in zip(weights(second.model).values(), weights(whole.model).values(), strict=True):
        assert torch.equal(a, b)


def test_a_template_that_cannot_show_the_history_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="has no place for the earlier attempts that `history` shows"):
        trainer(tmp_path, "sdpo", method_args=ARGS)
