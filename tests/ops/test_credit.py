"""Cost-to-go and baselines: by hand, against loops, and by enumerating every response of a small problem."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from errata.ops.credit import center, excess_cost, future_cost, limit_scale, persistent_share

NAN = math.nan


def test_future_cost_by_hand():
    cost = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, NAN, NAN]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    expected = torch.tensor([[9.0, 7.0, 4.0, 0.0], [6.0, 0.0, 0.0, 0.0]])
    assert torch.equal(future_cost(cost, mask), expected)
    # Divided by the tokens that follow: 3, 2, 1 and, at the end, at least 1.
    expected = torch.tensor([[3.0, 3.5, 4.0, 0.0], [6.0, 0.0, 0.0, 0.0]])
    assert torch.equal(future_cost(cost, mask, kind="mean"), expected)
    # γ = ½: 2 + 3/2 + 4/4, 3 + 4/2, 4.
    expected = torch.tensor([[4.5, 5.0, 4.0, 0.0], [6.0, 0.0, 0.0, 0.0]])
    assert torch.equal(future_cost(cost, mask, discount=0.5), expected)


def test_a_tools_output_in_the_middle_is_skipped():
    """Left padding, and two tool tokens between the second and the third of the student's own."""
    cost = torch.tensor([[NAN, 1.0, 2.0, NAN, math.inf, 4.0, 8.0]])
    mask = torch.tensor([[False, True, True, False, False, True, True]])
    assert future_cost(cost, mask).tolist() == [[0.0, 14.0, 12.0, 0.0, 0.0, 8.0, 0.0]]
    assert future_cost(cost, mask, kind="mean").tolist() == [[0.0, pytest.approx(14 / 3), 6.0, 0.0, 0.0, 8.0, 0.0]]
    assert future_cost(cost, mask, discount=0.5).tolist() == [[0.0, 2 + 2 + 2, 4 + 4, 0.0, 0.0, 8.0, 0.0]]


def loop(cost, mask, kind, discount):
    """Definition by definition, in float64."""
    out = torch.zeros(cost.shape, dtype=torch.float64)
    for b in range(cost.shape[0]):
        valid = [t for t in range(cost.shape[1]) if mask[b, t]]
        for place, t in enumerate(valid):
            after = valid[place + 1 :]
            total = sum(discount**d * float(cost[b, i]) for d, i in enumerate(after))
            out[b, t] = total / max(len(after), 1) if kind == "mean" else total
    return out


ragged = st.tuples(st.integers(1, 5), st.integers(1, 17), st.integers(0, 10_000))


@given(ragged, st.sampled_from(["sum", "mean"]), st.sampled_from([1.0, 0.9, 0.5]))
@settings(max_examples=60, deadline=None)
def test_future_cost_matches_the_loop(shape, kind, discount):
    b, t, seed = shape
    torch.manual_seed(seed)
    cost, mask = torch.rand(b, t) * 5, torch.rand(b, t) > 0.3
    value = future_cost(cost.masked_fill(~mask, NAN), mask.float(), kind=kind, discount=discount)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), loop(cost, mask, kind, discount), atol=1e-4, rtol=1e-5)
    assert (value[~mask] == 0).all()


def center_loop(c, mask, group, baseline):
    out = torch.zeros_like(c)
    place = mask.long().cumsum(1) - 1
    for i, t in itertools.product(*map(range, c.shape)):
        if not mask[i, t]:
            continue
        same = [
            float(c[j, s])
            for j, s in itertools.product(*map(range, c.shape))
            if mask[j, s]
            and place[j, s] == place[i, t]
            and (baseline == "position" or (group[j] == group[i] and j != i))
        ]
        alone = len(same) == (1 if baseline == "position" else 0)
        out[i, t] = c[i, t] - (0.0 if alone or baseline == "none" else sum(same) / len(same))
    return out


@given(ragged, st.sampled_from(["none", "position", "leave_one_out"]))
@settings(max_examples=40, deadline=None)
def test_center_matches_the_loop(shape, baseline):
    b, t, seed = shape
    torch.manual_seed(seed)
    c, mask, group = torch.rand(b, t), torch.rand(b, t) > 0.3, torch.randint(0, 2, (b,)) * 7
    value = center(c.masked_fill(~mask, math.inf), mask, group, baseline=baseline)
    torch.testing.assert_close(value, center_loop(c, mask, group, baseline), atol=1e-5, rtol=1e-5)


