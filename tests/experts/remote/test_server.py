"""A remote expert gives the distribution of the server's model, and a server's failure costs answers, not the run."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import sys
import threading
from collections import Counter

import pytest
import torch
from tests.experts.remote.fake_server import FakeServer, PolicyAnswers, completion

from errata.experts.queries import Query
from errata.experts.remote.cache import AnswerCache, fingerprint
from errata.experts.remote.client import run_in_thread
from errata.experts.remote.server import ServerExpert, ServerSettings

PROMPT, ATTEMPT = "<|user|>7a+3b*4=?<|assistant|>", "7a+3=0b*4=3<|end|>"
ANYWHERE = "http://127.0.0.1:9/v1"
SECRET = "sk-errata-0123456789abcdef"


@pytest.fixture
def ids(house_tokenizer):
    return lambda text: tuple(house_tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.fixture
def make_query(ids):
    def build(*positions, prompt=PROMPT, attempt=ATTEMPT, seed=0):
        return Query(prompt, ids(prompt), ids(attempt), positions, seed)

    return build


@pytest.fixture
def expert(house_tokenizer):
    made = []

    def build(server, **settings):
        url = server if isinstance(server, str) else server.url
        settings = {"gives": "samples", "retries": 1, "concurrency": 4} | settings
        made.append(ServerExpert(url, "house", house_tokenizer, **settings))
        return made[-1]

    yield build
    for one in made:
        one.close()


@pytest.fixture
def policy(house_model, house_tokenizer):
    return PolicyAnswers(house_model, house_tokenizer)


def drawn(answer):
    """State → its draws as a list of ids, after checking that their weights are 1/n."""
    rows = {}
    for position, tokens, logp in zip(answer.positions, answer.tokens, answer.logp, strict=True):
        there = logp > -math.inf
        assert logp[there].exp().sum().item() == pytest.approx(1)
        assert len(set(logp[there].tolist())) == 1
        rows[position] = tokens[there].tolist()
    return rows


@torch.no_grad()
def truth(model, ids):
    """Next-token log-probabilities after ``ids``."""
    return torch.log_softmax(model(torch.tensor([ids])).logits[0, -1].double(), -1)


# ── settings ──


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"gives": "logits"}, "gives: 'logits' is none of topk, samples"),
        ({"api": "responses"}, "api: 'responses' is none of"),
        ({"gives": "topk", "api": "chat"}, "use api: completions"),
        ({"gives": "topk", "temperature": 0.7}, "temperature: .* leave it at 1"),
        ({"top_k": 0}, "top_k: must be a whole number of at least 1, got 0"),
        ({"samples": 1.5}, "samples: must be a whole number"),
        ({"answer_tokens": 2}, "answer_tokens: .* at least 3, got 2"),
        ({"temperature": math.nan}, "temperature: must be a number"),
        ({"concurrency": True}, "concurrency: must be a whole number"),
        ({"requests_per_minute": 0}, "requests_per_minute: must be a number"),
        ({"timeout_s": 0}, "timeout_s: must be a number"),
        ({"retries": -1}, "retries: .* at least 0"),
        ({"max_calls": 0}, "max_calls: .* at least 1"),
        ({"max_tokens": 0.5}, "max_tokens: must be a whole number"),
        ({"on_failure": "raise"}, "on_failure: 'raise' is none of skip, pause"),
        ({"extra_body": {"n": 2}}, "extra_body: 'n' is set by the expert itself"),
        ({"extra_body": {"a": object()}}, "extra_body: cannot be written as JSON"),
        ({"extra_body": []}, "extra_body: must be a mapping"),
        ({"base_url": "localhost:8000/v1"}, "base_url: must be an address such as http://"),
        ({"model": ""}, "model: must be the model's name"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(settings, words):
    with pytest.raises(ValueError, match=words):
        ServerSettings(**({"base_url": ANYWHERE, "model": "house", "gives": "samples"} | settings))


@pytest.mark.parametrize(
    "setting",
    [
        {"base_url": f"http://me:{SECRET}@127.0.0.1/v1"},
        {"base_url": f"http://127.0.0.1/v1?key={SECRET}"},
        {"key_env": SECRET},
    ],
)
def test_a_secret_in_the_settings_is_refused_and_not_repeated(setting):
    with pytest.raises(ValueError, match="key") as caught:
        ServerSettings(**({"base_url": ANYWHERE, "model": "house", "gives": "samples"} | setting))
    assert SECRET not in str(caught.value)


def test_an_unknown_setting_and_a_missing_one_are_named(house_tokenizer):
    with pytest.raises(ValueError, match=r"topk: no such setting of a remote expert; it has .*top_k"):
        ServerExpert(ANYWHERE, "house", house_tokenizer, gives="topk", topk=5)
    with pytest.raises(ValueError, match="gives: missing; set topk"):
        ServerExpert(ANYWHERE, "house", house_tokenizer)


def test_without_the_client_the_extra_is_named(house_tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r"pip install 'errata\[server\]'"):
        ServerExpert(ANYWHERE, "house", house_tokenizer, gives="samples")


@pytest.mark.parametrize(
    ("position", "words"),
    [
        (12, "row 0 has position 12 in a completion of 12 tokens; positions are from 0 to 11"),
        (-1, "row 0 has position -1 in a completion of 12 tokens"),
    ],
)
def test_a_state_that_is_not_there_is_refused(expert, make_query, position, words):
    with pytest.raises(ValueError, match=words):
        expert(ANYWHERE).answer([make_query(position)])


# ── top-k ──


def test_topk_is_the_policys_own(expert, policy, make_query, house_model):
    query = make_query(11, 0, 5, 6, 6)
    with FakeServer(policy) as server:
        (answer,) = expert(server, gives="topk", top_k=7).answer([query])
    assert len(server.requests) == 1
    assert server.requests[0]["prompt"] == [*query.prompt_ids, *query.completion_ids]
    assert answer.positions == (0, 5, 6, 11)
    assert answer.tokens.shape == answer.logp.shape == (4, 7)
    assert answer.tokens.dtype == torch.long
    assert answer.logp.dtype == torch.float32
    for position, tokens, logp in zip(answer.positions, answer.tokens, answer.logp, strict=True):
        expected = truth(house_model, [*query.prompt_ids, *query.completion_ids[:position]]).topk(7)
        assert tokens.tolist() == expected.indices.tolist()
        assert logp.double() == pytest.approx(expected.values, abs=1e-4)


def test_the_prompts_own_token_beyond_the_k_best_is_left_out(expert, policy, make_query, house_model, ids):
    query = make_query(5, attempt="7a+3=zb*4=3<|end|>")  # the student's z is no digit
    (z,) = ids("z")
    with FakeServer(policy) as server:
        (answer,) = expert(server, gives="topk", top_k=2).answer([query])
    assert answer.tokens.shape == (1, 2)
    assert z not in answer.tokens.tolist()[0]


def test_impossible_and_unknown_tokens_are_left_out_of_topk(expert, make_query):
    entries = {"22": {"logprob": -0.5}, "23": {"logprob": -9999.0}, "101": {"logprob": -0.1}, "24": {"logprob": -2.0}}
    query = make_query(0, 1)

    def table(path, body):
        document = completion("x")
        document["choices"][0]["prompt_logprobs"] = [
            None,
            *([entries] * (len(body["prompt"]) - 2)),
            {"7": {"logprob": 0.0}},
        ]
        return document

    with FakeServer(table) as server:
        (answer,) = expert(server, gives="topk").answer([query])
    assert answer.tokens.tolist() == [[22, 24], [7, 0]]
    assert answer.logp.tolist() == [[-0.5, -2.0], [0.0, -math.inf]]


def test_a_server_that_ignores_prompt_logprobs_is_named_with_the_mend(expert, make_query):
    with FakeServer(lambda path, body: completion("x")) as server:
        one = expert(server, gives="topk")
        with pytest.raises(ValueError, match="use gives: samples"):
            one.check()
        with pytest.raises(ValueError, match="use gives: samples"):
            one.answer([make_query(0)])


def test_topk_of_another_tokenizer_is_refused_at_the_start(expert, policy):
    def shifted(path, body):
        document = policy(path, body)
        choice = document["choices"][0]
        choice["prompt_logprobs"] = [e and {i + 1: v for i, v in e.items()} for e in choice["prompt_logprobs"]]
        return document

    with FakeServer(policy) as server:
        expert(server, gives="topk").check()
    with FakeServer(shifted) as server, pytest.raises(ValueError, match="other tokens than the policy"):
        expert(server, gives="topk", top_k=1).check()


# ── samples ──


def test_samples_are_distributed_as_the_policy(expert, policy, make_query, house_model):
    query, n = make_query(5, 6), 500
    with FakeServer(policy) as server:
        (answer,) = expert(server, samples=n).answer([query])
    assert len(server.requests) == 2
    rows = drawn(answer)
    assert len(rows[5]) == n
    assert len(rows[6]) == n + rows[5].count(query.completion_ids[5])
    for position, tokens in rows.items():
        p = truth(house_model, [*query.prompt_ids, *query.completion_ids[:position]]).exp()
        # Pearson's statistic, tokens expected less than five times together; its 99.9 % quantile by Wilson and Hilferty.
        big = [i for i in range(len(p)) if p[i] * len(tokens) >= 5]
        counts = Counter(tokens)
        cells = [(counts[i], p[i].item() * len(tokens)) for i in big]
        rest = (len(tokens) - sum(c for c, _ in cells), len(tokens) - sum(e for _, e in cells))
        statistic = sum((c - e) ** 2 / e for c, e in cells) + (rest[0] - rest[1]) ** 2 / max(rest[1], 1.0)
        freedom = len(big)
        assert statistic < freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3
    assert len(set(rows[5])) >= 4  # or the test above would say nothing


def test_a_server_that_ignores_n_gets_further_requests(expert, house_model, house_tokenizer, make_query):
    with FakeServer(PolicyAnswers(house_model, house_tokenizer, gives_n=False)) as server:
        (answer,) = expert(server, samples=12).answer([make_query(5)])
    assert len(drawn(answer)[5]) == 12
    assert [body.get("n") for body in server.requests] == [*range(12, 1, -1), None]
    assert len({body["seed"] for body in server.requests}) == 12
    assert len(set(drawn(answer)[5])) > 1


def test_a_state_is_queried_by_the_text_of_its_tokens(expert, make_query):
    with FakeServer(lambda path, body: completion("0b*4")) as server:
        expert(server, temperature=0.5, extra_body={"top_p": 0.9}).answer([make_query(0, 5)])
    bodies = {body["prompt"]: body for body in server.requests}
    assert set(bodies) == {PROMPT, PROMPT + "7a+3="}
    seeds = [bodies[prompt].pop("seed") for prompt in (PROMPT, PROMPT + "7a+3=")]
    assert seeds[0] != seeds[1]
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert bodies[PROMPT] == {"model": "house", "prompt": PROMPT, "max_tokens": 4, "temperature": 0.5, "top_p": 0.9}


def test_chat_goes_on_with_the_students_begun_answer(expert, ids):
    prompt = [{"role": "user", "content": "7a+3b*4=?"}]
    query = Query(prompt, ids(PROMPT), ids(ATTEMPT), (0, 5), 0)

    def table(path, body):
        assert path == "/v1/chat/completions"
        text = "0b*4" if len(body["messages"]) == 2 else None
        return {
            "choices": [
                {"message": {"role": "assistant", "content": text}, "finish_reason": "length" if text else "stop"}
            ]
        }

    with FakeServer(table) as server:
        (answer,) = expert(server, api="chat").answer([query])
        with pytest.raises(ValueError, match="row 0 has text as prompt"):
            expert(server, api="chat").answer([Query(PROMPT, ids(PROMPT), ids(ATTEMPT), (0,), 0)])
    first, second = sorted(server.requests, key=lambda body: len(body["messages"]))
    assert first["messages"] == prompt
    assert "continue_final_message" not in first
    assert second["messages"] == [*prompt, {"role": "assistant", "content": "7a+3="}]
    assert second["continue_final_message"] is True
    assert second["add_generation_prompt"] is False
    assert drawn(answer) == {0: list(ids("<|end|>")), 5: list(ids("0"))}  # no text, ended: the draw is the end


@pytest.mark.parametrize(
    ("text", "reason", "expected"),
    [
        ("7a+3", "length", {0: "7", 1: "a"}),  # the third is whole too, but would not be if an unseen end followed it
        ("7b", "length", {0: "7"}),  # the b might have gone on
        ("8a+3", "length", {0: "8"}),  # not the student's 7, so what follows is no state of the student
        ("7", "stop", {0: "7", 1: "<|end|>"}),
        ("7", "length", {}),
        ("", "stop", {0: "<|end|>"}),
        ("", "length", {}),
    ],
)
def test_the_samples_that_a_continuation_contains(expert, make_query, ids, text, reason, expected):
    # At states 1 and 2 themselves the expert is cut at once, which says nothing.
    def table(path, body):
        return completion(text, reason=reason) if body["prompt"] == PROMPT else completion("")

    with FakeServer(table) as server:
        (answer,) = expert(server).answer([make_query(0, 1, 2)])
    assert (drawn(answer) if answer else {}) == {at: list(ids(token)) for at, token in expected.items()}


def merging_tokenizer():
    """a, b, c and the merged ab."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE({"a": 0, "b": 1, "c": 2, "ab": 3, "<e>": 4}, [("a", "b")]))
    bpe.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<e>")


