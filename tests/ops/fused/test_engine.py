"""The engine's promises beyond its numbers: memory, and no waiting for a device. The numbers: ``tests/ops/test_scores.py``."""

import pytest
import torch
from tests.ops.problems import Problem
from torch.utils._python_dispatch import TorchDispatchMode

from errata.ops.divergence import KINDS
from errata.ops.fused import engine, threads, workspace
from errata.ops.fused.rows import Gradients, Group, ModelRows
from errata.ops.scores import DivergenceSettings, Objective, Streams, fused_loss, token_scores


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("kind", "support", "entry_clip"),
    [
        *((kind, "full", None) for kind in KINDS),
        *((kind, "full", 0.1) for kind in KINDS[1:]),
        ("js", "student_topk", None),
    ],
)
def test_a_tile_waits_for_no_value_of_its_device(dtype, kind, support, entry_clip, monkeypatch):
    """On tensors without values, where any read of one raises: a GPU is never waited for within the engine. Half-precision
    operands take the products with float32 sums that a GPU offers, as far as shapes and types go."""
    half = (torch.bfloat16, torch.float16)
    monkeypatch.setattr(engine, "product_dtype", lambda dtype, device, acc: dtype if dtype in half else acc)
    hidden, weight, bias = (
        torch.empty(*shape, dtype=dtype, device="meta") for shape in ((300, 256), (1000, 256), (1000,))
    )
    model = ModelRows(hidden, weight, bias, 1.0, 5.0, 0.7, dtype)
    sums = Gradients(*(torch.empty_like(x, dtype=torch.float32) for x in (hidden, weight, bias)))
    tokens = torch.empty(300, dtype=torch.long, device="meta")

    def token_gradients(rows, scores, has_teacher):
        ones = torch.ones_like(scores.student_logp[rows])
        return ones, ones if has_teacher else None

    with torch.no_grad():
        groups = (Group(200, model), Group(100, None))
        options = DivergenceSettings(kind, 0.5, support, 9, True, entry_clip)
        scores = engine.sweep(model, groups, tokens, options, token_gradients, sums)
    assert all(x.shape == (300,) and x.dtype == torch.float32 for x in scores)


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements any operation gave back."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("kind", KINDS)
def test_all_logits_never_exist_at_once(kind, monkeypatch):
    """Forward and backward of both forms, with room for 16 columns of the 160."""
    v, t = 4000, 160
    monkeypatch.setattr(threads, "MAX_THREADS", 1)  # what other threads make is not seen here
    monkeypatch.setitem(workspace.TILE_BYTES, "cpu", 16 * v * 4)
    monkeypatch.setitem(workspace.BLOCK_ELEMENTS, "cpu", 16 * 256)
    p = Problem(b=1, t=t, v=v, softcap=None)
    p.mask[:] = True
    with LargestTensor() as seen:
        streams, objective = Streams(None, None, p.sd_weight + 1), Objective(DivergenceSettings(kind))
        fused_loss(*p.models[:2], p.tokens.clamp(min=0), streams, objective=objective)[0].backward()
        scores = token_scores(*p.arguments[:4], p.tokens.clamp(min=0), divergence=kind)
        (scores.divergence + scores.student_logp).sum().backward()
    assert seen.elements <= 16 * v
    assert seen.elements < t * v / 9


@pytest.mark.parametrize(
    ("has_teacher", "tokens", "columns"), [(False, 60, 0), (True, 60, 60), (False, 90, 26), (True, 90, 48)]
)
def test_the_first_tile_is_stored_in_dhead(has_teacher, tokens, columns, monkeypatch):
    """V = 100, H = 64, room for 60 columns of logits beside dhead: how many are taken, and what becomes of dhead."""
    monkeypatch.setitem(workspace.TILE_BYTES, "cpu", 60 * 100 * 4)
    torch.manual_seed(0)
    hidden, weight = torch.randn(tokens, 64), torch.randn(100, 64)
    model = ModelRows(hidden, weight, None, 1.0, None, 1.0, torch.float32)
    dhead = torch.full_like(weight, torch.nan)
    made = []
    monkeypatch.setattr(engine.Tile, "score", lambda self, *a, s=engine.Tile.score: made.append(self) or s(self, *a))
    ids = torch.randint(0, 100, (tokens,))

    def token_gradients(rows, scores, has_teacher):
        ones = torch.ones_like(scores.student_logp[rows])
        return ones, torch.zeros_like(ones) if has_teacher else None

    engine.sweep(
        model,
        (Group(tokens, model if has_teacher else None),),
        ids,
        DivergenceSettings(),
        token_gradients,
        Gradients(None, dhead, None),
    )
    assert made[0].space._kept.numel() == columns * 100
    indicator = torch.nn.functional.one_hot(ids, 100).float()
    expected = (indicator - (hidden @ weight.t()).softmax(-1)).t() @ hidden
    torch.testing.assert_close(dhead, expected, rtol=1e-4, atol=1e-4)
