# SLICELLM_SIMT: src/cuda compiled by the C++ compiler and run by the emulator in test/simt, so that
# device "cuda" exists on machines without a GPU. For tests: it is thousands of times slower.
set(cuda_enabled ON)
set(cuda_library slicellm_simt)

file(GLOB simt_sources CONFIGURE_DEPENDS test/simt/*.cc)
list(FILTER simt_sources EXCLUDE REGEX "_test\\.cc$")
add_library(slicellm_simt STATIC ${simt_sources})
target_include_directories(slicellm_simt PUBLIC test/simt/include test PRIVATE src)
target_compile_definitions(slicellm_simt PUBLIC SLICELLM_SIMT)
target_link_libraries(slicellm_simt PRIVATE slicellm_flags)

# Kernels look at registers as pairs of halves and the other way round, and ask for unrolling.
set(simt_kernel_options -fno-strict-aliasing -Wno-unknown-pragmas -Wno-shadow)
set_source_files_properties(${simt_sources} PROPERTIES COMPILE_OPTIONS -fno-strict-aliasing)
file(GLOB simt_kernels CONFIGURE_DEPENDS src/cuda/*.cu)
set_source_files_properties(${simt_kernels} PROPERTIES
                            LANGUAGE CXX COMPILE_OPTIONS "${simt_kernel_options}")

if(SLICELLM_TESTS)
  enable_testing()
  file(GLOB simt_tests CONFIGURE_DEPENDS test/simt/*_test.cc)
  set_source_files_properties(${simt_tests} PROPERTIES COMPILE_OPTIONS "${simt_kernel_options}")
  foreach(source IN LISTS simt_tests)
    get_filename_component(name ${source} NAME_WE)
    add_executable(${name} ${source})
    target_include_directories(${name} PRIVATE src test/native include)
    target_link_libraries(${name} PRIVATE slicellm_core)
    add_test(NAME ${name} COMMAND ${name})
    set_tests_properties(${name} PROPERTIES LABELS simt)
    list(APPEND simt_test_names ${name})
  endforeach()
  add_custom_target(simt_tests DEPENDS ${simt_test_names})
endif()
message(STATUS "CUDA: emulated on the CPU (SLICELLM_SIMT)")
