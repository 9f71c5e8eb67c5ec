#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "slicellm/executor.h"

// Executors of the devices, and the checks that they have in common.
namespace slicellm {

constexpr size_t kMaxInFlight = 2;

// Pools of at least one block on the device.
std::shared_ptr<Executor> make_host_executor(std::shared_ptr<Model> model, int32_t device_blocks,
                                             int32_t host_blocks);
// All of the model must be on one CUDA device.
std::shared_ptr<Executor> make_cuda_executor(std::shared_ptr<Model> model, int32_t device_blocks,
                                             int32_t host_blocks);

// Each throws Error. `in_flight`: steps submitted and not yet waited for.
void check_in_flight(size_t in_flight);
void check_oldest(Ticket ticket, Ticket next_ticket, size_t in_flight);
void check_copy(const KvCopy& copy, int32_t device_blocks, int32_t host_blocks);

}  // namespace slicellm
