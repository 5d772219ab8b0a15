"""Another model on this machine as expert.

`LocalExpert` gives its whole distribution, if it has the policy's vocabulary. `LocalSampler` works with any vocabulary: it
samples text, which is converted to the policy's tokens.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from errata.experts.base import HeadOf, Teacher, device_of, evaluating, moved_to, unwrapped
from errata.experts.heads import gathered_head, matched_head
from errata.experts.queries import Answer, Query
from errata.experts.retokenize import REPLACEMENT, Reply, text_of, tokens_after
from errata.ops.scores import Head
from errata.records import Messages

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

LOOKAHEAD = (8, 32, 128)
"""Tokens an expert writes at a state until the policy's next token is complete: first 8, then 32, then 128."""

USE_SAMPLES = "use it with expert_args: {gives: samples}"


class LocalExpert(Teacher):
    """Another model as teacher, with its whole distribution over the policy's vocabulary.

    Memory: one set of its weights without gradients, on ``device`` between forward passes.

    Args:
        path: hub id or directory; the weights are loaded on first use.
        tokenizer: the policy's.
        dtype: of the weights; ``auto`` for the checkpoint's.
        device: of the weights between forward passes; by default the one ``prepare`` chooses.
        prepare: prepares the model for the run's parallelism.
        loading: further arguments of ``from_pretrained``: ``revision``, ``trust_remote_code``, ``quantization_config``, ...
    Raises:
        ValueError: its vocabulary differs from the policy's (naming the first token that does), it never writes the policy's
            end-of-sequence token, or it has no embedding for some of the policy's tokens.
    """

    kind = "local"

    def __init__(
        self,
        path: str,
        tokenizer: PreTrainedTokenizerBase,
        *,
        dtype: str | torch.dtype = "auto",
        device: torch.device | str | None = None,
        prepare: Callable[[nn.Module], nn.Module] = lambda m: m,
        **loading: Any,
    ) -> None:
        from transformers import AutoConfig

        self.path, self._dtype, self._device, self._prepare, self._loading = path, dtype, device, prepare, loading
        own = load_tokenizer(path, loading)
        check_same_vocabulary(tokenizer, own, str(path))
        config = AutoConfig.from_pretrained(path, **_file_arguments(loading))
        _check_eos(tokenizer, own, path, loading)
        highest, rows = max(tokenizer.get_vocab().values()), config.get_text_config().vocab_size
        if highest >= rows:
            raise ValueError(
                f"expert: {path} has {rows} embeddings, the policy's tokenizer reaches token {highest} "
                f"({tokenizer.convert_ids_to_tokens(highest)!r}); {USE_SAMPLES}"
            )

    def prepared_by(self, prepare: Callable[[nn.Module], nn.Module]) -> LocalExpert:
        """This expert, with ``prepare`` to be applied once its weights are loaded."""
        self._prepare = prepare
        return self

    @cached_property
    def _model(self) -> nn.Module:
        model = load_model(self.path, self._dtype, self._loading)
        return self._prepare(model if self._device is None else model.to(self._device))

    @property
    def separate(self) -> nn.Module:
        return unwrapped(self._model)

    @contextmanager
    def acting(self, student: nn.Module, part: int = 0) -> Iterator[nn.Module]:
        with ExitStack() as stack:
            if self._device is not None:
                stack.enter_context(moved_to(self._model, device_of(student)))
            yield stack.enter_context(evaluating(self._model))

    def head(self, student_head: Head, head_of: HeadOf) -> Head:
        own = gathered_head(head_of(self.separate), student_head.weight.device)
        return matched_head(own, student_head.weight.shape[0])


