"""Self-evaluation: a model, the policy or another, criticises failed rollouts. Its critique becomes the feedback."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

from errata.feedback.custom import answer_text
from errata.records import Messages, Rollout, Verdict

__all__ = ["Critic"]

_DEFAULT = "contexts/templates/critique.jinja"


class Critic:
    """A stage after the verifier: ``critic(rollouts)`` returns their verdicts, where failed ones have a critique as feedback.

    Args:
        generate: continues a batch of chats, one text each. Called once for all failed rollouts, and not if there are none.
        count_tokens: the number of tokens of a text. ``info["critique_tokens"]`` counts what the model wrote, thinking
            included, and ``info["critique_prompt_tokens"]`` what it read.
        template: Jinja text, or the path of a ``.jinja`` file, with ``problem``, ``attempt``, ``feedback`` and
            ``reference``; ``contexts/templates/critique.jinja`` by default, which does not show the reference.
        threshold: the score from which a rollout counts as solved; rollouts below it have failed.
    Raises:
        ValueError: a template that is missing or has a syntax error; at a call, a wrong number of texts.

    A critique counts as leaking the answer if its prompt held the answer: the template uses ``reference``, or it uses
    ``feedback`` and the rollout's feedback leaks.
    """

    def __init__(
        self,
        generate: Callable[[list[Messages]], list[str]],
        *,
        count_tokens: Callable[[str], int],
        template: str | None = None,
        threshold: float = 1.0,
    ) -> None:
        import jinja2
        import jinja2.meta

        text = _text_of(template)
        environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
        try:
            self._uses = jinja2.meta.find_undeclared_variables(environment.parse(text))
            self._template = environment.from_string(text)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"template: line {error.lineno}: {error.message}") from error
        unknown = self._uses - {"problem", "attempt", "feedback", "reference"}
        if unknown:
            raise ValueError(f"template: no {min(unknown)!r}; it may use problem, attempt, feedback and reference")
        self.generate, self._count, self._threshold = generate, count_tokens, threshold

    def __call__(self, rollouts: Sequence[Rollout]) -> list[Verdict]:
        """One verdict per rollout, in order. Its score is the rollout's own; feedback, kind, leak and info may differ."""
        failed = [r for r in rollouts if r.reward is not None and not r.solved(self._threshold)]
        prompts = [self._prompt(r) for r in failed]
        texts = self.generate(prompts) if prompts else []
        if len(texts) != len(prompts):
            raise ValueError(f"generate: returned {len(texts)} texts for {len(prompts)} prompts; return one each")
        new = {id(r): self._verdict(r, p, t) for r, p, t in zip(failed, prompts, texts, strict=True)}
        return [new.get(id(r), r.verdict) for r in rollouts]

    def _prompt(self, rollout: Rollout) -> Messages:
        filled = self._template.render(
            problem=_problem(rollout.prompt),
            attempt=answer_text(rollout.completion).strip() or rollout.completion.strip(),
            feedback=rollout.verdict.feedback,
            reference=rollout.reference or "",
        )
        return [{"role": "user", "content": filled}]

    def _verdict(self, rollout: Rollout, prompt: Messages, text: str) -> Verdict:
        verdict, critique = rollout.verdict, answer_text(text).strip()
        info = {
            **verdict.info,
            "critique_tokens": self._count(text),
            "critique_prompt_tokens": self._count(prompt[0]["content"]),
        }
        if not critique:
            return replace(verdict, info=info)
        answer_in_prompt = ("reference" in self._uses and bool(rollout.reference)) or (
            "feedback" in self._uses and verdict.leaks_answer
        )
        if verdict.feedback:
            info["judged"] = verdict.feedback
        return Verdict(verdict.score, critique, kind="critique", leaks_answer=answer_in_prompt, info=info)


def _text_of(template: str | None) -> str:
    if template is None:
        return (resources.files("errata") / _DEFAULT).read_text(encoding="utf-8")
    if not template.endswith(".jinja"):
        return template
    if not Path(template).is_file():
        raise ValueError(f"template: no file {template!r}")
    return Path(template).read_text(encoding="utf-8")


def _problem(prompt: Messages | str) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(str(m["content"]) for m in prompt if m.get("role") != "system")
