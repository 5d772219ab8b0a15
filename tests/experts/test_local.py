"""Another model as teacher: its whole distribution over the policy's vocabulary, or its text through any tokenizer."""

import math
import random
import re

import pytest
import torch
from tests.experts.worlds import CHARACTERS, WORDS, build_chain, saved
from tests.tiny import build_model, build_tokenizer
from tests.training.worlds import history, trainer, weights

from errata.experts import LocalExpert, LocalSampler
from errata.experts.heads import matched_head
from errata.experts.queries import Query
from errata.ops.scores import Head, token_scores
from errata.training.forward import head_of

SIZE = len(CHARACTERS)
IDS = torch.tensor([[3, 40, 50, 60, 70], [3, 41, 51, 61, 71]])


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """A model of the policy's vocabulary, wider and deeper, whose embedding is padded by 22 rows."""
    return saved(tmp_path_factory.mktemp("larger"), build_model(SIZE + 22, hidden=48, layers=3, seed=1), CHARACTERS)


# -- the whole distribution -----------------------------------------------------------------------------------------


def test_its_distribution_is_its_own_given_the_policys_tokens(larger):
    expert, student = LocalExpert(larger, CHARACTERS, dtype=torch.float64), build_model(SIZE).double()
    with expert.acting(student) as model:
        assert not torch.is_grad_enabled()
        assert not model.training
        logits = model(IDS).logits
        hidden = torch.stack(expert.join([list(model.base_model(IDS, use_cache=False).last_hidden_state)]))
    own = head_of(student)
    tokens = IDS.roll(-1, 1)
    scores = token_scores(torch.zeros(*IDS.shape, 32).double(), own, hidden, expert.head(own, head_of), tokens)
    logp = logits[..., :SIZE].log_softmax(-1)
    torch.testing.assert_close(scores.teacher_logp, logp.gather(-1, tokens.unsqueeze(-1)).squeeze(-1))
    torch.testing.assert_close(scores.teacher_entropy, -(logp.exp() * logp).sum(-1))
    assert not any(p.requires_grad for p in expert.separate.parameters())


def test_a_longer_head_is_cut_without_a_copy():
    head = Head(torch.randn(7, 3), torch.randn(7), scale=0.5, softcap=30.0)
    cut = matched_head(head, 5)
    assert torch.equal(cut.weight, head.weight[:5])
    assert torch.equal(cut.bias, head.bias[:5])
    assert cut.weight.data_ptr() == head.weight.data_ptr()
    assert (cut.scale, cut.softcap) == (0.5, 30.0)
    assert matched_head(head, 7).weight.data_ptr() == head.weight.data_ptr()


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("divergence", ["forward_ce", "js"])
def test_a_shorter_head_never_says_the_rest(biased, divergence):
    torch.manual_seed(0)
    student, h, g = torch.randn(9, 4).double(), *torch.randn(2, 1, 6, 4).double()
    head = Head(torch.randn(7, 4).double(), torch.randn(7).double() if biased else None)
    tokens = torch.tensor([[0, 1, 2, 3, 4, 8]])
    scores = token_scores(h, student, g, matched_head(head, 9), tokens, divergence=divergence)
    log_p = (h @ student.T).log_softmax(-1)
    z = g @ head.weight.T + (head.bias if biased else 0)
    q = torch.cat([z.softmax(-1), torch.zeros(1, 6, 2)], -1)
    torch.testing.assert_close(scores.teacher_logp[0, :5], q.log()[0, range(5), tokens[0, :5]])
    assert scores.teacher_logp[0, 5] < -1000
    if divergence == "forward_ce":
        expected = -(q * log_p).sum(-1)
    else:
        p, m = log_p.exp(), (log_p.exp() + q) / 2
        expected = (torch.xlogy(q, q) - q * m.log() + p * (log_p - m.log())).sum(-1) / 2
    torch.testing.assert_close(scores.divergence, expected, atol=1e-7, rtol=1e-7)


