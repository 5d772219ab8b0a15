"""The reference divergences against arrays worked by hand, plain Python sums, and the released SDPO loss in TRL."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trl.experimental.sdpo import loss_utils as trl

from errata.ops.divergence import KINDS, clip_tokens, divergence, importance_weight, topk_divergence

LN2 = math.log(2.0)
# p_S = (1/4, 1/4, 1/2), p_T = (1/2, 1/4, 1/4), m = (3/8, 1/4, 3/8)
STUDENT = torch.tensor([[0.25, 0.25, 0.5]]).log()
TEACHER = torch.tensor([[0.5, 0.25, 0.25]]).log()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("forward_ce", 1.75 * LN2),  # ½·ln 4 + ¼·ln 4 + ¼·ln 2
        ("forward_kl", 0.25 * LN2),  # less the teacher's entropy, 1.5·ln 2
        ("reverse_kl", 0.25 * LN2),  # ¼·ln ½ + 0 + ½·ln 2
        ("js", 0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3)),  # both halves alike by symmetry
    ],
)
def test_by_hand(kind, expected):
    value = divergence(STUDENT + 3.0, TEACHER - 1.0, kind)
    assert value.dtype == torch.float32
    assert value.shape == (1,)
    assert value.item() == pytest.approx(expected, abs=1e-6)


def plain(student, teacher, kind, alpha):
    """The definitions as Python sums over lists of logits."""

    def softmax(z):
        e = [math.exp(x - max(z)) for x in z]
        return [x / sum(e) for x in e]

    def kl(p, q):
        return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)

    p, q = softmax(student), softmax(teacher)
    if kind == "forward_ce":
        return -sum(b * math.log(a) for a, b in zip(p, q, strict=True) if b > 0)
    if kind == "forward_kl" or (kind == "js" and alpha == 0.0):
        return kl(q, p)
    if kind == "reverse_kl" or (kind == "js" and alpha == 1.0):
        return kl(p, q)
    m = [(1 - alpha) * a + alpha * b for a, b in zip(p, q, strict=True)]
    return alpha * kl(q, m) + (1 - alpha) * kl(p, m)


@given(
    seed=st.integers(0, 10_000),
    size=st.integers(1, 12),
    kind=st.sampled_from(KINDS),
    alpha=st.sampled_from([0.0, 0.2, 0.5, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_matches_plain_sums(seed, size, kind, alpha):
    torch.manual_seed(seed)
    student, teacher = 4 * torch.randn(2, 3, size), 4 * torch.randn(2, 3, size)
    value = divergence(student, teacher, kind, alpha=alpha)
    expected = [
        [plain(s, t, kind, alpha) for s, t in zip(a, b, strict=True)]
        for a, b in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    torch.testing.assert_close(value, torch.tensor(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_between_equals_but_for_the_cross_entropy(kind):
    logits = torch.randn(4, 7)
    floor = torch.distributions.Categorical(logits=logits).entropy() if kind == "forward_ce" else torch.zeros(4)
    torch.testing.assert_close(divergence(logits, logits + 2.0, kind), floor, atol=1e-6, rtol=1e-5)


def test_gradient_of_cross_entropy_is_student_minus_teacher_and_the_teacher_gets_none():
    student, teacher = torch.randn(5, 6, requires_grad=True), torch.randn(5, 6, requires_grad=True)
    divergence(student, teacher).sum().backward()
    torch.testing.assert_close(student.grad, student.softmax(-1) - teacher.softmax(-1))
    assert teacher.grad is None


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    student, teacher = (
        torch.randn(3, 5, dtype=torch.float64, requires_grad=True),
        torch.randn(3, 5, dtype=torch.float64),
    )
    assert torch.autograd.gradcheck(lambda s: divergence(s, teacher, kind, alpha=0.3), student)
    assert divergence(student, teacher, kind).dtype == torch.float64


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("support", ["full", "student_topk", "teacher_topk"])
@pytest.mark.parametrize("k", [2, 4])
def test_forbidden_tokens_change_nothing(kind, support, k):
    """A padded vocabulary: rows that both models forbid. 0·log 0 = 0 in value and gradient."""
    student, teacher = torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    pad = torch.full((2, 4, 3), -math.inf)
    wide = torch.cat([student, pad], -1).requires_grad_()

    def value(s, t):
        if support == "full":
            return divergence(s, t, kind, alpha=0.3)
        return topk_divergence(s, t, kind, alpha=0.3, support=support, k=k)

    padded = value(wide, torch.cat([teacher, pad], -1))
    torch.testing.assert_close(padded, value(student, teacher))
    padded.sum().backward()
    assert torch.isfinite(wide.grad).all()
    assert (wide.grad[..., 5:] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("forbids", ["student", "teacher"])
def test_a_token_only_one_model_forbids_costs_much_but_not_infinitely(kind, forbids):
    student, teacher = torch.zeros(1, 3), torch.zeros(1, 3)
    (student if forbids == "student" else teacher)[0, 2] = -math.inf
    student.requires_grad_()
    value = divergence(student, teacher, kind)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(student.grad).all()
    if kind == "forward_ce" and forbids == "student":
        assert value.item() == pytest.approx(2 / 3 * LN2 + 1e4 / 3, rel=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
def test_full_vocabulary_parity_with_trl(alpha):
    student, teacher = 3 * torch.randn(3, 5, 50), 3 * torch.randn(3, 5, 50)
    expected = trl.compute_full_logit_self_distillation_loss(student, teacher, distillation_alpha=alpha)
    torch.testing.assert_close(divergence(student, teacher, "js", alpha=alpha), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("k", [1, 5, 20])
def test_topk_parity_with_trl_in_value_and_gradient(alpha, tail, k):
    student, teacher = (2 * torch.randn(3, 5, 50)).requires_grad_(), 2 * torch.randn(3, 5, 50)
    ours = topk_divergence(student, teacher, "js", alpha=alpha, support="student_topk", k=k, tail=tail)
    theirs = trl.compute_topk_self_distillation_loss(
        student, teacher, distillation_topk=k, distillation_alpha=alpha, distillation_add_tail=tail
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    (mine,) = torch.autograd.grad(ours.sum(), student)
    (yours,) = torch.autograd.grad(theirs.sum(), student)
    torch.testing.assert_close(mine, yours, atol=1e-5, rtol=1e-4)


def test_sampled_token_reverse_kl_parity_with_trl():
    """TRL's third mode is the policy gradient with advantage -(logp_S - logp_T): the same surrogate, fed the scores."""
    from errata.ops.policy_gradient import clipped_surrogate

    student, teacher = torch.randn(2, 4, 9, requires_grad=True), torch.randn(2, 4, 9)
    tokens = torch.randint(0, 9, (2, 4))
    theirs = trl.compute_sampled_token_self_distillation_loss(student, teacher, tokens, distillation_alpha=1.0)
    logp, teacher_logp = (x.log_softmax(-1).gather(-1, tokens[..., None])[..., 0] for x in (student, teacher))
    ours = clipped_surrogate(logp, None, (teacher_logp - logp).detach())
    (mine,) = torch.autograd.grad(ours.sum(), student, retain_graph=True)
    (yours,) = torch.autograd.grad(theirs.sum(), student)
    torch.testing.assert_close(mine, yours, atol=1e-6, rtol=1e-5)


