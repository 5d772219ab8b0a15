"""The model card of a trained policy: what trained it, on what, how well it does, and the command that makes it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from errata import methods
from errata.methods import Method
from errata.records import Row

_SHOWN = ("avg@", "pass@", "maj@", "teacher_accuracy")
_SETTINGS = (
    *("learning_rate", "max_steps", "num_train_epochs", "num_generations", "generation_batch_size", "temperature"),
    *("max_completion_length", "teacher", "teacher_rate", "seed"),
)


def card(
    name: str,
    method: Method,
    config: Mapping[str, Any],
    *,
    env: Mapping[str, Any],
    evaluations: Sequence[Row] = (),
    adapter: bool = False,
    steps: int | None = None,
) -> str:
    """The text of ``README.md``.

    Args:
        name: of the model.
        config: the run's settings, as in ``config.yaml``: ``model``, ``method``, ``task`` or ``dataset_name``, ...
        env: as in ``env.json``: ``argv``, ``versions``, ``git``, ``device``, ``finished``.
        evaluations: rows as in ``eval.jsonl``, oldest first.
        adapter: whether the files are an adapter of the base model.
        steps: optimizer steps that were taken.
    """
    title = str(config.get("method") or type(method).__name__.lower())
    preset = methods.PRESETS.get(title)
    source = (preset.source if preset else "") or method.paper
    base, data = str(config.get("model") or ""), _data(config)
    head = {
        "base_model": base if _is_hub_id(base) else None,
        "datasets": [config["dataset_name"]] if _is_hub_id(str(config.get("dataset_name") or "")) else None,
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["errata", "trl", title, *(["lora"] if adapter else [])],
    }
    what = "An adapter of" if adapter else "Trained from"
    lines = [
        f"---\n{yaml.safe_dump({k: v for k, v in head.items() if v}, sort_keys=False)}---",
        f"# {name}",
        f"{what} `{base or 'a model without a name'}` by reinforcement learning from rich feedback, with errata's "
        f"method **{title}**.",
        _table("", "", _facts(title, method, source, data, config, env, steps)),
    ]
    if evaluations:
        lines += ["## How well it does", _results(evaluations)]
    lines += [
        "## Settings",
        _table("setting", "value", _chosen(config, method)),
        "## Made again by",
        _command(env, config),
    ]
    return "\n\n".join(lines) + "\n"


def _facts(
    title: str, method: Method, source: str, data: str, config: Row, env: Row, steps: int | None
) -> dict[str, str]:
    git = env.get("git") or {}
    versions = ", ".join(f"{name} {version}" for name, version in (env.get("versions") or {}).items())
    commit = f"{git['commit'][:12]}{' with changes' if git.get('changed') else ''}" if git.get("commit") else ""
    found = {
        "method": f"{title}: {method.idea}" if method.idea else title,
        "paper": source,
        "data": data,
        "steps": "" if steps is None else f"{steps:,}",
        "device": str(env.get("device") or ""),
        "code": commit,
        "versions": versions,
    }
    return {key: value for key, value in found.items() if value}


def _data(config: Row) -> str:
    parts = [config.get("task"), config.get("dataset_name")]
    named = [f"`{part}`" for part in parts if part]
    for entry in config.get("tasks") or []:
        named.append(f"`{entry.get('name', entry) if isinstance(entry, Mapping) else entry}`")
    return ", ".join(named) or "rows that were given in Python"


def _results(evaluations: Sequence[Row]) -> str:
    first, last = evaluations[0], evaluations[-1]
    names = [key for key in last if key.startswith(_SHOWN) and not key.endswith(("_low", "_high"))]
    same = first is last
    columns = [f"step {last['step']}"] if same else [f"step {first['step']}", f"step {last['step']}"]
    where = f"{last.get('n_problems', '?')} problems of `{last.get('task')}` ({last.get('split', 'test')})"
    lines = [f"| {where} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name in names:
        cells = [_cell(row, name) for row in ([last] if same else [first, last])]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\nIn per cent, with 95 % intervals over problems."


def _cell(row: Row, name: str) -> str:
    value, low, high = (row.get(f"{name}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return "–"
    return f"{100 * value:.1f}" + ("" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]")


def _chosen(config: Row, method: Method) -> dict[str, str]:
    common = {name: f"`{config[name]}`" for name in _SETTINGS if config.get(name) is not None}
    return common | {f"method_args.{k}": f"`{v}`" for k, v in method.settings().items()}


def _command(env: Row, config: Row) -> str:
    words = [str(word) for word in env.get("argv") or []]
    if words and words[0].endswith(("/errata", "errata/__main__.py")):
        words[0] = "errata"
    command = shlex.join(words) if words else "(a Python program)"
    return f"```\n{command}\n```\n\nThe run directory's `config.yaml` holds all settings."


def _table(left: str, right: str, rows: Mapping[str, str]) -> str:
    return "\n".join([f"| {left} | {right} |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())])


def _is_hub_id(name: str) -> bool:
    """``owner/name``, and no path."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/")
