"""Another model on this machine: its whole distribution where it shares the policy's vocabulary, else its text."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from errata.experts.base import HeadOf, Teacher, device_of, marking, unwrapped, visiting
from errata.experts.heads import matched_head, whole_head
from errata.experts.queries import Answer, Question
from errata.experts.retokenize import HALF, Reply, text_of, tokens_after
from errata.ops.scores import Head
from errata.records import Messages

LOOKAHEAD = (8, 32, 128)
"""Tokens an expert writes before its text is read as the policy's next token, which longer text could still change; more
only where that token is not complete."""

BLACK_BOX = "use it as a black box: expert_args: {gives: samples}"


class LocalExpert(Teacher):
    """Another model as teacher, with its full distribution over the policy's own vocabulary.

    Memory: one set of its weights, no gradients; kept on the CPU between its forwards where ``device`` says so.

    Args:
        path: hub id or directory; the weights are loaded when first needed.
        tokenizer: the policy's.
        dtype: of the weights, ``auto`` for that of the checkpoint.
        device: where they are kept between forwards; wherever ``prepare`` puts them unless given.
        prepare: makes the model ready for the run and its parallelism.
        loading: further arguments of ``from_pretrained``: ``revision``, ``trust_remote_code``, ``quantization_config``, ...
    Raises:
        ValueError: its vocabulary is not the policy's (naming the first token that differs), it does not know the policy's
            end of sequence, or it has no embedding for some of the policy's tokens.
    """

    kind = "local"

    def __init__(
        self,
        path: str,
        tokenizer: Any,
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
        config = AutoConfig.from_pretrained(path, **_of_files(loading))
        _check_end(tokenizer, own, path, loading)
        highest, rows = max(tokenizer.get_vocab().values()), config.get_text_config().vocab_size
        if highest >= rows:
            raise ValueError(
                f"expert: {path} has {rows} embeddings, the policy's tokenizer reaches token {highest} "
                f"({tokenizer.convert_ids_to_tokens(highest)!r}); {BLACK_BOX}"
            )

    def prepared_by(self, prepare: Callable[[nn.Module], nn.Module]) -> LocalExpert:
        """This expert, to be made ready by ``prepare`` once its weights are loaded."""
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
                stack.enter_context(visiting(self._model, device_of(student)))
            yield stack.enter_context(marking(self._model))

    def head(self, student_head: Head, head_of: HeadOf) -> Head:
        own = whole_head(head_of(self.separate), student_head.weight.device)
        return matched_head(own, student_head.weight.shape[0])


class LocalSampler:
    """Another model with any tokenizer, known by what it writes: n draws of the policy's next token at chosen states.

    At each state the policy's text so far is put after the expert's own rendering of the prompt, the expert goes on, and
    what it wrote is read as the policy's next token (``errata.experts.retokenize``). It samples from its own distribution:
    temperature 1, nothing cut off.

    Args:
        path: hub id or directory; the weights are loaded when first needed.
        tokenizer: the policy's.
        draws: n, samples per state.
        max_rows: continuations generated at a time.
        dtype: of the weights, ``auto`` for that of the checkpoint.
        device: where it runs.
        loading: further arguments of ``from_pretrained``.
    """

    gives = "samples"

    def __init__(
        self,
        path: str,
        tokenizer: Any,
        *,
        draws: int = 8,
        max_rows: int = 64,
        dtype: str | torch.dtype = "auto",
        device: torch.device | str = "cpu",
        **loading: Any,
    ) -> None:
        for name, value in {"draws": draws, "max_rows": max_rows}.items():
            if value < 1:
                raise ValueError(f"{name}: must be at least 1, got {value}")
        self.path, self.draws, self.max_rows = path, draws, max_rows
        self._policy, self._own = tokenizer, load_tokenizer(path, loading)
        self._dtype, self._device, self._loading = dtype, device, loading

    @cached_property
    def _model(self) -> Any:
        return load_model(self.path, self._dtype, self._loading).to(self._device)

    def answer(self, questions: Sequence[Question]) -> list[Answer | None]:
        """An answer per question, ``None`` where no draw at any of its states could be read.

        States that cut a character in two are not asked about, and draws that cannot be read are left out. A draw depends
        on its question's ``seed``, its position and its number alone, not on what else is asked.
        Raises ``ValueError`` where a prompt is a chat and the expert has no chat template.
        """
        draws = [d for index, question in enumerate(questions) for d in self._draws_of(index, question)]
        read: dict[tuple[int, int], list[int]] = defaultdict(list)
        for draw, token in zip(draws, self._tokens_of(draws), strict=True):
            if token is not None:
                read[draw.question, draw.position].append(token)
        return [self._gathered(index, question, read) for index, question in enumerate(questions)]

    def _draws_of(self, index: int, question: Question) -> Iterator[_Draw]:
        rendered = _rendered(self._own, question.prompt)
        for position in question.positions:
            prefix = question.completion_ids[:position]
            text = text_of(self._policy, prefix)
            if text.endswith(HALF):
                continue
            ids = self._own(rendered + text, add_special_tokens=isinstance(question.prompt, str))["input_ids"]
            for number in range(self.draws):
                yield _Draw(index, position, tuple(prefix), tuple(ids), f"{question.seed}-{position}-{number}")

    def _tokens_of(self, draws: list[_Draw]) -> list[int | None]:
        """The policy's token of each draw. Undecided ones are written again, at greater length: the same text, for the
        same random numbers."""
        tokens: dict[int, int] = {}
        for length in LOOKAHEAD:
            open_ = [i for i in range(len(draws)) if i not in tokens]
            open_.sort(key=lambda i: (-len(draws[i].ids), i))  # like lengths together waste no padding
            for start in range(0, len(open_), self.max_rows):
                batch = open_[start : start + self.max_rows]
                for i, (text, ended) in zip(batch, self._written([draws[i] for i in batch], length), strict=True):
                    if read := tokens_after(self._policy, draws[i].prefix, Reply(text, ended)):
                        tokens[i] = read[0]
        return [tokens.get(i) for i in range(len(draws))]

    def _written(self, draws: list[_Draw], length: int) -> Iterator[tuple[str, bool]]:
        """What the expert writes next, at most ``length`` tokens, and whether it ended there."""
        ends = _ends(self._own, self._model.generation_config)
        for draw, ids in zip(draws, written_ids(self._model, draws, ends, length), strict=True):
            ended = bool(ids) and ids[-1] in ends
            # The difference of two texts: decoding the new tokens alone loses a leading space with some tokenizers.
            before = text_of(self._own, draw.ids)
            after = text_of(self._own, [*draw.ids, *(ids[:-1] if ended else ids)])
            yield after[len(before) :], ended

    def _gathered(self, index: int, question: Question, read: dict[tuple[int, int], list[int]]) -> Answer | None:
        positions = tuple(p for p in question.positions if read[index, p])
        if not positions:
            return None
        tokens = torch.zeros(len(positions), self.draws, dtype=torch.long)
        logp = torch.full((len(positions), self.draws), -math.inf)
        for row, position in enumerate(positions):
            found = read[index, position]
            tokens[row, : len(found)] = torch.tensor(found)
            logp[row, : len(found)] = -math.log(len(found))
        return Answer(positions, tokens, logp)


class _Draw(NamedTuple):
    """One continuation to be written."""

    question: int
    position: int
    prefix: tuple[int, ...]
    """The policy's tokens so far."""
    ids: tuple[int, ...]
    """Prompt and prefix as the expert's tokens."""
    seed: str


