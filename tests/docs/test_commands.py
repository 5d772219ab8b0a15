"""Every command of the README and the docs is accepted, and runs in the order in which it stands."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from errata.cli import _WITH_SETTINGS, _with_recipe, main, parser
from errata.recipe.read import read
from errata.recipe.settings import check_before_loading

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FIXTURES = ROOT / "tests" / "fixtures"
PROGRAMS = ("errata", "accelerate", "python", "make", "pip", ".")


def commands(page):
    """The commands of a page with their line numbers: in blocks of a console, or indented."""
    found, fence, unfinished = [], None, ""
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if opened := re.match(r"(?:```|~~~)(\w*)", line):
            fence = (opened[1] or "text") if fence is None else None
            continue
        if fence is None and not line.startswith("    "):
            continue
        if fence not in (None, "console", "bash", "sh", "text"):
            continue
        text = unfinished + line.strip().removeprefix("$ ")
        if text.split(" ")[0] not in PROGRAMS or text.startswith("...") or re.match(r"\S+\s{3,}", text):
            continue
        if text.endswith("\\"):
            unfinished = text[:-1]
            continue
        unfinished = ""
        found.append((number, text))
    return found


def words_of(text):
    """A command's words, without its comment and what a shell does with its output."""
    words = shlex.split(text, comments=True)
    ends = [i for i, word in enumerate(words) if word in ("&&", ">", "|", ";")]
    return words[: ends[0]] if ends else words


def errata_words(words):
    """The words after ``errata``, also where another program starts it; ``None`` for other programs."""
    if words[0] == "errata":
        return words[1:]
    if "errata" in words and words[words.index("errata") - 1] == "-m":
        return words[words.index("errata") + 1 :]
    return None


ALL = [(page, number, text) for page in PAGES for number, text in commands(page)]
ERRATA = [(page, number, text) for page, number, text in ALL if errata_words(words_of(text)) is not None]
OTHERS = [item for item in ALL if item not in ERRATA]


def named(items):
    return [pytest.param(p, t, id=f"{p.stem}:{n}") for p, n, t in items]


def files_of(page):
    """The files that a page shows, by name: code blocks that begin with it."""
    blocks = re.findall(r"^```(?:python|yaml)\n(# [\w.]+\.(?:py|yaml)\n.*?)^```", page.read_text(), re.M | re.S)
    return {block[2 : block.index("\n")]: block for block in blocks}


def write_files(page, folder):
    """The files that a page shows, what its own programs write, and the rows that ``errata init`` writes."""
    for name, block in files_of(page).items():
        (folder / name).write_text(block)
    for text in (text for p, _, text in OTHERS if p == page):
        if (words := words_of(text))[0] == "python" and words[1] in files_of(page):
            subprocess.run([sys.executable, *words[1:]], cwd=folder, check=True)
    main(["init", str(folder / "mine")])
    shutil.copy(folder / "mine" / "rows.jsonl", folder / "rows.jsonl")
    for name in ("recipes", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)


def filled(words):
    """A command with files of the tests in the place of DIR, MODEL and a shape of a large model."""
    recipe = next((Path(w).stem for w in words if w.endswith(".yaml")), "")
    recipe = recipe or next((w.split("/")[0] for w in words if w.split("/")[0] in ("tooluse", "sciknoweval")), "")
    return [{"DIR": str(FIXTURES / recipe), "MODEL": "house"}.get(word, word) for word in words]


def test_there_are_commands():
    assert len(ERRATA) > 40
    assert len(OTHERS) > 8
    assert {p.stem for p, _, _ in ERRATA} >= {"README", "first_run", "own_data", "collapse", "extending", "scale"}
    readme = [words_of(t) for p, _, t in ERRATA if p.stem == "README"]
    assert ["errata", "report", "--serve", "runs/demo"] in readme
    assert any("--method_args" in words and "MODEL" in words for words in readme)  # goes on in a second line