def test_a_text_that_merges_with_the_students_last_token_is_tokenised_alone():
    with FakeServer(lambda path, body: completion({"c": "cab", "ca": "bcc", "cac": "aab"}[body["prompt"]])) as server:
        one = ServerExpert(server.url, "m", merging_tokenizer(), gives="samples")
        # c | a c ...: after "ca" the expert's "bcc" makes c ab c c of it, but the student has written its a.
        (answer,) = one.answer([Query("c", (2,), (0, 2, 1), (0, 1, 2), 0)])
    assert drawn(answer) == {0: [2], 1: [1], 2: [0]}
    assert one.counters["misaligned"] == 0


def test_states_after_tokens_that_are_not_the_tokenizers_own_are_queried_too():
    with FakeServer(lambda path, body: completion("cc")) as server:
        one = ServerExpert(server.url, "m", merging_tokenizer(), gives="samples")
        # The student wrote a, b, c; its text is read ab, c.
        (answer,) = one.answer([Query("c", (2,), (0, 1, 2), (0, 1, 2), 0)])
    assert sorted(body["prompt"] for body in server.requests) == ["c", "ca", "cab"]
    assert drawn(answer) == {0: [2], 1: [2], 2: [2]}
    assert one.counters["misaligned"] == 0


def tokenizer_of_bytes():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({c: i for i, c in enumerate([*alphabet, "<e>"])}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<e>")


def test_states_within_a_character_are_not_queried_but_counted():
    tokenizer = tokenizer_of_bytes()
    prompt, (c, first, second, d) = tokenizer("?")["input_ids"], tokenizer("c\u00e9d")["input_ids"]
    with FakeServer(
        lambda path, body: completion({"?": "cd", "?c": "d\u00e9", "?c\u00e9": "dd"}[body["prompt"]])
    ) as server:
        one = ServerExpert(server.url, "m", tokenizer, gives="samples")
        (answer,) = one.answer([Query("?", tuple(prompt), (c, first, second, d), (0, 1, 2, 3), 0)])
    assert drawn(answer) == {0: [c], 1: [d], 3: [d]}
    assert one.counters["misaligned"] == 1


def test_a_query_without_positions_has_an_empty_answer(expert, make_query):
    one = expert(ANYWHERE)
    (answer,) = one.answer([make_query()])
    assert answer.positions == ()
    assert one.answer([]) == []
    assert one.counters["calls"] == 0


def test_it_works_inside_a_running_loop(expert, policy, make_query):
    async def notebook():
        return expert(server).answer([make_query(5)])

    with FakeServer(policy) as server:
        (answer,) = asyncio.run(notebook())
    assert answer.positions == (5,)


def test_requests_run_concurrently_up_to_the_limit(expert, make_query):
    with FakeServer(lambda path, body: completion("0b*4"), always="slow", delay_s=0.1) as server:
        expert(server, concurrency=3).answer([make_query(0, 1, 2, 3), make_query(4, 5, 6, 7, 8)])
    assert server.busiest == 3
    assert len(server.requests) == 9


def test_requests_are_spaced_to_the_rate(expert, make_query):
    with FakeServer(lambda path, body: completion("0b*4")) as server:
        expert(server, requests_per_minute=600).answer([make_query(0, 1, 2, 3)])
    assert len(server.arrivals) == 4
    assert (
        max(server.arrivals) - min(server.arrivals) >= 0.25
    )  # three spaces of a tenth, less what the first took longer


# ── failures of the server ──


@pytest.mark.parametrize("act", ["429", "500", "garbage", "schema", "truncated", "drop", "slow"])
def test_one_failure_is_retried(expert, make_query, ids, act):
    with FakeServer(lambda path, body: completion("0b*4"), script=[act], delay_s=1.5) as server:
        one = expert(server, timeout_s=0.5)
        (answer,) = one.answer([make_query(5)])
    assert drawn(answer) == {5: list(ids("0"))}
    assert len(server.requests) == 2
    assert one.counters["failed"] == 0
    if act == "429":  # Retry-After: 1, where the client's own wait would be half of it
        assert server.arrivals[1] - server.arrivals[0] >= 1.0


@pytest.mark.parametrize("act", ["429", "500", "garbage", "schema", "truncated", "slow"])
def test_a_request_that_always_fails_has_no_answer_and_is_counted(expert, make_query, act, caplog):
    with FakeServer(lambda path, body: completion("0b*4"), always=act, delay_s=0.3) as server:
        one = expert(server, retries=0, timeout_s=0.1)
        assert one.answer([make_query(5), make_query(6)]) == [None, None]
        assert one.counters["failed"] == 2
        assert len([r for r in caplog.records if "continuing without its answers" in r.message]) == 1
        server.always = "ok"
        assert None not in one.answer([make_query(5), make_query(6)])
    assert "answers again" in caplog.text


def test_a_dead_server_does_not_cost_every_request_its_retries(expert, make_query):
    with FakeServer(lambda path, body: completion("0b*4"), always="500") as server:
        one = expert(server, concurrency=1, retries=2)
        assert one.answer([make_query(*range(12))]) == [None]
        assert len(server.requests) == 3 + 1  # the first with its retries, the second once, the others not
        assert one.counters["failed"] == 12
        server.always = "ok"
        (answer,) = one.answer([make_query(*range(12))])
        assert answer.positions == tuple(range(12))


def test_what_did_arrive_is_kept(expert, make_query, ids):
    with FakeServer(lambda path, body: completion("9b*4"), script=["ok", "429", "ok"]) as server:
        one = expert(server, concurrency=1, retries=0)
        (answer,) = one.answer([make_query(5, 6, 8)])
    assert answer.positions == (5, 8)
    assert one.counters["failed"] == 1


def test_a_killed_server_is_skipped_and_queried_again_after_its_restart(expert, policy, make_query):
    with FakeServer(policy) as server:
        one = expert(server, retries=0)
        assert None not in one.answer([make_query(5)])
        server.stop()
        assert one.answer([make_query(6), make_query(7)]) == [None, None]
        server.start()
        assert None not in one.answer([make_query(6), make_query(7)])
    assert one.counters["calls"] == 3
    assert one.counters["failed"] == 2


def test_paused_it_waits_for_the_restart(expert, policy, make_query, caplog):
    with FakeServer(policy) as server:
        one = expert(server, retries=0, on_failure="pause", samples=3)
        server.stop()
        restart = threading.Timer(0.5, server.start)
        restart.start()
        answers = one.answer([make_query(5), make_query(6)])
        restart.join()
        fresh = expert(server, samples=3).answer([make_query(5), make_query(6)])
    assert [drawn(answer) for answer in answers] == [drawn(answer) for answer in fresh]
    assert one.counters["failed"] == 0
    assert caplog.text.count("waiting for it") == caplog.text.count("answers again") == 1


def test_a_rejected_request_pauses_nothing(expert, make_query):
    with FakeServer(lambda path, body: (400, {"error": {"message": "prompt is too long"}})) as server:
        one = expert(server, on_failure="pause")
        assert one.answer([make_query(5)]) == [None]
    assert len(server.requests) == 1
    assert one.counters["failed"] == 1


def test_an_interrupt_ends_the_work_at_once():
    cancelled = threading.Event()

    async def forever():
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        try:
            await asyncio.sleep(600)
        finally:
            cancelled.set()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background ignores
    try:
        with pytest.raises(KeyboardInterrupt):
            run_in_thread(forever)
    finally:
        signal.signal(signal.SIGINT, before)
    assert cancelled.is_set()


# ── the check before the run ──


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, r"key_env: house at http://127.*\$ERRATA_KEY"),
        (404, "model: house at .* was not found .* models listed: house; base_url usually ends in /v1"),
        (422, "rejects this expert's requests .* correct model or extra_body"),
        (503, "base_url: house at .* does not answer"),
    ],
)
def test_the_check_names_the_setting_and_a_remedy(expert, status, words):
    refuse = FakeServer(lambda path, body: (status, {"error": {"message": "no"}}))
    with refuse as server, pytest.raises(ValueError, match=words):
        expert(server, key_env="ERRATA_KEY").check()
    assert len(server.requests) == 1


