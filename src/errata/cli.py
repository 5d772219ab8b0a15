"""The command line. Every command imports what it needs when it runs, so that ``errata --help`` is instant."""

from __future__ import annotations

import argparse
import errno
import logging
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

EXIT_BAD_INPUT = 2
EXIT_ERROR = 1
_ABOUT_FILES = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
)
"""Errors about files that the user can mend, such as a full disk or a read-only directory. They are told in one line."""


_WITH_SETTINGS = ("train", "preflight", "compare", "plan")
"""Commands that hand unknown flags on to the recipe's parser."""


def _yes_or_no(word: str) -> bool:
    if word.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{word!r} is neither true nor false")
    return word.lower() == "true"


_STRICT: dict[str, Any] = {
    "type": _yes_or_no,
    "metavar": "true|false",
    "help": "false: leave rows out that cannot be used, and say how many, rather than stop (default true)",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Bad input ends in one line on standard error and status 2, any other error in one line and status 1.

    ``--debug`` shows where an error came from.
    """
    logging.getLogger("DeepSpeed").addFilter(_to_standard_error)
    words, debug = _without_debug(list(sys.argv[1:] if argv is None else argv))
    args, rest = parser().parse_known_args(_with_recipe(words))
    if rest and args.command not in _WITH_SETTINGS:
        parser().error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return int(args.run(args, rest) or 0)
    except BrokenPipeError:  # the reader of a listing went away
        return 0
    except (ValueError, FileNotFoundError) as error:
        if debug:
            traceback.print_exc()
        print(f"errata: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("errata: interrupted; the same command resumes from the last checkpoint", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        if type(error) is ConnectionError:  # a hub out of reach, with the mend; subclasses are the system's own
            print(f"errata: {' '.join(str(error).split())}", file=sys.stderr)
            return EXIT_BAD_INPUT
        if not isinstance(error, OSError) or error.errno not in _ABOUT_FILES:
            print(f"errata: {_unexpected(error)}", file=sys.stderr)
            return EXIT_ERROR
        said = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
        print(f"errata: {' '.join(str(said).split())}; what was saved before is unchanged", file=sys.stderr)
        return EXIT_BAD_INPUT


def _to_standard_error(record: logging.LogRecord) -> bool:
    """Of DeepSpeed's log, which it writes among a command's results otherwise. That it found no GPU at its import is left out."""
    for handler in logging.getLogger("DeepSpeed").handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
            handler.setStream(sys.stderr)
    return record.module != "real_accelerator"


def _without_debug(words: list[str]) -> tuple[list[str], bool]:
    """The command line without ``--debug``; transformers' setting of that name is followed by a value."""
    for i, word in enumerate(words):
        if word == "--debug" and words[i + 1 : i + 2] not in (["underflow_overflow"], ["tpu_metrics_debug"]):
            return [*words[:i], *words[i + 1 :]], True
    return words, False


def _with_recipe(words: list[str]) -> list[str]:
    """The command line with an empty word in the place of the recipe where ``train`` or ``preflight`` has none."""
    command = next((i for i, word in enumerate(words) if not word.startswith("-")), len(words))
    if words[command : command + 1] not in (["train"], ["preflight"]):
        return words
    after = words[command + 1 :]
    named = after and not after[0].startswith("-")
    if named or any(word in ("-h", "--help") or word.endswith((".yaml", ".yml")) for word in after):
        return words
    return [*words[: command + 1], "", *after]


def _unexpected(error: Exception) -> str:
    """One line for an error that no check has foreseen, with what to do where that is known."""
    kind, said = type(error).__name__, " ".join(str(error).split())
    said = f"{kind}: {said[:500]}" if said else kind
    if kind == "OutOfMemoryError" or isinstance(error, MemoryError):
        mend = "lower per_device_train_batch_size, max_completion_length or eval_batch_size"
    elif isinstance(error, ImportError):
        mend = "install the missing package, or leave out the setting that needs it"
    else:
        return f"{said} (--debug shows where)"
    return f"{said}; {mend} (--debug shows where)"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as for all bad input, instead of the whole usage."""
        print(f"errata: {message}; `{self.prog} --help` lists what there is", file=sys.stderr)
        raise SystemExit(EXIT_BAD_INPUT)


class _Help(argparse.Action):
    """The help of a command with all settings of a recipe; TRL, which explains its own, is imported for it."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from errata.recipe.help import add_settings

        add_settings(parser)
        parser.print_help()
        parser.exit()


def parser(*, settings: bool = False) -> argparse.ArgumentParser:
    """The command line's parser; ``settings``: with the flags that ``train`` and ``compare`` hand on to the recipe's."""
    from errata import __version__

    top = _Parser(prog="errata", description="Reinforcement learning from rich feedback.")
    top.add_argument("--debug", action="store_true", help="show where an error came from")
    top.add_argument("--version", action="version", version=f"errata {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train a policy as a recipe says",
        usage="errata train [RECIPE] [--SETTING VALUE ...]",
        description="A setting given here stands over the recipe's. --method_args.credit mean reaches into a mapping.",
        allow_abbrev=False,
        add_help=False,
    )
    train.add_argument(
        "recipe", nargs="?", help="YAML with the settings below; without one, --model and --task are needed"
    )
    train.add_argument("-h", "--help", nargs=0, action=_Help, help="this list, and exit")
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("eval", help="avg@k and pass@k of a model or a run")
    evaluate.add_argument("model", help="run directory, checkpoint, model directory, hub id or `house`")
    evaluate.add_argument(
        "--task", help="a task of `errata tasks`, or a recipe with your rows; a run's own unless given"
    )
    evaluate.add_argument("--task_path", help="where the task's files lie")
    evaluate.add_argument("--split", default="test")
    evaluate.add_argument("--k", type=int, default=8, help="completions per problem (default 8)")
    evaluate.add_argument("--problems", type=int, help="only the first so many problems")
    evaluate.add_argument("--temperature", type=float, help="of a run's own evaluations, or 1")
    evaluate.add_argument("--top_p", type=float, help="of a run's own evaluations, or 1")
    evaluate.add_argument("--max_completion_length", type=int, help="tokens (a run's own, or 512)")
    evaluate.add_argument("--batch_size", type=int, help="completions generated at a time (a run's own, or 256)")
    evaluate.add_argument("--seed", type=int, help="a run's own, or 0")
    evaluate.add_argument(
        "--against", metavar="MODEL", help="another run or model on the same problems: the difference, with a p-value"
    )
    evaluate.add_argument("--out", type=Path, help="write the judged completions here as JSON lines")
    evaluate.add_argument("--strict", **_STRICT)
    evaluate.set_defaults(run=_eval)

    preflight = commands.add_parser(
        "preflight", help="before training: in which contexts is the teacher worth listening to?", allow_abbrev=False
    )
    preflight.add_argument("recipe", nargs="?", help="YAML as for train, or its settings as --key value")
    preflight.add_argument(
        "--problems", type=int, help="training problems tried (default 32; 16 of a language model on a CPU)"
    )
    preflight.add_argument("--k", type=int, default=4, help="attempts at each, in each context (default 4)")
    preflight.add_argument("--out", type=Path, help="write the numbers here as JSON")
    preflight.set_defaults(run=_preflight)

    compare = commands.add_parser(
        "compare", help="methods side by side: same data, same budget, several seeds", allow_abbrev=False
    )
    compare.add_argument("recipe", help="YAML as for train; `compare:` holds what differs by method")
    compare.add_argument("--methods", required=True, help="methods or labels of the recipe's `compare`, with commas")
    compare.add_argument("--seeds", type=int, default=3, help="runs per method (default 3)")
    compare.add_argument("--jobs", type=int, help="runs at a time; as many as there are cores or GPUs unless given")
    compare.add_argument(
        "--tune", type=int, default=0, help="learning rates each method tries first, on training problems"
    )
    compare.add_argument(
        "--target", type=float, help="avg@k whose reaching is timed; half way to the best unless given"
    )
    compare.set_defaults(run=_compare)

    plan = commands.add_parser(
        "plan", help="what a recipe needs of each GPU's memory, before it is run", allow_abbrev=False
    )
    plan.add_argument("recipe", help="YAML as for train, with --key value; its on_gpu settings apply")
    plan.add_argument("--gpus", type=int, default=8, help="processes with a GPU each (default 8)")
    plan.add_argument("--memory", type=float, default=80, metavar="GB", help="memory of each GPU (default 80)")
    plan.add_argument(
        "--engine", choices=["ddp", "fsdp", "zero1", "zero2", "zero3"], help="default: fsdp on several GPUs"
    )
    plan.add_argument("--prompt_tokens", type=int, default=2048, help="the longest prompt (default 2048)")
    plan.set_defaults(run=_plan)

    report = commands.add_parser("report", help="one self-contained report.html of one or several runs")
    report.add_argument("runs", nargs="+", metavar="RUN", help="run directory, or a comparison's")
    report.add_argument("--out", type=Path, help="the page; report.html in a single run's directory, else here")
    report.add_argument(
        "--serve", action="store_true", help="serve the page on this machine; it follows running trainings"
    )
    report.add_argument("--port", type=int, default=0, help="with --serve: the port (default: any that is free)")
    report.add_argument("--plots", type=Path, metavar="DIR", help="write the curves there as SVG and PNG too")
    report.add_argument("--target", type=float, help="avg@k whose reaching is timed; half way to the best unless given")
    report.set_defaults(run=_report)

    init = commands.add_parser("init", help="write a recipe, a verifier and five rows to start from")
    init.add_argument("folder", nargs="?", type=Path, default=Path(), help="where (here unless given)")
    init.set_defaults(run=_init)

    tasks = commands.add_parser("tasks", help="list the tasks, show rows of one, or check your own")
    tasks.add_argument("name", nargs="?", help="a task, or a recipe with rows and a verifier of your own")
    tasks.add_argument(
        "--check",
        action="store_true",
        help="of a recipe: read the rows, try the verifier on right and wrong answers, show a teacher's prompt and lengths",
    )
    tasks.add_argument("--task_path")
    tasks.add_argument("--split", default="train")
    tasks.add_argument("--rows", type=int, help="how many rows (default 3; 1 with --show-context)")
    tasks.add_argument("--strict", **_STRICT)
    tasks.add_argument(
        "--show-context",
        action="store_true",
        help="what student and teacher see for a row, by each of the method's sources",
    )
    tasks.add_argument("--method", default="distil", help="with --show-context: whose sources (default distil)")
    tasks.add_argument("--method_args", metavar="YAML", help="its settings, e.g. '{with_feedback: true}'")
    tasks.add_argument("--task_args", metavar="YAML", help="the verifier's settings, e.g. '{feedback: trace}'")
    tasks.add_argument("--context_template", help="a preset, a .jinja file or Jinja text (default: the method's own)")
    tasks.set_defaults(run=_tasks)

    methods = commands.add_parser("methods", help="list the methods and presets, or all settings of one")
    methods.add_argument("name", nargs="?")
    methods.set_defaults(run=_methods)

    doctor = commands.add_parser("doctor", help="what this machine has of what errata can use, and a short test")
    doctor.set_defaults(run=_doctor)

    theory = commands.add_parser("theory", help="the papers' claims, computed exactly")
    theory.add_argument("--json", action="store_true", help="print the numbers")
    theory.add_argument("--out", type=Path, help="where the page with the plots goes (theory.html)")
    theory.set_defaults(run=_theory)

    completion = commands.add_parser("completion", help="print what makes a shell complete commands and settings")
    completion.add_argument("shell", choices=["bash", "zsh", "tcsh"])
    completion.set_defaults(run=_completion)
    if settings:
        from errata.recipe.help import add_settings

        for name in _WITH_SETTINGS:
            add_settings(commands.choices[name])
    return top


def _train(args: argparse.Namespace, rest: list[str]) -> int:
    from errata.training import interrupt

    interrupt.follow_parent()  # before the slow imports
    from errata.recipe.settings import check_before_loading

    check_before_loading(args.recipe or None, rest)
    from errata.commands.train import train

    return train(args.recipe or None, rest)


def _preflight(args: argparse.Namespace, rest: list[str]) -> int:
    from errata.recipe.settings import check_before_loading

    check_before_loading(args.recipe or None, rest)
    from errata.commands.preflight import preflight

    return preflight(args.recipe or None, rest, problems=args.problems, k=args.k, out=args.out)


def _eval(args: argparse.Namespace, rest: list[str]) -> int:
    from errata.commands.evaluate import evaluate

    return evaluate(args)


def _compare(args: argparse.Namespace, rest: list[str]) -> int:
    from errata.recipe.settings import check_before_loading
    from errata.validate import Count, PositiveShare, Whole, check

    check_before_loading(args.recipe, rest)
    for name, value, hint in (
        ("--seeds", args.seeds, Count),
        ("--jobs", args.jobs, Count | None),
        ("--tune", args.tune, Whole),
        ("--target", args.target, PositiveShare | None),
    ):
        check(name, value, hint)
    from errata.commands.compare import compare

    names = [name.strip() for name in args.methods.split(",") if name.strip()]
    return compare(args.recipe, names, args.seeds, args.jobs, args.tune, rest, target=args.target)


def _plan(args: argparse.Namespace, rest: list[str]) -> int:
    from errata.recipe.settings import check_before_loading

    check_before_loading(args.recipe, rest)
    from errata.commands.plan import plan

    return plan(
        args.recipe,
        rest,
        gpus=args.gpus,
        memory=args.memory,
        engine=args.engine,
        prompt_tokens=args.prompt_tokens,
    )


def _report(args: argparse.Namespace, rest: list[str]) -> int:
    from errata.reports.html import write_report
    from errata.reports.runs import unfinished
    from errata.validate import PositiveShare, check

    if args.target is not None:
        check("--target", args.target, PositiveShare)

    if args.serve:
        from errata.reports.serve import serve

        serve(args.runs, port=args.port, target=args.target)
        return 0
    if missing := unfinished(args.runs):
        print(f"not finished and not shown: {', '.join(missing)}")
    page = write_report(args.runs, args.out, target=args.target)
    print(f"report: {page} ({page.stat().st_size / 1e6:.1f} MB)")
    if args.plots is not None:
        from errata.reports.plots import write_plots

        print(f"plots: {len(write_plots(args.runs, args.plots))} files in {args.plots}")
    return 0


def _tasks(args: argparse.Namespace, rest: list[str]) -> int:
    import json

    from rich.console import Console

    from errata import tasks
    from errata.validate import Whole, check

    console = Console()
    if args.rows is not None:
        check("--rows", args.rows, Whole)
    if args.name is None:
        for name in tasks.names():
            console.print(name, highlight=False)
        return 0
    if args.name.endswith((".yaml", ".yml")):
        return _tasks_of_recipe(args)
    if args.check:
        raise ValueError("--check: checks a recipe; name one, such as my.yaml (errata init writes one)")
    rows = tasks.load(args.name, path=args.task_path, split=args.split, strict=args.strict is not False)
    if args.show_context:
        from errata.commands.preview import show_contexts

        return show_contexts(args, rows)
    console.print(
        f"{args.name} ({args.split}): {len(rows)} rows, columns {', '.join(rows.column_names)}", highlight=False
    )
    for row in rows.select(range(min(3 if args.rows is None else args.rows, len(rows)))):
        console.print_json(json.dumps(row, ensure_ascii=False, default=str))
    return 0


def _tasks_of_recipe(args: argparse.Namespace) -> int:
    from errata.commands.check import check_recipe, show_recipe
    from errata.commands.train import quiet
    from errata.recipe.read import read

    quiet()
    recipe = read(args.name)
    recipe.set_environment()
    if args.check:
        return check_recipe(recipe)
    return show_recipe(recipe, args.split, args.rows, contexts=args.show_context)


def _init(args: argparse.Namespace, rest: list[str]) -> int:
    from errata.commands.init import init

    return init(args.folder)


def _methods(args: argparse.Namespace, rest: list[str]) -> int:
    from errata.reports.methods import describe, overview

    print(overview() if args.name is None else describe(args.name))
    return 0


def _doctor(args: argparse.Namespace, rest: list[str]) -> int:
    from errata.commands.doctor import doctor

    return doctor()


def _theory(args: argparse.Namespace, rest: list[str]) -> int:
    from errata.theory import run
    from errata.validate import check_file

    check_file("--out", args.out)
    return int(run(json=args.json, out=args.out) or 0)


def _completion(args: argparse.Namespace, rest: list[str]) -> int:
    try:
        import shtab
    except ImportError as error:
        raise ValueError("completion: needs the package shtab; pip install 'errata[completion]'") from error
    print(shtab.complete(parser(settings=True), shell=args.shell))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
