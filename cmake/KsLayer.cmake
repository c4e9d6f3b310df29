# ks_add_layer(NAME SOURCES a.c b.c [DEPS layer ...] [LIBS external ...])
#   One static library a folder of core/. DEPS are the layers below it, nothing else is on its link line;
#   tools/layers.sh checks the includes against the same order.
function(ks_add_layer name)
    cmake_parse_arguments(A "" "" "SOURCES;DEPS;LIBS" ${ARGN})
    add_library(ks-${name} STATIC ${A_SOURCES})
    target_include_directories(ks-${name} PUBLIC ${CMAKE_SOURCE_DIR}/include ${CMAKE_SOURCE_DIR}/core)
    foreach(d ${A_DEPS})
        target_link_libraries(ks-${name} PUBLIC ks-${d})
    endforeach()
    target_link_libraries(ks-${name} PUBLIC ${A_LIBS})
endfunction()

# ks_add_test(NAME SOURCES test_x.c ... [DEPS layer ...] [LIBS external ...] [TIMEOUT seconds] [NEEDS_DEMO])
#   One CMocka program, one CTest entry. KS_SOURCE_DIR and KS_BUILD_DIR are defined in its sources;
#   the test runs in a scratch folder of its own with KRASIS_HOME inside it.
function(ks_add_test name)
    cmake_parse_arguments(A "" "TIMEOUT" "SOURCES;DEPS;LIBS;ARGS" ${ARGN})
    add_executable(${name} ${A_SOURCES})
    target_compile_definitions(${name} PRIVATE KS_SOURCE_DIR="${CMAKE_SOURCE_DIR}" KS_BUILD_DIR="${CMAKE_BINARY_DIR}")
    target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR}/include ${CMAKE_SOURCE_DIR}/core ${CMAKE_SOURCE_DIR}/tests)
    foreach(d ${A_DEPS})
        target_link_libraries(${name} PRIVATE ks-${d})
    endforeach()
    target_link_libraries(${name} PRIVATE ${A_LIBS} cmocka)
    set(dir ${CMAKE_BINARY_DIR}/test-work/${name})
    file(MAKE_DIRECTORY ${dir})
    add_test(NAME ${name} COMMAND ${name} ${A_ARGS} WORKING_DIRECTORY ${dir})
    if(NOT A_TIMEOUT)
        set(A_TIMEOUT 120)
    endif()
    if(KS_SANITIZE STREQUAL "thread") # ten times slower, more with few cores
        math(EXPR A_TIMEOUT "${A_TIMEOUT} * 5")
    endif()
    set_tests_properties(${name} PROPERTIES TIMEOUT ${A_TIMEOUT}
        ENVIRONMENT "KRASIS_HOME=${dir}/home;CMOCKA_MESSAGE_OUTPUT=stdout")
endfunction()
