"""TRL's server mode without vLLM or a GPU: rollouts and weights go through TRL's own client to a stand-in for the server.

Replaced are only the check that vLLM is installed and the transport of the tensors: gloo instead of NCCL.
"""

import math
import socket
from dataclasses import dataclass, field

import pytest
import torch
import trl.generation.vllm_client as client
import trl.generation.vllm_generation as generation
from peft import LoraConfig
from tests.tiny import build_model
from tests.training.rollout_server import RolloutServer, group
from tests.training.worlds import TOKENIZER, trainer, weights
from transformers import TrainerCallback

from errata.methods.distil import DistIL

SCALE, TEMPERATURE, LARGEST = 0.8, 0.7, 1.2
LORA = LoraConfig(r=4, lora_alpha=64, target_modules=["q_proj", "v_proj", "down_proj"])


def policy():
    model = build_model(len(TOKENIZER))
    model.generation_config.eos_token_id = TOKENIZER.eos_token_id
    return model


def init_communicator(self, device=None):
    """TRL's, without its demand for CUDA."""
    assert self.get_server_info()["weight_transfer_config"] is not None
    info = {"master_address": "127.0.0.1", "master_port": self.group_port, "rank_offset": 1}
    info["world_size"] = self.get_world_size() + 1
    with client.ThreadPoolExecutor(1) as executor:
        there = executor.submit(self._post, f"{self.base_url}/init_weight_transfer_engine", json={"init_info": info})
        self.communicator = group(info, 0)
        there.result()


def broadcast(iterator, group, src, post_iter_func):
    for item in iterator:
        group.broadcast(post_iter_func(item).detach().contiguous(), src).wait()


@pytest.fixture
def serve(monkeypatch):
    """Starts servers, and lets TRL take them for vLLM's."""
    for module in (client, generation):
        monkeypatch.setattr(module, "is_vllm_available", lambda *args, **kwargs: True)
    monkeypatch.setattr(client, "_HAS_STATEFUL_TRAINER_ENGINE", True)
    monkeypatch.setattr(client, "packed_nccl_broadcast_producer", broadcast, raising=False)
    monkeypatch.setattr(client.VLLMClient, "init_communicator", init_communicator)
    monkeypatch.setattr(client.VLLMClient, "close_communicator", lambda self: None)
    started = []

    def start(scale=SCALE):
        started.append(RolloutServer(build_other(), scale))
        return started[-1]

    yield start
    for server in started:
        server.stop()


def build_other():
    """The server starts with other weights than the student's: what it samples with, it was sent."""
    model = build_model(len(TOKENIZER), seed=1)
    model.generation_config.eos_token_id = TOKENIZER.eos_token_id
    return model


@dataclass(frozen=True, kw_only=True)
class Recording(DistIL):
    """The exact gradient, and what its signals were decided from."""

    baseline: str = "none"
    discount: float = 1.0
    credit_limit: float | None = None
    seen: list = field(default_factory=list)

    def signals(self, batch):
        found = super().signals(batch)
        self.seen.append((batch, found))
        return found


class Kept(TrainerCallback):
    """The student's weights when each step begins, with its adapter merged."""

    def __init__(self):
        self.weights = []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if hasattr(model, "merge_adapter"):
            model.merge_adapter()
        named = {n.removeprefix("base_model.model.").replace(".base_layer", ""): p for n, p in weights(model).items()}
        self.weights.append({n: p for n, p in named.items() if "lora_" not in n})
        if hasattr(model, "unmerge_adapter"):
            model.unmerge_adapter()


