"""Random problems for the score op, with a float64 answer that holds all logits."""

import torch

from errata.ops import divergence as plain
from errata.ops.scores import Head, ModelStates, Streams, TokenScores


class Problem:
    """Random hidden states, heads with everything on, ragged mask; and the float64 answer that holds (B, T, V)."""

    def __init__(
        self, seed=0, b=3, t=13, h=7, h_teacher=5, v=157, dtype=torch.float32, bias=True, softcap=4.0, scale=0.9
    ):
        torch.manual_seed(seed)
        self.hidden = torch.randn(b, t, h).to(dtype).requires_grad_()
        self.weight = (torch.randn(v, h)).to(dtype).requires_grad_()
        self.bias = torch.randn(v).to(dtype).requires_grad_() if bias else None
        self.teacher_hidden, self.teacher_weight = (
            torch.randn(b, t, h_teacher).to(dtype),
            torch.randn(v, h_teacher).to(dtype),
        )
        self.teacher_bias = torch.randn(v).to(dtype) if bias else None
        self.scale, self.softcap = scale, softcap
        self.tokens, self.mask = torch.randint(0, v, (b, t)), torch.rand(b, t) > 0.4
        self.tokens = self.tokens.masked_fill(~self.mask, -100)
        self.advantage, self.old_logp = torch.randn(b, t), None
        self.rl_weight = torch.rand(b, t) * (torch.rand(b, t) > 0.3)
        self.sd_weight = torch.rand(b, t) * (torch.rand(b, t) > 0.3)

    @property
    def leaves(self):
        return [x for x in (self.hidden, self.weight, self.bias) if x is not None]

    @property
    def arguments(self):
        """As ``token_scores`` takes them."""
        return (
            self.hidden,
            Head(self.weight, self.bias, self.scale, self.softcap),
            self.teacher_hidden,
            Head(self.teacher_weight, self.teacher_bias, self.scale, self.softcap),
            self.tokens,
        )

    @property
    def models(self):
        """Student, teacher and tokens, as ``fused_loss`` takes them."""
        student, student_head, teacher, teacher_head, tokens = self.arguments
        return ModelStates(student, student_head), ModelStates(teacher, teacher_head), tokens

    @property
    def streams(self):
        return Streams(self.advantage, self.rl_weight, self.sd_weight)

    @property
    def distilled(self):
        return Streams(None, None, self.sd_weight)

    def exact(
        self,
        kind="forward_ce",
        alpha=0.5,
        temperature=1.0,
        support="full",
        k=100,
        tail=None,
        entry_clip=None,
        dtype=torch.float64,
    ):
        """(scores, leaves): the scores of all logits at once, and the copies they are differentiable by."""
        leaves = [x.detach().to(dtype).requires_grad_() for x in self.leaves]

        def logits(hidden, weight, bias):
            z = hidden @ weight.t()
            z = (z if bias is None else z + bias) * self.scale
            z = z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)
            return z / temperature

        bias = leaves[2] if self.bias is not None else None
        z = logits(leaves[0], leaves[1], bias)
        teacher = (self.teacher_hidden, self.teacher_weight, self.teacher_bias)
        u = logits(*(None if x is None else x.to(dtype) for x in teacher))
        tokens = self.tokens.clamp(min=0)[..., None]

        def of(logits):
            logp = logits.log_softmax(-1)
            return logp.gather(-1, tokens)[..., 0] * self.mask, -(logp.exp() * logp).sum(-1) * self.mask

        if support == "full":
            value = plain.divergence(z, u, kind, alpha=alpha, entry_clip=entry_clip)
        else:
            value = plain.topk_divergence(
                z, u, kind, alpha=alpha, support=support, k=k, tail=tail, entry_clip=entry_clip
            )
        (logp, entropy), (teacher_logp, teacher_entropy) = of(z), of(u)
        return TokenScores(logp, teacher_logp, entropy, teacher_entropy, value * self.mask), leaves


def assert_gradients(ours, exact, relative):
    for mine, theirs in zip(ours, exact, strict=True):
        error = (mine.double() - theirs.double()).norm() / theirs.double().norm()
        assert error < relative, f"relative error {error:.1e}"
