#include "cuda/memory.h"

#include <algorithm>
#include <string>

#include "cuda/runtime.h"
#include "slicellm/error.h"

namespace slicellm::cuda {
namespace {

[[noreturn]] void throw_memory(cudaError_t status, size_t bytes, const char* field) {
  cudaGetLastError();
  throw Error(ErrorKind::resource, field, std::to_string(bytes) + " bytes: " + text_of(status),
              "what memory allows");
}

size_t grown(size_t held, size_t wanted) { return std::max(wanted, held + held / 2); }

}  // namespace

DeviceMemory::DeviceMemory(size_t limit) : account_(new Account{limit}) {}

void DeviceMemory::take(size_t bytes, const char* field) const {
  size_t held = account_->held;
  while (bytes <= limit() - held) {
    if (account_->held.compare_exchange_weak(held, held + bytes)) return;
  }
  throw Error(ErrorKind::resource, "vram_limit",
              std::to_string(limit()) + " bytes, of which " + std::to_string(held) + " are held",
              "room for " + std::to_string(bytes) + " more (" + field + ")");
}

DeviceBuffer::DeviceBuffer(const DeviceMemory& memory, size_t bytes, const char* field)
    : memory_(memory) {
  allocate([](void** data, size_t size) { return cudaMalloc(data, size); }, bytes, field);
}

DeviceBuffer DeviceBuffer::shared(const DeviceMemory& memory, size_t bytes, const char* field) {
  DeviceBuffer buffer(memory);
  const auto call = [](void** data, size_t size) {
    return cudaMallocManaged(data, size, cudaMemAttachHost);
  };
  buffer.allocate(call, bytes, field);
  return buffer;
}

void DeviceBuffer::hand_over(cudaStream_t stream) const {
  if (bytes_ == 0) return;
  SLICELLM_CUDA_CHECK(cudaStreamAttachMemAsync(stream, data_, 0, cudaMemAttachGlobal));
}

void DeviceBuffer::allocate(Allocate call, size_t bytes, const char* field) {
  if (bytes == 0) return;
  memory_.take(bytes, field);
  const cudaError_t status = call(&data_, bytes);
  if (status != cudaSuccess) {
    memory_.give(bytes);
    throw_memory(status, bytes, field);
  }
  bytes_ = bytes;
}

DeviceBuffer::~DeviceBuffer() {
  if (data_ == nullptr) return;
  cudaFree(data_);
  memory_.give(bytes_);
}

void DeviceBuffer::reserve(size_t bytes, const char* field) {
  if (bytes <= bytes_) return;
  size_t size = grown(bytes_, bytes);
  *this = DeviceBuffer(memory_);  // before the new one, so that both need not fit
  if (size > memory_.room()) size = bytes;
  *this = DeviceBuffer(memory_, size, field);
}

PinnedBuffer::PinnedBuffer(size_t bytes, const char* field) : bytes_(bytes) {
  if (bytes == 0) return;
  const cudaError_t status = cudaMallocHost(&data_, bytes);
  if (status != cudaSuccess) throw_memory(status, bytes, field);
}

PinnedBuffer::~PinnedBuffer() {
  if (data_ != nullptr) cudaFreeHost(data_);
}

void PinnedBuffer::reserve(size_t bytes, const char* field) {
  if (bytes <= bytes_) return;
  const size_t size = grown(bytes_, bytes);
  *this = PinnedBuffer();
  *this = PinnedBuffer(size, field);
}

}  // namespace slicellm::cuda