def test_center_by_hand():
    c = torch.tensor([[4.0, 2.0, 1.0], [8.0, 6.0, 0.0], [3.0, 0.0, 0.0]])
    mask, group = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]]), torch.tensor([5, 5, 5])
    value = center(c, mask, group)
    # First position: 4 - (8+3)/2, 8 - (4+3)/2, 3 - (4+8)/2. Second: 2 - 6, 6 - 2. Third: nobody to compare with.
    torch.testing.assert_close(value, torch.tensor([[-1.5, -4.0, 1.0], [4.5, 4.0, 0.0], [-3.0, 0.0, 0.0]]))
    value = center(c, mask, torch.tensor([5, 6, 7]), baseline="position")
    torch.testing.assert_close(value, torch.tensor([[-1.0, -2.0, 1.0], [3.0, 2.0, 0.0], [-2.0, 0.0, 0.0]]))
    assert torch.equal(center(c, mask, torch.tensor([5, 6, 7])), c)  # lone responses
    assert torch.equal(center(c, mask, group, baseline="none"), c)


@pytest.mark.parametrize("baseline", ["position", "leave_one_out"])
def test_equal_costs_centre_to_zero(baseline):
    cost, mask = torch.rand(1, 9).expand(4, 9), torch.ones(4, 9)
    centred = center(future_cost(cost, mask), mask, torch.zeros(4, dtype=torch.long), baseline=baseline)
    torch.testing.assert_close(centred, torch.zeros(4, 9), atol=1e-6, rtol=0)


@given(ragged)
@settings(max_examples=30, deadline=None)
def test_padding_and_order_do_not_matter(shape):
    b, t, seed = shape
    torch.manual_seed(seed)
    cost, mask, group = torch.rand(b, t), torch.rand(b, t) > 0.3, torch.randint(0, 2, (b,))

    def credit(cost, mask, group):
        return center(future_cost(cost, mask, discount=0.9), mask, group)

    plain = credit(cost, mask, group)
    left, right = 3, 2
    wide = credit(*(torch.nn.functional.pad(x, (left, right)) for x in (cost, mask)), group)
    torch.testing.assert_close(wide[:, left : left + t], plain, atol=1e-5, rtol=1e-5)
    order = torch.randperm(b)
    torch.testing.assert_close(credit(cost[order], mask[order], group[order]), plain[order], atol=1e-5, rtol=1e-5)


def responses(seed, vocabulary=3, length=3):
    """Every response of a random tabular policy whose last token ends it: probability, cost, mask and score vectors."""
    torch.manual_seed(seed)
    logits, cost = {}, {}
    for depth in range(length):
        for prefix in itertools.product(range(vocabulary - 1), repeat=depth):
            logits[prefix], cost[prefix] = torch.randn(vocabulary, dtype=torch.float64), torch.rand(()).item()
    states = list(logits)
    found = []

    def visit(prefix, probability, steps):
        p = logits[prefix].softmax(0)
        for a in range(vocabulary):
            here = [*steps, (states.index(prefix), a, cost[prefix])]
            if a == vocabulary - 1 or len(prefix) == length - 1:
                found.append((probability * p[a].item(), here))
            else:
                visit((*prefix, a), probability * p[a].item(), here)

    visit((), 1.0, [])
    n = len(found)
    probability = torch.tensor([x[0] for x in found], dtype=torch.float64)
    c, mask = torch.zeros(n, length, dtype=torch.float64), torch.zeros(n, length, dtype=torch.bool)
    score = torch.zeros(n, length, len(states), vocabulary, dtype=torch.float64)
    for i, (_, steps) in enumerate(found):
        for t, (s, a, cost_here) in enumerate(steps):
            c[i, t], mask[i, t] = cost_here, True
            score[i, t, s] = -logits[states[s]].softmax(0)
            score[i, t, s, a] += 1
    return probability, c, mask, score.flatten(2)


