#!/usr/bin/env bash
# Everything that is to be known from a GPU, by one command, in eight minutes and without network.
#
#   bash benchmarks/gpu.sh            on the GPU; where there is none, the quick form
#   bash benchmarks/gpu.sh --quick    tiny sizes, on the CPU if need be: to see that everything runs
#   --output DIR                      default: benchmarks/results/ with the name of the card; in quick form none is kept
#
# Parts: where it runs, the tests that need a GPU, training steps, waits of the host, memory, the paper's training. Each
# has a time limit of its own, and what fails or takes too long costs no other part its results. `summary.md` says how
# each ended, with the last lines of those that failed; `logs/` has all that they said. The exit status counts those.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" MPLBACKEND=Agg KINETO_LOG_LEVEL=9 HF_HUB_OFFLINE=1 TORCHINDUCTOR_COMPILE_THREADS=8
python="${PYTHON:-python}"
budget=470 factor=1

quick="" output=""
while [ $# -gt 0 ]; do
  case "$1" in
    --quick) quick=--quick ;;
    --output) output="${2:?--output needs a folder}" && shift ;;
    *) echo "unknown argument $1; there are --quick and --output DIR" >&2 && exit 2 ;;
  esac
  shift
done

device="$("$python" -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")')" || exit 1
if [ "$device" = cpu ] && [ -z "$quick" ]; then
  echo "There is no GPU that PyTorch can use, so this is the quick form, on the CPU."
  quick=--quick
fi
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
if [ -z "$output" ]; then
  if [ -n "$quick" ]; then output="$scratch/results"; else
    output="benchmarks/results/$("$python" -c 'from benchmarks.report import place; print(place("cuda"))')" || exit 1
  fi
fi
mkdir -p "$output/logs"
output="$(cd "$output" && pwd)"
export XDG_CACHE_HOME="$scratch/cache"

failures=0
rows="" tails=""

# part NAME SECONDS COMMAND...: run it within its own time and what is left of all
part() {
  local name="$1" limit=$(($2 * factor)) left=$((budget - SECONDS)) log="$output/logs/$1.log" start=$SECONDS code how
  shift 2
  [ "$limit" -le "$left" ] || limit=$left
  echo "== $name, at most $limit s"
  if [ "$limit" -lt 5 ]; then
    echo "No time was left." >"$log" && code=125
  else
    timeout -k 5 "$limit" "$@" >"$log" 2>&1
    code=$?
  fi
  case $code in
    0) how="done" ;;
    124 | 137) how="**ended after $limit s**" ;;
    125) how="**no time was left**" ;;
    *) how="**failed with status $code**" ;;
  esac
  rows+="| $name | $how | $((SECONDS - start)) |"$'\n'
  if [ $code -ne 0 ]; then
    failures=$((failures + 1))
    tails+=$'\n'"Last lines of $name:"$'\n\n```\n'"$(tail -n 25 "$log" | cut -c1-400)"$'\n```\n'
  fi
  echo "   $how, $((SECONDS - start)) s"
}

benchmark() { # PART SECONDS OPTIONS...
  local name="$1" limit="$2"
  shift 2
  part "$name" "$limit" "$python" -m benchmarks "$name" --device "$device" --threads "$threads" --output "$output" \
    $quick "$@"
}

where() {
  "$python" - <<'PYTHON'
import platform
from importlib import metadata

import torch

print("python", platform.python_version(), "torch", torch.__version__, "cuda", torch.version.cuda)
if torch.cuda.is_available():
    card = torch.cuda.get_device_properties(0)
    print("card", card.name, f"{card.total_memory / 2**30:.1f} GiB, capability {card.major}.{card.minor}")
    print("cudnn", torch.backends.cudnn.version(), "devices", torch.cuda.device_count())
for name in ("numpy", "segmentation-models-pytorch", "timm", "monai", "nibabel", "torchio", "matplotlib", "pytest", "triton"):
    try:
        print(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        print(name, "is missing")
PYTHON
}

if [ -n "$quick" ]; then threads=1 repeats=1; else threads="$(nproc)" repeats=20; fi
if [ "$device" = cpu ]; then factor=4 budget=1800; fi # a busy machine is no failure
where >"$output/logs/where.log" 2>&1
if command -v nvidia-smi >/dev/null; then
  nvidia-smi --query-gpu=name,driver_version,memory.total,power.limit --format=csv,noheader >>"$output/logs/where.log" 2>&1
fi
# Of the tests, by the files that hold some for a GPU: to collect all others takes longer than these run.
mapfile -t tests < <(grep -rlE "mark\.gpu" tests --include='test_*.py')
part tests 70 "$python" -m pytest -q -m gpu -p no:cacheprovider "${tests[@]}"
benchmark step 180 --repeats "$repeats" --seconds $((170 * factor))
benchmark waits 50 --repeats "$repeats"
benchmark training 110 --seconds $((100 * factor))
benchmark memory 60 --repeats "$repeats"

{
  echo "\`bash benchmarks/gpu.sh${quick:+ --quick}\`, $(date -u +%Y-%m-%dT%H:%MZ), commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
  printf '\n```\n%s\n```\n\n' "$(cat "$output/logs/where.log")"
  printf '| part | | seconds |\n|---|---|---|\n%s' "$rows"
  echo "| all | $failures failed | $SECONDS |"
  printf '%s' "$tails"
  for name in step waits training memory; do
    [ -f "$output/$name.md" ] && printf '\n## %s\n\n%s\n' "$name" "$(cat "$output/$name.md")"
  done
} >"$output/summary.md"
echo
cat "$output/summary.md"
exit "$failures"
