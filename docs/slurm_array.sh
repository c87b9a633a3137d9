#!/bin/bash
# A template: all missing runs of a preset as one SLURM job array. Adapt the #SBATCH lines to your cluster.
#
#   ccrepro datasets get cifar10          # pack the data first: jobs may have no network
#   ccrepro reproduce --preset paper --datasets cifar10 --dry-run > missing.txt
#   mkdir -p runs && sbatch --array=1-$(wc -l < missing.txt) docs/slurm_array.sh
#
# When the array is through, the same `ccrepro reproduce` without --dry-run makes tables and figures.
#SBATCH --job-name=ccrepro
#SBATCH --gpus=1
#SBATCH --cpus-per-task=4
#SBATCH --time=24:00:00
#SBATCH --output=runs/slurm-%A_%a.log
#SBATCH --requeue
#SBATCH --signal=B:TERM@120

# One line of missing.txt: train cifar10 --preset paper --variant cc --seed 0
arguments=$(sed -n "${SLURM_ARRAY_TASK_ID}p" missing.txt)

# Two minutes before the limit the run saves its step and ends with 143. Then it is queued again and goes on.
.venv/bin/ccrepro $arguments &
trap 'kill -TERM $!; wait $!; [ $? -eq 143 ] && scontrol requeue "$SLURM_JOB_ID"' TERM
wait $!