def load_tokenizer(path: str, loading: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, **_of_files(loading))


def load_model(path: str, dtype: str | torch.dtype, loading: dict[str, Any]) -> Any:
    """The model, in evaluation mode and without gradients."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **loading).requires_grad_(False).eval()


def check_same_vocabulary(policy: Any, expert: Any, name: str) -> None:
    """Raise ``ValueError`` naming the first token that means something else to the expert's tokenizer.

    Only ids that both have are compared: models of one family add tokens at the end. How text is cut into tokens is not,
    for the expert is shown the policy's own; nor the padding token, for padding is masked.
    """
    ours, theirs = ({i: token for token, i in t.get_vocab().items()} for t in (policy, expert))
    for i in range(min(max(ours), max(theirs)) + 1):
        if ours.get(i) != theirs.get(i):
            raise ValueError(
                f"expert: {name} has another vocabulary than the policy, token {i} is {theirs.get(i)!r} to it and "
                f"{ours.get(i)!r} to the policy; {BLACK_BOX}"
            )


def _check_end(policy: Any, expert: Any, path: str, loading: dict[str, Any]) -> None:
    from transformers import GenerationConfig

    try:
        generation = GenerationConfig.from_pretrained(path, **_of_files(loading))
    except OSError:  # it carries none
        generation = None
    if policy.eos_token_id not in _ends(expert, generation):
        raise ValueError(
            f"expert: {path} ends its answers with {expert.eos_token!r}, the policy with {policy.eos_token!r}: it would teach "
            f"never to stop; give both the same eos_token, or {BLACK_BOX}"
        )


def _ends(tokenizer: Any, generation: Any) -> set[int]:
    own = getattr(generation, "eos_token_id", None)
    return {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}


def _of_files(loading: dict[str, Any]) -> dict[str, Any]:
    """What loading a tokenizer or a configuration takes of a model's arguments."""
    return {k: v for k, v in loading.items() if k in ("revision", "trust_remote_code", "token", "cache_dir")}