class LocalSampler:
    """Another model with any tokenizer, which gives n samples of the policy's next token at each queried state.

    At each state the model is given its own rendering of the prompt and the policy's text so far, and continues it; the
    continuation is converted to the policy's next token (``errata.experts.retokenize``). It samples from its own distribution,
    without truncation.

    Args:
        path: hub id or directory; the weights are loaded on first use.
        tokenizer: the policy's.
        draws: n, samples per state.
        temperature: of the samples; the run's.
        max_rows: continuations generated in one batch.
        dtype: of the weights; ``auto`` for the checkpoint's.
        device: of the weights.
        loading: further arguments of ``from_pretrained``.
    Raises:
        ValueError: ``draws`` or ``max_rows`` below 1, or a temperature that is not positive.
    """

    gives = "samples"

    def __init__(
        self,
        path: str,
        tokenizer: PreTrainedTokenizerBase,
        *,
        draws: int = 8,
        temperature: float = 1.0,
        max_rows: int = 64,
        dtype: str | torch.dtype = "auto",
        device: torch.device | str = "cpu",
        **loading: Any,
    ) -> None:
        for name, value in {"draws": draws, "max_rows": max_rows}.items():
            if value < 1:
                raise ValueError(f"{name}: must be at least 1, got {value}")
        if not temperature > 0:
            raise ValueError(f"temperature: must be above 0, got {temperature}")
        self.path, self.draws, self.temperature, self.max_rows = path, draws, temperature, max_rows
        self._policy, self._own = tokenizer, load_tokenizer(path, loading)
        self._dtype, self._device, self._loading = dtype, device, loading
        self._counters = {"calls": 0.0, "misaligned": 0.0}

    @property
    def counters(self) -> dict[str, float]:
        """Sums over the run. ``calls``: samples drawn. ``misaligned``: states within a character, and unusable samples."""
        return dict(self._counters)

    def state_dict(self) -> dict[str, Any]:
        """The counters, JSON-serialisable."""
        return {"counters": self.counters}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the counters of a ``state_dict``."""
        self._counters |= {name: float(state["counters"][name]) for name in self._counters}

    @cached_property
    def _model(self) -> PreTrainedModel:
        return load_model(self.path, self._dtype, self._loading).to(self._device)

    def answer(self, queries: Sequence[Query]) -> list[Answer | None]:
        """An answer per query, ``None`` if no sample at any of its states is usable.

        Left out are states within a character of several bytes, and samples whose text does not determine a token. A sample
        depends only on its query's ``seed``, its position and its number, not on the other queries.
        Raises ``ValueError`` if a prompt is a chat and the expert has no chat template.
        """
        draws = [d for index, query in enumerate(queries) for d in self._draws_of(index, query)]
        found: dict[tuple[int, int], list[int]] = defaultdict(list)
        for draw, token in zip(draws, self._tokens_of(draws), strict=True):
            self._counters["misaligned"] += token is None
            if token is not None:
                found[draw.query, draw.position].append(token)
        self._counters["calls"] += len(draws)
        return [self._answer_of(index, query, found) for index, query in enumerate(queries)]

    def _draws_of(self, index: int, query: Query) -> Iterator[_Draw]:
        """The continuations to sample for a query."""
        rendered = _rendered(self._own, query.prompt)
        for position in query.positions:
            prefix = query.completion_ids[:position]
            text = text_of(self._policy, prefix)
            if text.endswith(REPLACEMENT):
                self._counters["misaligned"] += 1
                continue
            ids = self._own(rendered + text, add_special_tokens=isinstance(query.prompt, str))["input_ids"]
            for number in range(self.draws):
                yield _Draw(index, position, tuple(prefix), tuple(ids), f"{query.seed}-{position}-{number}")

    def _tokens_of(self, draws: list[_Draw]) -> list[int | None]:
        """The policy's next token of each draw, ``None`` where it is not determined.

        Draws whose token is not complete are sampled again at greater length; with the same random numbers, so the longer text
        begins with the shorter.
        """
        tokens: dict[int, int] = {}
        for length in LOOKAHEAD:
            left = [i for i in range(len(draws)) if i not in tokens]
            left.sort(key=lambda i: (-len(draws[i].ids), i))  # batches of similar length have little padding
            for start in range(0, len(left), self.max_rows):
                batch = left[start : start + self.max_rows]
                for i, reply in zip(batch, self._replies([draws[i] for i in batch], length), strict=True):
                    if found := tokens_after(self._policy, draws[i].prefix, reply):
                        tokens[i] = found[0]
        return [tokens.get(i) for i in range(len(draws))]

    def _replies(self, draws: list[_Draw], length: int) -> Iterator[Reply]:
        """Continuations of at most ``length`` tokens of the expert."""
        eos_ids = _eos_ids(self._own, self._model.generation_config)
        sampled = sample_continuations(self._model, draws, eos_ids, length, self.temperature)
        for draw, ids in zip(draws, sampled, strict=True):
            ended = bool(ids) and ids[-1] in eos_ids
            # The difference of two texts: decoding the new tokens alone loses a leading space with some tokenizers.
            before = text_of(self._own, draw.ids)
            after = text_of(self._own, [*draw.ids, *(ids[:-1] if ended else ids)])
            yield Reply(after[len(before) :], ended)

    def _answer_of(self, index: int, query: Query, found: Mapping[tuple[int, int], list[int]]) -> Answer | None:
        """The answer of the tokens ``found`` at (query, position)."""
        positions = tuple(p for p in query.positions if found[index, p])
        if not positions:
            return None
        tokens = torch.zeros(len(positions), self.draws, dtype=torch.long)
        logp = torch.full((len(positions), self.draws), -math.inf)
        for row, position in enumerate(positions):
            drawn = found[index, position]
            tokens[row, : len(drawn)] = torch.tensor(drawn)
            logp[row, : len(drawn)] = -math.log(len(drawn))
        return Answer(positions, tokens, logp)


class _Draw(NamedTuple):
    """One continuation to sample."""

    query: int
    """Index of the query."""
    position: int
    """The queried state."""
    prefix: tuple[int, ...]
    """The policy's tokens before it."""
    ids: tuple[int, ...]
    """Prompt and prefix in the expert's tokens."""
    seed: str
    """Of this draw's random numbers."""


