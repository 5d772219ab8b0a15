"""Every metric that is logged is in the glossary of metrics, and all trackers get the same names."""

import ast
import json
from pathlib import Path

import pytest
from tests.training.worlds import trainer
from transformers.integrations import integration_utils

from errata.evaluation import summary
from errata.reports import glossary

ROOT = Path(__file__).parents[2]
REFERENCES = sorted((ROOT / "tests" / "invariant" / "references").glob("*.json"))
ALL = [m for metrics in glossary.TRAINING.values() for m in metrics]


def test_the_page_is_the_glossary():
    assert (ROOT / "docs" / "metrics.md").read_text() == glossary.page()


def test_names_are_unique_and_explained():
    names = [m.name for m in (*ALL, *glossary.EVALUATION)]
    assert len(set(names)) == len(names)
    for metric in (*ALL, *glossary.EVALUATION):
        assert metric.unit in {"share", "nats", "tokens", "seconds", "count", "number"}
        assert metric.meaning.endswith(".")


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("reward", "reward"),
        ("avg@16", "avg@K"), ("rewards/judge/mean", "rewards/NAME/mean"), ("context/hindsight", "context/NAME"),
        ("rulebook/new-rule/avg@8", "TASK/avg@K"), ("rewards/a/b/mean", None), ("avg@", None), ("xreward", None),
    ],
)  # fmt: skip
def test_a_name_is_found_by_its_pattern(name, entry):
    found = glossary.find(name)
    assert (found and found.name) == entry


def test_every_metric_of_the_reference_trainings_is_there():
    assert len(REFERENCES) > 60
    names = {name for file in REFERENCES for name in json.loads(file.read_text())}
    assert len(names) > 70
    assert {name for name in names if glossary.find(name) is None} == set()


def test_every_metric_that_the_code_names_is_there():
    """Texts like ``buffer/hits`` in the code whose first half begins a known metric."""
    families = {m.name.split("/")[0] for m in ALL if "/" in m.name}
    named = set()
    for package in ("training", "methods", "experience", "experts"):
        for file in (ROOT / "src" / "errata" / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
                    head, _, tail = node.value.partition("/")
                    if head in families and tail:
                        named.add(node.value)
    assert len(named) > 25
    assert {name for name in named if glossary.find(name) is None} == set()


class Recorder:
    """Stands for the trackers' libraries; keeps the names of what is logged."""

    def __init__(self):
        self.names = set()
        self.run = self
        self.summary = {}

    def add_scalar(self, name, value, step):
        self.names.add(name)

    def log(self, logs):
        self.names |= set(logs) - {"train/global_step"}

    def flush(self):
        pass


def test_training_and_evaluation_log_known_names_and_trackers_get_the_same(tmp_path):
    kept = []
    run = trainer(tmp_path, "distil", max_steps=1, keep=kept, eval_rows=2)
    run.train()
    run.evaluate()
    logs = [log for log in run.state.log_history if "train_runtime" not in log]
    trained = {name for log in logs for name in log if not name.startswith("eval_")}
    evaluated = {name.removeprefix("eval_") for log in logs for name in log if name.startswith("eval_")}
    row = next(row for stem, row in kept if stem == "eval")
    assert evaluated >= {name for name, value in row.items() if isinstance(value, int | float) and name != "step"}
    assert {"reward", "teacher/gap", "step_time"} & trained
    assert {f"avg@{run.args.eval_k}", "teacher_accuracy"} <= evaluated
    assert {name for name in trained | evaluated if glossary.find(name) is None} == set()

    names = []
    for kind, library in (("TensorBoard", "tb_writer"), ("Wandb", "_wandb"), ("Trackio", "_trackio")):
        callback = object.__new__(getattr(integration_utils, f"{kind}Callback"))
        recorder = Recorder()
        setattr(callback, library, recorder)
        callback._initialized = True
        for log in logs:
            callback.on_log(run.args, run.state, run.control, logs=log)
        names.append(recorder.names)
    assert names[0] == names[1] == names[2] == {f"train/{n}" for n in trained} | {f"eval/{n}" for n in evaluated}


def test_a_summary_has_known_names():
    rows = [
        {
            "problem_id": "a",
            "score": score,
            "length": 3,
            "kind": "",
            "feedback": "",
            "info": {"chosen": "B", "strict_format": True},
        }
        for score in (1.0, 0.0)
    ]
    assert {name for name in summary(rows, k=2) if glossary.find(name) is None} == set()
