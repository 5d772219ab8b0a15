"""TRL's own trainers on a cell's policy, task and budget: what errata's methods are compared with.

``python benchmarks/results.py --cell new-rule/trl-sdpo/seed-0`` runs one. TRL's SDPO gets the solution of every row as its
privileged context, in the words of errata's template, over the whole vocabulary with alpha .5. Its teacher is the base policy,
or follows the student, as the tuning trials say.
"""

from __future__ import annotations

from typing import Any

from results_cells import Cell
from transformers import AutoModelForCausalLM, PrinterCallback, set_seed
from trl import GRPOConfig, GRPOTrainer
from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

from errata import tasks
from errata.recipe.models import load_tokenizer, model_path

SHARED = (
    *(
        "learning_rate",
        "lr_scheduler_type",
        "warmup_steps",
        "max_steps",
        "per_device_train_batch_size",
        "num_generations",
    ),
    *("max_completion_length", "temperature", "gradient_checkpointing", "save_strategy", "seed", "output_dir"),
)
"""Settings that TRL's trainers have under the same name."""
COMMON = {"report_to": "none", "logging_steps": 1, "disable_tqdm": True, "bf16": False, "use_cpu": True}
GRPO = {"scale_rewards": "none", "epsilon_high": 0.28}
SDPO = {
    "distillation_mode": "full_logits",
    "distillation_alpha": 0.5,
    "use_successful_as_teacher": False,
    "include_environment_feedback": True,
    "reprompt_template": "{prompt}{solution}{feedback}",
    "feedback_template": "\nsolved:{feedback_raw}",
}


def train(cell: Cell, settings: dict[str, Any], measure: Any) -> tuple[Any, int]:
    """Train with TRL; the callback ``measure`` that was made for it, and how many tokens were sampled in training."""
    where = model_path(settings["model"])
    tokenizer = load_tokenizer(where)
    set_seed(settings["seed"])
    model = AutoModelForCausalLM.from_pretrained(where, dtype="float32")
    rows = tasks.load(settings["task"])
    rows = rows.add_column("privileged_context", list(rows["reference"]))
    verify = tasks.verifier(settings["task"], **settings.get("task_args", {}))

    def reward(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        columns = {k: v for k, v in columns.items() if isinstance(v, list)}
        return [float(v.score) for v in verify(prompts=prompts, completions=completions, **columns)]

    own = {key: settings[key] for key in SHARED} | COMMON
    made = measure(cell, tokenizer)
    common = {
        "model": model,
        "reward_funcs": reward,
        "train_dataset": rows,
        "processing_class": tokenizer,
        "callbacks": [made],
    }
    if cell.peer == "GRPOTrainer":
        trainer: Any = GRPOTrainer(args=GRPOConfig(**own, **GRPO), **common)
    else:
        kind = "base" if settings.get("teacher", "frozen") == "frozen" else "ema"
        trainer = SDPOTrainer(args=SDPOConfig(**own, **SDPO, teacher_model_kind=kind), **common)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    lengths = [row["completions/mean_length"] for row in trainer.state.log_history if "completions/mean_length" in row]
    return made, round(sum(lengths) * settings["per_device_train_batch_size"])
