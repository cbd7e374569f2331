#!/bin/sh
# Train one model on every GPU of this machine (or of several):
#     scripts/gpu_run.sh --input data/tokens --output models/base --config configs/pretrain/multi_gpu.yaml
#     GPUS=4 scripts/gpu_run.sh --input …                                # four of them
#     NODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 scripts/gpu_run.sh …      # on each machine, with its NODE_RANK; --output on a shared disk
# The same command goes on after a kill, on as many GPUs as there are then. What follows is `llmpipe pretrain`'s own.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
gpus=${GPUS:-$("$python" -c 'import torch; print(max(1, torch.cuda.device_count()))')}
if [ "${NODES:-1}" -gt 1 ]; then
    where="--nnodes=$NODES --node_rank=${NODE_RANK:?says which of the machines this is, from 0} --master_addr=${MASTER_ADDR:?is the address of machine 0} --master_port=${MASTER_PORT:-29500}"
else
    where=--standalone
fi
# shellcheck disable=SC2086  # several words
exec "$python" -m torch.distributed.run $where --nproc_per_node="$gpus" -m llmpipe pretrain "$@"
