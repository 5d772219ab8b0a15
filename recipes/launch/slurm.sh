#!/bin/bash
# Several nodes under SLURM. All but the last train with FSDP2; the last serves the policy with vLLM, and gets its weights
# before every generation.
#   sbatch --nodes=3 recipes/launch/slurm.sh recipes/sciknoweval.yaml [--name value ...]
# The recipe's batches are written for 8 GPUs. On 16, halve gradient_accumulation_steps to keep the optimizer step:
#   sbatch --nodes=3 recipes/launch/slurm.sh recipes/sciknoweval.yaml --gradient_accumulation_steps 8
# Before: errata plan recipes/sciknoweval.yaml --gpus 16 --memory 80 --vllm_mode server --gradient_accumulation_steps 8
#SBATCH --job-name=errata
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --output=errata-%j.log
set -euo pipefail

RECIPE=${1:?a recipe is missing}
shift
GPUS=${SLURM_GPUS_ON_NODE:-8}
PORT=8000
mapfile -t NODES < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
TRAINERS=$((${#NODES[@]} - 1))
if [ "$TRAINERS" -lt 1 ]; then
  echo "two nodes at least: one trains, one serves" >&2
  exit 2
fi
SERVER=${NODES[$TRAINERS]}
MODEL=${MODEL:-$(python -c 'import sys, yaml; r = yaml.safe_load(open(sys.argv[1])); print({**r, **(r.get("on_gpu") or {})}["model"])' "$RECIPE")}

# TRL's client needs the development endpoints, the weight transfer and the log-probs that sampling used.
# The number of attention heads and of key-value heads must be multiples of --tensor-parallel-size.
srun --nodes=1 --ntasks=1 --nodelist="$SERVER" env VLLM_SERVER_DEV_MODE=1 \
  vllm serve "$MODEL" --host 0.0.0.0 --port "$PORT" --tensor-parallel-size "$GPUS" --dtype bfloat16 \
  --weight-transfer-config '{"backend": "nccl"}' --logprobs-mode processed_logprobs --max-logprobs -1 &
VLLM=$!
trap 'kill "$VLLM" 2>/dev/null || true' EXIT

# One task on each node; SLURM_PROCID is the node's rank within this step. TRL waits for the server.
export RECIPE GPUS PORT TRAINERS SERVER HEAD=${NODES[0]}
TRAIN_ON=$(IFS=,; echo "${NODES[*]:0:$TRAINERS}")
srun --nodes="$TRAINERS" --ntasks="$TRAINERS" --ntasks-per-node=1 --nodelist="$TRAIN_ON" bash -c '
  accelerate launch --config_file recipes/launch/fsdp2.yaml \
    --num_machines "$TRAINERS" --num_processes "$((TRAINERS * GPUS))" --machine_rank "$SLURM_PROCID" \
    --main_process_ip "$HEAD" --main_process_port 29500 --rdzv_backend c10d \
    -m errata train "$RECIPE" --use_vllm true --vllm_mode server \
    --vllm_server_host "$SERVER" --vllm_server_port "$PORT" --vllm_server_timeout 1800 "$@"
' errata "$@"
