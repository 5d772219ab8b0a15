"""DistIL learns where it scores: no token's logits are computed twice in a batch of one piece."""

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
    ("method", "changes", "times"),
    [
        ("grpo", {}, 1),
        ("sdpo", {}, 1),
        ("distil", {}, 1),
        ("distil-science", {"method_args": {"top_k": 5}}, 1),
        ("drift", {"method_args": {"warmup_steps": 0}}, 2),  # its rhythm looks back too
        ("distil", {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, 2),
    ],
)
def test_how_often_a_token_is_scored(tmp_path, scored, method, changes, times):
    t = trainer(tmp_path, method, max_steps=1, **changes)
    t.train()
    tokens = sum(r.length for r in t.batch_records[0])
    assert scored[0] == times * tokens
