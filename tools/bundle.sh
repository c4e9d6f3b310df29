#!/usr/bin/env bash
# ./dev bundle [DIR]: puts one relocatable folder together from an installed tree: program, plugins, the libraries they
# need beyond the C library, settings and the demo model. It runs wherever the C library is not older than NEWEST_GLIBC;
# a GPU needs only NVIDIA's driver there (the CUDA runtime is linked in).
# usage: tools/bundle.sh BUILD DIR, with BUILD configured by ./dev bundle (RPATH $ORIGIN/../lib)
set -euo pipefail

build=$1 out=$2
NEWEST_GLIBC=2.36 # Debian 12

fail() { echo "bundle: $*" >&2; exit 1; }

[ ! -e "$out" ] || [ -e "$out/bin/krasis" ] || fail "'$out' exists and is no bundle: give another folder"
rm -rf "$out"
cmake --install "$build" --prefix "$out" --strip >/dev/null
mkdir -p "$out/models"
cp -r conf "$out/conf"
cp -r models/demo "$out/models/demo"
cp README.md LICENSE CHANGELOG.md "$out"

# What the loader takes from the system everywhere; the driver's own library is opened by name and never carried.
system='^(linux-vdso|ld-linux|libc|libm|libdl|libpthread|librt)[-.]'
mapfile -t ours < <(find "$out/bin" "$out/lib/krasis" -type f)
for f in "${ours[@]}"; do
    { ldd "$f" 2>/dev/null || true; } # a shell script among them has no libraries
done | awk '$2 == "=>" { print $1, $3 }' | sort -u | while read -r name path; do
    [[ $name =~ $system ]] && continue
    [ -e "$path" ] || fail "a library is missing here: $name"
    cp -L "$path" "$out/lib/$name"
done

mapfile -t binaries < <(find "$out/bin" "$out/lib" -type f)
newest=$(for f in "${binaries[@]}"; do objdump -T "$f" 2>/dev/null || true; done |
    grep -oE 'GLIBC_[0-9]+\.[0-9]+' | sort -uV | tail -1)
[ -n "$newest" ] || fail "no program in '$out' names a version of the C library"
if [ "$(printf '%s\n' "${newest#GLIBC_}" "$NEWEST_GLIBC" | sort -V | tail -1)" != "$NEWEST_GLIBC" ]; then
    echo "bundle: built here it needs glibc ${newest#GLIBC_}; one for $NEWEST_GLIBC and newer is built on Debian 12" >&2
fi

# It must answer from where it lies, with nothing of this machine's settings.
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
env -i KRASIS_HOME="$home" "$out/bin/krasis" run --config "$out/conf/demo.ini" --temperature 0 --max-tokens 16 \
    --prompt 'What is the capital of France?' 2>/dev/null | grep -q Paris || fail "the program in '$out' does not answer"
du -sh "$out" | awk '{ print "bundle: " $2 ", " $1 ", starts with bin/krasis" }'
