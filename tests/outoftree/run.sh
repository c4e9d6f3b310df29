#!/usr/bin/env bash
# A plugin author's way: install krasis, build the template against what was installed, check it, let the installed program
# find it. Usage: run.sh BUILD_DIR, after a complete build; the current folder is scratch.
set -euo pipefail
build=$1
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

echo "== through pkg-config"
export PKG_CONFIG_PATH=$prefix/lib/pkgconfig
read -ra flags < <(pkg-config --cflags krasis-plugin)
read -ra libs < <(pkg-config --libs krasis-plugin)
mkdir my-kernels/plain
"${CC:-cc}" -std=c11 -O2 -shared -DKS_CPU_REQUIRED=0 "${flags[@]}" my-kernels/*.c "${libs[@]}" -lm -Wl,-z,defs \
    -Wl,--version-script="$(pkg-config --variable=map krasis-plugin)" -o my-kernels/plain/my-kernels.so
"$prefix"/bin/krasis-conform my-kernels/plain/my-kernels.so
test "$(pkg-config --variable=plugindir krasis-plugin)" -ef "$prefix"/lib/krasis/plugins

echo "== in the installed program, from the installed folder and from one of the author's own"
"$prefix"/bin/krasis plugins | tee plugins.log
grep -qE '^kernels +my-kernels +0\.1\.0 +100 +chosen ' plugins.log
rm "$prefix"/lib/krasis/plugins/my-kernels.so
KRASIS_PLUGIN_PATH=$PWD/my-kernels/plain "$prefix"/bin/krasis plugins --kernels my-kernels --kernels-table | tee rows.log
grep -qE '^norm +- +f32 +- +my-kernels +norm_plain$' rows.log
grep -qE '^rope +- +f32 +- +ref ' rows.log
