"""The real trainer's gradients are the oracle's, step by step, for every configuration."""

import pytest
import torch
from tests.oracle import oracle, world
from tests.oracle.configurations import CONFIGURATIONS

CASES = [pytest.param(c, id=c.name, marks=[] if c.default else pytest.mark.slow) for c in CONFIGURATIONS]


@pytest.mark.parametrize("configuration", CASES)
def test_gradients(tmp_path, configuration):
    record = world.run(configuration, tmp_path)
    assert len(record.steps) == configuration.steps
    sizes = []
    for number, (step, expected) in enumerate(zip(record.steps, oracle.gradients(configuration, record), strict=True)):
        assert step.gradients.keys() == expected.keys()
        sizes.append(float(torch.stack([g.norm() for g in expected.values()]).norm()))
        for name, gradient in step.gradients.items():
            off = float((gradient - expected[name]).norm())
            assert off < 1e-5 * sizes[-1] + 1e-9, f"step {number}, {name}: off by {off:.2g}, all is {sizes[-1]:.3g}"
    assert sum(size > 1e-3 for size in sizes) >= 2
