# Toolchain file for 64-bit ARM from another machine (Debian: g++-aarch64-linux-gnu); ctest runs the
# tests emulated (Debian: qemu-user-static). The emulated CPU has every instruction set, or those
# of the one that the environment variable QEMU_CPU names: cortex-a53 (neon), cortex-a76 (dotprod).
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64-static -L /usr/aarch64-linux-gnu)
