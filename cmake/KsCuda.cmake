# ks_add_cuda_objects(NAME SOURCES a.cu ...): an interface library with the compiled device code and the static CUDA
# runtime. nvcc is called by hand, so that the project stays one of C: no C++ link, no CUDA language to be found.
# Sets KS_NVCC; empty: none was found, and what needs it is left out with a message.
option(KS_CUDA "Build the CUDA plugin where nvcc is found" ON)
set(KS_CUDA_ARCHS "90a" CACHE STRING "GPU architectures; a release has 80;86;89;90a;100;120")

set(KS_NVCC "")
if(KS_CUDA AND NOT KS_SANITIZE AND NOT KS_FUZZ)
    find_program(KS_NVCC_PROGRAM nvcc HINTS $ENV{CUDA_HOME}/bin /usr/local/cuda/bin)
    if(KS_NVCC_PROGRAM)
        set(KS_NVCC ${KS_NVCC_PROGRAM})
        get_filename_component(KS_CUDA_ROOT ${KS_NVCC} REALPATH)
        get_filename_component(KS_CUDA_ROOT ${KS_CUDA_ROOT} DIRECTORY)
        get_filename_component(KS_CUDA_ROOT ${KS_CUDA_ROOT} DIRECTORY)
        find_library(KS_CUDART cudart_static HINTS ${KS_CUDA_ROOT}/lib64 ${KS_CUDA_ROOT}/lib
            ${KS_CUDA_ROOT}/targets/x86_64-linux/lib NO_DEFAULT_PATH)
        find_path(KS_CUDA_INCLUDE cuda_runtime_api.h HINTS ${KS_CUDA_ROOT}/include
            ${KS_CUDA_ROOT}/targets/x86_64-linux/include NO_DEFAULT_PATH)
        if(NOT KS_CUDART OR NOT KS_CUDA_INCLUDE)
            message(STATUS "krasis: ${KS_NVCC} has no libcudart_static.a or headers beside it: the CUDA parts are left out")
            set(KS_NVCC "")
        endif()
    else()
        message(STATUS "krasis: no nvcc was found: the CUDA parts are left out (CUDA_HOME says where it lies)")
    endif()
endif()

function(ks_add_cuda_objects name)
    cmake_parse_arguments(A "" "" "SOURCES" ${ARGN})
    set(flags -O3 --fmad=false -std=c++17 -Xcompiler=-fPIC,-fvisibility=hidden,-fno-threadsafe-statics,-fno-exceptions,-fno-rtti -I${PROJECT_SOURCE_DIR}/include
        -I${CMAKE_CURRENT_SOURCE_DIR})
    if(KS_WERROR)
        list(APPEND flags --Werror all-warnings)
    endif()
    set(last "")
    foreach(arch ${KS_CUDA_ARCHS})
        list(APPEND flags -gencode=arch=compute_${arch},code=sm_${arch})
        set(last ${arch})
    endforeach()
    string(REGEX REPLACE "[a-z]$" "" last "${last}") # what only 9.0 has runs nowhere else
    list(APPEND flags -gencode=arch=compute_${last},code=compute_${last}) # newer GPUs: compiled by the driver
    set(objects "")
    foreach(src ${A_SOURCES})
        set(obj ${CMAKE_CURRENT_BINARY_DIR}/${src}.o)
        add_custom_command(OUTPUT ${obj}
            COMMAND ${KS_NVCC} ${flags} -MD -MF ${obj}.d -c ${CMAKE_CURRENT_SOURCE_DIR}/${src} -o ${obj}
            DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${src} DEPFILE ${obj}.d VERBATIM
            COMMENT "CUDA ${src} (${KS_CUDA_ARCHS})")
        list(APPEND objects ${obj})
    endforeach()
    add_custom_target(${name}-objects DEPENDS ${objects})
    add_library(${name} STATIC ${objects})
    add_dependencies(${name} ${name}-objects)
    set_target_properties(${name} PROPERTIES LINKER_LANGUAGE C)
    target_include_directories(${name} PUBLIC ${CMAKE_CURRENT_SOURCE_DIR})
    target_include_directories(${name} SYSTEM PUBLIC ${KS_CUDA_INCLUDE})
    target_link_libraries(${name} PUBLIC ${KS_CUDART} Threads::Threads ${CMAKE_DL_LIBS} rt m)
endfunction()
