# One set of warnings for everything of ours. -Wconversion is left out on purpose: see docs/adr.
add_compile_options(-Wall -Wextra -Wpedantic -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wundef
                    -Wpointer-arith -Wwrite-strings -fno-math-errno -ffp-contract=off
                    -ffile-prefix-map=${CMAKE_SOURCE_DIR}/=)
if(KS_WERROR)
    add_compile_options(-Werror)
endif()
add_compile_definitions(_GNU_SOURCE)
