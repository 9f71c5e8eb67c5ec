# Decides from USE_CUDA (ON, OFF, AUTO) whether the CUDA backend is built: sets `cuda_enabled` and,
# where it is, enables the language. AUTO never fails: without a toolkit that compiles, the build is
# for the CPU alone and says why.
set(SLICELLM_CUDA_ARCHITECTURES "default" CACHE STRING
    "GPUs to compile for: default, native (those of this machine), all, or a list such as 87;89")
if(CMAKE_CUDA_ARCHITECTURES)  # CMake's own way of saying it
  set(SLICELLM_CUDA_ARCHITECTURES ${CMAKE_CUDA_ARCHITECTURES})
endif()

set(cuda_enabled OFF)
set(cuda_problem "")
string(TOUPPER "${USE_CUDA}" use_cuda)
if(use_cuda STREQUAL "AUTO" OR use_cuda)
  include(CheckLanguage)
  # The check compiles and links with the compiler's own default architecture; ours come below.
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
      set(CMAKE_CUDA_ARCHITECTURES OFF)  # set per target, once the toolkit's version is known
    endif()
    enable_language(CUDA)
    if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake before 3.26 does not know nvcc's
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
    endif()
    find_library(SLICELLM_CUDART NAMES cudart_static PATHS ENV LIBRARY_PATH
                 HINTS ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES})
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.4)
      set(cuda_problem "CUDA ${CMAKE_CUDA_COMPILER_VERSION} is older than 12.4")
    elseif(NOT SLICELLM_CUDART)
      set(cuda_problem "libcudart_static.a was not found beside ${CMAKE_CUDA_COMPILER}")
    else()
      set(cuda_enabled ON)
      set(cuda_library slicellm_cudart)  # static: the driver is looked for when it is used
      add_library(slicellm_cudart INTERFACE)
      target_include_directories(slicellm_cudart SYSTEM INTERFACE
                                 ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
      target_link_libraries(slicellm_cudart INTERFACE ${SLICELLM_CUDART} ${CMAKE_DL_LIBS} rt)
    endif()
  else()
    set(cuda_problem "no CUDA compiler that works was found (nvcc on the PATH, CUDACXX)")
  endif()
  if(NOT cuda_enabled AND NOT use_cuda STREQUAL "AUTO")
    message(FATAL_ERROR "USE_CUDA=ON: ${cuda_problem}; see \"CUDA\" in README.md, or use "
                        "-DUSE_CUDA=OFF or AUTO")
  endif()
endif()

if(cuda_enabled)
  # What this toolkit knows of the supported GPUs: A100 (80), RTX 30 (86), Orin (87), RTX 40 (89),
  # H100 (90a), B200 (100), Thor (110), RTX 50 (120).
  set(all_architectures 80 86 87 89 90a)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
    list(APPEND all_architectures 100 120)
  endif()
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 13.0)
    list(APPEND all_architectures 110)
  endif()
  if(SLICELLM_CUDA_ARCHITECTURES STREQUAL "all")
    list(TRANSFORM all_architectures APPEND "-real" OUTPUT_VARIABLE cuda_architectures)
    list(APPEND cuda_architectures 80-virtual)
  elseif(SLICELLM_CUDA_ARCHITECTURES STREQUAL "default")
    # Code for sm_80 runs on 86 and 89 as well, and the driver compiles compute_80 for what is left.
    set(cuda_architectures 80-real 87-real 90-real)
    if(120 IN_LIST all_architectures)
      list(APPEND cuda_architectures 120-real)
    endif()
    list(APPEND cuda_architectures 80-virtual)
  else()
    set(cuda_architectures ${SLICELLM_CUDA_ARCHITECTURES})
  endif()
  set(CMAKE_CUDA_ARCHITECTURES ${cuda_architectures})
  message(STATUS "CUDA: on (${CMAKE_CUDA_COMPILER_VERSION}), for ${cuda_architectures}")
elseif(use_cuda STREQUAL "AUTO")
  message(STATUS "CUDA: off, as ${cuda_problem}")
else()
  message(STATUS "CUDA: off")
endif()
