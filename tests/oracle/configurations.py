"""The runs that are compared with the oracle: every preset, and every setting that changes a gradient."""

from __future__ import annotations

from typing import Any

from tests.oracle.world import Configuration

from errata import methods

_DRIFT = {"warmup_steps": 1}
_TWICE = {"num_iterations": 2, "learning_rate": 0.1}
_FOUR = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
_SPLIT = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "steps_per_generation": 4}


def _c(name: str, method: str, args: dict[str, Any] | None = None, **parts: Any) -> Configuration:
    fields = {k: parts.pop(k) for k in ("steps", "lora", "ratio", "known_tokens", "problems", "default") if k in parts}
    args = {**(_DRIFT if method.startswith("drift") else {}), **(args or {})}
    return Configuration(name, method, args, parts, **fields)


_PRESETS = tuple(_c(name, name, default=name == "sdpo-science") for name in methods.names())

CONFIGURATIONS: tuple[Configuration, ...] = (
    *_PRESETS,
    # Temperature.
    _c("grpo-cool", "grpo", temperature=0.6),
    _c("sdpo-cool", "sdpo", temperature=0.6),
    _c("distil-hot", "distil", temperature=1.4),
    _c("srpo-hot", "srpo", temperature=1.4, default=True, **_FOUR),
    _c("topk-expert-hot", "distil", {"sources": ["reference"]}, temperature=1.4, known_tokens=5, steps=2, default=True),
    # The policy has moved since it sampled: clips.
    _c("grpo-twice", "grpo", **_TWICE),
    _c("grpo-epsilon", "grpo", epsilon=0.01, epsilon_high=0.02, default=True, **{**_TWICE, "learning_rate": 0.01}),
    _c("sdpo-twice", "sdpo", {"importance_clip": 1.05}, default=True, **_TWICE),
    _c("sdpo-unclipped", "sdpo", {"importance_clip": None}, **_TWICE),
    _c(
        "distil-importance",
        "distil",
        {"surrogate": "importance", "baseline": "none"},
        default=True,
        epsilon=0.001,
        epsilon_high=0.001,
        **_TWICE,
    ),
    _c("distil-twice", "distil", **_TWICE),
    _c("drift-twice", "drift", steps=4, **_TWICE),
    _c("sdpo-split", "sdpo", steps=4, **_SPLIT),
    _c("distil-split", "distil-exact", steps=4, **_SPLIT),
    # The divergence.
    _c("token-clip", "sdpo", {"token_clip": 0.05}, default=True),
    _c("alpha", "sdpo", {"alpha": 0.15}, default=True),
    _c("alpha-0", "sdpo", {"alpha": 0.0}),
    _c("alpha-1", "sdpo", {"alpha": 1.0}),
    *(_c(f"sdpo-{kind}", "sdpo", {"divergence": kind}) for kind in ("forward_ce", "forward_kl", "reverse_kl")),
    *(
        _c(f"{support}-{kind}", "sdpo", {"divergence": kind, "support": support, "top_k": 7}, default=kind == "js")
        for support in ("student_topk", "teacher_topk")
        for kind in ("js", "reverse_kl", "forward_kl", "forward_ce")
    ),
    _c("entry-clip", "sdpo", {"entry_clip": 0.003}, steps=2, default=True),
    _c("entry-clip-on-support", "opsd", {"entry_clip": 0.01, "support": "student_topk", "top_k": 7}),
    # DistIL's credit.
    _c("credit-limit", "distil", {"credit_limit": 0.02}, default=True),
    _c("credit-none", "distil", {"credit": "none"}),
    _c("credit-mean", "distil", {"credit": "mean"}),
    _c("credit-reweight", "distil", {"credit": "reweight"}),
    _c("cost-ce", "distil", {"cost": "ce", "credit_limit": None}),
    _c("baseline-position", "distil", {"baseline": "position", "discount": 0.7}),
    _c("baseline-none", "distil", {"baseline": "none", "future_weight": 0.3}),
    _c("credit-on-support", "distil", {"support": "student_topk", "top_k": 7}),
    # The teacher.
    _c("live", "sdpo", teacher="live"),
    _c("frozen", "sdpo", teacher="frozen"),
    _c("fast-ema", "sdpo", teacher="ema", teacher_rate=0.5, default=True),
    _c("sync", "sdpo", teacher="sync", teacher_sync_steps=2, steps=4),
    _c("trust-region", "distil", teacher="trust_region", teacher_base_weight=0.6),
    _c("lora-ema", "sdpo", lora=True, teacher_rate=0.5),
    _c("lora-frozen", "sdpo", lora=True, teacher="frozen"),
    _c("lora-trust-region", "distil", lora=True, teacher="trust_region"),
    _c("lora-grpo", "grpo", lora=True),
    _c("topk-expert", "distil", {"sources": ["reference"]}, known_tokens=5),
    _c("topk-expert-js", "sdpo", known_tokens=5),
    # What it is shown.
    _c("reference", "sdpo", {"sources": ["reference"]}),
    _c("expert", "sdpo", {"sources": ["sibling", "expert"]}),
    _c("history", "sdpo", {"sources": ["feedback"], "history": 2}, steps=4),
    _c("with-feedback", "distil", {"sources": ["sibling", "reference"], "with_feedback": True}),
    _c("no-leaks", "sdpo", {"sources": ["feedback"], "allow_leaks": False}),
    _c("demonstrations", "sdpo", {"demonstrations": 3}),
    _c("threshold", "srpo", {"success_threshold": 0.5}),
    # DRIFT.
    _c("drift-long", "drift", steps=6, default=True),
    _c("drift-buffer-epoch", "drift-paper", {"buffer_start_epoch": 2.0}, steps=5, default=True),
    _c("drift-buffer-step", "drift", {"buffer_start_step": 4, "sources": ["buffer"]}, steps=5),
    _c("drift-recent", "drift", {"prefer_recent": True, "demonstrations": 2}, steps=5),
    _c("drift-paper-long", "drift-paper", {"prefer_recent": True}, steps=6),
    _c("drift-per-step", "drift", {"decay_per": "step"}, steps=6, problems=4),
    _c("drift-reset", "drift", {"ledger_reset_every": 2, "transition_steps": 1}, steps=6),
    _c("drift-unrouted", "drift", {"routing": "none"}, steps=4),
    _c("drift-both", "drift", {"binary_routing": False}, steps=4),
    _c("drift-shared", "drift", {"denominators": "shared"}),
    _c("drift-no-rhythm", "drift", {"rhythm": False}),
    _c(
        "drift-rhythm",
        "drift",
        {"margin": 0.0, "window": 2, "anchor_scale": 20.0, "gate_floor": 0.2, "gate_power": 0.5, "warmup_steps": 0},
        default=True,
    ),
    _c("drift-bonuses", "drift", {"margin": 0.0, "window": 2, "bonus_hard": 0.5, "bonus_easy": 0.3, "warmup_steps": 0}),
    # How tokens are averaged.
    *(
        _c(f"{kind}-sdpo", "sdpo", loss_type=kind, default=kind == "bnpo", **_FOUR)
        for kind in ("dapo", "grpo", "bnpo", "dr_grpo")
    ),
    *(_c(f"{kind}-distil", "distil", loss_type=kind, **_FOUR) for kind in ("grpo", "bnpo", "dr_grpo")),
    _c("four-drift", "drift", default=True, **_FOUR),
    _c("four-srpo", "srpo", **_FOUR),
    _c("four-grpo", "grpo", **_FOUR),
    _c("masked", "distil", mask_truncated_completions=True),
    _c("masked-routed", "srpo", mask_truncated_completions=True, **_FOUR),
    *(_c(f"scaled-by-{scale}", "srpo", scale_rewards=scale) for scale in ("group", "batch")),
    # An engine that samples with slightly other probabilities.
    _c("ratio-token", "distil", ratio="token", default=True),
    _c("ratio-sequence", "srpo", ratio="sequence"),
    _c("ratio-sequence-distil", "distil", ratio="sequence"),
    _c("ratio-grpo", "grpo", ratio="token"),
)
