# ks_add_plugin(NAME SOURCES plugin.c ... [CPU feature ...] [KERNELS k.c ...] [LIBS lib ...])
#   One plugin, NAME.so: in this tree, and in anybody's after find_package(krasis).
#
# CPU is the one list of CPU features: it becomes the -m flags of KERNELS (the only files compiled with them) and the
# macro KS_CPU_REQUIRED of SOURCES, which the descriptor hands to the host. KERNELS are compiled without LTO, since LTO
# can move wide instructions into code that runs before the host's check.
#
# The file goes to KS_PLUGIN_OUTPUT (default: plugins/ of the build) and is installed unless KS_PLUGIN_INSTALL is OFF.
# `krasis-conform` on it becomes a test: here through tools/, elsewhere through the installed program.
set(KS_FEATURES
    "sse4.2:SSE42:-msse4.2" "avx:AVX:-mavx" "avx2:AVX2:-mavx2" "fma:FMA:-mfma" "f16c:F16C:-mf16c" "bmi2:BMI2:-mbmi2"
    "avxvnni:AVX_VNNI:-mavxvnni" "avx512f:AVX512F:-mavx512f" "avx512bw:AVX512BW:-mavx512bw"
    "avx512vl:AVX512VL:-mavx512vl" "avx512dq:AVX512DQ:-mavx512dq" "avx512vnni:AVX512_VNNI:-mavx512vnni"
    "avx512bf16:AVX512_BF16:-mavx512bf16" "avx512vbmi:AVX512_VBMI:-mavx512vbmi" "avx512fp16:AVX512_FP16:-mavx512fp16"
    "amx-tile:AMX_TILE:-mamx-tile" "amx-int8:AMX_INT8:-mamx-int8" "amx-bf16:AMX_BF16:-mamx-bf16")

function(ks_cpu_flags features ret_flags ret_required)
    set(flags "")
    set(required "0")
    foreach(f ${features})
        set(found "")
        foreach(row ${KS_FEATURES})
            string(REPLACE ":" ";" cols "${row}")
            list(GET cols 0 key)
            if(key STREQUAL f)
                list(GET cols 1 macro)
                list(GET cols 2 found)
                list(APPEND flags ${found})
                string(APPEND required "|KS_CPU(${macro})")
            endif()
        endforeach()
        if(found STREQUAL "")
            message(FATAL_ERROR "ks_add_plugin: there is no CPU feature '${f}': see KS_FEATURES in ${CMAKE_CURRENT_FUNCTION_LIST_FILE}")
        endif()
    endforeach()
    set(${ret_flags} "${flags}" PARENT_SCOPE)
    set(${ret_required} "(${required})" PARENT_SCOPE)
endfunction()

set(KS_PLUGIN_MAP ${CMAKE_CURRENT_LIST_DIR}/krasis-plugin.map)

function(ks_add_plugin name)
    cmake_parse_arguments(A "" "" "SOURCES;KERNELS;CPU;LIBS" ${ARGN})
    if(A_UNPARSED_ARGUMENTS OR NOT A_SOURCES)
        message(FATAL_ERROR "ks_add_plugin(${name}): SOURCES is needed, '${A_UNPARSED_ARGUMENTS}' is not understood")
    endif()
    ks_cpu_flags("${A_CPU}" flags required)
    set(sdk krasis-sdk)
    if(NOT TARGET krasis-sdk)
        set(sdk krasis::sdk)
    endif()
    add_library(${name} MODULE ${A_SOURCES})
    set(targets ${name})
    target_compile_definitions(${name} PRIVATE "KS_CPU_REQUIRED=${required}")
    if(A_KERNELS)
        add_library(${name}-kernels OBJECT ${A_KERNELS})
        list(APPEND targets ${name}-kernels)
        target_compile_options(${name}-kernels PRIVATE -O3 -fno-lto ${flags})
        target_link_libraries(${name}-kernels PRIVATE ${sdk})
        target_link_libraries(${name} PRIVATE ${name}-kernels)
    endif()
    set_target_properties(${targets} PROPERTIES C_STANDARD 11 C_VISIBILITY_PRESET hidden POSITION_INDEPENDENT_CODE ON)
    foreach(t ${targets}) # a * b + c is two roundings unless a kernel asks for one, whatever the compiler's default
        target_compile_options(${t} PRIVATE -fno-math-errno -ffp-contract=off)
    endforeach()
    target_link_libraries(${name} PRIVATE ${sdk} ${A_LIBS} m)
    if(NOT DEFINED KS_PLUGIN_OUTPUT)
        set(KS_PLUGIN_OUTPUT ${CMAKE_BINARY_DIR}/plugins)
    endif()
    set_target_properties(${name} PROPERTIES PREFIX "" LINK_DEPENDS ${KS_PLUGIN_MAP}
        LIBRARY_OUTPUT_DIRECTORY ${KS_PLUGIN_OUTPUT})
    target_link_options(${name} PRIVATE -Wl,--version-script=${KS_PLUGIN_MAP} -Wl,-z,relro -Wl,-z,now
        -Wl,--exclude-libs,ALL)
    if(NOT KS_SANITIZE AND NOT KS_FUZZ) # a sanitizer's functions are the program's
        target_link_options(${name} PRIVATE -Wl,-z,defs)
    endif()
    if(NOT DEFINED KS_PLUGIN_INSTALL OR KS_PLUGIN_INSTALL)
        install(TARGETS ${name} LIBRARY DESTINATION lib/krasis/plugins)
    endif()
    if(TARGET krasis::conform)
        add_test(NAME conform-${name} COMMAND krasis::conform $<TARGET_FILE:${name}>)
    else()
        set_property(GLOBAL APPEND PROPERTY KS_PLUGINS ${name})
    endif()
endfunction()