def test_the_check_names_an_address_without_a_server(expert):
    with pytest.raises(ValueError, match=r"base_url: .* start the server or correct base_url"):
        expert(ANYWHERE).check()


# ── cache ──


@pytest.mark.parametrize("gives", ["topk", "samples"])
def test_a_resumed_run_repeats_no_request(expert, policy, make_query, tmp_path, gives):
    settings = {"gives": gives, "samples": 3, "cache": str(tmp_path / "run" / "expert.sqlite")}
    queries = [make_query(0, 5, seed=1), make_query(6, seed=2)]
    with FakeServer(policy) as server:
        before = expert(server, **settings).answer(queries)
        url = server.url
    one = expert(url, **settings)
    after = one.answer(queries)
    for a, b in zip(before, after, strict=True):
        assert a.positions == b.positions
        assert a.tokens.equal(b.tokens)
        assert a.logp.equal(b.logp)
    assert one.counters["calls"] == 0
    assert one.counters["cached"] == (9 if gives == "samples" else 2)


def test_draws_are_fresh_by_seed_and_topk_is_not(expert, policy, make_query, tmp_path):
    with FakeServer(policy) as server:
        for gives in ("samples", "topk"):
            one = expert(server, gives=gives, cache=str(tmp_path / f"{gives}.sqlite"))
            for seed in (1, 2):
                one.answer([make_query(5, seed=seed)])
    by_kind = Counter("prompt_logprobs" in body for body in server.requests)
    assert by_kind == {False: 2, True: 1}