def other_tokenizer(change):
    """The policy's tokenizer with a change to its file."""
    import json

    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    text = json.loads(build_tokenizer().backend_tokenizer.to_str())
    change(text["model"]["vocab"])
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(text)), pad_token="<|pad|>", eos_token="<|end|>"
    )


def swap(vocabulary):
    vocabulary["7"], vocabulary["a"] = vocabulary["a"], vocabulary["7"]


def test_another_vocabulary_is_refused_by_its_first_token_that_differs(tmp_path):
    path = saved(tmp_path, build_model(SIZE), other_tokenizer(swap))
    first = CHARACTERS.convert_tokens_to_ids("7")
    message = f"whose token {first} is '7' and the expert's 'a'; use it with expert_args: {{gives: samples}}"
    with pytest.raises(ValueError, match=re.escape(message)):
        LocalExpert(path, CHARACTERS)


def test_tokens_added_at_the_end_do_not_matter(tmp_path):
    path = saved(tmp_path, build_model(SIZE + 1), other_tokenizer(lambda v: v.update({"<tool>": len(v)})))
    assert LocalExpert(path, CHARACTERS).separate.config.vocab_size == SIZE + 1


def test_another_end_of_sequence_is_refused_unless_the_expert_knows_the_policys(tmp_path):
    tokenizer, model = build_tokenizer(), build_model(SIZE)
    tokenizer.eos_token = "<|user|>"
    model.generation_config.eos_token_id = [2]
    with pytest.raises(ValueError, match=r"ends its answers with '<\|user\|>', the policy with '<\|end\|>'"):
        LocalExpert(saved(tmp_path / "a", model, tokenizer), CHARACTERS)
    model.generation_config.eos_token_id = [2, 1]
    LocalExpert(saved(tmp_path / "b", model, tokenizer), CHARACTERS)


def test_too_few_embeddings_are_refused(tmp_path):
    path = saved(tmp_path, build_model(SIZE - 3), CHARACTERS)
    with pytest.raises(ValueError, match=f"has {SIZE - 3} embeddings, the policy's tokenizer reaches token {SIZE - 1}"):
        LocalExpert(path, CHARACTERS)


def test_it_is_loaded_on_first_use_and_runs_on_the_students_device(larger):
    prepared = []
    expert = LocalExpert(larger, CHARACTERS, device="cpu", dtype="bfloat16", prepare=lambda m: prepared.append(m) or m)
    assert prepared == []
    student = build_model(SIZE).to("meta")
    with expert.acting(student) as model:
        assert {p.device.type for p in model.parameters()} == {"meta"}
    assert prepared == [expert.separate]
    assert {(p.device.type, p.dtype) for p in expert.separate.parameters()} == {("cpu", torch.bfloat16)}


def test_it_trains_a_smaller_policy_and_stays_as_it_is(tmp_path, larger):
    def run(folder, steps=4, **changes):
        kept = []
        expert = LocalExpert(larger, CHARACTERS).prepared_by
        return trainer(folder, "distil", max_steps=steps, keep=kept, expert=expert, **changes), kept

    whole, kept = run(tmp_path / "a", eval_strategy="steps", eval_steps=4, eval_rows=4)
    before = weights(whole.teacher.separate)
    whole.train()
    assert all(torch.equal(p, before[n]) for n, p in weights(whole.teacher.separate).items())
    (row,) = [row for stem, row in kept if stem == "eval"]
    assert 0 <= row["teacher_accuracy"] <= 1
    gaps = history(whole, "teacher/divergence")
    assert all(0 < gap < math.inf for (gap,) in gaps)

    run(tmp_path / "b", save_strategy="steps", save_steps=2)[0].train()
    second, _ = run(tmp_path / "b")
    second.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2"))
    for a, b in zip(weights(second.model).values(), weights(whole.model).values(), strict=True):
        assert torch.equal(a, b)
    other = trainer(tmp_path / "c", "distil", teacher="live")
    with pytest.raises(ValueError, match="the checkpoint's was local, this run's is live"):
        other.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2"))