def trained(folder, serve, **changes):
    """A trainer after three steps against a server, the server, the student's weights and the batches learned from."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server, kept, batches = serve(changes.pop("scale", SCALE)), Kept(), []
    sampler = {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": server.url, "vllm_group_port": port}
    method = changes.pop("method", "distil")
    t = trainer(folder, method, model=policy(), **sampler, **{"max_steps": 3, "temperature": TEMPERATURE, **changes})
    t.add_callback(kept)
    after = t._after_loss

    def after_loss(batch, *rest):
        batches.append(batch)
        after(batch, *rest)

    t._after_loss = after_loss
    t.train()
    return t, server, kept, batches


@pytest.mark.parametrize("lora", [False, True])
def test_the_samplers_weights_follow_the_students(tmp_path, serve, lora):
    _, server, kept, _ = trained(tmp_path, serve, **({"peft_config": LORA} if lora else {}))
    assert len(server.used) == len(kept.weights) == 3
    for used, student in zip(server.used, kept.weights, strict=True):
        assert used.keys() == student.keys()
        for name in used:
            torch.testing.assert_close(used[name], student[name], rtol=0, atol=1e-6 if lora else 0)
    moved = [name for name in server.used[0] if not torch.equal(server.used[0][name], server.used[2][name])]
    assert len(moved) >= (6 if lora else 20)
    sync = [
        "/start_weight_update",
        "/update_weights",
        "/finish_weight_update",
        "/reset_prefix_cache",
        "/v1/completions",
    ]
    assert server.calls == ["/init_weight_transfer_engine", *(3 * sync)]


@torch.no_grad()
def token_ratios(server):
    """{(prompt, completion): each token's probability under the weights that were sent, over that it was sampled with}."""
    found, model, each = {}, policy(), len(server.sampled) // len(server.used)
    for step, used in enumerate(server.used):
        model.load_state_dict(used, strict=False)
        for choice in server.sampled[step * each : (step + 1) * each]:
            prompt, ids = choice["prompt_token_ids"], choice["token_ids"]
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].double() / TEMPERATURE
            own, biased = logits.log_softmax(-1), (SCALE * logits).log_softmax(-1)
            at = torch.tensor(ids)[:, None]
            torch.testing.assert_close(
                torch.tensor(choice["logprobs"]["token_logprobs"]).double(), biased.gather(1, at)[:, 0]
            )
            found[step, tuple(prompt), tuple(ids)] = (own - biased).gather(1, at)[:, 0].exp()
    return found


def bounded(ratio, mode):
    if mode.endswith("truncate"):
        return ratio.clamp(max=LARGEST)
    return torch.where(ratio > LARGEST, 0.0, ratio)


@pytest.mark.parametrize("mode", ["sequence_mask", "sequence_truncate", "token_truncate", "token_mask"])
def test_a_biased_sampler_is_corrected_in_both_streams(tmp_path, serve, mode):
    """The ratios, DistIL's future credit and the loss of a run are those computed here from what the server sampled."""
    method = Recording(sources=("reference",))
    bounds = {"vllm_importance_sampling_mode": mode, "vllm_importance_sampling_clip_max": LARGEST}
    t, server, _, batches = trained(tmp_path, serve, method=method, **bounds)
    ratios = token_ratios(server)
    losses = [log["loss"] for log in t.state.log_history if "grad_norm" in log]
    touched = 0
    for step, (batch, (decided, signals)) in enumerate(zip(batches, method.seen, strict=True)):
        tokens, expected, total, n = batch.tokens, [], 0.0, int(batch.tokens.mask.sum())
        cost = decided.scores.divergence - decided.scores.teacher_entropy
        for row in range(len(tokens)):
            prompt = tokens.prompt_ids[row][tokens.prompt_mask[row].bool()].tolist()
            length = int(tokens.mask[row].sum())
            own = ratios[step, tuple(prompt), tuple(tokens.completion_ids[row, :length].tolist())]
            whole = bounded(own.prod(), mode)
            each = bounded(own, mode) if mode.startswith("token") else torch.ones(length)
            expected.append(
                torch.cat([each, torch.ones(tokens.mask.shape[1] - length)])
                if mode.startswith("token")
                else whole[None]
            )
            touched += int(whole == 0) + int((each < own - 1e-3).sum())
            for i in range(length):
                later = [math.prod(each[i + 1 : k].tolist()) * float(cost[row, k]) for k in range(i + 1, length)]
                assert float(signals.per_token["future_credit"][row, i]) == pytest.approx(
                    sum(later), rel=1e-3, abs=1e-4
                )
                both = float(each[i]) * sum(later), float(decided.scores.divergence[row, i])
                total += sum(both) if mode.startswith("token") else float(whole) * sum(both)
        torch.testing.assert_close(tokens.sampler_ratio.double(), torch.stack(expected).double(), rtol=1e-3, atol=1e-4)
        assert losses[step] == pytest.approx(total / n, rel=1e-3)
    assert touched  # some ratios were above the bound
    assert len(losses) == 3


def test_an_unbiased_sampler_has_ratio_one(tmp_path, serve):
    _, _, _, batches = trained(tmp_path, serve, scale=1.0, max_steps=1)
    torch.testing.assert_close(batches[0].tokens.sampler_ratio, torch.ones(8, 1), rtol=1e-4, atol=1e-4)
