#include "engine/executors.h"

#include <string>

#include "slicellm/error.h"
#include "slicellm/model.h"

namespace slicellm {

void check_in_flight(size_t in_flight) {
  if (in_flight < kMaxInFlight) return;
  throw Error(ErrorKind::state, "step", "a third one in flight", "at most two");
}

void check_oldest(Ticket ticket, Ticket next_ticket, size_t in_flight) {
  if (in_flight > 0 && ticket == next_ticket - static_cast<Ticket>(in_flight)) return;
  throw Error(ErrorKind::state, "ticket", std::to_string(ticket), "that of the oldest step");
}

void check_copy(const KvCopy& copy, int32_t device_blocks, int32_t host_blocks) {
  if (copy.device_block >= 0 && copy.device_block < device_blocks && copy.host_block >= 0 &&
      copy.host_block < host_blocks) {
    return;
  }
  throw Error(
      ErrorKind::invalid_argument, "kv copy",
      "blocks " + std::to_string(copy.device_block) + " and " + std::to_string(copy.host_block),
      "blocks of the pools");
}

std::shared_ptr<Executor> make_executor(std::shared_ptr<Model> model, int32_t device_blocks,
                                        int32_t host_blocks) {
  if (device_blocks < 1 || host_blocks < 0) {
    throw Error(ErrorKind::invalid_argument, "kv blocks",
                std::to_string(device_blocks) + " and " + std::to_string(host_blocks),
                "at least one on the device and none or more in host memory");
  }
  const bool cuda = model->placement().size() == 1 && model->device().name() == "cuda";
  return (cuda ? make_cuda_executor : make_host_executor)(std::move(model), device_blocks,
                                                          host_blocks);
}

}  // namespace slicellm
