import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import build_model
from tests.training.worlds import TOKENIZER, trainer, weights

from errata.training import padding
from errata.training.forward import accept_head_function
from errata.training.padding import packs, without_padding

MODEL = build_model(len(TOKENIZER)).double().eval()
MODES = [{"packed": True, "grouped": False}, {"packed": False, "grouped": True}]


def batch(lengths):
    """(B,L) ids and mask of rows of (left padding, tokens), padded on the right to the longest."""
    width = max(left + n for left, n in lengths)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(6, 90, (len(lengths), width), generator=generator)
    mask = torch.zeros_like(ids)
    for row, (left, n) in enumerate(lengths):
        mask[row, left : left + n] = 1
    return ids, mask


def run(**inputs):
    return MODEL.base_model(use_cache=False, **inputs).last_hidden_state


@pytest.mark.parametrize("mode", MODES, ids=["packed", "grouped"])
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 40)), min_size=1, max_size=5))
@settings(max_examples=15, deadline=None)
def test_states_are_those_of_each_sequence_alone(mode, lengths):
    ids, mask = batch(lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(padding, "MIN_SAVED", 0)
        hidden = without_padding(run, ids, mask, **mode)
    for row, (left, n) in enumerate(lengths):
        alone = run(input_ids=ids[row : row + 1, left : left + n], attention_mask=torch.ones(1, n, dtype=torch.long))
        torch.testing.assert_close(hidden[row, left : left + n], alone[0], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("mode", MODES, ids=["packed", "grouped"])
def test_gradients_are_those_of_the_sequences_alone(monkeypatch, mode):
    monkeypatch.setattr(padding, "MIN_SAVED", 0)
    spans = [(3, 5), (0, 30), (7, 1), (2, 28)]
    ids, mask = batch(spans)
    direction = torch.randn(*ids.shape, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    MODEL.zero_grad()
    (without_padding(run, ids, mask, **mode) * direction).sum().backward()
    found = {n: p.grad.clone() for n, p in MODEL.named_parameters() if p.grad is not None}
    MODEL.zero_grad()
    for row, (left, n) in enumerate(spans):
        here = slice(left, left + n)
        hidden = run(input_ids=ids[row : row + 1, here], attention_mask=torch.ones(1, n, dtype=torch.long))
        (hidden[0] * direction[row, here]).sum().backward()
    for name, parameter in MODEL.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, atol=1e-9, rtol=1e-9)


def test_only_what_is_there_is_computed(monkeypatch):
    calls = []

    def noted(**inputs):
        calls.append(tuple(inputs["input_ids"].shape))
        return run(**inputs)

    ids, mask = batch([(3, 5), (0, 30), (7, 1), (2, 28)])
    without_padding(noted, ids, mask, packed=True, grouped=True)  # 56 of 120 are padding: not worth it
    monkeypatch.setattr(padding, "MIN_SAVED", 56)
    without_padding(noted, ids, mask, packed=True, grouped=False)
    without_padding(noted, ids, mask, packed=False, grouped=True)
    without_padding(noted, ids, mask, packed=False, grouped=False)
    assert calls == [(4, 30), (1, 64), (2, 30), (1, 5), (1, 1), (4, 30)]


def test_a_model_that_reads_across_sequences_is_not_packed():
    model = build_model(len(TOKENIZER))
    assert not packs(model)
    model.config._attn_implementation = "kernels-community/flash-attn2"
    assert packs(model)
    model.config.layer_types = ["linear_attention", "full_attention"]
    assert not packs(model)
    model.config.layer_types = None
    model.config.mamba_d_state = 16
    assert not packs(model)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("method", "args"),
    # The shrinkage is a difference of sums that are nearly equal here: it enlarges rounding.
    [("distil", {"shrink": False}), ("grpo", {})],
)
def test_a_run_learns_the_same(monkeypatch, tmp_path, packed, method, args):
    def trained(free):
        t = trainer(tmp_path / str(free), method, method_args=args, padding_free=free, max_steps=2)
        t.train()
        return [log["loss"] for log in t.state.log_history if "loss" in log], weights(t.model)

    monkeypatch.setattr(padding, "MIN_SAVED", 0)
    monkeypatch.setattr("errata.training.trainer.packs", lambda model: packed)
    calls = []
    whole = padding._spread
    monkeypatch.setattr(padding, "_spread", lambda *a: calls.append(1) or whole(*a))
    losses, after = trained(False)
    assert not calls
    free_losses, free_after = trained(True)
    assert len(calls) >= 2
    assert free_losses == pytest.approx(losses, rel=1e-5, abs=1e-6)
    for name, value in after.items():
        torch.testing.assert_close(free_after[name], value, atol=1e-5, rtol=1e-4)


def test_the_head_function_takes_it():
    model = build_model(len(TOKENIZER)).eval()
    accept_head_function(model, grouped=True)
    ids, mask = batch([(0, 700), (0, 3), (0, 650), (690, 10)])
    hidden = model(input_ids=ids, attention_mask=mask, with_head=lambda hidden, head: hidden)
    assert float(hidden[1, 3:].abs().max()) == 0.0  # padding, which the model itself would give states
