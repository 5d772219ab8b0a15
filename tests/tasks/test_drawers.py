"""The embedded world of several turns: rows, the tool, verdicts, its policy, and what a teacher knows at each turn."""

from pathlib import Path

import pytest

from errata import tasks
from errata.recipe.build import build_trainer
from errata.recipe.read import recipe_of
from errata.recipe.text import load_mapping
from errata.tasks.drawers import DRAWERS, KEYS, USUAL, Drawers


def played(*calls):
    world = Drawers()
    world.reset()
    return world, [world.open(drawer, key) for drawer, key in calls]


def test_rows_and_splits():
    train, test = (tasks.load("drawers", split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (100, 32)
    assert len({*train["problem_id"], *test["problem_id"]}) == 132
    assert train[0]["prompt"][0]["content"] == f"open {train[0]['drawers'][0]} {train[0]['drawers'][1]}"
    assert sum(KEYS[d] == USUAL[d] for d in DRAWERS) == 3
    with pytest.raises(ValueError, match="drawers has train and test, not 'dev'"):
        tasks.load("drawers", split="dev")


def test_the_tool_says_what_was_wrong():
    world, said = played(("a", "0"), ("z", "1"), ("a", "5"), ("b", "1"), ("b", "1"))
    assert said == ["a needs key 5", "there is no drawer 'z'", "a opened by key 5", "b opened by key 1", "too late"]
    assert (world.opened, world.wrong) == ({"a", "b"}, 2)


@pytest.mark.parametrize(
    ("calls", "score", "result", "trace"),
    [
        ([("a", "5"), ("b", "1")], 1.0, "", ""),
        (
            [("a", "0"), ("a", "5"), ("b", "1")],
            0.0,
            "1 wrong",
            "a needs key 5\na opened by key 5\nb opened by key 1",
        ),
        ([("a", "5")], 0.0, "0 wrong\nb is shut", "a opened by key 5"),
    ],
)
def test_verdicts(calls, score, result, trace):
    for feedback, said in (("result", result), ("trace", trace)):
        (verdict,) = tasks.verifier("drawers", feedback=feedback)([""], [played(*calls)[0]], ["ab"])
        assert (verdict.score, verdict.feedback) == (score, said)
    with pytest.raises(ValueError, match="feedback: 'all' is none of result, trace"):
        tasks.verifier("drawers", feedback="all")


def test_the_teacher_knows_at_each_turn_what_followed_it(tmp_path):
    recipe = {**load_mapping(Path("recipes/drawers.yaml")), "per_device_train_batch_size": 32, "max_steps": 1}
    kept = []
    trainer = build_trainer(
        recipe_of(
            recipe | {"output_dir": str(tmp_path), "eval_strategy": "no", "eval_on_start": False, "preflight": 0}
        ),
        lambda stem, row: kept.append(row) if stem == "rollouts" else None,
    )
    trainer.train()
    checked = 0
    for row in kept:
        said = [m["content"] for m in row["turns"] if m["role"] == "tool"]
        assert row["context"]["by_turn"][0] == "\n".join(["-> " + text for text in said] + [row["feedback"]]).strip()
        if " needs key " not in said[0]:
            continue
        # The first call's key: the student draws it, and its teacher is told the right one.
        at = row["tokens"].index('", "key": "') + 1
        assert row["signals"]["teacher_logp"][at] < row["signals"]["student_logp"][at] - 1
        checked += 1
    assert checked
