#!/usr/bin/env bash
# Trains on all hosts of a TPU slice by one command. Repeat it after a preemption.
#
#   TPU=NAME ZONE=ZONE experiments/pods/tpu/train.sh EXPERIMENT --data.dir DATA_DIR --workdir WORKDIR [OPTION ...]
#
# Each host has flaxcls in ~/flaxcls/.venv. WORKDIR and DATA_DIR are gs://BUCKET/PATH, or a path to the same files on all
# hosts.
set -euo pipefail
: "${TPU:?the name of the TPU VM}" "${ZONE:?its zone}"

printf -v options ' %q' "$@" --resume auto
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker=all \
  --command "cd ~/flaxcls && .venv/bin/python -m flaxcls.train$options"