# -- a black box ----------------------------------------------------------------------------------------------------


def make_query(text, positions, *, prompt="", tokenizer=CHARACTERS, seed=0):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return Query(prompt, (), tuple(ids), tuple(positions), seed)


def said(answer, tokenizer):
    return [
        [tokenizer.convert_ids_to_tokens(t) for t, w in zip(row, logp, strict=True) if w > -math.inf]
        for row, logp in zip(answer.tokens.tolist(), answer.logp.tolist(), strict=True)
    ]


def test_an_expert_of_words_answers_a_policy_of_characters(tmp_path):
    expert = build_chain(WORDS, {"hello": "=", "=": "12", "1": "2"})
    sampler = LocalSampler(saved(tmp_path, expert, WORDS), CHARACTERS, draws=3)
    # The state before "=", after "hello="; within "12", which the expert then spells "1", "2"; at the end.
    (answer,) = sampler.answer([make_query("hello=12", (5, 6, 7, 8))])
    assert answer.positions == (5, 6, 7, 8)
    assert said(answer, CHARACTERS) == [["="] * 3, ["1"] * 3, ["2"] * 3, ["<|end|>"] * 3]
    assert answer.tokens.dtype == torch.long
    torch.testing.assert_close(answer.logp, torch.full((4, 3), -math.log(3)))


def test_an_expert_of_characters_answers_a_policy_of_words(tmp_path):
    following = {"h": "e", "e": "l", "l": "o", "o": "=", "=": "1", "1": "2"}
    sampler = LocalSampler(saved(tmp_path, build_chain(CHARACTERS, following), CHARACTERS), WORDS, draws=2)
    (answer,) = sampler.answer([make_query("hello=12", (0, 1, 2, 3), prompt="=", tokenizer=WORDS)])
    # "=" goes on "12"; "hello" on "="; "hello=" on the one token "12"; after that it ends.
    assert said(answer, WORDS) == [["12"] * 2, ["="] * 2, ["12"] * 2, ["<e>"] * 2]
    # The policy spelled "hel" itself, so the rest of the word is what its next token can be: "o" alone, for "l" asks for it.
    spelled = Query("", (), tuple(WORDS.convert_tokens_to_ids(["hel"])), (1,), 0)
    assert said(sampler.answer([spelled])[0], WORDS) == [["o"] * 2]


def test_chats_are_rendered_by_the_experts_own_template(tmp_path):
    expert = build_chain(WORDS, {"<|assistant|>": "12"})
    sampler = LocalSampler(saved(tmp_path, expert, WORDS), CHARACTERS, draws=1)
    chat = [{"role": "user", "content": "hello"}]
    (answer,) = sampler.answer([make_query("", (0,), prompt=chat)])
    assert said(answer, CHARACTERS) == [["1"]]
    sampler._own.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        sampler.answer([make_query("", (0,), prompt=chat)])


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """A random model of the policy's own tokenizer: there the next token is the first it draws."""
    return saved(tmp_path_factory.mktemp("noisy"), build_model(SIZE, seed=2), CHARACTERS)


