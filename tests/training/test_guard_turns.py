"""What the guard reads of a real run of several turns: lengths without what tools said, and the teacher's accuracy."""

import pytest

from errata.recipe.build import build_trainer
from errata.recipe.read import recipe_of


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trainer after its one step, and what it kept."""
    kept = []
    recipe = recipe_of(
        {
            "model": "drawers",
            "task": "drawers",
            "method": "distil",
            "method_args": {"sources": ["hindsight"]},
            "teacher": "frozen",
            "guard": "stop",
            "context_template": "{{ prompt }}{% if feedback %}\ntold:{{ feedback }}{% endif %}",
            "max_tool_calling_iterations": 4,
            "max_completion_length": 80,
            "per_device_train_batch_size": 8,
            "num_generations": 4,
            "max_steps": 1,
            "eval_strategy": "steps",
            "eval_on_start": True,
            "eval_steps": 1,
            "eval_problems": 8,
            "eval_k": 2,
            "eval_teacher_problems": 8,
            "rollouts_saved": 8,
            "learning_rate": 1e-9,
            "preflight": 0,
            "use_cpu": True,
            "save_strategy": "no",
            "report_to": "none",
            "seed": 1,
            "output_dir": str(tmp_path_factory.mktemp("run")),
        }
    )
    trainer = build_trainer(recipe, lambda stem, row: kept.append((stem, row)))
    trainer.train()
    return trainer, kept


def test_lengths_hold_the_policys_own_tokens_alone(run, tmp_path):
    trainer, kept = run
    rollouts = [row for stem, row in kept if stem == "rollouts"]
    assert len(rollouts) == 8
    assert any(len(row["turns"]) > 2 for row in rollouts)
    own, told = [], 0

    def count(*texts):
        return len(trainer.tokenizer("".join(texts), add_special_tokens=False)["input_ids"])

    for row in rollouts:
        calls = [
            '<call>{"name": "open", "arguments": {"drawer": "%(drawer)s", "key": "%(key)s"}}</call>'  # noqa: UP031
            % call["function"]["arguments"]
            for turn in row["turns"]
            if turn["role"] == "assistant"
            for call in turn.get("tool_calls") or ()
        ]
        said = [turn["content"] for turn in row["turns"] if turn["role"] == "assistant" and turn.get("content")]
        turns = sum(turn["role"] == "assistant" for turn in row["turns"])
        tokens = count(*calls, *said)
        told += count(*(turn["content"] for turn in row["turns"] if turn["role"] == "tool"))
        own.append((tokens, tokens + turns))  # and the end of each turn, but of one that was cut
    (log,) = [log for log in trainer.state.log_history if "completions/mean_length" in log]
    assert sum(low for low, _ in own) / 8 <= log["completions/mean_length"] <= sum(high for _, high in own) / 8
    assert told > sum(high - low for low, high in own)  # what tools said would not fit between the two
    steps = trainer.guard.save(tmp_path)["steps"]
    assert steps["first"]["completions/mean_length"] == [log["completions/mean_length"]]


def test_the_teachers_accuracy_is_of_whole_rollouts(run):
    """The teacher is shown what became known after the first turn, the right keys, and acts in an environment of its own."""
    _, kept = run
    evaluations = [row for stem, row in kept if stem == "eval"]
    assert [row["step"] for row in evaluations] == [0, 1]
    for row in evaluations:
        assert row["teacher_problems"] > 0
        assert row["teacher_accuracy"] > row["student_accuracy"] + 0.2
        assert row["teacher_lead"] == pytest.approx(row["teacher_accuracy"] - row["student_accuracy"])
