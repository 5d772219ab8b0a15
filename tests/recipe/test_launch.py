"""recipes/launch: accelerate's own parser reads the configurations and the commands that the scripts run."""

import json
import os
import stat
import subprocess

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from tests.recipe.test_recipes import RECIPES, ROOT

from errata.commands.plan import on_gpus

LAUNCH = RECIPES / "launch"
ENGINES = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero3": "DEEPSPEED"}
ON_EIGHT = ("sciknoweval", "tooluse", "livecodebench", "math")


@pytest.mark.parametrize("name", ENGINES)
def test_accelerate_reads_the_configuration(name):
    config = load_config_from_file(str(LAUNCH / f"{name}.yaml"))  # refuses unknown keys
    assert config.distributed_type == ENGINES[name]
    assert (config.num_processes, config.num_machines, config.mixed_precision) == (8, 1, "bf16")
    known = vars(launch_command_parser().parse_args(["script.py"]))
    nested = (config.fsdp_config or {}) | (config.deepspeed_config or {})
    assert {*nested} <= {*known}, "a setting that the launcher does not know"
    assert bool(nested) == (name != "ddp")


def test_fsdp_is_version_two_and_whole_states_are_saved():
    fsdp = load_config_from_file(str(LAUNCH / "fsdp2.yaml")).fsdp_config
    assert fsdp["fsdp_version"] == 2
    assert fsdp["fsdp_reshard_after_forward"] is True
    assert load_config_from_file(str(LAUNCH / "zero3.yaml")).deepspeed_config["zero_stage"] == 3


@pytest.mark.parametrize("name", ON_EIGHT)
def test_every_recipe_holds_whole_groups_and_steps_on_eight_gpus(name):
    config = on_gpus(str(RECIPES / f"{name}.yaml"), [], 8).config
    assert config.generation_batch_size == 256
    assert config.generation_batch_size % config.num_generations == 0
    step = 8 * config.per_device_train_batch_size * config.gradient_accumulation_steps
    assert step == (8 if name == "livecodebench" else 256)
    assert step % config.num_generations == 0


def test_a_recipe_without_whole_groups_is_refused_by_name():
    with pytest.raises(ValueError, match=r"generation_batch_size \(12\) must be divisible by num_generations \(8\)"):
        on_gpus(str(RECIPES / "math.yaml"), ["--gradient_accumulation_steps", "4"], 3)


@pytest.fixture
def stubs(tmp_path):
    """A PATH on which the machine's commands write their words into a file, one JSON list a line."""
    log = tmp_path / "log"
    record = f'import json, sys\nopen({str(log)!r}, "a").write(json.dumps(sys.argv) + "\\n")\n'
    write(tmp_path / "record.py", record)
    for name in ("accelerate", "vllm", "errata"):
        write(tmp_path / "bin" / name, f'#!/bin/bash\npython {tmp_path}/record.py {name} "$@"\n')
    write(tmp_path / "bin" / "scontrol", '#!/bin/bash\nprintf "%s\\n" ${NODES_OF_THE_JOB}\n')
    # srun runs its command once for each task, after its own options.
    write(
        tmp_path / "bin" / "srun",
        "#!/bin/bash\ntasks=1\nwhile [[ $1 == --* ]]; do case $1 in --ntasks=*) tasks=${1#*=};; esac; shift; done\n"
        'for ((i = 0; i < tasks; i++)); do SLURM_PROCID=$i "$@"; done\n',
    )

    def run(*command, **environment):
        paths = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | {"PATH": paths} | environment, capture_output=True, text=True
        )
        words = [json.loads(line)[1:] for line in log.read_text().splitlines()] if log.exists() else []
        return done, words

    return run


def write(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def launched(words):
    """(accelerate's arguments, the command that it launches)."""
    assert words[:2] == ["accelerate", "launch"]
    arguments = launch_command_parser().parse_args(words[2:])
    return arguments, arguments.training_script_args


def test_the_slurm_script_trains_on_all_nodes_but_one(stubs):
    done, words = stubs(
        "bash",
        "recipes/launch/slurm.sh",
        "recipes/sciknoweval.yaml",
        "--gradient_accumulation_steps",
        "8",
        SLURM_JOB_NODELIST="n[1-3]",
        NODES_OF_THE_JOB="n1 n2 n3",
        SLURM_GPUS_ON_NODE="8",
    )
    assert done.returncode == 0, done.stderr
    (server,) = (w for w in words if w[0] == "vllm")
    assert server[1:3] == ["serve", "Qwen/Qwen3-8B"]
    assert json.loads(server[server.index("--weight-transfer-config") + 1]) == {"backend": "nccl"}
    assert server[server.index("--logprobs-mode") + 1] == "processed_logprobs"
    ranks = []
    for arguments, script in (launched(w) for w in words if w[0] == "accelerate"):
        assert (arguments.num_machines, arguments.num_processes, arguments.main_process_ip) == (2, 16, "n1")
        assert arguments.module
        assert (arguments.training_script, script[:2]) == ("errata", ["train", "recipes/sciknoweval.yaml"])
        ranks.append(arguments.machine_rank)
        config = on_gpus(script[1], script[2:], arguments.num_processes).config
        assert (config.vllm_mode, config.vllm_server_host, config.vllm_server_port) == ("server", "n3", 8000)
        assert config.generation_batch_size == 256
    assert ranks == [0, 1]


def test_the_slurm_script_needs_two_nodes(stubs):
    done, words = stubs(
        "bash", "recipes/launch/slurm.sh", "recipes/math.yaml", SLURM_JOB_NODELIST="n1", NODES_OF_THE_JOB="n1"
    )
    assert (done.returncode, words) == (2, [])
    assert "two nodes at least" in done.stderr


def test_the_skypilot_task_plans_and_launches(stubs):
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    # The fields of a SkyPilot task that are used here, by its reference.
    assert {*task} <= {"name", "resources", "num_nodes", "workdir", "envs", "file_mounts", "setup", "run"}
    assert task["resources"]["accelerators"] == "H100:8"
    machine = {"SKYPILOT_NUM_NODES": "1", "SKYPILOT_NODE_RANK": "0", "SKYPILOT_NUM_GPUS_PER_NODE": "8"}
    done, (planned, started) = stubs("bash", "-c", task["run"], **machine, SKYPILOT_NODE_IPS="10.0.0.1", **task["envs"])
    assert done.returncode == 0, done.stderr
    assert planned == ["errata", "plan", "recipes/sciknoweval.yaml", "--gpus", "8", "--memory", "80"]
    arguments, script = launched(started)
    assert (arguments.num_processes, arguments.config_file) == (8, "recipes/launch/fsdp2.yaml")
    assert script == ["train", "recipes/sciknoweval.yaml", "--output_dir", "/runs/sciknoweval"]
