"""Rollouts of several turns without tools: an environment answers what the policy says, as a user does.

An environment with a method ``_reply(text)`` is given each of the policy's messages and returns what the other side says next, or
``None`` at the end. The name begins with an underscore because TRL offers public methods to the policy as tools.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from errata.records import Messages, Prompt
from errata.training.environments import answer, lose

logger = logging.getLogger(__name__)

Generate = Callable[[list[list[int]]], tuple[list[list[int]], list[list[float]] | None]]
"""From token ids to those of the policy's next message, and their log-probs where the engine gives them."""


def talks(environments: Sequence[object] | None) -> bool:
    """Whether one of a batch's environments answers messages."""
    return any(hasattr(e, "_reply") for e in environments or ())


def converse(
    environments: Sequence[object],
    prompt_ids: list[list[int]],
    ids: list[list[int]],
    mask: list[list[int]],
    completions: list[Messages],
    logps: list[list[float]] | None,
    *,
    generate: Generate,
    encode: Callable[[str], list[int]],
    decode: Callable[[list[int]], str],
    ends: Sequence[int],
    most_tokens: int,
    most_turns: int,
) -> None:
    """Continue each rollout in place until its environment ends it, or nothing more fits.

    Args:
        environments: of each rollout.
        prompt_ids: tokens of each prompt.
        ids: tokens of each completion so far, one message of the policy.
        mask: 1 for each of these that the policy wrote.
        completions: messages of each completion.
        logps: log-probs of ``ids``, 0 at tokens that the policy did not write; or ``None``.
        generate: the policy's next message after these tokens.
        encode: tokens from the end of the policy's message to the beginning of its next, with this user's message between.
        decode: a message's text.
        ends: tokens that end the policy's message.
        most_tokens: of a completion, replies included.
        most_turns: replies in a rollout.
    """
    going = [i for i, e in enumerate(environments) if hasattr(e, "_reply")]
    for _ in range(most_turns):
        heard: dict[int, list[int]] = {}
        for i in going:
            said = _replied(environments[i], str(completions[i][-1].get("content") or ""))
            if said is None:
                continue
            suffix = encode(said)
            whole = bool(ids[i]) and ids[i][-1] in ends  # else the message was cut, and there is no room for more
            if whole and len(ids[i]) + len(suffix) < most_tokens:
                heard[i] = suffix
                completions[i].append({"role": "user", "content": said})
        going = list(heard)
        if not going:
            return
        new, new_logps = generate([prompt_ids[i] + ids[i] + heard[i] for i in going])
        for n, i in enumerate(going):
            own = new[n][: most_tokens - len(ids[i]) - len(heard[i])]
            ids[i] = ids[i] + heard[i] + own
            mask[i] = mask[i] + [0] * len(heard[i]) + [1] * len(own)
            if logps is not None:
                logps[i] = logps[i] + [0.0] * len(heard[i]) + (new_logps or [[]] * len(going))[n][: len(own)]
            completions[i].append({"role": "assistant", "content": decode(own)})


def _replied(environment: object, text: str) -> str | None:
    try:
        said = environment._reply(text)  # type: ignore[attr-defined]
    except Exception as error:  # its state is not known any more: the rollout is not judged
        lose(environment, "reply", error)
        return None
    return None if said is None else str(answer(said))


def reply_ids(text: str, encode: Callable[[Messages, bool], list[int]], ends: Sequence[int]) -> list[int]:
    """Tokens between two of the policy's messages where a user says ``text``.

    Args:
        text: the user's message.
        encode: token ids of messages by the chat template; the flag asks for the beginning of the policy's next message, too.
        ends: tokens that end the policy's message.
    Raises:
        ValueError: the chat template changes a message when another follows.
    """
    said = [{"role": "user", "content": "."}, {"role": "assistant", "content": "."}]
    before, after = encode(said, False), encode([*said, {"role": "user", "content": text}], True)
    # The policy's message ends with its last end token; what a template writes after that belongs to the reply.
    end = max((n for n, token in enumerate(before) if token in ends), default=len(before) - 1) + 1
    if after[:end] != before[:end]:
        raise ValueError("model: its chat template changes a message when another follows; use one that does not")
    return after[end:]


def begins_answer(prompt: Prompt) -> bool:
    """Whether a chat's last message is the beginning of the answer."""
    return not isinstance(prompt, str) and prompt[-1].get("role") == "assistant"


def observed(prompt: Messages, observation: object) -> Messages:
    """The prompt with what an environment shows at its reset after the last message, as TRL puts it there."""
    if observation is None:
        return prompt
    content = prompt[-1]["content"]
    if isinstance(observation, list) and isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if isinstance(observation, str) and isinstance(content, list):
        observation = [{"type": "text", "text": observation}]
    return [*prompt[:-1], {**prompt[-1], "content": content + observation}]
