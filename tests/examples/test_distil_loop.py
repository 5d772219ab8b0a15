"""``examples/distil_loop.py`` takes the trainer's steps and reaches what the demo reaches."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from tests.training.worlds import history, weights
from transformers import AutoModelForCausalLM, TrainerCallback

from errata.house import HOUSE_PATH
from errata.recipe.build import build_trainer
from errata.recipe.read import read

ROOT = Path(__file__).parents[2]
STEPS = 3  # the learning rate of the first is 0


@pytest.fixture(scope="module")
def loop():
    spec = importlib.util.spec_from_file_location("distil_loop", ROOT / "examples" / "distil_loop.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The demo's trainer after its first steps: batches, losses and weights after each of them, and gradient norms."""
    changes = {
        "output_dir": tmp_path_factory.mktemp("run"),
        "eval_strategy": "no",
        "eval_on_start": "false",
        "save_strategy": "no",
        "use_cpu": "true",
        "method_args.credit": "sum",
        "method_args.cost": "kl",
        "method_args.baseline": "leave_one_out",
        "method_args.discount": "1.0",
        "method_args.credit_limit": "null",
        "method_args.future_weight": "0.3",
    }
    trainer = build_trainer(
        read(ROOT / "recipes" / "demo.yaml", [w for k, v in changes.items() for w in (f"--{k}", str(v))])
    )
    batches, losses, after = [], [], []
    on_rollouts, batch_loss = trainer.on_rollouts, trainer.batch_loss

    def keep_batch(rows, tokens):
        batches.append((rows, on_rollouts(rows, tokens)))
        return batches[-1][1]

    def keep_loss(*args):
        loss = batch_loss(*args)
        losses.append(loss.item())
        return loss

    class KeepWeights(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            after.append(weights(trainer.model))
            control.should_training_stop = state.global_step == STEPS

    trainer.on_rollouts, trainer.batch_loss = keep_batch, keep_loss
    trainer.add_callback(KeepWeights())
    trainer.train()
    return batches, losses, after, [norm for (norm,) in history(trainer, "grad_norm")]


def test_the_steps_are_the_trainers(loop, trained):
    batches, losses, after, norms = trained
    student = AutoModelForCausalLM.from_pretrained(HOUSE_PATH, dtype=torch.float32)
    teacher = AutoModelForCausalLM.from_pretrained(HOUSE_PATH, dtype=torch.float32)
    before = weights(student)
    optimizer = torch.optim.AdamW(student.parameters(), lr=loop.PEAK_RATE, weight_decay=0.0)
    assert len(batches) == STEPS
    for step, (rows, batch) in enumerate(batches):
        completion, mask = batch.tokens.completion_ids, batch.tokens.mask
        rollouts = loop.judge(rows, completion)
        assert [(r.completion, r.verdict) for r in rollouts] == [(r.completion, r.verdict) for r in batch.rollouts]
        prompts = loop.show_teacher(rollouts)
        assert prompts == [rendered.prompt for rendered in batch.prompts]
        with torch.no_grad():
            of_teacher = loop.log_probs(teacher, prompts, completion, mask)
        of_student = loop.log_probs(student, [row["prompt"] for row in rows], completion, mask)
        loss = loop.distil_loss(of_student, of_teacher, completion, mask)
        assert loss.item() == pytest.approx(losses[step], abs=1e-5)
        assert loop.update(student, optimizer, loss, step) == pytest.approx(norms[step], abs=1e-5)
        for name, value in weights(student).items():
            torch.testing.assert_close(value, after[step][name], atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    assert max((after[-1][name] - value).abs().max() for name, value in before.items()) > 1e-3


def test_sampled_completions_end_once(loop):
    student = AutoModelForCausalLM.from_pretrained(HOUSE_PATH, dtype=torch.float32)
    torch.manual_seed(0)
    completion, mask = loop.sample(student, [[{"role": "user", "content": f"{i}a+3=?"}] for i in range(10)] * 4)
    ends = (completion == loop.tokenizer.eos_token_id) & mask
    for row, counted, end in zip(completion.tolist(), mask.tolist(), ends.tolist(), strict=True):
        n = sum(counted)
        assert counted == [True] * n + [False] * (len(row) - n)
        assert sum(end) <= 1  # at most one end token counts, and it is the last
        assert n == len(row) or end[n - 1]


def test_it_is_short():
    assert len((ROOT / "examples" / "distil_loop.py").read_text().splitlines()) <= 150


@pytest.mark.slow
def test_it_learns_the_new_rule(loop, capsys):
    reached = loop.main(seed=0)
    first, last = re.findall(r"avg@8 ([\d.]+)%", capsys.readouterr().out)
    assert float(first) < 10
    assert float(last) == pytest.approx(100 * reached, abs=0.05)
    assert reached > 0.85
