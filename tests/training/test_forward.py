"""Hidden states and heads against the models' own logits, for architectures that treat their logits in different ways."""

import pytest
import torch
from tests.tiny import build_model
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)

from errata.training.forward import accept_head_function, check_scores

SMALL = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32))


def recurrent_gemma():
    config = {**SMALL, "num_key_value_heads": 1, "lru_width": 16, "attention_window_size": 8, "num_hidden_layers": 3}
    return RecurrentGemmaForCausalLM(RecurrentGemmaConfig(**config, logits_soft_cap=0.1))


MODELS = {
    "Qwen3": lambda: build_model(50),
    "GPT-2": gpt2,
    "Gemma 2": lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, num_key_value_heads=1, final_logit_softcapping=0.1)),
    "Cohere": lambda: CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.3)),
    "Granite": lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=4.0)),
    "RecurrentGemma": recurrent_gemma,
    "OPT": lambda: OPTForCausalLM(OPTConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, ffn_dim=32,
                                            num_attention_heads=2, word_embed_proj_dim=16)),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_log_probs_under_left_padding_are_the_models_own(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # so that scales and caps matter
    accept_head_function(model)
    check_scores(model)
    ids = torch.tensor([[7, 8, 9, 10, 11]])
    with torch.no_grad():
        own = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].log_softmax(-1)
        padded, mask = torch.tensor([[0, 0, 7, 8, 9, 10, 11]]), torch.tensor([[0, 0, 1, 1, 1, 1, 1]])
        ours = model(input_ids=padded, attention_mask=mask, with_head=lambda hidden, head: head.logits(hidden[0, 2:]))
    torch.testing.assert_close(ours.log_softmax(-1), own, atol=1e-3, rtol=1e-3)


class Doubled(LlamaForCausalLM):
    """Changes its logits in a way that no setting tells."""

    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        outputs.logits = 2 * outputs.logits
        return outputs


def test_a_model_that_changes_its_logits_is_refused_by_name():
    torch.manual_seed(0)
    model = Doubled(LlamaConfig(**SMALL))
    accept_head_function(model)
    with pytest.raises(ValueError, match=r"model: Doubled's own log-probs differ .* by .* nats"):
        check_scores(model)
    assert model.training


def test_a_model_without_hidden_states_is_refused_by_name():
    class Broken(LlamaForCausalLM):
        pass

    model = Broken(LlamaConfig(**SMALL))
    accept_head_function(model)
    model.model.forward = lambda *args, **kwargs: (_ for _ in ()).throw(TypeError("no such argument 'use_cache'"))
    with pytest.raises(ValueError, match="model: Broken cannot be run up to its last hidden states: no such argument"):
        check_scores(model)
