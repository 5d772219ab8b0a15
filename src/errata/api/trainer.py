"""``errata.Trainer``: TRL's ``GRPOTrainer`` with a method. It takes what a TRL script gives, and keeps a run directory."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeAlias

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PrinterCallback
from trl import DatasetMixtureConfig, GRPOConfig, ModelConfig
from trl.scripts.grpo import GRPOScriptArguments

from errata import methods
from errata.commands.progress import Progress
from errata.feedback import load_verifier
from errata.methods import Method
from errata.recipe import models, rows, verifiers
from errata.recipe.config import ErrataConfig, mapping
from errata.recipe.experts import expert_of
from errata.recipe.read import Recipe
from errata.recipe.settings import check_given, check_packages
from errata.reports import lock
from errata.reports.rundir import RunDirectory
from errata.training import checkpoint as checkpoints
from errata.training.trainer import ErrataTrainer
from errata.validate import nearest

logger = logging.getLogger(__name__)

Rows: TypeAlias = Dataset | Iterable[Mapping[str, Any]]
"""Rows with a ``prompt`` and the columns that verifiers read: a ``datasets.Dataset`` or a list of mappings."""


class Trainer(ErrataTrainer):
    """TRL's GRPO trainer that learns by a method of ``errata methods``, and writes a run directory.

    ``Trainer(model="Qwen/Qwen3-8B", verifiers=[judge], train_dataset=rows, method="distil").train()``. The arguments of
    TRL's ``GRPOTrainer`` have their names and places, so a script of TRL's needs another import and a ``method``.

    Args:
        model: a hub id, a directory, a run's directory or ``house``; or a model of transformers or PEFT. ``args.model``
            unless given.
        verifiers: one callable or several, each a TRL reward function or one that returns ``errata.Verdict``; or the name
            of one, ``file.py:function``. Those of ``args`` (``verifier``, ``task``) unless given.
        args: an ``ErrataConfig``, a mapping of its settings, or a ``GRPOConfig``, whose values are all kept as they are.
        train_dataset: rows with ``prompt`` and the columns that verifiers read; ``problem_id`` is made of the prompt where
            it is missing. The rows of ``args.task`` unless given.
        eval_dataset: rows of the same form, for ``evaluate``; their questions are left out of training.
        reward_funcs: TRL's name of ``verifiers``.
        method: a name of ``errata methods``, ``file.py:Class``, or a method object; ``args.method`` unless given.
        method_args: settings of a method given by its name.
        kwargs: TRL's other arguments: processing_class, peft_config, callbacks, tools, environment_factory, ...
    Raises:
        ValueError: in one line, for anything that can be mended: an unknown name, arguments that contradict each other, a
            row or column that cannot be used.
    """

    def __init__(
        self,
        model: PreTrainedModel | str | None = None,
        verifiers: Any = None,
        args: ErrataConfig | GRPOConfig | Mapping[str, Any] | None = None,
        train_dataset: Rows | None = None,
        eval_dataset: Rows | None = None,
        *,
        reward_funcs: Any = None,
        method: Method | str | None = None,
        method_args: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        chosen, config = method_and_config(method, method_args, args)
        check_packages(vars(config))
        recipe = Recipe(config, ModelConfig(), GRPOScriptArguments(), DatasetMixtureConfig(), {})
        judges = _judges(recipe, verifiers, reward_funcs)
        train, held_out = _rows(recipe, train_dataset, eval_dataset)
        for judged in (train, *([] if held_out is None else [held_out])):
            _check_columns(judges, judged.column_names)
        tools = {k: v for k, v in _tools(config).items() if k not in kwargs}
        model, tokenizer = _model(model, kwargs.pop("processing_class", None), config)
        if "expert" not in kwargs:
            kwargs["expert"], kwargs["access"] = expert_of(config, chosen, tokenizer)
        config.model_init_kwargs = None  # the model is loaded already
        self.directory = RunDirectory(str(config.output_dir))
        """The run directory; that of another run of this name where ``train`` finds one there."""
        super().__init__(
            model,
            judges,
            config,
            method=chosen,
            train_dataset=train,
            eval_dataset=held_out,
            run=lambda stem, row: self.directory.write(stem, row),
            processing_class=tokenizer,
            **tools,
            **kwargs,
        )
        self._settings = _settings(config, chosen)
        self.remove_callback(PrinterCallback)
        self.add_callback(Progress(self.directory, config.eval_k))

    def train(  # type: ignore[override]
        self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any
    ) -> Any:
        """Train, and leave the policy, the settings and all logs in ``directory``. Returns TRL's ``TrainOutput``.

        A directory that holds another run is left alone: this run gets one of its own, ``NAME-2``, and a warning says so
        (``overwrite: true`` replaces the other run).

        Args:
            resume_from_checkpoint: a checkpoint, or ``True`` for the newest undamaged one in ``directory``.
        """
        resume = resume_from_checkpoint or None
        if not resume and self.accelerator.is_main_process:
            self._take_free_directory()
        chosen = [str(self.directory.path)]
        if torch.distributed.is_initialized():
            torch.distributed.broadcast_object_list(chosen, src=0)
        self.directory.path, self.args.output_dir = Path(chosen[0]), chosen[0]
        checkpoint = checkpoints.newest(self.directory.path).checkpoint if resume is True else resume
        main = self.accelerator.is_main_process
        with lock.Lock(self.directory.path) if main else nullcontext():
            if main:
                self.directory.open(self._settings, overwrite=self.args.overwrite, resume=bool(resume))
                self.directory.withdraw_policy()
                checkpoints.cut_rows(self.directory, Path(checkpoint) if checkpoint else None)
            output = super().train(resume_from_checkpoint=str(checkpoint) if checkpoint else None, **kwargs)
            if not self.stopped:
                self._finish()
        return output

    def _take_free_directory(self) -> None:
        found = self.directory.path if self.args.overwrite else free_directory(self.directory.path)
        if found != self.directory.path:
            logger.warning("%s holds another run; this one goes to %s", self.directory.path, found)
        self.directory.path = found

    def _finish(self) -> None:
        part = self.directory.path / "policy.part"
        self.save_policy(part)
        if self.accelerator.is_main_process:
            self.directory.publish_policy(part)
        if self.eval_dataset is not None and self.args.eval_strategy != "no":
            evaluated = self.directory.last("eval")
            if evaluated is None or evaluated["step"] != self.state.global_step:
                self.evaluate()
        self.create_model_card()
        if self.accelerator.is_main_process:
            self.directory.finish()


def free_directory(path: Path) -> Path:
    """``path`` if no run is there, else the first of ``path-2``, ``path-3``, ... without one."""
    number, found = 1, path
    while (found / "config.yaml").is_file():
        number += 1
        found = path.with_name(f"{path.name}-{number}")
    return found


def method_and_config(
    method: Method | str | None,
    method_args: Mapping[str, Any] | None,
    args: ErrataConfig | GRPOConfig | Mapping[str, Any] | None,
) -> tuple[Method, ErrataConfig]:
    """The method, and a copy of the settings that names it.

    Raises ``ValueError`` where the settings name another method than the argument, and for an unknown setting.
    """
    given = dict(args) if isinstance(args, Mapping) else {}
    default = _default("method")
    said = given.get("method") if isinstance(args, Mapping) else getattr(args, "method", None)
    said_args = mapping(given.get("method_args") if isinstance(args, Mapping) else getattr(args, "method_args", None))
    if isinstance(method, Method):
        if method_args or said_args:
            raise ValueError("method_args: the method is an object with its settings; give them to it")
        chosen, name = method, _name_of(method)
        known = methods.PRESETS.get(said) if said else None
        if said not in (None, default, name) and (known is None or known.method is not type(method)):
            raise ValueError(
                f"method: the settings say {said!r}, and the argument is a {type(method).__name__}; say one"
            )
    else:
        if method is not None and said not in (None, default, method):
            raise ValueError(f"method: the settings say {said!r}, and the argument {method!r}; say one")
        name = method or said or default
        chosen = methods.get(name, **{**said_args, **(method_args or {})})
    return chosen, _config(args, name)


def _config(args: Any, method: str) -> ErrataConfig:
    if isinstance(args, ErrataConfig):
        config = copy.copy(args)
        if config.output_dir == config.default_output_dir():  # named after the method it had
            config.method = method
            config.output_dir = config.default_output_dir()
        config.method = method
        return config
    if isinstance(args, GRPOConfig):
        # TRL computes generation_batch_size from steps_per_generation, and refuses both together.
        values = {
            f.name: getattr(args, f.name) for f in fields(GRPOConfig) if f.init and f.name != "generation_batch_size"
        }
        return ErrataConfig(**values, method=method)
    if args is not None and not isinstance(args, Mapping):
        raise ValueError(
            f"args: must be an ErrataConfig, a GRPOConfig or a mapping of settings, got {type(args).__name__}"
        )
    given = dict(args or {})
    known = [f.name for f in fields(ErrataConfig) if f.init]
    for key in given:
        if key not in known:
            raise ValueError(f"args: {key}: unknown setting{nearest(str(key), known)}")
    check_given(given, "args: ")
    return ErrataConfig(**{**given, "method": method})


def _default(name: str) -> Any:
    return ErrataConfig.__dataclass_fields__[name].default


def _name_of(method: Method) -> str:
    kind = type(method)
    return next(
        (n for n, preset in methods.PRESETS.items() if preset.method is kind), f"{kind.__module__}:{kind.__qualname__}"
    )


def _judges(recipe: Recipe, given: Any, reward_funcs: Any) -> list[Any]:
    if given is not None and reward_funcs is not None:
        raise ValueError("reward_funcs: TRL's name of verifiers, which are given, too; give one of the two")
    found = reward_funcs if given is None else given
    if found is None:
        return verifiers.verifiers_of(recipe)
    several: Sequence[Any] = found if isinstance(found, list | tuple) else [found]
    judges = [load_verifier(judge) if isinstance(judge, str) and ":" in judge else judge for judge in several]
    for judge in judges:
        if not callable(judge) and not isinstance(judge, str):
            raise ValueError(f"verifiers: each must be a function, a reward model or a name, got {judge!r:.100}")
    return judges


_check_columns: Callable[[Sequence[Any], Sequence[str]], None] = verifiers.check_columns


def _tools(config: ErrataConfig) -> dict[str, Any]:
    return verifiers.tools_of(config)


def _rows(recipe: Recipe, train: Any, held_out: Any) -> tuple[Dataset, Dataset | None]:
    config = recipe.config
    wants_held_out = config.eval_strategy != "no" or config.eval_on_start
    if held_out is not None:
        held_out = rows.checked(_dataset(held_out, "eval_dataset"), "eval_dataset", strict=config.strict)
    elif config.task is not None and wants_held_out:
        held_out = rows.rows_of(recipe, split=config.eval_split, task=config.eval_task or config.task)
    elif wants_held_out:
        raise ValueError("eval_dataset: missing; eval_strategy asks for evaluations, so give rows for them, or a task")
    if held_out is not None and config.eval_problems is not None:
        held_out = held_out.select(range(min(config.eval_problems, len(held_out))))
    if train is None:
        train = rows.rows_of(recipe, split="train", task=config.task)
    else:
        train = rows.checked(_dataset(train, "train_dataset"), "train_dataset", strict=config.strict)
        if held_out is not None:
            train = rows.without_leaks(train, held_out, "train_dataset")
    rows.check_enough(config, train)
    rows.check_template_tasks(recipe, train)
    return train, held_out


def _dataset(given: Any, name: str) -> Dataset:
    if isinstance(given, Dataset):
        return given
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable) or hasattr(given, "_ex_iterable"):
        raise ValueError(f"{name}: must be a datasets.Dataset or a list of rows, got {type(given).__name__}")
    found = list(given)
    if not all(isinstance(row, Mapping) for row in found):
        raise ValueError(f"{name}: every row must be a mapping of columns to values")
    return Dataset.from_list([dict(row) for row in found])


def _model(given: Any, tokenizer: Any, config: ErrataConfig) -> tuple[Any, Any]:
    found = config.model if given is None else given
    if found is None:
        raise ValueError("model: missing; name a hub id, a directory or `house`, or give a model")
    if not isinstance(found, str):
        name = getattr(found.config, "name_or_path", "") or getattr(found.config, "_name_or_path", "")
        config.model = str(name) or type(found).__name__
        if tokenizer is None:
            tokenizer = models.load_tokenizer(str(name), config.trust_remote_code)
        return found, tokenizer
    config.model = found
    where = models.model_path(found)
    tokenizer = models.load_tokenizer(where, config.trust_remote_code) if tokenizer is None else tokenizer
    init = {"dtype": "float32", "trust_remote_code": config.trust_remote_code, **dict(config.model_init_kwargs or {})}
    model = models.load_model(where, **init)
    models.check_vocabulary(model, tokenizer)
    return model, tokenizer


_ALWAYS = (
    *("task", "model", "method", "num_generations", "max_completion_length", "temperature", "learning_rate"),
    *("seed", "generation_batch_size", "eval_k"),
)


def _settings(config: ErrataConfig, method: Method) -> dict[str, Any]:
    """What the run is told apart by: all settings that differ from the defaults, and the method's, whole."""
    found = {name: getattr(config, name) for name in _ALWAYS}
    for f in fields(ErrataConfig):
        value = getattr(config, f.name)
        default = f.default if f.default_factory is MISSING else f.default_factory()
        if f.init and f.name not in ("output_dir", "run_name", "overwrite") and value != default:
            found.setdefault(f.name, value)
    return {**found, "method_settings": method.settings()}
