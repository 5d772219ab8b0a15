"""A context of its own for each of the policy's turns: pieces, states, queries, and a run with tools."""

import pytest
import torch
from tests.training import tool_world as world
from tests.training.test_tools import TOKENIZER, USER, spied, tools_trainer

from errata.contexts import Rendered
from errata.experts import Answer
from errata.experts.queries import joined
from errata.training import teacher_pass
from errata.training.forward import accept_head_function
from errata.training.turns import Piece, assemble, pieces, spans


def test_spans_are_the_runs_of_own_tokens():
    assert spans(torch.tensor([1, 1, 0, 0, 1, 0, 1]).bool()) == [(0, 2), (4, 5), (6, 7)]
    assert spans(torch.tensor([0, 1]).bool()) == [(1, 2)]
    assert spans(torch.zeros(3).bool()) == spans(torch.zeros(0).bool()) == []


def test_a_rollout_with_one_prompt_is_one_piece():
    mask = torch.tensor([1, 0, 1, 0]).bool()
    assert pieces(4, Rendered("p"), mask, 3) == [Piece(4, "p", 0, 3)]


def test_each_turn_has_its_prompt_and_further_turns_the_last():
    mask = torch.tensor([1, 1, 0, 1, 0, 1, 0]).bool()
    assert pieces(0, Rendered("a", by_turn=("a", "b")), mask, 6) == [
        Piece(0, "a", 0, 2),
        Piece(0, "b", 3, 4),
        Piece(0, "b", 5, 6),
    ]
    # Cut off within the tool's first answer, and before a first token of its own.
    assert pieces(0, Rendered("a", by_turn=("a", "b")), mask, 3) == [Piece(0, "a", 0, 2)]
    assert pieces(0, Rendered("a", by_turn=("a", "b")), torch.zeros(0).bool(), 0) == [Piece(0, "a", 0, 0)]


def test_states_are_taken_from_the_piece_of_their_turn():
    first, second = torch.full((2, 3), 1.0), torch.full((5, 3), 2.0)
    states = assemble([(Piece(0, "a", 0, 2), first), (Piece(0, "b", 3, 5), second)], 6)
    assert states[:, 0].tolist() == [1, 1, 0, 2, 2, 0]


def test_answers_of_two_queries_are_joined():
    one = Answer((0, 1), torch.tensor([[5], [6]]), torch.zeros(2, 1))
    two = Answer((4,), torch.tensor([[7, 8]]), torch.full((1, 2), -0.7))
    both = joined(one, two)
    assert both.positions == (0, 1, 4)
    assert both.tokens.tolist() == [[5, 0], [6, 0], [7, 8]]
    assert both.logp[:, 1].tolist() == [-torch.inf, -torch.inf, pytest.approx(-0.7)]
    assert joined(None, two) is two
    assert joined(one, None) is one


def per_turn(completions, answer, **_):
    """Judges as ``one_more`` and says of each call that it was one."""
    whole = USER["one_more"](completions, answer)
    return [{**verdict, "turn_feedback": ["a call"]} for verdict in whole]


def test_the_teacher_of_each_turn_sees_what_followed_it(tmp_path, monkeypatch):
    given = []

    def recorded(prompts, completions):
        given.append((prompts, completions))
        return original(prompts, completions)

    original = teacher_pass.teacher_sequences
    monkeypatch.setattr(teacher_pass, "teacher_sequences", recorded)
    kept = []
    t = tools_trainer(
        tmp_path, tools=[USER["add"]], verifiers=(per_turn,), keep=kept, method_args={"sources": ["hindsight"]}
    )
    batches = spied(t)
    t.train()
    (batch,), ((prompts, completions),) = batches, given
    assert all(c.kind == "hindsight" for c in batch.contexts)  # solved ones too: a tool answered
    expected_prompts, expected_ids = [], []
    for row, rollout in enumerate(batch.rollouts):
        a, b = map(int, rollout.problem_id.split("+"))
        last = "" if rollout.reward else f"\n{rollout.verdict.feedback}"
        start = f"<|system|>add <|end|><|user|>{a}+{b}"
        second = start if rollout.reward else f"{start} {rollout.verdict.feedback}"
        expected_prompts += [f"{start} a call\n-> {a + b}{last}<|end|><|assistant|>", f"{second}<|end|><|assistant|>"]
        (_, first_end), (_, second_end) = spans(batch.tokens.mask[row])
        ids = batch.tokens.completion_ids[row].tolist()
        expected_ids += [ids[:first_end], ids[:second_end]]
    assert [TOKENIZER.decode(p) for p in prompts] == expected_prompts
    assert completions == expected_ids
    # The states that are read are those of a plain forward of each turn.
    model = world.tool_policy()
    accept_head_function(model)
    at = 0
    for row in range(len(batch.rollouts)):
        for start, end in spans(batch.tokens.mask[row]):
            ids = torch.tensor([[*prompts[at], *completions[at]]])
            with torch.no_grad():
                hidden = model(input_ids=ids, with_head=lambda hidden, head: hidden)[0]
            read = batch.teacher.states[row][start:end]
            assert torch.allclose(read, hidden[len(prompts[at]) - 1 :][start:end], atol=1e-5)
            at += 1
    rows = [row for stem, row in kept if stem == "rollouts"]
    assert {tuple(row["turn_feedback"]) for row in rows} == {("a call",)}
    assert all(len(row["context"]["by_turn"]) == 2 for row in rows)


def test_a_run_learns_from_hindsight_and_credit_runs_through_the_turns(tmp_path):
    kept = []
    t = tools_trainer(
        tmp_path,
        tools=[USER["add"]],
        verifiers=(per_turn,),
        keep=kept,
        max_steps=2,
        method_args={
            "sources": ["hindsight"],
            "cost": "ce",
            "baseline": "none",
            "discount": 1.0,
            "credit_limit": None,
        },
    )
    t.train()
    rows = [row for stem, row in kept if stem == "rollouts"]
    assert len(rows) == 16
    for row in rows:
        own = [k for k, g in enumerate(row["generated"]) if g]
        assert 0 < len(own) < len(row["generated"])
        cost = [row["signals"]["divergence"][k] for k in own]
        advantage = [row["signals"]["advantage"][k] for k in own]
        assert advantage == pytest.approx([-sum(cost[k + 1 :]) for k in range(len(cost))], abs=1e-2)


def test_an_expert_is_queried_once_for_each_turn(tmp_path):
    t = tools_trainer(tmp_path, tools=[USER["add"]], verifiers=(per_turn,), method_args={"sources": ["hindsight"]})
    batches = spied(t)
    t.train()
    (batch,) = batches
    row = 0
    weight = dict.fromkeys(batch.tokens.mask[row].nonzero().flatten().tolist(), 1.0)
    place = teacher_pass.Place(seed=1, step=0, first=0)
    first, second = t.teacher_pass._queries(row, batch.prompts, batch.tokens, weight, place)
    (_, middle), (start, end) = spans(batch.tokens.mask[row])
    assert first.positions == tuple(range(middle))
    assert second.positions == tuple(range(start, end))
    assert len(first.completion_ids) == middle
    assert len(second.completion_ids) == end
    assert first.prompt != second.prompt
