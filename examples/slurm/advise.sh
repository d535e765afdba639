#!/usr/bin/env bash
#SBATCH --job-name=advise
#SBATCH --ntasks=1
#SBATCH --gpus-per-task=1
#SBATCH --time=00:10:00
# sbatch -p PARTITION --export=ALL,MODEL=/models/llama,POLICY=advise.yaml advise.sh
# Plans for the GPUs of the job's own node; set GPU (h100) to plan for others. More options behind the script's name.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
out="${OUT:-advice-${SLURM_JOB_ID:-local}}"
options=(--model "${MODEL:?set MODEL}" --traffic "${TRAFFIC:-chat}")
if [[ -n "${GPU:-}" ]]; then options+=(--gpu "$GPU" --gpus "${GPUS:-1}"); fi
if [[ -n "${POLICY:-}" ]]; then options+=(--policy "$POLICY"); fi
mkdir -p "$out"
status=0
srun --ntasks=1 advise "${options[@]}" "$@" --format json -o "$out/report.json" || status=$?
if [[ -f "$out/report.json" ]]; then
  advise report "$out/report.json" --format html -o "$out/report.html"
fi
exit "$status"
