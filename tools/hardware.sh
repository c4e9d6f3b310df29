#!/usr/bin/env bash
# ./dev hardware [PHASE...]: what only a machine with an NVIDIA GPU, AVX-512 or AMX can show, in phases with a time limit
# each: correctness first, then figures beside ceilings measured in the same run. What a machine lacks is skipped with the
# reason. It ends with a line a phase and exit code 1 if one failed. docs/performance.md takes its figures from here.
# usage: tools/hardware.sh [--build DIR] [--work DIR] [PHASE...]   (--work: tens of gigabytes for models of real size)
# shellcheck disable=SC2317,SC2086  # phases are called by name; words of options are split on purpose
set -uo pipefail

build=build work=${TMPDIR:-/tmp}/krasis-hardware
source=$(cd "$(dirname "$0")/.." && pwd)
phases=()

# name, seconds, what it needs, what it shows
table="
conform   180 cpu  the rules of both CPU plugins, and every family through each
suites    200 gpu  kernels, attention, experts, every family on the GPU
modes     300 gpu  prompts of 3 to 30,000 tokens: streamed, grouped, chunked, resident: the same bits
memcheck  120 gpu  compute-sanitizer memcheck over the suites
racecheck 200 gpu  compute-sanitizer racecheck over the suites
ceilings  120 gpu  products and attention beside cuBLAS and the rate of memory; products by warpgroups, too
prefill   420 gpu  prompts of 512 to 32k at 16 GB, 30B (without warpgroups, too) and half of the 80B; 100 tokens behind 20,000
decode    300 gpu  answers at 16 GB and with all experts resident, graphs on and off, against the CPU alone
profile   150 gpu  every kernel of a prompt and of a step of one row
cpu       300 cpu  ceilings of the processor, each kernel, the 30B with AVX-512 and with AVX2
"

fail() { echo "hardware: $*" >&2; exit 2; }
say() { printf '== %4d s: %s\n' "$SECONDS" "$*"; }

while [ $# -gt 0 ]; do
    case $1 in
    --build) build=$2; shift ;;
    --work) work=$2; shift ;;
    --help) sed -n '2,6s/^# //p' "$0"; echo "phases:$table"; exit ;;
    -*) fail "unknown option $1 (--build, --work, --help)" ;;
    *) grep -q "^$1 " <<<"$table" || fail "there is no phase '$1':$table"; phases+=("$1") ;;
    esac
    shift
