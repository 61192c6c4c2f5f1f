#!/usr/bin/env bash
# Trains on all nodes of a Slurm job. A job that is preempted, or runs out of time, continues where it stopped.
#
#   sbatch --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 experiments/pods/slurm/train.sh \
#     experiments/cifar10_cnn.py --data.dir DATA_DIR --workdir WORKDIR
#
# All nodes must see WORKDIR and DATA_DIR.
#SBATCH --job-name=flaxcls
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@180
set -uo pipefail

trap : TERM # otherwise SIGTERM ends this script before the tasks have saved

srun --kill-on-bad-exit=1 "${PYTHON:-python}" -m flaxcls.train "$@" --resume auto
code=$?
state=$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T)
if [ "$code" = 143 ] && [ "$state" = RUNNING ]; then # all tasks saved after SIGTERM, and the job was not cancelled
  echo "stopped by SIGTERM: job $SLURM_JOB_ID is queued again"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