@pytest.mark.parametrize(("page", "text"), named(ERRATA))
def test_a_command_is_accepted(page, text, tmp_path, monkeypatch, capsys):
    write_files(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    words = filled(errata_words(words_of(text)))
    if words[-1] == "--help":
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0
        return
    args, rest = parser().parse_known_args(_with_recipe(words))
    if args.command not in _WITH_SETTINGS:
        assert rest == []
        name = next((w for w in words[1:] if w.endswith(".yaml")), None)
        assert name is None or Path(name).is_file()
        return
    if args.command == "compare":  # these two are of the comparison
        rest = [w for i, w in enumerate(rest) if "--output_dir" not in rest[max(i - 1, 0) : i + 1]]
    check_before_loading(args.recipe or None, rest)
    recipe = read(args.recipe or None, rest)
    for verifier in recipe.config.verifier or ():
        assert Path(verifier.rpartition(":")[0]).is_file()
    if ".py:" in recipe.config.method:
        assert Path(recipe.config.method.rpartition(":")[0]).is_file()


@pytest.mark.parametrize(("page", "text"), named(OTHERS))
def test_another_program_has_what_is_named(page, text):
    program, *words = words_of(text)
    if program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.M)
    elif program == "python":
        if words[0] == "-m":
            return
        code = files_of(page).get(words[0]) or (ROOT / words[0]).read_text()
        for word in words[1:]:
            assert not word.startswith("--") or f'"{word}"' in code
    elif program == "pip":
        assert words[0] == "install"
    else:
        assert (program, words) == (".", [".venv/bin/activate"])


SHORT = {
    "train": "--max_steps 2 --per_device_train_batch_size 16 --eval_steps 1 --eval_problems 2 --eval_k 2 --preflight 2 "
    "--eval_teacher_problems 2 --max_completion_length 12 --save_steps 1",
    "preflight": "--problems 2 --k 2",
    "eval": "--k 2 --problems 2",
    "compare": "--seeds 1 --jobs 1 --max_steps 1 --per_device_train_batch_size 16 --eval_problems 2 --eval_k 2 "
    "--eval_teacher_problems 2 --preflight 0 --max_completion_length 12",
}
"""What makes a command quick. A flag that is given twice has its last value."""
NOT_RUN = {
    "smollm2.yaml": "needs the weights of a real model; tests/models/test_smollm2.py",
    "--num_processes": "needs eight GPUs",
    "--task inspect/": "needs Inspect AI and a file of the user's; tests/adapters/test_inspect.py",
}


@pytest.mark.slow
@pytest.mark.parametrize("page", list(dict.fromkeys(p for p, _, _ in ERRATA)), ids=lambda p: p.stem)
def test_a_page_s_commands_run_in_their_order(page, tmp_path):
    write_files(page, tmp_path)
    shutil.rmtree(tmp_path / "mine")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
    start = [sys.executable, "-m", "errata"]
    if page.stem in ("README", "report"):  # `make demo`
        demo = ["train", "recipes/demo.yaml", *SHORT["train"].split()]
        subprocess.run([*start, *demo], cwd=tmp_path, env=environment, check=True)
    failed = []
    for line, text in ((n, t) for p, n, t in ERRATA if p == page):
        if any(part in text for part in NOT_RUN):
            continue
        words = filled(errata_words(words_of(text)))
        words += SHORT.get(words[0], "").split() if "--help" not in words else []
        if words[0] == "completion" and importlib.util.find_spec("shtab") is None:
            continue
        if words[0] == "plan":
            words += ["--model", str(FIXTURES / "shapes" / "8b")]
        if words[0] == "train" and "rules.yaml" in words:
            words += ["--model", "house", "--context_template", "house"]
        if "--serve" in words:
            serves([*start, *words], tmp_path, environment)
            continue
        done = subprocess.run([*start, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        allowed = (0, 1) if words[0] == "preflight" else (0,)  # 1: this short a policy has nothing to learn from
        if done.returncode not in allowed or "Traceback" in done.stderr:
            failed.append(f"{page.name}:{line}: {text}\n{done.stdout[-1000:]}\n{done.stderr[-1000:]}")
    assert not failed, "\n".join(failed)


def serves(command, folder, environment):
    """The page is served at the address that the command prints, until it is ended."""
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            address = re.search(r"http://\S+", process.stdout.readline())[0]
            assert b"<html" in urllib.request.urlopen(address, timeout=60).read()
        finally:
            process.terminate()
