#pragma once

#include <cuda_runtime.h>

#include <functional>

// Graphs as the emulator knows them: work that was started on a stream while it was captured, kept
// as a list and started again by every launch. One mode of capture is played: thread-local.
// Thread-safe.
namespace simt {

// Keeps `work` for the graph of `stream` if that is being captured, else returns false.
bool record(cudaStream_t stream, std::function<void()>& work);

// What CUDA forbids while this thread captures, or what it forbids for a captured stream: true says
// that it is so, that the call fails, and that the capture is spoilt.
bool spoils_capture();
bool spoils_capture(cudaStream_t stream);

}  // namespace simt