def load_tokenizer(path: str, loading: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, **_file_arguments(loading))


def load_model(path: str, dtype: str | torch.dtype, loading: Mapping[str, Any]) -> PreTrainedModel:
    """The model, in evaluation mode and without gradients.

    Raises ``ValueError`` in one line where it cannot be loaded, lacks weights, or has some that are not finite.
    """
    from transformers import AutoModelForCausalLM

    try:
        model, found = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, output_loading_info=True, **loading)
    except TypeError as error:
        if " got an unexpected keyword argument " not in str(error):
            raise
        raise ValueError(f"expert_args: {str(error).rpartition(' got an ')[2]}") from error
    except (
        Exception
    ) as error:  # damaged files raise whatever their reader does: safetensors, torch, json, KeyError, ...
        said = " ".join(str(error).split())
        raise ValueError(f"expert: cannot load {path!r}: {type(error).__name__}: {said:.300}") from error
    if found["missing_keys"]:
        raise ValueError(f"expert: {path!r} lacks the weight {min(found['missing_keys'])!r}, which would be random")
    for name, weight in model.named_parameters():
        known = weight.is_floating_point() and not weight.is_meta and weight.numel() > 0
        if known and not all(extreme.isfinite() for extreme in weight.detach().aminmax()):
            raise ValueError(f"expert: weight {name!r} of {path!r} holds NaN or infinity; use an undamaged copy")
    return model.requires_grad_(False).eval()


def check_same_vocabulary(policy: PreTrainedTokenizerBase, expert: PreTrainedTokenizerBase, name: str) -> None:
    """Raise ``ValueError`` naming the first token id that means something else in the expert's tokenizer.

    Only ids that both have are compared, because models of one family add tokens at the end. Not compared are the way text is
    split, because the expert is given the policy's tokens, and the padding token, because padding is masked.
    """
    ours, theirs = ({i: token for token, i in t.get_vocab().items()} for t in (policy, expert))
    for i in range(min(max(ours), max(theirs)) + 1):
        if ours.get(i) != theirs.get(i):
            raise ValueError(
                f"expert: {name} has another vocabulary than the policy, whose token {i} is {ours.get(i)!r} and the expert's "
                f"{theirs.get(i)!r}; {USE_SAMPLES}"
            )


