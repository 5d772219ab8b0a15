"""Environments that answer messages: turns, masks, contexts at every turn, limits and failures, through TRL's real generation."""

import pytest

from errata.recipe.build import build_trainer
from errata.recipe.read import recipe_of
from errata.training.conversation import converse

USER_CODE = '''
class Talk:
    """Says ``go`` twice, then ends."""

    def reset(self, **row):
        self.heard = []

    def _reply(self, text):
        self.heard.append(text)
        return "go" if len(self.heard) < 3 else None


class Broken(Talk):
    """Every second one breaks."""

    made = 0

    def __init__(self):
        Broken.made += 1
        self.bad = Broken.made % 2 == 0

    def _reply(self, text):
        if self.bad:
            raise ConnectionResetError("the server was killed")
        return super()._reply(text)


def heard(completions, environments, **_):
    return [
        {"score": 0.0, "feedback": f"{len(e.heard)} messages", "kind": "talk", "turn_feedback": ["first", "second"]}
        for e in environments
    ]
'''
USER = {}
exec(USER_CODE, USER)
Talk = USER["Talk"]


def one_step(folder, environment):
    """The generation batch of a step of the policy of the task ``drawers`` in another world."""
    (folder / "mine.py").write_text(USER_CODE)
    settings = {
        "model": "drawers",
        "task": "drawers",
        "environment": f"{folder}/mine.py:{environment}",
        "verifier": [f"{folder}/mine.py:heard"],
        "method_args": {"sources": ["hindsight"]},
        "max_completion_length": 60,
        "max_tool_calling_iterations": 8,
        "max_steps": 1,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "gradient_checkpointing": False,
        "eval_strategy": "no",
        "save_strategy": "no",
    }
    trainer = build_trainer(recipe_of(settings | {"output_dir": str(folder)}))
    batches, original = [], trainer.on_rollouts

    def spy(rows, tokens):
        batches.append(original(rows, tokens))
        return batches[-1]

    trainer.on_rollouts = spy
    trainer.train()
    return batches[0], trainer.tokenizer


REPLY = "<|user|>go<|end|><|assistant|>"


def test_replies_are_turns_that_nothing_is_learned_from(tmp_path):
    batch, tokenizer = one_step(tmp_path, "Talk")
    for row, rollout in enumerate(batch.rollouts):
        roles = [m["role"] for m in rollout.turns]
        assert roles == ["assistant", "user", "assistant", "user", "assistant"][: len(roles)]
        mask = batch.tokens.mask[row]
        ids = batch.tokens.completion_ids[row]
        others = tokenizer.decode(
            [i for i, own in zip(ids.tolist(), mask.tolist(), strict=True) if not own and i != tokenizer.pad_token_id]
        )
        assert others == REPLY * roles.count("user")
        assert rollout.length == int(mask.sum())
        shown = batch.contexts[row].by_turn
        assert len(shown) == max(roles.count("assistant"), 1)
        if len(roles) == 5:
            assert shown == ("first\ngo\nsecond\ngo\n3 messages", "second\ngo\n3 messages", "3 messages")
    assert any(len(r.turns) == 5 for r in batch.rollouts)


def test_a_world_that_breaks_costs_its_rollouts(tmp_path):
    batch, _ = one_step(tmp_path, "Broken")
    bad = [r for r in batch.rollouts if r.reward is None]
    assert len(bad) == 4
    assert {r.verdict.info["error"] for r in bad} == {"environment: reply: ConnectionResetError: the server was killed"}


@pytest.mark.parametrize(
    ("most_tokens", "most_turns", "ids"),
    [(100, 9, [1, 2, 7, 0, 2, 7, 0, 2]), (100, 1, [1, 2, 7, 0, 2]), (4, 9, [1, 2]), (6, 9, [1, 2, 7, 0, 2])],
)
def test_limits_of_tokens_and_turns(most_tokens, most_turns, ids):
    world = Talk()
    world.reset()
    found, mask, logps, completions = [[1, 2]], [[1, 1]], [[-1.0, -1.0]], [[{"role": "assistant", "content": "a"}]]
    converse(
        [world],
        [[5]],
        found,
        mask,
        completions,
        logps,
        generate=lambda seen: ([[2] for _ in seen], [[-0.5] for _ in seen]),
        encode=lambda text: [7, 0],
        decode=str,
        ends=(2,),
        most_tokens=most_tokens,
        most_turns=most_turns,
    )
    assert found == [ids]
    assert mask == [[0 if i in (7, 0) else 1 for i in ids]]
    assert logps == [[-1.0, -1.0, *([0.0, 0.0, -0.5] * ((len(ids) - 2) // 3))]]
    assert len(completions[0]) == 1 + 2 * ((len(ids) - 2) // 3)


def test_a_message_that_was_cut_is_not_answered():
    world = Talk()
    world.reset()
    ids = [[1, 3]]
    converse(
        [world], [[5]], ids, [[1, 1]], [[{"role": "assistant", "content": "a"}]], None,
        generate=lambda seen: pytest.fail("nothing to say"), encode=lambda text: [7], decode=str, ends=(2,),
        most_tokens=100, most_turns=9,
    )  # fmt: skip
    assert ids == [[1, 3]]
