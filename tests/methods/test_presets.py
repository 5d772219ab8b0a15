"""Every default of every preset, with its source. A number changed by accident fails here.

"Released" is the code that a paper's authors published, with the file or flag that says so.
"""

import pytest

from errata import methods

SETTINGS = {
    # arXiv 2402.03300, section 4.1: rewards alone
    "grpo": {"uses_teacher": False, "learns_from": "rollouts"},
    # The baseline of arXiv 2606.05152 and 2601.18734: the likelihood of the reference
    "sft": {"uses_teacher": False, "learns_from": "reference"},
    # arXiv 2601.20802, science: "JS(1/2)", "top-K = 100 plus one tail bucket", "EMA teacher 0.05"; released: min(rho, 2)
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
        # "the first successful other response of its group (thinking stripped), else environment feedback"
        "demonstrations": 1,
        "with_feedback": False,
        "history": 0,
        "keep_thinking": False,
        "context_template": "sdpo",
    },
    # arXiv 2601.20802, coding: "reverse KL", "K = 20", "EMA 0.01"
    "sdpo-code": {
        "divergence": "reverse_kl",
        "support": "student_topk",
        "top_k": 20,
        "teacher": "ema",
        "teacher_rate": 0.01,
    },
    # arXiv 2601.18734, section 3, f = the reference solution, and the release of 2026-03-18 (siyan-zhao/OPSD):
    # scripts/run_opsd_1b.sh "--beta 0" (forward KL), "--jsd_token_clip 0.05", "--fixed_teacher",
    # no "--top_k_loss" (the whole vocabulary); its README:
    # "clipping is applied point-wise, not to the vocabulary-summed loss"; data_collator.py: student_thinking=False,
    # teacher_thinking=True; no importance weight
    "opsd": {
        "sources": ("reference",),
        "teacher": "frozen",
        "divergence": "forward_kl",
        "support": "full",
        "entry_clip": 0.05,
        "token_clip": None,
        "importance_clip": None,
        "context_template": "opsd",
        "teacher_chat_template_kwargs": {"enable_thinking": True},
    },
    # The same release: scripts/run_opsd_4b_nonthink.sh, "--student_thinking False --teacher_thinking False"; README, "Qwen3-4B
    # (--jsd_token_clip 1e-6)", "Qwen3-8B (--jsd_token_clip 1e-7)"
    "opsd-nonthinking": {
        "divergence": "forward_kl",
        "support": "full",
        "entry_clip": 1e-6,
        "teacher_chat_template_kwargs": {"enable_thinking": False},
    },
    # arXiv 2601.18734, first version: no clip
    "opsd-paper": {"divergence": "forward_kl", "support": "full", "entry_clip": None, "token_clip": None},
    # arXiv 2604.02288: "JS", "proportional to exp(-beta H_T), beta = 1", one shared denominator
    "srpo": {"divergence": "js", "alpha": 0.5, "entropy_beta": 1.0, "denominators": "shared"},
    # ours, docs/results.md: as srpo, with forward KL
    "srpo-forward": {"divergence": "forward_kl", "entropy_beta": 1.0, "denominators": "shared", "support": "full"},
    # docs/length.md: length-neutral, about 50 tokens ahead
    "distil": {
        "credit": "sum",
        "cost": "kl",
        "baseline": "per_token",
        "discount": 0.98,
        "credit_limit": 0.5,
        "shrink": True,
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
    # arXiv 2606.05152, science, as released: "K = 100", "EMA 0.01", sibling successes only; credit the mean of CE, uncentred
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
    # arXiv 2606.05152, coding, as released: "K = 20", "0.01", sibling else environment feedback
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
    # arXiv 2606.05152, mathematics, as released: frozen teacher with the reference solution, its top 100 renormalised, CE
    # reweighted
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
    # LOG.md: one denominator, as SRPO's; the presets of the sources keep two
    "drift": {"denominators": "shared", "divergence": "js", "routing": "released"},
    # arXiv 2606.30345: "JS 1/2", about 60 steps of warm-up, "mu = 0.2, tau = 1, B_max = 2"; W, a, lambda, m_min, m_max are ours
    "drift-paper": {
        "routing": "paper",
        "denominators": "routed",
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
    # arXiv 2606.30345, released configuration: problem_pass_rate_binary_sample_routing true, the rhythm bonus at medium problems
    # alone, gate_floor 0, gate_power 1
    "drift-released": {
        "routing": "released",
        "denominators": "routed",
        "binary_routing": True,
        "buffer": "released",
        "decay_per": "step",
        "bonus_hard": 0.0,
        "bonus_medium": 1.0,
        "bonus_easy": 0.0,
        "gate_floor": 0.0,
        "gate_power": 1.0,
    },
}

_OPSD = {
    # scripts/run_opsd_1b.sh of the release: "--learning_rate 5e-6 --max_grad_norm 0.1 --lora_r 64 --lora_alpha 128 --temperature
    # 1.1 --top_p 0.95 --top_k 20"; arXiv 2601.18734, training details: batch 32, one rollout a problem, 100 steps
    "learning_rate": 5e-6,
    "lora_r": 64,
    "lora_alpha": 128,
    "max_grad_norm": 0.1,
    "temperature": 1.1,
    "top_p": 0.95,
    "top_k": 20,
    "per_step": "32 problems x 1",
    "max_steps": 100,
}
TRAINER = {
    # The baseline of arXiv 2601.20802 and 2606.05152: no division by the deviation, clip 0.2/0.28, no KL, token mean
    "grpo": {"scale_rewards": "none", "epsilon": 0.2, "epsilon_high": 0.28, "beta": 0.0, "loss_type": "dapo"},
    # arXiv 2606.05152, baselines: learning rate 1e-6 with mini-batch 8, 1e-5 with mini-batch 32; mathematics: 500 steps
    "grpo-mini-8": {"learning_rate": 1e-6, "per_update": "8 of the 32 problems sampled at a time", "max_steps": 500},
    "grpo-mini-32": {"learning_rate": 1e-5, "per_update": "all 32 problems sampled at a time", "max_steps": 500},
    # arXiv 2601.20802, science and coding
    "sdpo-science": {"learning_rate": 1e-5},
    "sdpo-code": {"learning_rate": 1e-6},
    # "--max_completion_length 1024", "student_thinking=False"
    "opsd": {**_OPSD, "max_completion_length": 1024, "chat_template_kwargs": {"enable_thinking": False}},
    "opsd-nonthinking": {**_OPSD, "max_completion_length": 1024, "chat_template_kwargs": {"enable_thinking": False}},
    # The first release's README: "We use 2048 in our main experiments"
    "opsd-paper": {**_OPSD, "max_completion_length": 2048},
    # arXiv 2604.02288
    "srpo": {"learning_rate": 5e-6},
    "srpo-forward": {"learning_rate": 5e-6},
    # arXiv 2606.05152, released settings of science, coding and mathematics
    "distil-science": {"learning_rate": 5e-5, "warmup_steps": 10, "per_step": "32 problems x 8"},
    "distil-code": {"learning_rate": 1e-6, "per_update": "1 of the 32 problems sampled at a time"},
    "distil-math": {
        "learning_rate": 5e-6,
        "lora_r": 64,
        "lora_alpha": 128,
        "max_completion_length": 16384,
        "max_steps": 100,
    },
}

EVALUATION = {
    # README of the release: "temperature=1.0, thinking mode enabled, max new tokens=38912, num samples=12"
    "opsd": {"k": 12, "temperature": 1.0, "max_completion_length": 38912},
    # arXiv 2606.05152: science avg@16 at T = 0.6; coding at step 80, T = .2, n = 16; mathematics 64 samples
    "distil-science": {"k": 16, "temperature": 0.6},
    "distil-code": {"step": 80, "k": 16, "temperature": 0.2, "top_p": 0.95, "top_k": 20},
    "distil-math": {"k": 64, "temperature": 0.7, "top_p": 0.95, "top_k": 20},
}

SETUP = {
    # arXiv 2606.05152
    "distil-science": ("Qwen3-8B", "Olmo-3-7B-Instruct", "wall-clock"),
    "distil-code": ("LiveCodeBench v6",),
    "distil-math": (
        "Qwen3-4B-Instruct-2507",
        "Qwen3-8B",
        "38,912 tokens",
        "POPE-HARD with oracle solutions",
        "OmniMath",
        "none of 512 tries",
        "738",
        "AIME24, AIME25, HMMT25, AMC23, Minerva",
    ),
}


@pytest.mark.parametrize(("name", "setting"), [(n, s) for n, settings in SETTINGS.items() for s in settings])
def test_published_setting(name, setting):
    assert getattr(methods.get(name), setting) == SETTINGS[name][setting]


@pytest.mark.parametrize("name", TRAINER)
def test_published_trainer_setting_is_stated(name):
    stated = methods.PRESETS[name].trainer
    assert {k: stated[k] for k in TRAINER[name]} == TRAINER[name]


@pytest.mark.parametrize("name", EVALUATION)
def test_published_evaluation_is_stated(name):
    assert methods.PRESETS[name].evaluation == EVALUATION[name]


@pytest.mark.parametrize("name", SETUP)
def test_models_and_data_are_stated(name):
    for word in SETUP[name]:
        assert word in methods.PRESETS[name].setup


def test_every_preset_has_a_source_and_a_test():
    for name, preset in methods.PRESETS.items():
        assert preset.source, name
    assert {*SETTINGS, *TRAINER} | {"sdpo", "drift"} == {
        *methods.names()
    }  # these two are others' settings with changes of ours


def test_names_start_with_the_methods():
    assert methods.names()[:7] == ("grpo", "sdpo", "opsd", "srpo", "distil", "drift", "sft")


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
