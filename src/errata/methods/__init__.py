"""The methods by name. Each is a file of about a screen; a preset is a method with one paper's settings.

``get("distil")`` is ours; ``get("distil-science")`` is as released; ``get("path/to/file.py:MyMethod")`` is yours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from errata.feedback import load_function
from errata.methods.base import Batch, Method, Scores, Signals, TeacherMethod
from errata.methods.distil import DistIL
from errata.methods.drift import DRIFT
from errata.methods.grpo import GRPO
from errata.methods.opsd import OPSD
from errata.methods.sdpo import SDPO
from errata.methods.sft import SFT
from errata.methods.srpo import SRPO
from errata.validate import check_settings, nearest

__all__ = ["PRESETS", "Batch", "Method", "Preset", "Scores", "Signals", "TeacherMethod", "get", "names"]


@dataclass(frozen=True, slots=True)
class Preset:
    """A method with one source's settings."""

    method: type[Method]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields that differ from the method's defaults."""
    trainer: Mapping[str, Any] = field(default_factory=dict)
    """What the source sets in the trainer (TRL's names); printed and used in recipes, never applied silently."""
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    """How the source evaluates: samples of each problem (k), sampling, tokens."""
    setup: str = ""
    """The source's models and data."""
    source: str = ""


_MATH = {"learning_rate": 5e-6, "lora_r": 64, "lora_alpha": 128}
_SCIENCE = {"per_step": "32 problems x 8", "max_prompt_length": 2048, "max_completion_length": 8192}
_SCIENCE_EVALUATION = {"k": 16, "temperature": 0.6}
_GRPO = {"scale_rewards": "none", "epsilon": 0.2, "epsilon_high": 0.28, "beta": 0.0, "loss_type": "dapo"}
_OPSD = {
    **_MATH,
    "lora_target_modules": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "max_grad_norm": 0.1,
    "temperature": 1.1,
    "top_p": 0.95,
    "top_k": 20,
    "per_step": "32 problems x 1",
    "max_completion_length": 1024,
    "max_steps": 100,
}
_NO_THINKING = {"chat_template_kwargs": {"enable_thinking": False}}
_OPSD_EVALUATION = {"k": 12, "temperature": 1.0, "max_completion_length": 38912}
_OPSD_SETUP = "Qwen3-1.7B, 4B and 8B; OpenThoughts mathematics; AIME24, AIME25, HMMT25"

