#include "cpu/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>

#include "slicellm/error.h"

namespace slicellm::cpu {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kArenaBlock = size_t{64} << 20;
constexpr size_t kLine = 64;

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

[[noreturn]] void throw_out_of_memory(size_t bytes, const char* field) {
  throw Error(ErrorKind::resource, field, std::to_string(bytes) + " bytes",
              "an amount of memory that the system can give");
}

std::shared_ptr<std::byte> map_huge(size_t bytes, const char* field) {
  // Reserve one huge page more and keep the aligned part, so that whole huge pages can back it.
  const size_t wanted = round_up(bytes, kHugePage);
  const size_t mapped = wanted + kHugePage;
  void* start = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED) throw_out_of_memory(bytes, field);
  auto* first = static_cast<std::byte*>(start);
  const size_t head =
      round_up(reinterpret_cast<uintptr_t>(first), kHugePage) - reinterpret_cast<uintptr_t>(first);
  if (head > 0) munmap(first, head);
  if (kHugePage - head > 0) munmap(first + head + wanted, kHugePage - head);
#ifdef MADV_HUGEPAGE
  madvise(first + head, wanted, MADV_HUGEPAGE);  // best effort: small pages work as well
#endif
  return {first + head, [wanted](std::byte* p) { munmap(p, wanted); }};
}

}  // namespace

std::shared_ptr<std::byte> allocate_bytes(size_t bytes, const char* field) {
  if (bytes > std::numeric_limits<size_t>::max() / 2) throw_out_of_memory(bytes, field);
  if (bytes >= kHugePage) return map_huge(bytes, field);
  const size_t wanted = std::max(round_up(bytes, kLine), kLine);
  auto* p = static_cast<std::byte*>(std::aligned_alloc(kLine, wanted));
  if (p == nullptr) throw_out_of_memory(bytes, field);
  std::memset(p, 0, wanted);
  return {p, [](std::byte* q) { std::free(q); }};
}

void Scratch::reserve(size_t bytes) {
  if (bytes <= capacity_) return;
  memory_.reset();
  capacity_ = 0;
  memory_ = allocate_bytes(bytes, "activations");
  capacity_ = bytes;
}

std::shared_ptr<std::byte> WeightArena::allocate(size_t bytes) {
  bytes = round_up(bytes, kLine);
  if (bytes > capacity_ - used_) {
    const size_t wanted = std::max(bytes, kArenaBlock);
    block_ = allocate_bytes(wanted, "weights");
    capacity_ = wanted;
    used_ = 0;
  }
  std::byte* part = block_.get() + used_;
  used_ += bytes;
  place_parts(nodes_, part, bytes);
  return {block_, part};
}

}  // namespace slicellm::cpu
