"""Evaluations sample as training does, of the policy and of its teacher."""

import pytest
import torch
from tests.tiny import CHAT, build_tokenizer
from tests.training import worlds
from tests.training.worlds import rows, trainer

from errata.training.compat import Shown
from errata.training.evaluation import compared, sampling_of

THINKING = CHAT.replace(
    "{{ '<|assistant|>' }}", "{{ '<|assistant|>' }}{% if not enable_thinking %}{{ '<think></think>' }}{% endif %}"
)


def prompts_of(run):
    """What the run's model is given at every generation, as text, in order."""
    seen, generate = [], run._generate_single_turn

    def watched(ids, *args, **kwargs):
        seen.append([run.tokenizer.decode(i) for i in ids])
        return generate(ids, *args, **kwargs)

    run._generate_single_turn = watched
    return seen


def test_policy_and_teacher_get_their_own_template_arguments_and_one_sampling(tmp_path, monkeypatch):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = THINKING
    monkeypatch.setattr(worlds, "TOKENIZER", tokenizer)
    run = trainer(
        tmp_path,
        "opsd",  # its teacher thinks
        eval_rows=3,
        max_steps=1,
        chat_template_kwargs={"enable_thinking": False},
        eval_temperature=0.5,
        eval_top_p=0.9,
        top_k=7,
    )
    seen, configs = prompts_of(run), []
    generate = run.model.generate

    def watched(*args, generation_config, **kwargs):
        configs.append((generation_config.temperature, generation_config.top_p, generation_config.top_k))
        return generate(*args, generation_config=generation_config, **kwargs)

    monkeypatch.setattr(type(run.model), "generate", lambda self, *a, **k: watched(*a, **k))
    row = run.evaluator(run, run.eval_dataset)
    *policys, teachers = seen  # two batches of eight completions at most, then the teacher's three
    assert [len(batch) for batch in seen] == [8, 4, 3]
    assert all(p.endswith("<|assistant|><think></think>") for batch in policys for p in batch)
    assert all(p.endswith("<|assistant|>") for p in teachers)
    assert all(rows(3)["reference"][i] in p for i, p in enumerate(teachers))
    assert configs == [(0.5, 0.9, 7)] * 3
    assert row["sampling"] == {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "seed": 3,
        "max_completion_length": 10,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    assert sampling_of(run.args, {"enable_thinking": True}).chat_template_kwargs == {"enable_thinking": True}
    assert run.chat_template_kwargs == {"enable_thinking": False}


def test_where_vllm_trains_a_teacher_still_answers_through_transformers(tmp_path):
    run = trainer(tmp_path, max_steps=1)
    asked = [{"problem_id": "a", "prompt": [{"role": "user", "content": "x"}]}]
    shown = Shown([[{"role": "user", "content": "y"}]], run.model)
    torch.manual_seed(0)
    expected = run.sample(asked, temperature=0.7, top_p=0.9, shown=shown).ids
    # As TRL leaves its trainer with vLLM.
    engine = type("Engine", (), {"temperature": 1.0, "top_p": 1.0})()
    del run.generation_config, run.generation_kwargs
    run.use_vllm, run.vllm_generation = True, engine
    torch.manual_seed(0)
    assert run.sample(asked, temperature=0.7, top_p=0.9, shown=shown).ids == expected
    assert (run.use_vllm, hasattr(run, "generation_config"), vars(engine)) == (
        True,
        False,
        {"temperature": 1.0, "top_p": 1.0},
    )


def test_a_prefix_of_the_answer_is_continued_in_training_evaluation_and_by_the_teacher(tmp_path, monkeypatch):
    def begun(n=8):
        data = rows_of(n)
        return data.map(lambda r: {"prompt": [*r["prompt"], {"role": "assistant", "content": "So: "}]})

    rows_of = worlds.rows
    monkeypatch.setattr(worlds, "rows", begun)
    run = trainer(tmp_path, "opsd", eval_rows=2, max_steps=1)
    seen = prompts_of(run)
    run.train()
    run.evaluator(run, run.eval_dataset)
    assert len(seen) == 3  # of training, of the policy, of its teacher
    assert all(p.endswith("<|end|><|assistant|>So: ") for batch in seen for p in batch)
    (student,), (teacher,) = {p for p in seen[1] if ", 0" in p}, {p for p in seen[2] if ", 0" in p}
    assert student == "<|user|>Write letters, 0<|end|><|assistant|>So: "
    assert teacher == "<|user|>Write letters, 0 abc<|end|><|assistant|>So: "


def test_the_lead_of_a_teacher_and_its_error():
    # differences .5, -.25, .75: mean 1/3, deviation .5204, over sqrt(3)
    found = compared([1.0, 0.0, 1.0], [0.5, 0.25, 0.25])
    assert found == pytest.approx(
        {
            "teacher_accuracy": 2 / 3,
            "student_accuracy": 1 / 3,
            "teacher_problems": 3,
            "teacher_lead": 1 / 3,
            "teacher_lead_se": 0.3004626,
        }
    )
    assert "teacher_lead_se" not in compared([1.0], [0.0])