def test_more_draws_later_request_only_the_missing_ones(expert, policy, make_query, tmp_path):
    cache = str(tmp_path / "cache.sqlite")
    with FakeServer(policy) as server:
        first = drawn(expert(server, samples=2, cache=cache).answer([make_query(5)])[0])[5]
        more = drawn(expert(server, samples=5, cache=cache).answer([make_query(5)])[0])[5]
    assert [body["n"] for body in server.requests] == [2, 3]
    assert more[:2] == first
    assert len(more) == 5


def test_the_cache_outlives_a_kill_and_is_shared(tmp_path):
    path = tmp_path / "cache.sqlite"
    ours = AnswerCache(path)
    ours.put("ours", [1, "x", None])
    child = os.fork()
    if child == 0:
        theirs = AnswerCache(path)
        theirs.put("theirs", {"logp": -math.inf})
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert ours.get("theirs") == {"logp": -math.inf}
    assert ours.get("nobody's") is None
    assert len(AnswerCache(path)) == 2


def test_a_cache_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "cache").write_text("not a data base" * 100)
    with pytest.raises(ValueError, match=r"cache: .* cannot be used .* name another file"):
        AnswerCache(tmp_path / "cache")


def test_a_fingerprint_is_of_the_content():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


# ── budget ──


def test_no_requests_are_made_when_the_budget_of_calls_is_spent(expert, make_query, tmp_path, caplog):
    with FakeServer(lambda path, body: completion("0b*4")) as server:
        one = expert(server, max_calls=3, cache=str(tmp_path / "cache.sqlite"))
        (answer,) = one.answer([make_query(5, 6, 8, 9, 11)])
        assert len(answer.positions) == 3
        assert one.counters["refused"] == 2
        assert one.answer([make_query(0)]) == [None]
        assert one.counters["refused"] == 3
        (again,) = one.answer([make_query(*answer.positions)])  # what is known stays free
        assert again.positions == answer.positions
    assert len(server.requests) == one.counters["calls"] == 3
    assert caplog.text.count("the budget of calls is spent") == 1


