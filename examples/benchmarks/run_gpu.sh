#!/usr/bin/env bash
# All that there is to measure on a GPU, in less than ten minutes, cheapest first. Needs torch, PyG
# and Triton. Each stage writes its JSON before the next one starts, and ends when its time is over.
#
#   bash examples/benchmarks/run_gpu.sh docs/results/gpu
#   bash examples/benchmarks/run_gpu.sh /tmp/dry --device cpu --tiny --rounds 1    # shows that it works
set -u
out=${1:?where to write}
shift
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python}
mkdir -p "$out"
failed=0

stage() { # seconds name script arguments...
  local seconds=$1 name=$2 script=$3
  shift 3
  echo "=== $name"
  if ! timeout "$seconds" "$python" -W ignore "$here/$script" "$@" --json "$out/$name.json" \
    > "$out/$name.md" 2> "$out/$name.log"; then
    echo "failed, or longer than $seconds s: $(tail -n 1 "$out/$name.log")"
    failed=1
  fi
}

"$python" -W ignore -m torch_geometric_qlr > "$out/environment.txt" 2>&1 || failed=1
stage 30 1_bandwidth gpu_kernels.py --stage bandwidth "$@"
stage 60 2_one_kernel gpu_kernels.py --graphs arxiv --bits 2 --no-peers "$@"
stage 80 3_peers gpu_kernels.py --graphs arxiv --bits 2 --compile "$@"
stage 150 4_all_kernels gpu_kernels.py --graphs arxiv reddit --features 64 128 602 --bits 8 4 2 "$@"
stage 110 5_models gpu_models.py --models gcn sage "$@"
stage 50 6_training gpu_models.py --stage training --models gcn --bits 8 2 "$@"
stage 50 7_propagation gpu_models.py --models appnp "$@"
stage 60 8_large_models gpu_models.py --graph reddit --models gcn --bits 4 2 "$@"
exit "$failed"
