"""The expert that a recipe names: none (the policy is its own teacher), another model on this machine, a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from errata import methods
from errata.experts.access import GIVES, Access, check_temperature
from errata.methods import Method, TeacherMethod
from errata.recipe.config import ErrataConfig, mapping
from errata.recipe.models import model_path, one_line
from errata.training.teachers import MakeTeacher

CACHE = "expert_cache.sqlite"


def expert_of(
    config: ErrataConfig, method: Method, tokenizer: PreTrainedTokenizerBase
) -> tuple[MakeTeacher | None, Access]:
    """The expert of a recipe's ``expert`` and ``expert_args``, and its access; ``None``: the policy is its own teacher.

    Raises ``ValueError`` naming the setting: for an expert that gives less than the method needs (with the methods that
    would work), and for one that cannot be loaded or reached.
    """
    own, others = Access.split(mapping(config.expert_args))
    remote = config.expert is not None and config.expert.startswith(("http://", "https://"))
    if remote:
        own.setdefault("gives", "samples")
    access = Access(**own)
    if not isinstance(method, TeacherMethod):
        if config.expert is not None:
            raise ValueError(f"expert: method {config.method} has no teacher; use another method or leave it out")
        return None, access
    _check_access(config, method, access)
    if config.expert is None:
        if others:
            raise ValueError(
                f"expert_args: {sorted(others)[0]!r} is for another expert than the policy; name one with expert"
            )
        if "expert" in method.sources:
            raise ValueError(
                "sources: 'expert' is shown nothing, and the policy shown nothing has nothing to teach; name an expert"
            )
        return None, access
    if config.expert_on_failure == "self" and not remote:
        raise ValueError("expert_on_failure: self is for a server, which may fail")
    return (_server if remote else _local)(config, access, others, tokenizer), access


def _check_access(config: ErrataConfig, method: TeacherMethod, access: Access) -> None:
    least, why = method.minimum_access()
    if GIVES.index(access.gives) >= GIVES.index(least):
        return
    able = [n for n in methods.names() if _works(n, access)]
    if "distil" not in able:
        able.append("distil with method_args: {cost: ce}")
    raise ValueError(
        f"expert_args: gives: {access.gives} is less than method {config.method} needs ({least}): {why}; "
        f"methods that would work: {', '.join(able)}"
    )


def _works(name: str, access: Access) -> bool:
    method = methods.get(name)
    if not isinstance(method, TeacherMethod):
        return False
    return GIVES.index(access.gives) >= GIVES.index(method.minimum_access()[0])


def _server(
    config: ErrataConfig, access: Access, others: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> MakeTeacher:
    from errata.experts.remote.server import ServerExpert

    if access.gives == "full":
        raise ValueError("expert_args: gives: full is not offered by servers; use topk (vLLM) or samples")
    if "model" not in others:
        raise ValueError("expert_args: model is missing, the model's name on the server")
    if "on_failure" in others:
        raise ValueError("expert_args: on_failure is the recipe's expert_on_failure: skip, self or pause")
    check_temperature(access.gives, others.get("temperature"), config.temperature)
    settings = {"temperature": config.temperature, "cache": str(Path(str(config.output_dir)) / CACHE), **others}
    settings |= {"gives": access.gives, "top_k": access.top_k, "samples": access.samples}
    settings["on_failure"] = "pause" if config.expert_on_failure == "pause" else "skip"
    expert = _named(lambda: ServerExpert(str(config.expert), settings.pop("model"), tokenizer, **settings))
    expert.check()
    return lambda prepare: expert


def _local(
    config: ErrataConfig, access: Access, others: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> MakeTeacher:
    from errata.experts.local import LocalExpert, LocalSampler

    path = model_path(str(config.expert))
    others.setdefault("trust_remote_code", config.trust_remote_code)
    try:
        expert: Any = _named(lambda: LocalExpert(path, tokenizer, **others))
    except ValueError:
        if access.gives != "samples":
            raise
        # Another tokenizer: only the text it writes can be used.
        drawn = {"temperature": config.temperature, **others}
        check_temperature(access.gives, drawn["temperature"], config.temperature)
        sampler = _named(lambda: LocalSampler(path, tokenizer, draws=access.samples, **drawn))
        return lambda prepare: sampler
    return expert.prepared_by  # type: ignore[no-any-return]


def _named(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except TypeError as error:
        raise ValueError(f"expert_args: {str(error).rpartition(' got an ')[2] or error}") from error
    except ValueError:
        raise
    except Exception as error:  # damaged files raise whatever their reader does
        raise ValueError(f"expert: {one_line(error)}") from error
