#!/bin/sh
# Everything about Tsugi that needs a GPU, in at most 8 minutes on a machine with one:
#     benchmarks/gpu/check.sh           writes benchmarks/results/gpu.json
#     benchmarks/gpu/check.sh --cpu     the same program with small shapes on a CPU; writes gpu_tried_on_cpu.json
exec "${PYTHON:-python}" "$(dirname "$0")/check.py" "$@"
