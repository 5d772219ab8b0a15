"""What is scored before it is learned from: only what a method reads, and nothing where one walk does both."""

import pytest
from tests.training.worlds import trainer

from errata.ops import tiles


@pytest.fixture
def scored(monkeypatch):
    """Tokens whose logits were computed, all calls together."""
    count = [0]
    score = tiles.Tile.score

    def counted(self, rows, own, tokens, scores):
        count[0] += tokens.shape[0]
        return score(self, rows, own, tokens, scores)

    monkeypatch.setattr(tiles.Tile, "score", counted)
    return count


@pytest.mark.parametrize(
    ("method", "changes", "again"),
    [
        ("grpo", {}, "none"),
        ("sdpo", {}, "none"),
        ("distil", {}, "marked"),
        ("distil-science", {"method_args": {"top_k": 5}}, "marked"),
        ("distil", {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, "marked"),
        ("srpo", {}, "wrong"),
        ("drift", {"method_args": {"warmup_steps": 0}}, "right"),  # its rhythm looks back too
        ("drift", {"method_args": {"warmup_steps": 0, "rhythm": False}}, "none"),
        ("drift", {"method_args": {"warmup_steps": 5}}, "all"),  # for the entropy that warm-up teachers are chosen by
    ],
)
def test_which_tokens_are_scored_before_they_are_learned_from(tmp_path, scored, method, changes, again):
    t = trainer(tmp_path, method, max_steps=1, **changes)
    t.train()
    rollouts, contexts, _ = t.batch_records
    marked = [c.informs and c.needed for c in contexts]
    solved = [r.reward == 1 for r in rollouts]
    chosen = {
        "none": [False] * len(rollouts),
        "all": [True] * len(rollouts),
        "marked": marked,
        "wrong": [m and not s for m, s in zip(marked, solved, strict=True)],
        "right": [m and s for m, s in zip(marked, solved, strict=True)],
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