def _rendered(tokenizer: Any, prompt: Messages | str) -> str:
    if isinstance(prompt, str):
        return prompt
    if not tokenizer.chat_template:
        raise ValueError("expert: its tokenizer has no chat template, but the prompts are chats; use text prompts")
    goes_on = prompt[-1]["role"] == "assistant"
    return str(
        tokenizer.apply_chat_template(
            prompt, tokenize=False, add_generation_prompt=not goes_on, continue_final_message=goes_on
        )
    )


@torch.no_grad()
def written_ids(model: Any, draws: Sequence[_Draw], ends: set[int], length: int) -> list[list[int]]:
    """At most ``length`` tokens sampled after each draw's ``ids``, up to and with the one that ended it."""
    from transformers import GenerationConfig, LogitsProcessorList

    pad = min(ends, default=0)
    longest = max(len(draw.ids) for draw in draws)
    ids = torch.full((len(draws), longest), pad)
    mask = torch.zeros_like(ids)
    for row, draw in enumerate(draws):
        ids[row, longest - len(draw.ids) :] = torch.tensor(draw.ids)
        mask[row, longest - len(draw.ids) :] = 1
    # What is left None here would be filled in from the model's own settings.
    generation = GenerationConfig(
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        max_new_tokens=length,
        eos_token_id=sorted(ends) or None,
        pad_token_id=pad,
        use_cache=True,
    )
    output = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        generation_config=generation,
        logits_processor=LogitsProcessorList([_Sampled([draw.seed for draw in draws])]),
    )
    return [_up_to_end(row, ends) for row in output[:, longest:].tolist()]


def _up_to_end(ids: list[int], ends: set[int]) -> list[int]:
    length = next((position + 1 for position, token in enumerate(ids) if token in ends), len(ids))
    return ids[:length]


class _Sampled:
    """Makes greedy generation sample, each row from random numbers of its own: one uniform number a token, inverted
    through the cumulated distribution."""

    def __init__(self, seeds: Sequence[str]) -> None:
        self._random = [random.Random(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        cumulated = scores.double().softmax(-1).cumsum(-1)
        uniform = torch.tensor([[r.random()] for r in self._random], dtype=cumulated.dtype).to(scores.device)
        # Of the total, which rounding may leave below 1; and to the right, so that no token of mass 0 is drawn.
        token = torch.searchsorted(cumulated, uniform * cumulated[:, -1:], right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -math.inf).scatter_(-1, token, 0.0)
