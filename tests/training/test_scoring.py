"""Scores of a generation batch: few fields at few tokens are those of all, and no more is computed than a method reads."""

import pytest
import torch
from tests.training.worlds import trainer

from errata.ops.fused import engine
from errata.ops.scores import TokenScores

HALVES = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}


@pytest.mark.parametrize("method", ["srpo", "drift", "distil"])
def test_scores_at_few_tokens_of_few_fields_are_those_of_all(tmp_path, method):
    t = trainer(tmp_path, method, max_steps=1, method_args={"warmup_steps": 0} if method == "drift" else {})
    t.train()
    batch, reader = t.generation, t.teacher_pass.reader

    def scored(fields, at=None):
        return t._scorer(
            t.model, batch.tokens, fields, batch.teacher, reader, at=at, no_checkpointing=t.no_checkpointing()
        )

    everything = scored(TokenScores._fields)
    third = torch.arange(batch.tokens.mask.shape[1]) % 3 > 0
    at = batch.tokens.mask & batch.teacher.has_teacher[:, None] & third
    some = scored(t.method.score_fields, at)
    assert at.any()
    for name in t.method.score_fields:
        torch.testing.assert_close(getattr(some, name)[at], getattr(everything, name)[at], rtol=1e-5, atol=1e-6)


@pytest.fixture
def scored(monkeypatch):
    """Tokens whose logits were computed, all calls together."""
    count = [0]
    score = engine.Tile.score

    def counted(self, rows, group_rows, tokens, scores):
        count[0] += tokens.shape[0]
        return score(self, rows, group_rows, tokens, scores)

    monkeypatch.setattr(engine.Tile, "score", counted)
    return count


@pytest.mark.parametrize(
    ("method", "changes", "again"),
    [
        ("grpo", {}, "none"),
        ("sdpo", {}, "none"),
        ("distil", {}, "none"),
        ("distil-science", {"method_args": {"top_k": 5}}, "none"),
        ("distil", HALVES, "with a teacher"),
        ("srpo", {}, "wrong"),
        ("drift", {"method_args": {"warmup_steps": 0}}, "none"),
        ("drift", {"method_args": {"warmup_steps": 0}, **HALVES}, "right"),
        ("drift", {"method_args": {"warmup_steps": 0, "rhythm": False}}, "none"),
        ("drift", {"method_args": {"warmup_steps": 5}}, "all"),  # for the entropy that warm-up teachers are chosen by
    ],
)
def test_which_tokens_are_scored_before_they_are_learned_from(tmp_path, scored, method, changes, again):
    t = trainer(tmp_path, method, max_steps=1, **changes)
    t.train()
    rollouts, contexts = t.generation.rollouts, t.generation.contexts
    with_teacher = [c.is_informative and c.use_teacher for c in contexts]
    solved = [r.reward == 1 for r in rollouts]
    chosen = {
        "none": [False] * len(rollouts),
        "all": [True] * len(rollouts),
        "with a teacher": with_teacher,
        "wrong": [m and not s for m, s in zip(with_teacher, solved, strict=True)],
        "right": [m and s for m, s in zip(with_teacher, solved, strict=True)],
    }[again]
    assert any(chosen) == (again != "none")
    twice = sum(r.length for r, c in zip(rollouts, chosen, strict=True) if c)
    assert scored[0] == sum(r.length for r in rollouts) + twice


def test_the_students_forward_is_not_made_for_scores_of_the_teacher(tmp_path):
    """SRPO weighs by the teacher's entropies alone; in micro-batches each rollout passes the student once, to learn."""
    t = trainer(tmp_path, "srpo", max_steps=1, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    passes, forward = [], t.model.base_model.forward

    def counted(*args, **kwargs):
        if kwargs.get("use_cache") is False:  # not of the generation
            passes.append(len(kwargs["input_ids"]))
        return forward(*args, **kwargs)

    t.model.base_model.forward = counted
    t.train()
    assert passes == [4, 4]