def first_of(path, text):
    """The model's distribution after ``text``."""
    model = LocalSampler(path, CHARACTERS)._model
    with torch.no_grad():
        return model(torch.tensor([CHARACTERS(text)["input_ids"]])).logits[0, -1].double().softmax(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_its_draws_are_its_distributions(noisy, temperature):
    n = 1500
    sampler = LocalSampler(noisy, CHARACTERS, draws=n, max_rows=500, temperature=temperature)
    (answer,) = sampler.answer([make_query("ab", (1,), prompt="3=")])
    drawn = answer.tokens[0].bincount(minlength=SIZE).double()
    expected = first_of(noisy, "3=a") ** (1 / temperature)
    expected /= expected.sum()
    assert float(answer.logp.exp().sum()) == pytest.approx(1.0, abs=1e-4)
    sigma = (n * expected * (1 - expected)).sqrt()
    assert ((drawn - n * expected).abs() <= 4.5 * sigma + 1).all()
    assert (drawn > 0).sum() > 10


def test_a_draw_is_of_its_seed_position_and_number_alone(noisy):
    """The oracle draws by hand: one uniform number per token, inverted through the cumulated probabilities."""
    sampler = LocalSampler(noisy, CHARACTERS, draws=4, max_rows=3)
    queries = [make_query("abcd", (0, 2), prompt="1="), make_query("xy", (1,), prompt="some longer prompt", seed=7)]
    together = sampler.answer(queries)
    alone = [LocalSampler(noisy, CHARACTERS, draws=4).answer([q])[0] for q in reversed(queries)][::-1]
    for a, b in zip(together, alone, strict=True):
        assert a.positions == b.positions
        assert torch.equal(a.tokens, b.tokens)
    for q, answer in zip(queries, together, strict=True):
        for position, row in zip(answer.positions, answer.tokens.tolist(), strict=True):
            cumulated = first_of(noisy, q.prompt + CHARACTERS.decode(q.completion_ids[:position])).cumsum(0)
            for number, token in enumerate(row):
                u = random.Random(f"{q.seed}-{position}-{number}").random()
                assert token == int((cumulated <= u).sum())


def test_samples_without_a_token_are_left_out(tmp_path, noisy):
    endless = build_chain(CHARACTERS, {"h": "e", "e": "h"})
    sampler = LocalSampler(saved(tmp_path, endless, CHARACTERS), CHARACTERS, draws=2)
    found = sampler.answer([make_query("h", (1,)), make_query("h", ())])
    assert said(found[0], CHARACTERS) == [["e", "e"]]
    assert found[1] is None  # it has no positions
    sampler._policy = Halved()
    assert sampler.answer([make_query("h", (1,))]) == [None]


def test_samples_and_what_is_unusable_are_counted_over_the_whole_run(tmp_path):
    path = saved(tmp_path, build_chain(CHARACTERS, {"=": "1", "1": "2", "2": "="}), CHARACTERS)
    sampler = LocalSampler(path, CHARACTERS, draws=3)
    assert sampler.counters == {"calls": 0, "misaligned": 0}
    sampler.answer([make_query("=1", (1, 2)), make_query("=", (1,))])
    assert sampler.counters == {"calls": 9, "misaligned": 0}
    resumed = LocalSampler(path, CHARACTERS, draws=3)
    resumed.load_state_dict(sampler.state_dict())
    resumed._policy = Halved()
    resumed.answer([make_query("=1", (1, 2))])  # both states are within a character: no sample is drawn
    assert resumed.counters == {"calls": 9, "misaligned": 2}


def test_an_incomplete_token_is_sampled_at_greater_length(tmp_path, monkeypatch):
    path = saved(tmp_path, build_chain(CHARACTERS, {"=": "1", "1": "2", "2": "="}), CHARACTERS)
    queries = [make_query("=", (1,), tokenizer=WORDS)]
    for lengths, expected in {(1,): None, (2,): None, (1, 2, 3): [["12"] * 2]}.items():  # "1" and "12" may still grow
        monkeypatch.setattr("errata.experts.local.LOOKAHEAD", lengths)
        (answer,) = LocalSampler(path, WORDS, draws=2).answer(queries)
        assert (answer and said(answer, WORDS)) == expected


class Halved:
    """A tokenizer whose one token is the first byte of a longer character."""

    eos_token_id = 1

    def decode(self, ids, **settings):
        return "\ufffd" * len(ids)


@pytest.mark.parametrize(("name", "value"), [("draws", 0), ("max_rows", 0)])
def test_numbers_out_of_range_are_refused(noisy, name, value):
    with pytest.raises(ValueError, match=f"{name}: must be at least 1, got 0"):
        LocalSampler(noisy, CHARACTERS, **{name: value})
