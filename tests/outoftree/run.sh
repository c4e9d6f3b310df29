#!/usr/bin/env bash
# A plugin author's way: install krasis, build the template against what was installed, check it, let the installed program
# find it. Usage: run.sh BUILD_DIR, after a complete build; the current folder is scratch.
set -euo pipefail
build=$1
# The generator of the build: what is installed here for certain.
CMAKE_GENERATOR=$(sed -n "s/^CMAKE_GENERATOR:INTERNAL=//p" "$build/CMakeCache.txt")
export CMAKE_GENERATOR
prefix=$PWD/prefix
rm -rf "$prefix" my-kernels
mkdir my-kernels

cmake --install "$build" --prefix "$prefix" >install.log
cp -r "$prefix"/share/doc/krasis/template/. my-kernels/

echo "== through CMake, with the plugin's own test"
cmake -S my-kernels -B my-kernels/build -DCMAKE_PREFIX_PATH="$prefix"
cmake --build my-kernels/build
ctest --test-dir my-kernels/build --no-tests=error --output-on-failure
cmake --install my-kernels/build --prefix "$prefix"

echo "== in the installed program"
"$prefix"/bin/krasis plugins | tee plugins.log
grep -qE '^kernels +my-kernels +0\.1\.0 +100 +chosen ' plugins.log

echo "== CPU features: flags and requirement are one list"
sed -i 's/KERNELS norm.c/KERNELS norm.c CPU avx2 fma/' my-kernels/CMakeLists.txt
cmake --build my-kernels/build
export KRASIS_PLUGIN_PATH=$PWD/my-kernels/build/plugins
rm "$prefix"/lib/krasis/plugins/my-kernels.so
KRASIS_CPU_MASK=fma "$prefix"/bin/krasis plugins | tee plugins.log
grep -qE '^kernels +my-kernels .* refused +this CPU lacks .*fma$' plugins.log
KRASIS_CPU_MASK=fma "$prefix"/bin/krasis-conform my-kernels/build/plugins/my-kernels.so >conform.log
grep -qE '^ok [0-9]+ - KRN-1 norm_plain: .* # SKIP this CPU lacks .*fma$' conform.log
sed -i 's/CPU avx2 fma/CPU avx9/' my-kernels/CMakeLists.txt
if cmake -S my-kernels -B my-kernels/build >wrong.log 2>&1; then exit 1; fi
grep "there is no CPU feature 'avx9'" wrong.log

echo "== through pkg-config"
export PKG_CONFIG_PATH=$prefix/lib/pkgconfig
read -ra flags < <(pkg-config --cflags krasis-plugin)
read -ra libs < <(pkg-config --libs krasis-plugin)
mkdir my-kernels/plain
"${CC:-cc}" -std=c11 -O2 -shared -DKS_CPU_REQUIRED=0 "${flags[@]}" my-kernels/*.c "${libs[@]}" -lm -Wl,-z,defs \
    -Wl,--version-script="$(pkg-config --variable=map krasis-plugin)" -o my-kernels/plain/my-kernels.so
"$prefix"/bin/krasis-conform my-kernels/plain/my-kernels.so
test "$(pkg-config --variable=plugindir krasis-plugin)" -ef "$prefix"/lib/krasis/plugins

echo "== in a folder of the author's own"
export KRASIS_PLUGIN_PATH=$PWD/my-kernels/plain
"$prefix"/bin/krasis plugins --kernels my-kernels --kernels-table | tee rows.log
grep -qE '^norm +- +f32 +- +my-kernels +norm_plain$' rows.log
grep -qE '^rope +- +f32 +- +ref ' rows.log
