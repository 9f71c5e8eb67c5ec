#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <string>
#include <vector>

#include "simt/fiber.h"
#include "simt/vector_types.h"

// The execution of one block: each of its threads is a fiber of the calling OS thread, which runs
// until it waits for others (a barrier, a warp operation) or ends. Threads take turns in ascending,
// then in descending order, and so on, so that code that lacks a barrier fails one way or the
// other.
namespace simt {

// Where a thread waits.
struct Wait {
  enum class At : uint8_t { nothing, block, warp, exit };
  At at = At::nothing;
  const char* name = "";            // "__syncthreads"
  const void* operation = nullptr;  // of a warp: what is waited for
  uint32_t mask = 0;                // of a warp: lanes that take part
  void* operand = nullptr;
  std::source_location where;
};

struct AsyncCopy {
  void* to;
  const void* from;
  uint32_t bytes;  // the rest of 16 becomes zero
};

class Block;

struct Thread {
  Block* block = nullptr;
  void* stack = nullptr;  // saved stack pointer
  uint3 index{};
  uint32_t number = 0;  // in the block; lane = number % 32
  Wait wait;
  std::vector<AsyncCopy> copies;    // issued and not yet made, in order
  std::vector<size_t> copy_groups;  // ends of the committed groups in `copies`
};

struct Grid {
  const char* kernel = "";
  dim3 grid, block;
  size_t dynamic_bytes = 0;
  void (*body)(void*) = nullptr;  // runs the kernel for the current thread
  void* parameters = nullptr;
};

// The lanes that wait for a warp operation.
struct WarpGroup {
  const void* operation;
  uint32_t mask, arrived;
};

// A shared array, which ends at a page that faults. What lies around it up to the next 16 bytes
// and 64 bytes before it must keep its poison.
struct SharedArray {
  const void* key = nullptr;  // of the declaration
  const char* name = "";
  std::byte* slot = nullptr;
  size_t bytes = 0;
  std::byte* data() const;
};

// Reused from block to block and from launch to launch by one OS thread.
class Block {
 public:
  Block() = default;
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  ~Block();

  // Runs all threads to their end; returns what went wrong, empty if nothing.
  std::string run(const Grid& grid, uint3 index);

  const Grid& grid() const { return *grid_; }
  uint3 index() const { return index_; }
  Thread& thread(uint32_t number) { return threads_[number]; }
  uint32_t threads() const { return static_cast<uint32_t>(threads_.size()); }

  // Of the current thread.
  void* shared_array(const void* key, const char* name, size_t bytes);
  void* dynamic_shared() { return arrays_[0].data(); }
  bool is_shared(const void* address, size_t bytes) const;  // within one array
  // Waits for all threads of the block; the last one calls `execute` first.
  void synchronize(const char* name, void* operand, void (*execute)(Block&),
                   std::source_location where);
  // Waits for the lanes of `mask`; the last one calls execute(block, first thread of the warp,
  // mask) first, which finds each lane's `operand` in its Wait.
  void meet(const char* name, uint32_t mask, void* operand,
            void (*execute)(Block&, Thread* warp, uint32_t mask), std::source_location where);
  // Ends the block with a report about the current thread.
  [[noreturn]] void fail(const std::string& what);
  // What a faulting address means, for the current thread.
  std::string describe_address(const void* address) const;
  void* stack_top(uint32_t number) { return stacks_.top(number); }

 private:
  static void start(void* thread);
  void yield();
  void check_canaries(const char* when);
  std::string stuck() const;
  std::string place(const Thread& thread) const;
  static std::string waiting(const Thread& thread);

  const Grid* grid_ = nullptr;
  uint3 index_{};
  std::vector<Thread> threads_;
  std::vector<std::vector<WarpGroup>> warps_;
  uint32_t at_barrier_ = 0, ended_ = 0;
  std::vector<SharedArray> arrays_;  // the first is the dynamic one
  std::vector<std::byte*> slots_;
  StackPool stacks_;
  void* scheduler_ = nullptr;  // its saved stack pointer
  std::string fault_;
};

// The thread that runs now on this OS thread; null outside of kernels.
extern constinit thread_local Thread* current __attribute__((tls_model("initial-exec")));

// The block of this OS thread.
Block& local_block();

}  // namespace simt
