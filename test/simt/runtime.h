#pragma once

#include <cuda_runtime.h>

#include <functional>

#include "simt/control.h"
#include "simt/queue.h"

// What the files that play CUDA's runtime share.
namespace simt {

// What a call returns: its own error, or the fault of a kernel that has run since.
cudaError_t result(cudaError_t error);

// Queues work of a stream and returns the place behind it, or keeps it for a graph.
Place start(cudaStream_t stream, std::function<void()> work);

}  // namespace simt

// A call that a test wants to fail (control.h).
#define SIMT_MAY_FAIL(error) \
  if (simt::fails(__func__)) return simt::result(error)
