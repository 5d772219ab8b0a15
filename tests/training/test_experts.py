"""Experts through the trainer: limited access to a distribution, replayed answers, and pairs that cannot work."""

import math

import pytest
import torch
from benchmarks.black_box import Scene
from tests.training.worlds import history, trainer, weights

from errata import methods
from errata.experts import Access
from errata.recipe.config import ErrataConfig
from errata.recipe.experts import expert_of

TEXT = {"sources": ["reference"], "cost": "ce"}


@pytest.fixture(scope="module")
def scene():
    return Scene(problems=2, group=4)


def standardised(scene, access, draws):
    """Of the mean gradient over draws less the exact one: z-scores along the exact gradient and three random directions."""
    exact = scene.gradient(Access())
    generator = torch.Generator().manual_seed(0)
    directions = torch.stack([exact, *(torch.randn(exact.shape, generator=generator).double() for _ in range(3))])
    found = torch.stack([directions @ (scene.gradient(access, draw) - exact) for draw in range(draws)])
    return found.mean(0) / (found.std(0) / math.sqrt(draws))


@pytest.mark.parametrize(
    "settings",
    [
        {"samples": 1},
        {"samples": 4, "share": 0.25},
        {"samples": 2, "share": 0.25, "where": "entropy"},
        {"samples": 2, "share": 0.25, "where": "disagreement"},
    ],
)
def test_a_black_boxs_gradient_is_the_exact_one_on_average(scene, settings):
    """Both terms, local and future, on the house policy; four z-scores beyond 4 are a chance of about 1 in 4,000."""
    assert (standardised(scene, Access(gives="samples", **settings), 60).abs() < 4).all()


def test_what_is_not_counted_by_its_chance_is_seen_to_be_off(scene):
    """The control: the same measurement finds a quarter of the states counted once."""
    access = Access(gives="samples", samples=4, share=0.25, where="every", unbiased=False)
    assert standardised(scene, access, 20).abs().max() > 4


def test_more_samples_and_more_states_are_less_noisy(scene):
    exact = scene.gradient(Access())

    def noise(**settings):
        access = Access(gives="samples", **settings)
        return sum(float((scene.gradient(access, d) - exact).square().sum()) for d in range(12))

    assert noise(samples=16) < noise(samples=1) < noise(samples=1, share=0.25)


def test_a_top_k_of_everything_is_exact(scene):
    exact = scene.gradient(Access())

    def error(k):
        return float((scene.gradient(Access(gives="topk", top_k=k)) - exact).norm() / exact.norm())

    assert error(10_000) < 1e-3 < error(8) < error(2) < 1


@pytest.mark.parametrize(
    ("method", "access"),
    [
        ("distil", Access(gives="samples", samples=3, share=0.5)),
        ("distil", Access(gives="topk", top_k=5)),
        ("sdpo", Access(gives="topk", top_k=5)),
        ("drift", Access(gives="topk", top_k=5)),
    ],
)
def test_a_step_is_the_same_in_micro_batches(tmp_path, method, access):
    settings = {"distil": TEXT, "drift": {"warmup_steps": 1}}.get(method, {})

    def run(size, accumulation):
        t = trainer(
            tmp_path,
            method,
            method_args=settings,
            access=access,
            max_steps=2,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
        )
        t.train()
        return torch.tensor(history(t, "loss", "grad_norm", "expert/states"))

    torch.testing.assert_close(run(4, 4), run(16, 1), atol=1e-5, rtol=1e-4)


def test_what_was_asked_stands_in_the_log_and_in_the_rollouts(tmp_path):
    kept = []
    access = Access(gives="samples", samples=3, share=0.5)
    t = trainer(tmp_path, "distil", method_args=TEXT, access=access, max_steps=1, keep=kept)
    t.train()
    log = next(entry for entry in t.state.log_history if "expert/states" in entry)
    assert 0.3 < log["expert/share"] < 0.7
    row = next(row for stem, row in kept if stem == "rollouts")
    query_weight = row["signals"]["query_weight"]
    assert set(query_weight) <= {0.0, 2.0}
    assert 0 < sum(a > 0 for a in query_weight) < len(query_weight)
    for pairs, a in zip(row["alternatives"], query_weight, strict=True):
        assert sum(share for _, share in pairs) == (pytest.approx(1, abs=0.01) if a else 0)
        assert len({token for token, _ in pairs}) == len(pairs)  # what was drawn twice stands there once


def config(tmp_path, **settings):
    return ErrataConfig(output_dir=str(tmp_path), use_cpu=True, **settings)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("sdpo", {"expert_args": {"gives": "samples"}}, "needs .topk.: divergence: js.*distil with method_args"),
        ("distil", {"expert_args": {"gives": "samples"}}, r"cost: kl subtracts its entropy"),
        ("sdpo-science", {"expert_args": {"gives": "topk"}}, "needs .full.: support: student_topk.*distil"),
        ("grpo", {"expert": "house"}, "method grpo has no teacher"),
        ("distil", {"expert_args": {"modle": 1}}, "'modle' is for another expert"),
        (
            "distil",
            {"expert": "http://127.0.0.1:1/v1", "expert_args": {"gives": "full"}},
            "full is not offered by servers",
        ),
        ("distil", {"expert": "http://127.0.0.1:1/v1", "expert_args": {"gives": "topk"}}, "model is missing"),
        ("distil", {"expert": "house", "expert_on_failure": "self"}, "self is for a server"),
    ],
)
def test_impossible_pairs_are_refused_with_the_reason_and_what_would_work(tmp_path, method, settings, message):
    with pytest.raises(ValueError, match=message):
        expert_of(config(tmp_path, method=method, **settings), methods.get(method), None)


def test_the_policy_shown_nothing_is_no_expert(tmp_path):
    with pytest.raises(ValueError, match="'expert' is shown nothing"):
        expert_of(config(tmp_path), methods.get("distil", sources=["expert"]), None)


class TestReplay:
    def run(self, folder, **changes):
        return trainer(folder, "distil", method_args=TEXT, replay_capacity=12, replay_share=0.5, **changes)

    @pytest.mark.parametrize("access", [Access(), Access(gives="samples", samples=2, share=0.5)])
    def test_past_rollouts_teach_and_a_resumed_run_is_the_same(self, tmp_path, access):
        whole = self.run(tmp_path / "a", access=access)
        whole.train()
        assert [log["replay/rollouts"] for log in whole.state.log_history if "replay/rollouts" in log] == [8, 12, 12]
        self.run(tmp_path / "b", access=access, save_strategy="steps", save_steps=2).train()
        second = self.run(tmp_path / "b", access=access)
        second.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2"))
        for (n, a), b in zip(weights(second.model).items(), weights(whole.model).values(), strict=True):
            assert torch.equal(a, b), n
        plain = trainer(tmp_path / "c", "distil", method_args=TEXT, access=access)
        plain.train()
        assert any(
            not torch.equal(a, b)
            for a, b in zip(weights(plain.model).values(), weights(whole.model).values(), strict=True)
        )

    def test_a_checkpoint_without_a_store_is_refused(self, tmp_path):
        trainer(tmp_path, "distil", method_args=TEXT, save_strategy="steps", save_steps=2).train()
        with pytest.raises(ValueError, match="written without replay_capacity"):
            self.run(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))

    def test_only_forward_cross_entropy_can_replay(self, tmp_path):
        with pytest.raises(ValueError, match="not by js"):
            trainer(tmp_path, "sdpo", replay_capacity=4)
