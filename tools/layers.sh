#!/usr/bin/env bash
# Fails if a file includes what its layer must not know. A layer of core/ may include itself and the layers before it in the
# list; a plugin may include <krasis/...> and its own folder. With a build folder as argument the built plugins are
# checked, too: each exports the descriptor alone.
set -euo pipefail
cd "$(dirname "$0")/.."

layers=(sdk base config cpu sched plugin text ref store graph device engine app)
bad=0
complain() {
    echo "layers: $*" >&2
    bad=1
}

below=" "
for layer in "${layers[@]}"; do
    below+="$layer "
    [ -d "core/$layer" ] || continue
    while IFS=: read -r file line; do
        [[ $line =~ \"([^\"]+)\" ]] && inc=${BASH_REMATCH[1]}
        dir=${inc%%/*}
        if [ "$dir" = "$inc" ]; then
            complain "$file includes \"$inc\": name it with its layer, \"$layer/$inc\""
        elif [[ $below != *" $dir "* ]]; then
            complain "$file (layer $layer) includes \"$inc\", which is above it"
        fi
    done < <(grep -HE '^#include "' core/"$layer"/*.[ch] 2>/dev/null || true)
done

for dir in core/*/; do # a folder that is in no layer would be held against nothing
    [[ $below == *" $(basename "$dir") "* ]] || complain "$dir is in no layer: add it to the list in tools/layers.sh"
done

for plugin in plugins/*/; do
    while IFS=: read -r file line; do
        [[ $line =~ \"([^\"]+)\" ]] && inc=${BASH_REMATCH[1]}
        [ -f "$plugin$inc" ] || complain "$file includes \"$inc\": a plugin sees <krasis/...> and its own folder only"
    done < <(grep -HE '^#include "' "$plugin"*.[ch] "$plugin"*.cu "$plugin"*.cuh 2>/dev/null || true)
done

while read -r file; do complain "$file: the SDK must not include the core"; done < <(grep -lE '^#include "' include/krasis/*.h || true)

if [ -n "${1:-}" ]; then
    for so in "$1"/plugins/*.so "$1"/template/*.so; do
        exported=$(nm -D --defined-only "$so" | awk '$2 ~ /[A-Z]/ && $2 != "A" {print $3}' | sed 's/@.*//' | sort | tr '\n' ' ')
        [ "$exported" = "krasis_plugin_v1 " ] || complain "$so exports: $exported"
        foreign=$(nm -D --undefined-only "$so" | awk '{print $2}' | grep -E '^ks_' | tr '\n' ' ' || true)
        [ -z "$foreign" ] || complain "$so needs symbols of the host: $foreign"
    done
fi
exit $bad
