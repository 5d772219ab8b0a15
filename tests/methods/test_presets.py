"""Every default of every preset, with its source. A number changed by accident fails here."""

import pytest

from errata import methods

# METHODS section -> setting. "science", "coding", "mathematics" are the papers' three settings.
PUBLISHED = {
    # section 1: no teacher, no distillation
    "grpo": {"uses_teacher": False},
    # section 2: "JS(1/2) for science ... top-K=100 plus one tail bucket; EMA teacher 0.05; one-sided importance clip min(rho, 2)"
    "sdpo-science": {
        "divergence": "js",
        "alpha": 0.5,
        "support": "student_topk",
        "top_k": 100,
        "teacher": "ema",
        "teacher_rate": 0.05,
        "importance_clip": 2.0,
        "sources": ("sibling", "feedback"),
        "success_threshold": 1.0,
        # "the first successful other response of its group (... thinking stripped), else environment feedback"
        "demonstrations": 1,
        "with_feedback": False,
        "history": 0,
        "keep_thinking": False,
    },
    # section 2: "reverse KL for coding ... 20 (coding) ... 0.01 (coding)"
    "sdpo-code": {
        "divergence": "reverse_kl",
        "support": "student_topk",
        "top_k": 20,
        "teacher": "ema",
        "teacher_rate": 0.01,
    },
    # section 3: "f = the reference solution, frozen teacher, teacher top-100 renormalised, clipped at 0.05"
    "opsd": {
        "sources": ("reference",),
        "teacher": "frozen",
        "support": "teacher_topk",
        "top_k": 100,
        "token_clip": 0.05,
    },
    # section 5: "JS ... proportional to exp(-beta H_T), beta=1 ... One shared denominator"
    "srpo": {"divergence": "js", "alpha": 0.5, "entropy_beta": 1.0, "denominators": "shared"},
    # docs/length.md: length-neutral, about 50 tokens ahead
    "distil": {
        "credit": "sum",
        "cost": "kl",
        "baseline": "per_token",
        "discount": 0.98,
        "credit_limit": 0.5,
        "future_weight": 1.0,
        "support": "full",
        "divergence": "forward_ce",
    },
    # section 4, the exact gradient: unbiased and centred
    "distil-exact": {
        "credit": "sum",
        "cost": "kl",
        "baseline": "leave_one_out",
        "discount": 1.0,
        "credit_limit": None,
        "support": "full",
        "divergence": "forward_ce",
    },
    # section 4: "science ... K=100, EMA 0.01, sibling successes only"; released credit is the mean of CE, uncentred
    "distil-science": {
        "credit": "mean",
        "cost": "ce",
        "discount": 1.0,
        "credit_limit": None,
        "baseline": "none",
        "support": "student_topk",
        "top_k": 100,
        "teacher": "ema",
        "teacher_rate": 0.01,
        "sources": ("sibling",),
        "importance_clip": 2.0,
        "surrogate": "importance",
    },
    # section 4: "coding ... K=20, 0.01, sibling else environment feedback"
    "distil-code": {
        "credit": "mean",
        "cost": "ce",
        "discount": 1.0,
        "credit_limit": None,
        "baseline": "none",
        "top_k": 20,
        "teacher_rate": 0.01,
        "sources": ("sibling", "feedback"),
    },
    # section 4: "math frozen teacher with reference solution ... teacher_topk renormalised, K=100 ... CE reweighted"
    "distil-math": {
        "credit": "reweight",
        "cost": "ce",
        "discount": 1.0,
        "credit_limit": None,
        "baseline": "none",
        "support": "teacher_topk",
        "top_k": 100,
        "teacher": "frozen",
        "sources": ("reference",),
    },
    # section 6: "JS 1/2 ... About 60 steps", "mu=0.2, tau=1, B_max=2", ours: "W=8, a=1, lambda=1, m_min=0.5, m_max=2"
    "drift-paper": {
        "routing": "paper",
        "buffer": "paper",
        "buffer_fallback": "group",
        "warmup_steps": 60,
        "divergence": "js",
        "margin": 0.2,
        "tau": 1.0,
        "max_bonus": 2.0,
        "window": 8,
        "anchor_scale": 1.0,
        "mix": 1.0,
        "floor": 0.5,
        "ceiling": 2.0,
    },
    "drift-released": {"routing": "released", "binary_routing": True, "buffer": "released", "decay_per": "step"},
}

PUBLISHED_TRAINER = {
    "grpo": {"scale_rewards": "none", "epsilon": 0.2, "epsilon_high": 0.28, "beta": 0.0},  # section 1
    "sdpo-science": {"learning_rate": 1e-5},  # section 2
    "sdpo-code": {"learning_rate": 1e-6},
    "opsd": {"learning_rate": 5e-6, "lora_r": 64, "lora_alpha": 128},  # section 3
    "srpo": {"learning_rate": 5e-6},  # section 5
    "distil-science": {"learning_rate": 5e-5, "warmup_steps": 10},  # section 4
    "distil-code": {"learning_rate": 1e-6},
    "distil-math": {"learning_rate": 5e-6, "lora_r": 64, "lora_alpha": 128},
}


@pytest.mark.parametrize(("name", "setting"), [(n, s) for n, settings in PUBLISHED.items() for s in settings])
def test_published_setting(name, setting):
    assert getattr(methods.get(name), setting) == PUBLISHED[name][setting]


@pytest.mark.parametrize("name", PUBLISHED_TRAINER)
def test_published_trainer_settings(name):
    stated = methods.PRESETS[name].trainer
    assert {k: stated[k] for k in PUBLISHED_TRAINER[name]} == PUBLISHED_TRAINER[name]


def test_names_start_with_the_six_methods():
    assert methods.names()[:6] == ("grpo", "sdpo", "opsd", "srpo", "distil", "drift")


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'distil'"):
        methods.get("distill")


def test_an_unknown_setting_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'discount'"):
        methods.get("distil", discout=0.9)


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("distil", "credit", "product"),
        ("distil", "cost", "js"),
        ("distil", "baseline", "mean"),
        ("sdpo", "divergence", "kl"),
        ("sdpo", "teacher", "best"),
        ("sdpo", "teacher_rate", 2.0),
        ("sdpo", "support", "student_topk"),
        ("drift", "routing", "hard"),
        ("drift", "buffer", "big"),
        ("sdpo", "sources", ("oracle",)),
    ],
)
def test_bad_settings_are_refused(name, setting, value):
    with pytest.raises(ValueError, match=r"sources|top_k" if setting in ("sources", "support") else setting):
        methods.get(name, **{setting: value})


def test_a_method_of_ones_own(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from errata.methods.sdpo import SDPO\nclass Mine(SDPO):\n    pass\n")
    assert type(methods.get(f"{file}:Mine", divergence="reverse_kl")).__name__ == "Mine"
    with pytest.raises(ValueError, match="has no 'Other'"):
        methods.get(f"{file}:Other")
    with pytest.raises(ValueError, match="no file"):
        methods.get("missing.py:Mine")
