"""DRIFT with each of its parts switched off alone still trains, and what it logs shows the part at work."""

import pytest
import torch
from tests.training.worlds import trainer, weights

PARTS = {
    "whole": {"warmup_steps": 2},
    "no warm-up": {"warmup_steps": 0},
    "no routing": {"warmup_steps": 2, "routing": "none"},
    "no rhythm": {"warmup_steps": 2, "rhythm": False},
    "no buffer": {"warmup_steps": 2, "buffer": "none"},
    "paper": {"warmup_steps": 2, "routing": "paper", "buffer": "paper", "buffer_fallback": "group"},
    "plateau": {"warmup_steps": None},
    "right attempts distilled too": {"warmup_steps": 0, "binary_routing": False},
}


@pytest.mark.parametrize("part", PARTS)
def test_trains_and_shows_its_parts(tmp_path, part):
    run = trainer(tmp_path, "drift", method_args=PARTS[part], max_steps=5, teacher="frozen")
    before = torch.cat([p.flatten().clone() for p in run.model.parameters()])
    run.train()
    after = torch.cat([p.flatten() for p in weights(run.model).values()])
    assert torch.isfinite(after).all()
    assert not torch.equal(before, after)

    logs = [log for log in run.state.log_history if "curriculum/stage" in log]
    stages = [log["curriculum/stage"] for log in logs]
    warm = {"no warm-up": 0, "right attempts distilled too": 0, "plateau": 5}.get(part, 2)
    assert stages == [1.0] * warm + [2.0] * (5 - warm)
    for log in logs[warm:]:
        assert log["routing/hard"] + log["routing/medium"] + log["routing/easy"] == pytest.approx(1, abs=1e-5)
        assert log["routing/distilled"] > 0
        assert (log["rhythm/bonus"] == 0) == (part == "no rhythm") or log["rhythm/open"] == 0
        if part == "no routing":
            assert log["routing/medium"] == 1
    assert ("buffer/problems" in logs[-1]) == (part != "no buffer")
    if part != "no buffer":
        assert logs[-1]["buffer/problems"] > 0
