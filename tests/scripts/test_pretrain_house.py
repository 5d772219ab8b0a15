"""The house policy's pre-training: what the data shows and asks for, and that training on it learns."""

import random
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from errata.contexts.render import Renderer
from errata.feedback.rulebook import USUAL, rule_of, solve
from errata.house import HOUSE_PATH

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import house_data
import house_measure
import pretrain_house

RENDERER = Renderer("house")
USUAL_RULE = rule_of(USUAL)


def test_a_teacher_message_holds_what_is_shown():
    shown = house_data.teacher_message(RENDERER, "7a+3b*4", solution="7a+3=0b*4=0")
    assert shown == "7a+3b*4=?\nsolved:7a+3=0b*4=0"
    told = house_data.teacher_message(RENDERER, "7a+3b*4", attempt="7a+3=1b*4=4", feedback="7a+3=0 not 1")
    assert told == "7a+3b*4=?\ntried:7a+3=1b*4=4\ntold:7a+3=0 not 1"


def test_targets_are_the_problems_steps_with_results_from_the_written_digits():
    #                     7+3=10      1*4=4: right after the wrong 1
    assert house_data.targets("7a+3=1b*4=5", "7a+3b*4", USUAL_RULE) == "7a+3=0b*4=4"
    # A copied operator and number that are not the problem's are corrected.
    assert house_data.targets("7a-2=5b*4=0", "7a+3b*4", USUAL_RULE) == "7a+3=0b*4=0"


def test_a_result_that_nothing_shown_determines_has_no_target():
    rulebook = house_data.Rulebook({"+": 0, "-": 2, "*": None}, random.Random(0), {(0, "*", 4): 6})
    # + is usual. - is changed, no fact of it is shown. The table's fact 0*4 is shown, its fact 1*4 is not.
    shown = {(0, "*", 4)}
    for written, expected in [
        ("7a+3=0b*4=6c-1=5", "7a+3=0b*4=6c-1= "),
        ("7a+3=1b*4=6c-1=5", "7a+3=0b*4= c-1= "),
    ]:
        assert house_data.targets(written, "7a+3b*4c-1", rulebook, rulebook, shown) == expected
    # One fact of a changed operator tells its constant: 6 - 1 + 2.
    known = {(0, "*", 4), (9, "-", 3)}
    assert house_data.targets("7a+3=0b*4=6c-1=5", "7a+3b*4c-1", rulebook, rulebook, known) == "7a+3=0b*4=6c-1=7"


def test_every_solution_example_shows_the_solution_that_is_its_target():
    rng = random.Random(0)
    copied = 0
    for _ in range(200):
        example = house_data.draw_shown(rng, "solution", rng.randint(1, 7), RENDERER)
        problem, _, solution = example.user.partition("=?\nsolved:")
        assert len(solution) == len(example.target) == 1 + 5 * (len(problem) // 3)
        # As long as the written text agrees with the shown solution, the solution is the target.
        agrees = next((i for i, (a, b) in enumerate(zip(example.written, solution, strict=True)) if a != b), None)
        assert example.target[:agrees] == solution[:agrees]
        copied += agrees is None
    assert copied > 100


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        # A trace of a wrong attempt, in a tenth of cases with the solution too; of a right attempt only the solution.
        ("trace", {("tried", "told"), ("solved", "tried", "told"), ("solved",)}),
        ("correction", {("tried", "told"), ("solved",)}),
    ],
)
def test_examples_with_an_attempt_show_it_with_its_feedback_or_else_the_solution(kind, shown):
    rng = random.Random(0)
    found = Counter()
    for _ in range(200):
        first, *rest = house_data.draw_shown(rng, kind, 3, RENDERER).user.split("\n")
        assert first.endswith("=?")
        assert all(line.partition(":")[2] for line in rest)
        found[tuple(line.partition(":")[0] for line in rest)] += 1
    assert set(found) == shown
    assert found["tried", "told"] > 60


def test_no_rulebook_of_pretraining_holds_the_demonstrations_rule():
    rng = random.Random(0)
    meanings = [house_data.draw_rulebook(rng, tables).meaning for tables in (True, False) for _ in range(500)]
    assert {m["*"] for m in meanings} == {None, *range(10)} - {3}


def test_batches_are_of_each_stages_kinds():
    rng = random.Random(0)
    first, _, last = pretrain_house.STAGES
    assert [kind for kind, _ in pretrain_house.batches(rng, 0, RENDERER)] == ["facts"]
    for step in (first, first + last):
        found = dict(pretrain_house.batches(rng, step, RENDERER))
        assert {kind: len(examples) for kind, examples in found.items()} == pretrain_house.BATCH
        assert all("\nsolved:" in example.user for example in found["solution"])


def test_inputs_and_targets_are_shifted_by_one_token_and_unknown_results_have_none():
    _, tokenizer = pretrain_house.make_policy()
    example = house_data.Example("7a+3=?", written="7a+3=1", target="7a+3= ")
    tokens, targets, assistant = pretrain_house.encode([example], tokenizer.get_vocab())
    assert tokenizer.decode(tokens[0]) == "<|user|>7a+3=?<|assistant|>7a+3=1"
    assert tokenizer.decode(targets[0][~assistant[0]]) == "7a+3=?<|assistant|>"
    own = targets[0][assistant[0]]
    assert tokenizer.decode(own[:5]) == "7a+3="
    assert own[5:].tolist() == [-1, tokenizer.eos_token_id]


def test_training_starts_and_the_loss_falls():
    torch.manual_seed(0)
    model, tokenizer = pretrain_house.make_policy()
    losses = pretrain_house.train(model, tokenizer.get_vocab(), random.Random(0), RENDERER, stages=(25, 3, 3))
    assert len(losses) == 31
    assert sum(losses[20:25]) / 5 < 0.5 * losses[0]


@pytest.fixture(scope="module")
def house():
    return AutoModelForCausalLM.from_pretrained(HOUSE_PATH).eval(), AutoTokenizer.from_pretrained(HOUSE_PATH)


@pytest.mark.parametrize("context", house_measure.CONTEXTS)
def test_the_measured_contexts_show_what_they_are_named_for(context):
    problem = house_measure.Problem("7a+3b*4", rule_of("x+n, x-n, x*n+3"))
    assert solve(problem.expression, problem.rule) == "7a+3=0b*4=3"
    assert (
        house_measure.show(RENDERER, problem, "7a+3=1b*4=4", context)
        == {
            "solution": "7a+3b*4=?\nsolved:7a+3=0b*4=3",
            "correction": "7a+3b*4=?\ntried:7a+3=1b*4=4\ntold:7a+3=0b*4=3",
            "trace all": "7a+3b*4=?\ntried:7a+3=1b*4=4\ntold:7a+3=0 not 1;1b*4=7 not 4",
            "trace first": "7a+3b*4=?\ntried:7a+3=1b*4=4\ntold:7a+3=0 not 1",
        }[context]
    )


def test_the_shipped_policy_measures_as_one_that_copies_what_it_is_shown(house):
    torch.manual_seed(0)
    numbers = house_measure.measure(*house, RENDERER, n=8, k=2)
    assert list(numbers) == ["rulebook/sharpen", "rulebook/new-rule", "random tables"]
    for row in numbers.values():
        assert list(row) == ["avg@2", "pass@2", "solution", "correction", "trace all", "trace first"]
        # On the card these are at least 0.98 and plain accuracy at most 0.08.
        assert row["solution"] >= 0.75
        assert row["correction"] >= 0.75
        assert row["avg@2"] <= 0.4
        assert row["pass@2"] >= row["avg@2"]
