#include "simt/block.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>

#include "simt/fault.h"

namespace simt {
namespace {

constexpr size_t kSlotBytes = size_t{256} << 10;  // room of a shared array, above all hardware
constexpr size_t kCanaryBytes = 64;
constexpr size_t kStaticLimit = size_t{48} << 10;
constexpr size_t kSharedLimit = size_t{99} << 10;  // the least of sm_80 ... sm_120: sm_86, 89, 120
constexpr int kPoison = 0xff;                      // NaN in every float type, -1 in integers

size_t round_up(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

std::string to_text(uint3 v) {
  return "(" + std::to_string(v.x) + "," + std::to_string(v.y) + "," + std::to_string(v.z) + ")";
}

std::string to_text(const std::source_location& where) {
  const std::string path = where.file_name();
  return path.substr(path.rfind('/') + 1) + ":" + std::to_string(where.line());
}

bool poisoned(const std::byte* begin, const std::byte* end) {
  return std::all_of(begin, end, [](std::byte b) { return b == std::byte{kPoison}; });
}

}  // namespace

constinit thread_local Thread* current = nullptr;

Block& local_block() {
  static thread_local Block block;
  return block;
}

std::byte* SharedArray::data() const { return slot + kSlotBytes - round_up(bytes, 16); }

Block::~Block() {
  for (std::byte* slot : slots_) munmap(slot, kSlotBytes + sysconf(_SC_PAGESIZE));
}

std::string Block::run(const Grid& grid, uint3 index) {
  grid_ = &grid;
  index_ = index;
  fault_.clear();
  arrays_.clear();
  at_barrier_ = ended_ = 0;
  const uint32_t count = grid.block.x * grid.block.y * grid.block.z;
  threads_.resize(count);
  warps_.assign((count + 31) / 32, {});
  uint3 at{0, 0, 0};
  for (uint32_t i = 0; i < count; ++i) {
    Thread& thread = threads_[i];
    thread.block = this;
    thread.index = at;
    thread.number = i;
    thread.wait = {};
    thread.copies.clear();
    thread.copy_groups.clear();
    thread.stack = prepare_stack(stacks_.top(i), &Block::start, &thread);
    if (++at.x == grid.block.x) {
      at.x = 0;
      if (++at.y == grid.block.y) {
        at.y = 0;
        ++at.z;
      }
    }
  }
  shared_array(nullptr, "dynamic shared memory", grid.dynamic_bytes);
  for (bool forward = true; ended_ < count; forward = !forward) {
    bool progress = false;
    for (uint32_t i = 0; i < count; ++i) {
      Thread& thread = threads_[forward ? i : count - 1 - i];
      if (thread.wait.at != Wait::At::nothing) continue;
      progress = true;
      current = &thread;
      simt_switch(&scheduler_, thread.stack);
      current = nullptr;
      if (!fault_.empty()) return fault_;
    }
    if (!progress) return stuck();
  }
  return {};
}

void Block::start(void* argument) {
  auto* thread = static_cast<Thread*>(argument);
  Block& block = *thread->block;
  block.grid_->body(block.grid_->parameters);
  block.check_canaries("its end");
  thread->wait.at = Wait::At::exit;
  ++block.ended_;
  block.yield();
}

void Block::yield() { simt_switch(&current->stack, scheduler_); }

void Block::fail(const std::string& what) {
  fault_ = place(*current) + ": " + what;
  yield();
  __builtin_unreachable();
}

void* Block::shared_array(const void* key, const char* name, size_t bytes) {
  for (const SharedArray& array : arrays_) {
    if (array.key == key) return array.data();
  }
  const size_t page = sysconf(_SC_PAGESIZE);
  if (arrays_.size() == slots_.size()) {
    void* slot = mmap(nullptr, kSlotBytes + page, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (slot == MAP_FAILED) throw std::bad_alloc();
    slots_.push_back(static_cast<std::byte*>(slot));
    mprotect(slots_.back() + kSlotBytes, page, PROT_NONE);
  }
  const SharedArray array{key, name, slots_[arrays_.size()], bytes};
  arrays_.push_back(array);
  size_t in_all = 0;
  for (const SharedArray& a : arrays_) in_all += round_up(a.bytes, 16);
  const size_t dynamic = round_up(arrays_[0].bytes, 16);
  if (current && (in_all - dynamic > kStaticLimit || in_all > kSharedLimit)) {
    fail("shared memory of " + std::to_string(in_all - dynamic) + " static and " +
         std::to_string(dynamic) + " dynamic bytes, more than 48 KiB or 99 KiB in all");
  }
  std::memset(array.data() - kCanaryBytes, kPoison, kCanaryBytes + round_up(bytes, 16));
  return array.data();
}

bool Block::is_shared(const void* address, size_t bytes) const {
  return std::any_of(arrays_.begin(), arrays_.end(), [&](const SharedArray& array) {
    const auto offset = static_cast<size_t>(static_cast<const std::byte*>(address) - array.data());
    return offset <= array.bytes && bytes <= array.bytes - offset;
  });
}

void Block::check_canaries(const char* when) {
  for (const SharedArray& array : arrays_) {
    const std::byte* begin = array.data();
    const char* side = !poisoned(begin - kCanaryBytes, begin) ? "before"
                       : !poisoned(begin + array.bytes, begin + round_up(array.bytes, 16))
                           ? "beyond the end of"
                           : nullptr;
    if (side) {
      fail(std::string("at ") + when + ": someone wrote " + side + " shared array " + array.name +
           " (" + std::to_string(array.bytes) + " bytes)");
    }
  }
}

void Block::synchronize(const char* name, void* operand, void (*execute)(Block&),
                        std::source_location where) {
  check_canaries(name);
  Thread& self = *current;
  self.wait = {Wait::At::block, name, nullptr, 0, operand, where};
  if (++at_barrier_ < threads()) {
    yield();
    return;
  }
  for (const Thread& thread : threads_) {
    if (thread.wait.where.line() != where.line() || thread.wait.name != name ||
        std::strcmp(thread.wait.where.file_name(), where.file_name()) != 0) {
      fail("divergent barrier: it waits in " + waiting(self) + ", but thread " +
           to_text(thread.index) + " waits in " + waiting(thread));
    }
  }
  if (execute) execute(*this);
  at_barrier_ = 0;
  for (Thread& thread : threads_) thread.wait.at = Wait::At::nothing;
}

void Block::meet(const char* name, uint32_t mask, void* operand,
                 void (*execute)(Block&, Thread* warp, uint32_t mask), std::source_location where) {
  Thread& self = *current;
  const auto* operation = reinterpret_cast<const void*>(execute);
  if (!(mask >> self.number % 32 & 1)) {
    fail(std::string(name) + " with a mask that lacks the calling lane");
  }
  self.wait = {Wait::At::warp, name, operation, mask, operand, where};
  std::vector<WarpGroup>& groups = warps_[self.number / 32];
  auto group = std::find_if(groups.begin(), groups.end(), [&](const WarpGroup& g) {
    return g.operation == operation && g.mask == mask;
  });
  if (group == groups.end()) group = groups.insert(groups.end(), {operation, mask, 0});
  if (++group->arrived < static_cast<uint32_t>(__builtin_popcount(mask))) {
    yield();
    return;
  }
  groups.erase(group);
  Thread* warp = &threads_[self.number / 32 * 32];
  execute(*this, warp, mask);
  for (uint32_t lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) warp[lane].wait.at = Wait::At::nothing;
  }
}

std::string Block::place(const Thread& thread) const {
  return std::string("kernel ") + grid_->kernel + ", block " + to_text(index_) + ", thread " +
         to_text(thread.index);
}

std::string Block::waiting(const Thread& thread) {
  return std::string(thread.wait.name) + " (" + to_text(thread.wait.where) + ")";
}

// Nobody can run: names a thread that waits and one that it waits for in vain.
std::string Block::stuck() const {
  const auto absent = [](const Thread& t, const Thread& other) {
    return "thread " + to_text(other.index) +
           (other.wait.at == Wait::At::exit ? " has exited"
            : t.wait.at == other.wait.at && t.wait.mask != other.wait.mask
                ? " waits with another mask"
                : " waits in " + waiting(other));
  };
  const auto differs = [](const Wait& a, const Wait& b) {
    return a.at != b.at || a.operation != b.operation || a.mask != b.mask;
  };
  for (const Thread& t : threads_) {
    if (t.wait.at == Wait::At::exit) continue;
    const std::string start =
        place(t) + ": divergent barrier: it waits in " + waiting(t) + ", but ";
    const uint32_t first = t.number / 32 * 32;
    for (uint32_t i = 0; t.wait.at == Wait::At::warp && i < 32; ++i) {
      if (!(t.wait.mask >> i & 1)) continue;
      if (first + i >= threads()) {
        return start + "its mask names lane " + std::to_string(i) + ", which does not exist";
      }
      if (differs(threads_[first + i].wait, t.wait)) return start + absent(t, threads_[first + i]);
    }
    for (uint32_t i = 0; t.wait.at == Wait::At::block && i < threads(); ++i) {
      if (threads_[i].wait.at != Wait::At::block) return start + absent(t, threads_[i]);
    }
  }
  return std::string("kernel ") + grid_->kernel + ", block " + to_text(index_) + ": stuck";
}

std::string Block::describe_address(const void* address) const {
  const size_t page = sysconf(_SC_PAGESIZE);
  for (const SharedArray& array : arrays_) {
    const std::byte* end = array.slot + kSlotBytes;
    if (address >= end && address < end + page) {
      return std::to_string(static_cast<const std::byte*>(address) - array.data()) +
             " bytes into shared array " + array.name + " of " + std::to_string(array.bytes) +
             " bytes";
    }
  }
  return stacks_.in_guard(address) ? "below the thread's stack" : "";
}

}  // namespace simt
