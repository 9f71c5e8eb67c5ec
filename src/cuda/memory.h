#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstddef>
#include <limits>
#include <memory>
#include <utility>

// Memory on the GPU and pinned host memory, with types that free what they hold, and the account of
// what is held.
namespace slicellm::cuda {

// What is held of a GPU's memory by all buffers that were given this account, within a limit.
// Copies are the same account. Thread-safe.
class DeviceMemory {
 public:
  static constexpr size_t kNoLimit = std::numeric_limits<size_t>::max();
  explicit DeviceMemory(size_t limit = kNoLimit);

  size_t limit() const { return account_->limit; }
  size_t held() const { return account_->held; }
  size_t room() const { return limit() - held(); }
  // Throws Error(resource) naming vram_limit, and `field` as what the memory is for.
  void take(size_t bytes, const char* field) const;
  void give(size_t bytes) const { account_->held -= bytes; }

 private:
  struct Account {
    const size_t limit;
    std::atomic<size_t> held = 0;
  };
  std::shared_ptr<Account> account_;
};

// Memory on the current device. Its contents are undefined at first. Moves; throws Error(resource)
// naming `field`, or vram_limit. Freeing waits for everything the device still does.
class DeviceBuffer {
 public:
  explicit DeviceBuffer(const DeviceMemory& memory) : memory_(memory) {}
  DeviceBuffer(const DeviceMemory& memory, size_t bytes, const char* field);
  DeviceBuffer(DeviceBuffer&& other) noexcept : memory_(other.memory_) { swap(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    DeviceBuffer(std::move(other)).swap(*this);
    return *this;
  }
  ~DeviceBuffer();
  // Memory that the host fills and the GPU then reads, for GPUs that share the host's memory
  // (managed by CUDA). The host's until hand_over(), the GPU's from there on.
  static DeviceBuffer shared(const DeviceMemory& memory, size_t bytes, const char* field);
  void hand_over(cudaStream_t stream) const;

  template <class T = std::byte>
  T* get() const {
    return static_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }
  // Makes room for `bytes`; what was in it is lost when it grows, which it does by half at least
  // where the limit allows.
  void reserve(size_t bytes, const char* field);

 private:
  void swap(DeviceBuffer& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }
  using Allocate = cudaError_t(void**, size_t);
  void allocate(Allocate call, size_t bytes, const char* field);

  DeviceMemory memory_;
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// Host memory that the GPU can copy to and from by itself; otherwise as DeviceBuffer.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  PinnedBuffer(size_t bytes, const char* field);
  PinnedBuffer(PinnedBuffer&& other) noexcept { swap(other); }
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept {
    PinnedBuffer(std::move(other)).swap(*this);
    return *this;
  }
  ~PinnedBuffer();

  template <class T = std::byte>
  T* get() const {
    return static_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }
  // As DeviceBuffer::reserve; the GPU must be done with what it holds.
  void reserve(size_t bytes, const char* field);

 private:
  void swap(PinnedBuffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace slicellm::cuda
