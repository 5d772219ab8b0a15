import pytest
import torch

from errata.ops.fused import workspace


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(params=["one tile", "many tiles", "first tile in dhead"])
def tiling(request, monkeypatch):
    """The small problems of these tests fit one tile. Smaller tiles cut tokens and vocabulary, and three threads share the
    blocks; in the smallest ones dhead has more room, and stores the first tile's logits."""
    if request.param != "one tile":
        monkeypatch.setattr(workspace, "threads_for", lambda device: 3)
        monkeypatch.setitem(workspace.TILE_BYTES, "cpu", 24_000 if request.param == "many tiles" else 6_000)
        monkeypatch.setitem(workspace.BLOCK_ELEMENTS, "cpu", 700)
    return request.param