done
[ ${#phases[@]} -gt 0 ] || mapfile -t phases < <(awk 'NF { print $1 }' <<<"$table")
[ -x "$build/krasis" ] || fail "there is no $build/krasis: ./dev build first, or --build DIR"
build=$(cd "$build" && pwd)
{ mkdir -p "$work" && cd "$work"; } || fail "cannot use $work: --work DIR names another folder"
export KRASIS_HOME=$work/home
krasis=$build/krasis
plugins=$("$krasis" plugins 2>/dev/null) # also where one that is needed to serve is not there
has_gpu=$(grep -c '^device .*cuda-experts.* \(standby\|chosen\) ' <<<"$plugins")

# A program of the build, wherever in it: name ARGUMENT... With the environment variable UNDER in front of it.
program() {
    local at
    at=$(find "$build/" -name "$1" -type f -perm -u+x -print -quit)
    [ -n "$at" ] || { echo "$1 was not built"; return 1; }
    shift
    ${UNDER:-} "$at" "$@"
}
quiet() { grep -vE '^\[ +(RUN|OK) |info  |loading'; }

# A model of a shape in conf/shapes, once: NAME SHAPE [OPTION...]
model() {
    local dir=$work/$1
    [ -e "$dir/config.json" ] ||
        "$krasis" synth --config "$source/conf/shapes/$2.json" --output "$dir" --quantized "${@:3}" >"$dir.log" 2>&1 ||
        { tail -3 "$dir.log"; return 1; }
}

# What cuBLAS and the memory reach here, for the bounds of bench model; measured once, into `peak`.
measure_peak() {
    [ -s "$work/peak" ] || program bench_cuda 2>&1 | grep -o 'gpu-peak [0-9.,]*' | head -1 | cut -d' ' -f2 >"$work/peak"
    peak=(--gpu-peak "$(cat "$work/peak")")
    [ -s "$work/peak" ] || { echo "bench_cuda names no peak"; return 1; }
}

bench_model() { # MODEL OPTION...
    local dir=$work/$1
    shift
    say "bench model $*"
    "$krasis" bench model --model-path "$dir" "$@" 2>&1 | quiet
    return "${PIPESTATUS[0]}"
}

run_conform() {
    local p rc=0
    for p in cpu-avx512 cpu-avx2; do
        grep "^kernels .*$p .* refused" <<<"$plugins" && continue
        program krasis-conform "$build/plugins/$p.so" | grep '^not ok\|^1\.\.'
        rc=$((rc + PIPESTATUS[0]))
        program test_golden $p 2>&1 | quiet | tail -3
        rc=$((rc + PIPESTATUS[0]))
    done
    return $rc
}

run_suites() {
    local t rc=0
    for t in test_cuda_kernels test_cuda_attn test_cuda_moe "test_golden cuda"; do
        program $t 2>&1 | quiet | tail -12
        rc=$((rc + PIPESTATUS[0]))
    done
    return $rc
}

run_modes() { program test_cuda_modes cuda 2>&1 | quiet; }

# All at once: most of the time is the tool's own, on one core each.
sanitize() { # TOOL
    command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer is not there"; return 1; }
    local t i rc=0 jobs=() programs=(test_cuda_moe test_cuda_attn test_cuda_kernels "test_cuda_modes cuda 300"
        "test_golden cuda qwen3_moe" "test_golden cuda deepseek_v3" "test_golden cuda qwen3_next" "test_golden cuda gpt_oss")
    for i in "${!programs[@]}"; do
        t="$1-${programs[i]// /-}"
        mkdir -p "$work/$t"
        (
            cd "$work/$t" || exit 1
            UNDER="compute-sanitizer --tool $1 --error-exitcode 9" program ${programs[i]} >log 2>&1
        ) &
        jobs[i]=$!
    done
    for i in "${!programs[@]}"; do
        wait "${jobs[i]}"
        t=$?
        say "$1 ${programs[i]}: exit code $t"
        tail -2 "$work/$1-${programs[i]// /-}/log" | cut -c1-200
        rc=$((rc + t))
    done
    return $rc
}
run_memcheck() { sanitize memcheck; }
run_racecheck() { sanitize racecheck; }

run_ceilings() { program bench_cuda && program bench_cuda_attn; }

run_prefill() {
    local rc=0 lengths=(--heat off --context 33000 --prompts "512,2048,8192,32768" --prefixes 20000 --depths 0
        --batches 1 --max-tokens 2 --repeats 2)
    measure_peak || return 1
    model q30 qwen3-30b-a3b || return 1
    bench_model q30 --device cuda --vram-limit 16G "${lengths[@]}" "${peak[@]}" || rc=1
    bench_model q30 --device cuda --vram-limit 16G --set cuda-experts.warpgroups=0 "${lengths[@]}" "${peak[@]}" || rc=1
    "$krasis" plan --model-path "$work/q30" --device cuda --vram-limit 16G --context 33000 2>&1 | quiet
    model n80 qwen3-coder-next-80b --layers 24 || return 1
    bench_model n80 --device hybrid --vram-limit 16G "${lengths[@]}" "${peak[@]}" || rc=1
    return $rc
}

run_decode() {
    local o rc=0 short=(--depths 0 --batches 1 --prompts 0 --repeats 2 --context 8192)
    measure_peak || return 1
    model z30 qwen3-30b-a3b --route-skew 1 || return 1
    for o in "--device cuda --vram-limit 16G" "--device hybrid --vram-limit 16G" "--device hybrid --vram-limit 8G" \
        "--device cuda --vram-limit 8G" "--device cuda --set cuda-experts.graphs=0" \
        "--device cuda --depths 0,4096 --batches 1,4,16" "--device cpu"; do
        bench_model z30 "${short[@]}" $o "${peak[@]}" || rc=1
    done
    for o in cpu cuda "cuda --vram-limit 1G" "hybrid --vram-limit 1G"; do
        "$krasis" bench --model-path "$source/models/demo" --device $o --clients 1,16 --max-tokens 64 2>&1 | quiet || rc=1
    done
    return $rc
}

# Microseconds of each kernel, from ncu's table.
kernels_of() { # COMMAND...
    command -v ncu >/dev/null || { echo "ncu is not there"; return 1; }
    ncu --clock-control none --metrics gpu__time_duration.sum --print-units base --csv --page raw "$@" 2>"$work/ncu.err" |
        awk -F'","' '
            /"Kernel Name"/ { for (i = 1; i <= NF; i++) { if ($i ~ /^Kernel Name/) k = i; if ($i ~ /time_duration/) t = i } next }
            k && NF >= t { v = $t; gsub(/[",]/, "", v); if (v + 0 > 0) { n++; sub(/\(.*/, "", $k); us[$k] += v / 1000; c[$k]++ } }
            END { for (x in us) printf "%10.1f us %6d launches  %s\n", us[x], c[x], x | "sort -rn"; close("sort -rn"); print n " launches" }'
}

run_profile() {
    model q3 qwen3-30b-a3b --layers 3 || return 1
    seq -s, 1 2048 >"$work/ids"
    say "a prompt of 2,048, three layers" &&
        kernels_of "$krasis" generate-ids --model-path "$work/q3" --ids-file "$work/ids" -n 1 --device cuda --context 4096 &&
        say "eight tokens one by one, three layers; launches not recorded" &&
        kernels_of "$krasis" generate-ids --model-path "$work/q3" --ids 1,2,3,4 -n 8 --device cuda --context 4096 \
            --set cuda-experts.graphs=0
}

run_cpu() {
    local rc=0
    "$krasis" bench cpu | quiet || rc=1
    local best
    best=$(awk '$1 == "kernels" && $5 == "chosen" { print $2; exit }' <<<"$plugins")
    program bench_kernels "$build/plugins/$best.so" "$(nproc)" || rc=1
    model q30 qwen3-30b-a3b || return 1
    bench_model q30 --device cpu --prompts 512,2048 --depths 0,4096 --batches 16 --repeats 2 || rc=1
    bench_model q30 --device cpu --kernels cpu-avx2 --prompts 512 --depths 0 --batches 1 --repeats 2 || rc=1
    return $rc
}

summary=() bad=0
for p in "${phases[@]}"; do
    read -r _ limit needs what < <(grep "^$p " <<<"$table")
    say "$p: $what"
    begin=$SECONDS
    if [ "$needs" = gpu ] && [ "$has_gpu" = 0 ]; then
        verdict="skipped: $(grep cuda-experts <<<"$plugins" || echo 'the plugin cuda-experts was not built')"
    else
        ( # its own group, so that all of it ends with the limit
            set -m
            "run_$p" &
            child=$!
            (sleep "$limit" && touch "$work/late" && kill -TERM -- -$child) 2>/dev/null &
            timer=$!
            wait $child
            rc=$?
            kill -- -$timer 2>/dev/null
            exit $rc
        )
        rc=$?
        verdict=passed
        [ $rc = 0 ] || { verdict="FAILED (exit code $rc)"; bad=1; }
        [ -e "$work/late" ] && { verdict="did not end within $limit s"; bad=1; rm -f "$work/late"; }
    fi
    summary+=("$(printf '%-10s %4d s  %s' "$p" $((SECONDS - begin)) "$verdict")")
done
say "summary"
printf '%s\n' "${summary[@]}"
exit $bad