@pytest.mark.parametrize("seed", range(3))
def test_leave_one_out_leaves_the_expected_gradient_alone(seed):
    """Exact over all pairs of responses: E[Σ ∇logp·(C - b)] = E[Σ ∇logp·C]."""
    probability, cost, mask, score = responses(seed)
    n = len(probability)
    assert probability.sum().item() == pytest.approx(1.0)
    true = torch.einsum("i,it,itd->d", probability, future_cost(cost, mask), score)
    first, second = (x.flatten() for x in torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij"))
    rows = torch.stack([first, second], 1).flatten()  # pair by pair
    group = torch.arange(n * n).repeat_interleave(2)
    centred = center(future_cost(cost[rows], mask[rows]), mask[rows], group)
    weight = (probability[first] * probability[second]).repeat_interleave(2) / 2
    gradient = torch.einsum("i,it,itd->d", weight, centred, score[rows])
    torch.testing.assert_close(gradient, true, atol=1e-12, rtol=1e-10)


def test_survivors_are_the_better_comparison_at_group_size_eight():
    """Variance of the group's gradient on a Markov chain of 40 tokens that ends at rate 1/40, 400 groups of 8.

    Leave-one-out over the responses still running does better than counting the ended ones as 0, and both than none.
    """
    torch.manual_seed(0)
    groups, size, length, states = 400, 8, 80, 4
    logits, cost_of = torch.randn(states, states), torch.rand(states)
    state = torch.zeros(groups * size, dtype=torch.long)
    alive = torch.ones(groups * size, dtype=torch.bool)
    cost, mask, score = [], [], []
    for _ in range(length):
        p = logits[state].softmax(-1)
        action = torch.multinomial(p, 1).squeeze(1)
        cost.append(cost_of[state])
        mask.append(alive)
        by_state = torch.zeros(groups * size, states, states)
        by_state[torch.arange(groups * size), state] = torch.nn.functional.one_hot(action, states) - p
        score.append(by_state.flatten(1))
        alive, state = alive & (torch.rand(groups * size) > 1 / 40), action
    cost, mask, score = torch.stack(cost, 1), torch.stack(mask, 1), torch.stack(score, 1)
    group = torch.arange(groups).repeat_interleave(size)
    c = future_cost(cost, mask)
    siblings = c.view(groups, size, length).sum(1, keepdim=True).expand(-1, size, -1).reshape(c.shape) - c

    def variance(credit):
        gradient = torch.einsum("it,itd->id", credit * mask, score).view(groups, size, -1).mean(1)
        return gradient.var(0).sum().item()

    survivors, ended_as_zero = variance(center(c, mask, group)), variance(c - siblings / (size - 1))
    assert survivors < 0.95 * ended_as_zero
    assert ended_as_zero < 0.6 * variance(c)


def test_excess_cost_by_hand():
    cost = torch.tensor([[4.0, 2.0, 1.0], [8.0, 6.0, NAN], [3.0, NAN, NAN], [9.0, 9.0, 9.0]])
    mask, group = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]]), torch.tensor([5, 5, 5, 7])
    # First position: 4 - (8+3)/2, 8 - (4+3)/2, 3 - (4+8)/2. Second: 2 - 6, 6 - 2. Third, and the lone response: nothing.
    expected = torch.tensor([[-1.5, -4.0, 0.0], [4.5, 4.0, 0.0], [-3.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert torch.equal(excess_cost(cost, mask, group), expected)


def test_a_position_is_counted_among_the_students_own_tokens():
    """Left padding in one response, a tool's output in the other: 1, 2, 4 against 2, 6."""
    cost = torch.tensor([[NAN, 1.0, 2.0, 4.0, NAN], [2.0, NAN, NAN, 6.0, NAN]])
    mask = ~cost.isnan()
    expected = [[0.0, -1.0, -4.0, 0.0, 0.0], [1.0, 0.0, 0.0, 4.0, 0.0]]
    assert excess_cost(cost, mask, torch.tensor([3, 3])).tolist() == expected


@given(ragged, st.sampled_from(["sum", "mean"]), st.sampled_from([1.0, 0.9]))
@settings(max_examples=40, deadline=None)
def test_at_one_length_the_excess_is_the_centred_sum(shape, kind, discount):
    b, t, seed = shape
    torch.manual_seed(seed)
    cost, mask, group = torch.rand(2 * b, t), torch.ones(2 * b, t), torch.arange(b).repeat(2)
    mine = future_cost(excess_cost(cost, mask, group), mask, kind=kind, discount=discount)
    theirs = center(future_cost(cost, mask, kind=kind, discount=discount), mask, group)
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


@given(ragged, st.sampled_from([1.0, 0.9]))
@settings(max_examples=40, deadline=None)
def test_excess_credits_of_a_group_sum_to_zero_whatever_the_lengths(shape, discount):
    """So a policy that ends with one probability everywhere is neither pushed to end nor to go on."""
    b, t, seed = shape
    torch.manual_seed(seed)
    cost, mask = torch.rand(b, t), torch.arange(t) < torch.randint(1, t + 1, (b, 1))
    credit = future_cost(excess_cost(cost, mask, torch.zeros(b, dtype=torch.long)), mask, discount=discount)
    assert abs(float(credit.sum())) < 1e-3
    assert (credit[torch.arange(b), mask.sum(1) - 1] == 0).all()  # the token that ends


def test_constant_costs_have_no_excess():
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    assert torch.equal(excess_cost(mask * 0.5, mask, torch.tensor([1, 1, 1])), torch.zeros(3, 4))


@pytest.mark.parametrize("seed", range(3))
def test_excess_is_the_gradient_at_fixed_lengths(seed):
    """Exact over all pairs: the expectation is E[Σ_t ∇logp_t Σ_{i>t} P_i·(c_i - m_i)] with m_i the mean cost at position i of
    the responses that reach it, and P_i the chance that the other one does."""
    probability, cost, mask, score = responses(seed)
    n = len(probability)
    alive = probability @ mask.double()
    mean = probability @ (cost * mask) / alive
    true = torch.einsum("i,it,itd->d", probability, future_cost((cost - mean) * alive, mask), score)
    first, second = (x.flatten() for x in torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij"))
    rows = torch.stack([first, second], 1).flatten()
    excess = excess_cost(cost[rows], mask[rows], torch.arange(n * n).repeat_interleave(2))
    weight = (probability[first] * probability[second]).repeat_interleave(2) / 2
    found = torch.einsum("i,it,itd->d", weight, future_cost(excess, mask[rows]), score[rows])
    torch.testing.assert_close(found, true, atol=1e-12, rtol=1e-10)
    whole = torch.einsum("i,it,itd->d", probability, future_cost(cost, mask), score)
    assert (whole - true).norm() > 0.1 * whole.norm()  # what is left out is no trifle


@pytest.mark.parametrize("length", [32, 512, 4096])
def test_the_size_of_noise_does_not_grow_with_length(length):
    """Independent costs of mean .02 nats, 4 x 8 log-normal lengths: below .15 at γ = .98, where the exact credit grows to 30."""
    torch.manual_seed(0)
    lengths = (length * torch.exp(0.6 * torch.randn(32) - 0.18)).long().clamp(1, 2 * length)
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    cost, group = torch.empty(mask.shape).exponential_(50), torch.arange(4).repeat_interleave(8)
    credit = future_cost(excess_cost(cost, mask, group), mask, discount=0.98)
    assert 0.02 < credit[mask].abs().mean() < 0.15
    assert center(future_cost(cost, mask), mask, group)[mask].abs().mean() > 0.005 * length


def test_scale_is_limited_from_above_only():
    credit, mask = torch.tensor([[3.0, -4.0, NAN], [0.0, 5.0, NAN]]), torch.tensor([[1, 1, 0], [1, 1, 0]])
    size = math.sqrt(50 / 4)
    expected = torch.tensor([[3.0, -4.0, 0.0], [0.0, 5.0, 0.0]])
    torch.testing.assert_close(limit_scale(credit, mask, 1.0), expected / size)
    assert torch.equal(limit_scale(credit, mask, 4.0), expected)
    assert torch.equal(limit_scale(credit, torch.zeros(2, 3), 1.0), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="largest"):
        limit_scale(credit, mask, 0.0)


def test_no_gradient_flows_through_credit():
    cost = torch.rand(2, 3, requires_grad=True)
    c = future_cost(cost, torch.ones(2, 3))
    assert not c.requires_grad
    assert not center(cost, torch.ones(2, 3), torch.zeros(2, dtype=torch.long)).requires_grad
    assert not excess_cost(cost, torch.ones(2, 3), torch.zeros(2, dtype=torch.long)).requires_grad


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda c, m, g: future_cost(c, m[:, :1]), "mask"),
        (lambda c, m, g: future_cost(c[0], m[0]), "cost"),
        (lambda c, m, g: future_cost(c, m, kind="max"), "kind"),
        (lambda c, m, g: future_cost(c, m, discount=0.0), "discount"),
        (lambda c, m, g: excess_cost(c, m[:1], g), "mask"),
        (lambda c, m, g: excess_cost(c, m, g[:1]), "group"),
        (lambda c, m, g: center(c, m[:1], g), "mask"),
        (lambda c, m, g: center(c, m, g[:1]), "group"),
        (lambda c, m, g: center(c, m, g, baseline="mean"), "baseline"),
    ],
)
def test_errors_name_the_argument(call, argument):
    with pytest.raises(ValueError, match=argument):
        call(torch.rand(2, 3), torch.ones(2, 3), torch.zeros(2, dtype=torch.long))


def test_the_ratios_of_later_tokens_multiply_what_follows_them():
    """C_0 = 1 + γ·2·(2 + γ·3·4): costs 1, 2, 4 after tokens of ratio 2 and 3; the tool's output in between is no token."""
    cost = torch.tensor([[9.0, 1.0, 7.0, 2.0, 4.0]])
    mask = torch.tensor([[1, 1, 0, 1, 1]])
    ratio = torch.tensor([[5.0, 2.0, 1.0, 3.0, 11.0]])
    found = future_cost(cost, mask, discount=0.5, ratio=ratio)
    torch.testing.assert_close(found, torch.tensor([[1 + 0.5 * 2 * (2 + 0.5 * 3 * 4), 2 + 0.5 * 3 * 4, 0.0, 4.0, 0.0]]))
    assert torch.equal(
        future_cost(cost, mask, discount=0.5, ratio=torch.ones(1, 5)), future_cost(cost, mask, discount=0.5)
    )


def test_the_others_mean_is_weighted_where_a_sampler_was_biased():
    cost = torch.tensor([[1.0, 2.0], [3.0, 4.0], [7.0, 10.0]])
    mask = torch.tensor([[1, 1], [1, 1], [1, 0]])
    found = excess_cost(cost, mask, torch.zeros(3), torch.tensor([1.0, 3.0, 1.0]))
    # of the first: the others' mean is (3·3 + 1·7)/4 = 4 and 4; of the second: (1 + 7)/2 and 2; of the third: (1 + 9)/4
    torch.testing.assert_close(found, torch.tensor([[-3.0, -2.0], [-1.0, 2.0], [4.5, 0.0]]))
    alone = excess_cost(cost, mask, torch.zeros(3), torch.tensor([1.0, 0.0, 0.0]))
    assert alone[0].tolist() == [0, 0]  # nobody counts whom it could be compared with


def test_unrelated_costs_have_no_persistent_share_and_lasting_ones_nearly_all():
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(400, 60).bool()
    unrelated = torch.randn(400, 60, generator=generator)
    assert persistent_share(unrelated, mask, discount=0.98) < 0.1
    lasting = torch.randn(400, 1, generator=generator).expand(400, 60)
    assert persistent_share(lasting, mask, discount=0.98) > 0.95
    alternating = lasting * torch.tensor([1.0, -1.0]).repeat(30)
    assert persistent_share(alternating, mask, discount=0.98) == 0.0


def test_the_persistent_share_by_hand():
    # C = 3, 2 and V = 5, 4, with 7 masked: 1 - 9/13
    excess, mask = torch.tensor([[5.0, 1.0, 7.0, 2.0]]), torch.tensor([[True, True, False, True]])
    assert persistent_share(excess, mask, discount=1.0) == pytest.approx(4 / 13)
    assert persistent_share(torch.zeros(1, 4), mask, discount=1.0) == 0.0
    with pytest.raises(ValueError, match="discount"):
        persistent_share(excess, mask, discount=0.0)