def test_the_budget_of_tokens_counts_what_the_server_says_or_a_guess(expert, make_query):
    for usage, spent in (((100, 4), (100, 4)), (None, (11 + 5, 4))):
        with FakeServer(lambda path, body, usage=usage: completion("0b*4", usage=usage)) as server:
            one = expert(server, max_tokens=20)
            assert one.answer([make_query(5)]) != [None]
            assert (one.counters["tokens_in"], one.counters["tokens_out"]) == spent
            assert one.answer([make_query(6)]) == [None]
        assert len(server.requests) == 1


def test_what_was_spent_survives_a_resume(expert, make_query):
    with FakeServer(lambda path, body: completion("0b*4")) as server:
        before = expert(server, max_calls=2)
        before.answer([make_query(5)])
        after = expert(server, max_calls=2)
        after.load_state_dict(before.state_dict())
        assert after.counters == before.counters
        assert after.answer([make_query(5), make_query(6)]).count(None) == 1
    with pytest.raises(ValueError, match="state: has no 'counters'"):
        after.load_state_dict({})


def test_failures_cost_no_calls_but_time_outs_do(expert, make_query):
    with FakeServer(lambda path, body: completion("0b*4"), script=["429", "slow"], delay_s=0.5) as server:
        one = expert(server, retries=0, timeout_s=0.2, concurrency=1)
        assert one.answer([make_query(5), make_query(6)]) == [None, None]
    assert one.counters["calls"] == 1