def _check_eos(
    policy: PreTrainedTokenizerBase, expert: PreTrainedTokenizerBase, path: str, loading: Mapping[str, Any]
) -> None:
    from transformers import GenerationConfig

    try:
        generation = GenerationConfig.from_pretrained(path, **_file_arguments(loading))
    except OSError:  # the checkpoint has none
        generation = None
    if policy.eos_token_id not in _eos_ids(expert, generation):
        raise ValueError(
            f"expert: {path} ends its answers with {expert.eos_token!r}, the policy with {policy.eos_token!r}, so the policy "
            f"would learn never to stop; give both the same eos_token, or {USE_SAMPLES}"
        )


def _eos_ids(tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig | None) -> set[int]:
    own = getattr(generation, "eos_token_id", None)
    return {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}


def _file_arguments(loading: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that tokenizers and configurations are loaded with too."""
    return {k: v for k, v in loading.items() if k in ("revision", "trust_remote_code", "token", "cache_dir")}


def _rendered(tokenizer: PreTrainedTokenizerBase, prompt: Messages | str) -> str:
    if isinstance(prompt, str):
        return prompt
    if not tokenizer.chat_template:
        raise ValueError("expert: its tokenizer has no chat template, but the prompts are chats; use text prompts")
    continues = prompt[-1]["role"] == "assistant"
    return str(
        tokenizer.apply_chat_template(
            prompt, tokenize=False, add_generation_prompt=not continues, continue_final_message=continues
        )
    )


@torch.no_grad()
def sample_continuations(
    model: PreTrainedModel, draws: Sequence[_Draw], eos_ids: set[int], length: int, temperature: float
) -> list[list[int]]:
    """At most ``length`` tokens sampled after each draw's ``ids``, up to and including the first of ``eos_ids``."""
    from transformers import GenerationConfig, LogitsProcessorList

    pad = min(eos_ids, default=0)
    longest = max(len(draw.ids) for draw in draws)
    ids = torch.full((len(draws), longest), pad)
    mask = torch.zeros_like(ids)
    for row, draw in enumerate(draws):
        ids[row, longest - len(draw.ids) :] = torch.tensor(draw.ids)
        mask[row, longest - len(draw.ids) :] = 1
    # `generate` would take a setting that is None here from the model's own configuration.
    generation = GenerationConfig(
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        max_new_tokens=length,
        eos_token_id=sorted(eos_ids) or None,
        pad_token_id=pad,
        use_cache=True,
    )
    output = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        generation_config=generation,
        logits_processor=LogitsProcessorList([_SeededSampling([draw.seed for draw in draws], temperature)]),
    )
    return [_up_to_eos(row, eos_ids) for row in output[:, longest:].tolist()]


def _up_to_eos(ids: list[int], eos_ids: set[int]) -> list[int]:
    length = next((position + 1 for position, token in enumerate(ids) if token in eos_ids), len(ids))
    return ids[:length]


class _SeededSampling:
    """A logits processor that makes greedy generation sample, each row with a random generator of its own.

    Each token is drawn by inverting the cumulative distribution at one uniform number.
    """

    def __init__(self, seeds: Sequence[str], temperature: float) -> None:
        self._random, self._temperature = [random.Random(seed) for seed in seeds], temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        cumulative = (scores.double() / self._temperature).softmax(-1).cumsum(-1)
        uniform = torch.tensor([[r.random()] for r in self._random], dtype=cumulative.dtype).to(scores.device)
        # Scaled by the total, which rounding may leave below 1; `right`, so that no token of probability 0 is drawn.
        token = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -math.inf).scatter_(-1, token, 0.0)
