import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from errata.training.forward import accept_head_function
from errata.training.teacher_forward import (
    MAX_PADDING,
    hidden_at_completions,
    length_batches,
    padded_states,
    teacher_sequences,
)


def test_the_completion_is_untouched():
    assert teacher_sequences([[1, 2]], [[3, 4, 5]]) == [(2, [1, 2, 3, 4, 5])]
    with pytest.raises(ValueError, match="rollout 1: its teacher prompt has no tokens"):
        teacher_sequences([[1], []], [[3], [3]])


@given(st.lists(st.integers(1, 500), max_size=60), st.integers(1, 9))
@example([148, 296, 296, 296, 296], 5)  # a tenth is padding, exactly
def test_length_batches_hold_everything_once_with_little_padding(lengths, rows):
    batches = list(length_batches(lengths, rows))
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    for b in batches:
        assert len(b) <= rows
        longest = max(lengths[i] for i in b)
        padding = longest * len(b) - sum(lengths[i] for i in b)
        assert padding <= MAX_PADDING * longest * len(b) * (1 + 1e-12)  # .1 is not exact in binary


def test_hidden_states_are_those_of_each_sequence_alone(tiny_model):
    accept_head_function(tiny_model)
    tiny_model.eval()

    def run(inputs):
        with torch.no_grad():
            return tiny_model(**inputs, with_head=lambda hidden, head: hidden)

    sequences = teacher_sequences([[7, 8, 9], [10], [11, 12]], [[20, 21], [22, 23, 24, 25], [26]])
    states, _ = hidden_at_completions(run, sequences, max_rows=8, device=torch.device("cpu"))
    for (start, ids), state in zip(sequences, states, strict=True):
        alone = run({"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)})
        torch.testing.assert_close(state, alone[0, start - 1 : -1], atol=1e-5, rtol=1e-4)


def test_padded_states():
    out = padded_states([torch.ones(2, 3), None], 4, torch.zeros(2, 4, 3))
    assert out.sum(-1).tolist() == [[3, 3, 0, 0], [0, 0, 0, 0]]
