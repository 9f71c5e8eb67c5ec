#pragma once

#include <cstddef>
#include <span>
#include <string_view>
#include <vector>

namespace slicellm::cpu {

// A part of the machine with cores and memory of its own, as a device uses it.
struct NumaNode {
  int threads = 0;
  std::vector<int> cpus;  // that its threads are kept on; empty: anywhere
  int memory = -1;        // its number in the system; -1: its memory is placed nowhere special
};

// CPUs of a list as the kernel writes it, "0-3,8". Throws Error(invalid_argument) naming `field`.
std::vector<int> parse_cpu_list(std::string_view text, std::string_view field);

// The machine's nodes with CPUs that this process may use, and their threads:
// * SLICELLM_NUMA_TOPOLOGY in the environment declares other nodes than the system has, as lists of
//   CPUs with ';' between them ("0-3;4-7"). Memory is then not placed.
// * FASTLLM_NUMA_THREADS in the environment is the number of threads of each node; else `threads`
//   are divided evenly; 0: one for each CPU.
// Throws Error(invalid_argument) naming what was set wrong.
std::vector<NumaNode> numa_nodes(int threads);

// Where untouched memory will lie; best effort, as it changes no result, and nothing with fewer
// than two nodes. True when the system did all that was asked.
// The parts of a matrix, in proportion to the nodes' threads, as ThreadPool::parallel_for shares
// it.
bool place_parts(std::span<const NumaNode> nodes, std::byte* data, size_t bytes);
// Page by page in turn.
bool interleave(std::span<const NumaNode> nodes, std::byte* data, size_t bytes);

}  // namespace slicellm::cpu