def test_teacher_topk_renormalised_by_hand():
    """The teacher's two likeliest are tokens 0 and 1: (2/3, 1/3) against the student's (1/2, 1/2)."""
    teacher, student = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log(), torch.tensor([[0.2, 0.2, 0.3, 0.3]]).log()
    value = topk_divergence(student, teacher, "forward_ce", support="teacher_topk", k=2)
    assert value.item() == pytest.approx(LN2, abs=1e-6)
    value = topk_divergence(student, teacher, "forward_kl", support="teacher_topk", k=2)
    assert value.item() == pytest.approx(2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3), abs=1e-6)


def test_student_topk_with_tail_by_hand():
    """The student's two likeliest are tokens 2 and 3: (.3, .3, tail .4) against the teacher's (1/8, 1/8, tail 3/4)."""
    teacher, student = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log(), torch.tensor([[0.2, 0.2, 0.3, 0.3]]).log()
    value = topk_divergence(student, teacher, "forward_ce", support="student_topk", k=2)
    assert value.item() == pytest.approx(-0.25 * math.log(0.3) - 0.75 * math.log(0.4), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("support", ["student_topk", "teacher_topk"])
def test_topk_of_everything_is_exact(kind, support):
    student, teacher = torch.randn(2, 6), torch.randn(2, 6)
    for k in (6, 100):
        torch.testing.assert_close(
            topk_divergence(student, teacher, kind, support=support, k=k), divergence(student, teacher, kind)
        )


@pytest.mark.parametrize(
    ("kind", "terms"),
    [
        ("forward_kl", [0.5 * LN2, 0.0, -0.25 * LN2]),
        ("reverse_kl", [-0.25 * LN2, 0.0, 0.5 * LN2]),
        # ½·(p_T ln(p_T/m) + p_S ln(p_S/m)): ½·(½·ln 4/3 + ¼·ln 2/3) at both ends
        (
            "js",
            [0.25 * math.log(4 / 3) + 0.125 * math.log(2 / 3), 0.0, 0.25 * math.log(4 / 3) + 0.125 * math.log(2 / 3)],
        ),
    ],
)
@pytest.mark.parametrize("clip", [0.01, 0.2, 9.0])
def test_entry_clip_by_hand(kind, terms, clip):
    """Each vocabulary entry's term is cut from above; the sum may be negative."""
    value = divergence(STUDENT, TEACHER, kind, entry_clip=clip)
    assert value.item() == pytest.approx(sum(min(term, clip) for term in terms), abs=1e-6)
    if clip == 0.01:
        assert (value.item() < 0) == (kind != "js")


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("support", ["full", "student_topk", "teacher_topk"])
def test_entry_clip_matches_plain_sums_and_has_the_exact_gradient(kind, support):
    """Terms as Python floats from the definition, and differences of the clipped sum as its gradient."""
    student = 2 * torch.randn(2, 6, dtype=torch.float64)
    teacher, k, clip, alpha = 2 * torch.randn(2, 6, dtype=torch.float64), 3, 0.03, 0.3

    def ours(student):
        if support == "full":
            return divergence(student, teacher, kind, alpha=alpha, entry_clip=clip)
        return topk_divergence(student, teacher, kind, alpha=alpha, support=support, k=k, entry_clip=clip)

    def buckets(probabilities, chosen):
        held = [probabilities[i] for i in chosen]
        if support == "student_topk":
            return [*held, 1 - sum(held)]
        return held if support == "full" else [x / sum(held) for x in held]

    expected, cut = [], 0
    for s, t in zip(student.softmax(-1).tolist(), teacher.softmax(-1).tolist(), strict=True):
        by = s if support == "student_topk" else t
        chosen = list(range(6)) if support == "full" else sorted(range(6), key=by.__getitem__)[-k:]
        pairs = list(zip(buckets(s, chosen), buckets(t, chosen), strict=True))
        if kind == "forward_kl":
            terms = [q * math.log(q / p) for p, q in pairs]
        elif kind == "reverse_kl":
            terms = [p * math.log(p / q) for p, q in pairs]
        else:
            mixed = [(p, q, (1 - alpha) * p + alpha * q) for p, q in pairs]
            terms = [alpha * q * math.log(q / m) + (1 - alpha) * p * math.log(p / m) for p, q, m in mixed]
        expected.append(sum(min(x, clip) for x in terms))
        cut += sum(x > clip for x in terms)
    assert 0 < cut < 12
    torch.testing.assert_close(ours(student), torch.tensor(expected, dtype=torch.float64))
    assert torch.autograd.gradcheck(ours, student.requires_grad_())


def test_a_clip_above_every_term_changes_nothing():
    student, teacher = torch.randn(2, 5, 9), torch.randn(2, 5, 9)
    for kind in KINDS[1:]:
        clipped = divergence(student, teacher, kind, alpha=0.3, entry_clip=100.0)
        torch.testing.assert_close(clipped, divergence(student, teacher, kind, alpha=0.3), atol=1e-6, rtol=1e-5)


def test_clip_tokens_cuts_the_value_and_the_gradient():
    value = torch.tensor([[0.01, 0.05, 0.2]], requires_grad=True)
    clipped = clip_tokens(value, 0.05)
    torch.testing.assert_close(clipped, torch.tensor([[0.01, 0.05, 0.05]]))
    clipped.sum().backward()
    assert value.grad[0, 0] == 1
    assert value.grad[0, 2] == 0
    assert clip_tokens(value, None) is value


def test_importance_weight_is_one_sided_and_without_gradient():
    logp = torch.tensor([[math.log(0.1), math.log(0.3), math.log(0.9)]], requires_grad=True)
    weight = importance_weight(logp, torch.full((1, 3), math.log(0.2)), clip=2.0)
    torch.testing.assert_close(weight, torch.tensor([[0.5, 1.5, 2.0]]))
    assert not weight.requires_grad
    loss = torch.rand(1, 3)
    old = torch.randn(1, 3)
    torch.testing.assert_close(
        importance_weight(logp, old, clip=2.0) * loss, trl.apply_importance_sampling_clipping(loss, logp, old, 2.0)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_out_as_float32(dtype):
    student, teacher = torch.randn(2, 9).to(dtype), torch.randn(2, 9).to(dtype)
    value = divergence(student, teacher, "js")
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, divergence(student.float(), teacher.float(), "js"))


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda z: divergence(z, z[:1]), "teacher_logits"),
        (lambda z: divergence(z, z, "kl"), "kind"),
        (lambda z: divergence(z, z, "js", alpha=1.5), "alpha"),
        (lambda z: topk_divergence(z, z, support="top"), "support"),
        (lambda z: topk_divergence(z, z, k=0), "k:"),
        (lambda z: divergence(z, z, "forward_ce", entry_clip=0.1), "entry_clip.*use forward_kl"),
        (lambda z: divergence(z, z, "forward_kl", entry_clip=0.0), "entry_clip: 0.0 must be positive"),
        (lambda z: topk_divergence(z, z, "js", k=9, entry_clip=-1.0), "entry_clip: -1.0"),
        (lambda z: importance_weight(z, z[:1]), "old_logp"),
    ],
)
def test_errors_name_the_argument(call, argument):
    with pytest.raises(ValueError, match=argument):
        call(torch.randn(2, 3))