# ── the key ──


def test_the_key_is_sent_and_seen_nowhere(expert, make_query, tmp_path, monkeypatch, caplog, capfd):
    monkeypatch.setenv("ERRATA_KEY", SECRET)
    caplog.set_level(logging.DEBUG)
    echo = (401, {"error": {"message": f"Incorrect API key provided: {SECRET}", "code": "Bearer " + SECRET}})
    answers = iter([completion("0b*4"), echo, echo])
    with FakeServer(lambda path, body: next(answers)) as server:
        one = expert(server, key_env="ERRATA_KEY", cache=str(tmp_path / "cache.sqlite"), concurrency=1)
        assert None in one.answer([make_query(5), make_query(6)])
        with pytest.raises(ValueError, match=r"\*\*\*") as caught:
            one.check()
    assert server.keys == [f"Bearer {SECRET}"] * 3
    out, err = capfd.readouterr()
    files = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    seen = [
        caplog.text,
        out,
        err,
        str(caught.getrepr(style="long")),
        repr(one.settings),
        repr(vars(one)),
        str(one.state_dict()),
    ]
    assert "answers" in caplog.text
    assert "0b*4" in files.decode(errors="replace")
    assert SECRET not in "".join(seen)
    assert SECRET.encode() not in files


def test_a_key_echoed_in_garbage_is_not_shown_even_in_part(expert, monkeypatch):
    monkeypatch.setenv("ERRATA_KEY", SECRET)
    echo = FakeServer(lambda path, body: {"echo": "x" * 60 + SECRET + "y" * 400})
    with echo as server, pytest.raises(ValueError, match=r"it has no choices: .*x\*\*\*y") as caught:
        expert(server, key_env="ERRATA_KEY").check()
    assert SECRET[:8] not in str(caught.value)
