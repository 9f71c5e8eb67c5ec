#include "simt/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace simt {
namespace {

struct Allocation {
  size_t bytes;
  std::byte* mapping;
  size_t mapped;
};

struct Registry {
  std::mutex mutex;
  std::map<std::byte*, Allocation> allocations;  // by begin
  size_t used = 0, peak = 0;
  std::map<std::byte*, size_t> pinned;  // bytes, by begin
  size_t pinned_used = 0;
};

// One device, as in a process with one GPU; outlives what is freed at exit.
Registry& registry() {
  static auto* instance = new Registry;
  return *instance;
}

std::byte* bytes_of(const void* pointer) {
  return static_cast<std::byte*>(const_cast<void*>(pointer));
}

}  // namespace

void* allocate_device(size_t bytes) {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  const size_t limit = device_memory_limit();
  if (bytes > limit || r.used > limit - bytes) return nullptr;
  const size_t page = sysconf(_SC_PAGESIZE);
  const size_t padded = (bytes + 15) / 16 * 16;
  const size_t room = (padded + page - 1) / page * page;
  void* mapping = mmap(nullptr, room + page, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) return nullptr;
  std::memset(mapping, 0xff, room);
  mprotect(bytes_of(mapping) + room, page, PROT_NONE);
  std::byte* begin = bytes_of(mapping) + room - padded;
  r.allocations[begin] = {bytes, bytes_of(mapping), room + page};
  r.used += bytes;
  r.peak = std::max(r.peak, r.used);
  return begin;
}

bool free_device(void* pointer) {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  const auto found = r.allocations.find(bytes_of(pointer));
  if (found == r.allocations.end()) return false;
  munmap(found->second.mapping, found->second.mapped);
  r.used -= found->second.bytes;
  r.allocations.erase(found);
  return true;
}

bool is_device(const void* pointer, size_t bytes) {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  auto after = r.allocations.upper_bound(bytes_of(pointer));
  if (after == r.allocations.begin()) return false;
  const auto& [begin, allocation] = *--after;
  const size_t offset = bytes_of(pointer) - begin;
  return offset <= allocation.bytes && bytes <= allocation.bytes - offset;
}

void* allocate_pinned(size_t bytes) {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  void* pointer = std::malloc(bytes);
  if (!pointer) return nullptr;
  std::memset(pointer, 0xff, bytes);
  r.pinned[bytes_of(pointer)] = bytes;
  r.pinned_used += bytes;
  return pointer;
}

bool free_pinned(void* pointer) {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  const auto found = r.pinned.find(bytes_of(pointer));
  if (found == r.pinned.end()) return false;
  r.pinned_used -= found->second;
  r.pinned.erase(found);
  std::free(pointer);
  return true;
}

bool is_pinned(const void* pointer) {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  auto after = r.pinned.upper_bound(bytes_of(pointer));
  if (after == r.pinned.begin()) return false;
  --after;
  return bytes_of(pointer) < after->first + after->second;
}

std::string describe_device_address(const void* address) {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  auto after = r.allocations.upper_bound(bytes_of(address));
  if (after == r.allocations.begin()) return {};
  const auto& [begin, allocation] = *--after;
  if (bytes_of(address) >= allocation.mapping + allocation.mapped) return {};
  return std::to_string(bytes_of(address) - begin) + " bytes into device memory of " +
         std::to_string(allocation.bytes) + " bytes";
}

size_t device_memory_limit() {
  const char* text = std::getenv("SLICELLM_SIMT_MEMORY");
  return text ? std::strtoull(text, nullptr, 10) : size_t{1} << 30;
}

bool device_is_integrated() {
  const char* text = std::getenv("SLICELLM_SIMT_INTEGRATED");
  return text && std::strcmp(text, "1") == 0;
}

size_t device_memory_used() {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  return r.used;
}

size_t device_memory_peak() {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  return r.peak;
}

void forget_memory_peak() {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  r.peak = r.used;
}

size_t pinned_memory_used() {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  return r.pinned_used;
}

}  // namespace simt