PRESETS: dict[str, Preset] = {
    "grpo": Preset(
        GRPO,
        trainer=_GRPO,
        source="arXiv 2402.03300; the settings of the baseline in arXiv 2601.20802 and 2606.05152",
    ),
    "sdpo": Preset(SDPO, trainer={"learning_rate": 1e-5}, source="arXiv 2601.20802, exact full vocabulary"),
    "opsd": Preset(
        OPSD,
        trainer={**_OPSD, **_NO_THINKING},
        evaluation=_OPSD_EVALUATION,
        setup=f"{_OPSD_SETUP}, thinking",
        source="arXiv 2601.18734 as released (teacher thinks, student does not)",
    ),
    "srpo": Preset(SRPO, trainer={"learning_rate": 5e-6}, source="arXiv 2604.02288"),
    "distil": Preset(DistIL, source="arXiv 2606.05152; length-neutral credit, docs/length.md"),
    "drift": Preset(DRIFT, source="arXiv 2606.30345; released routing, our documented defaults"),
    "sft": Preset(SFT, source="the likelihood of the reference; a baseline of arXiv 2606.05152 and 2601.18734"),
    "grpo-mini-8": Preset(
        GRPO,
        trainer={
            **_GRPO,
            "learning_rate": 1e-6,
            "max_steps": 500,
            "per_update": "8 of the 32 problems sampled at a time",
        },
        source="arXiv 2606.05152, baselines: mini-batch 8",
    ),
    "grpo-mini-32": Preset(
        GRPO,
        trainer={**_GRPO, "learning_rate": 1e-5, "max_steps": 500, "per_update": "all 32 problems sampled at a time"},
        source="arXiv 2606.05152, baselines: mini-batch 32",
    ),
    "sdpo-science": Preset(
        SDPO,
        {
            "divergence": "js",
            "support": "student_topk",
            "top_k": 100,
            "teacher_rate": 0.05,
            "sources": ("sibling", "feedback"),
        },
        {"learning_rate": 1e-5, **_SCIENCE},
        source="arXiv 2601.20802, science",
    ),
    "sdpo-code": Preset(
        SDPO,
        {
            "divergence": "reverse_kl",
            "support": "student_topk",
            "top_k": 20,
            "teacher_rate": 0.01,
            "sources": ("sibling", "feedback"),
        },
        {"learning_rate": 1e-6},
        source="arXiv 2601.20802, coding",
    ),
    "distil-exact": Preset(
        DistIL,
        {"baseline": "leave_one_out", "discount": 1.0, "credit_limit": None},
        source="arXiv 2606.05152, equation of the exact gradient, centred; shortens answers of free length, docs/length.md",
    ),
    "distil-science": Preset(
        DistIL,
        {
            "credit": "mean",
            "cost": "ce",
            "discount": 1.0,
            "credit_limit": None,
            "baseline": "none",
            "support": "student_topk",
            "top_k": 100,
            "teacher_rate": 0.01,
            "sources": ("sibling",),
            "surrogate": "importance",
        },
        {"learning_rate": 5e-5, "warmup_steps": 10, **_SCIENCE},
        _SCIENCE_EVALUATION,
        "Qwen3-8B and Olmo-3-7B-Instruct on SciKnowEval; plotted against wall-clock time",
        source="arXiv 2606.05152, science, as released",
    ),
    "distil-code": Preset(
        DistIL,
        {
            "credit": "mean",
            "cost": "ce",
            "discount": 1.0,
            "credit_limit": None,
            "baseline": "none",
            "support": "student_topk",
            "top_k": 20,
            "teacher_rate": 0.01,
            "sources": ("sibling", "feedback"),
            "surrogate": "importance",
        },
        {"learning_rate": 1e-6, "per_update": "1 of the 32 problems sampled at a time"},
        {"step": 80, "k": 16, "temperature": 0.2, "top_p": 0.95, "top_k": 20},
        "Qwen3-8B on LiveCodeBench v6",
        source="arXiv 2606.05152, coding, as released",
    ),
    "distil-math": Preset(
        DistIL,
        {
            "credit": "reweight",
            "cost": "ce",
            "discount": 1.0,
            "credit_limit": None,
            "baseline": "none",
            "support": "teacher_topk",
            "top_k": 100,
            "teacher": "frozen",
            "sources": ("reference",),
            "surrogate": "importance",
        },
        {**_MATH, "max_completion_length": 16384, "max_steps": 100},
        {"k": 64, "temperature": 0.7, "top_p": 0.95, "top_k": 20},
        "Qwen3-4B-Instruct-2507 and Qwen3-8B (evaluated at temperature 1 with 38,912 tokens); POPE-HARD with oracle solutions "
        "and the OmniMath problems that the 4B model solves in none of 512 tries, 738 in all; AIME24, AIME25, HMMT25, AMC23, "
        "Minerva",
        source="arXiv 2606.05152, mathematics, as released",
    ),
    "opsd-nonthinking": Preset(
        OPSD,
        {"entry_clip": 1e-6, "teacher_chat_template_kwargs": {"enable_thinking": False}},
        {**_OPSD, **_NO_THINKING},
        {"k": 12, "temperature": 1.0},
        f"{_OPSD_SETUP}, without thinking; entry_clip 1e-7 for 8B",
        source="arXiv 2601.18734 as released (neither thinks)",
    ),
    "opsd-paper": Preset(
        OPSD,
        {"entry_clip": None},
        {**_OPSD, "max_completion_length": 2048},
        _OPSD_EVALUATION,
        f"{_OPSD_SETUP}, thinking",
        source="arXiv 2601.18734, first version: no clip",
    ),
    "srpo-forward": Preset(
        SRPO,
        {"divergence": "forward_kl"},
        {"learning_rate": 5e-6},
        source="ours: SRPO's routing (arXiv 2604.02288), forward KL as in arXiv 2606.05152; docs/results.md",
    ),
    "drift-paper": Preset(
        DRIFT,
        {
            "routing": "paper",
            "buffer": "paper",
            "buffer_fallback": "group",
            "sources": ("sibling", "buffer"),
            "denominators": "routed",
        },
        source="arXiv 2606.30345, the paper's bins and buffer",
    ),
    "drift-released": Preset(
        DRIFT,
        {"sources": ("sibling", "buffer"), "decay_per": "step", "denominators": "routed"},
        source="arXiv 2606.30345, the released code",
    ),
}


def names() -> tuple[str, ...]:
    """All names ``get`` knows, methods first."""
    return tuple(PRESETS)


def get(name: str, **settings: Any) -> Method:
    """The method or preset called ``name``, with ``settings`` over its own.

    Args:
        name: one of ``names()``, or ``path.py:Class`` / ``package.module:Class`` for a method of yours.
        settings: fields of the method.
    Raises:
        ValueError: an unknown name or setting, with the nearest known one; a setting out of range.
    """
    preset = PRESETS.get(name) or (_user_preset(name) if ":" in name else None)
    if preset is None:
        raise ValueError(f"method: unknown {name!r}{nearest(name, PRESETS)}; known are {', '.join(PRESETS)}")
    known = {f.name for f in fields(preset.method)}
    for key in settings:
        if key not in known:
            raise ValueError(f"method_args: {name} has no setting {key!r}{nearest(str(key), known)}")
    # Here as well as in Method.__post_init__, which a method of the user's may compute in before it calls ours.
    check_settings(preset.method, settings)
    return preset.method(**{**preset.settings, **settings})


def _user_preset(name: str) -> Preset:
    found = load_function(name, "method")
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise ValueError(f"method: {name!r} is no Method class; it must inherit from errata.methods.Method")
    return Preset(found, source=name.rpartition(":")[0])
