#include "cpu/numa.h"

#include <linux/mempolicy.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <string>

#include "slicellm/error.h"

namespace slicellm::cpu {
namespace {

constexpr int kMostThreads = 1024;  // as ThreadPool has it
constexpr char kTopology[] = "SLICELLM_NUMA_TOPOLOGY";
constexpr char kThreads[] = "FASTLLM_NUMA_THREADS";

[[noreturn]] void fail(std::string_view field, std::string_view value,
                       const std::string& expected) {
  throw Error(ErrorKind::invalid_argument, std::string(field), '"' + std::string(value) + '"',
              expected);
}

bool parse_number(std::string_view text, int* value) {
  const char* end = text.data() + text.size();
  const auto [last, error] = std::from_chars(text.data(), end, *value);
  return error == std::errc() && last == end;
}

// Calls function(part) for the parts of `text` between separators.
template <class Function>
void for_each_part(std::string_view text, char separator, Function function) {
  while (true) {
    const size_t at = text.find(separator);
    function(text.substr(0, at));
    if (at == std::string_view::npos) return;
    text.remove_prefix(at + 1);
  }
}

std::vector<int> usable_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cpus;
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  return cpus;
}

bool contains(const std::vector<int>& cpus, int cpu) {
  return std::find(cpus.begin(), cpus.end(), cpu) != cpus.end();
}

std::vector<NumaNode> declared_nodes(std::string_view text, const std::vector<int>& usable) {
  std::vector<NumaNode> nodes;
  for_each_part(text, ';', [&](std::string_view part) {
    NumaNode& node = nodes.emplace_back();
    node.cpus = parse_cpu_list(part, kTopology);
    for (int cpu : node.cpus) {
      if (!contains(usable, cpu)) {
        fail(kTopology, text, "CPUs that this process may use, not " + std::to_string(cpu));
      }
    }
  });
  return nodes;
}

std::vector<NumaNode> system_nodes(const std::vector<int>& usable) {
  const std::string directory = "/sys/devices/system/node/";
  std::vector<NumaNode> nodes;
  std::string ids, cpus;
  std::ifstream online(directory + "online");
  if (std::getline(online, ids)) {
    for (int id : parse_cpu_list(ids, directory + "online")) {  // nodes are listed as CPUs are
      const std::string path = directory + "node" + std::to_string(id) + "/cpulist";
      std::ifstream file(path);
      if (!std::getline(file, cpus) || cpus.empty()) continue;  // a node of memory alone
      NumaNode node;
      node.memory = id;
      for (int cpu : parse_cpu_list(cpus, path)) {
        if (contains(usable, cpu)) node.cpus.push_back(cpu);
      }
      if (!node.cpus.empty()) nodes.push_back(std::move(node));
    }
  }
  if (nodes.empty()) nodes.push_back({.threads = 0, .cpus = usable, .memory = -1});
  return nodes;
}

bool set_policy(int mode, const std::vector<int>& ids, uintptr_t begin, uintptr_t end) {
  constexpr size_t kBits = 8 * sizeof(unsigned long);
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  begin = begin / page * page;  // both down, so that neighbours leave no page out
  end = end / page * page;
  if (begin >= end) return true;
  std::vector<unsigned long> mask;
  for (int id : ids) {
    mask.resize(std::max<size_t>(mask.size(), id / kBits + 1));
    mask[id / kBits] |= 1ul << id % kBits;
  }
  // The kernel takes one bit less than it is told.
  return syscall(SYS_mbind, begin, end - begin, mode, mask.data(), mask.size() * kBits + 1, 0) == 0;
}

bool can_place(std::span<const NumaNode> nodes) {
  return nodes.size() > 1 &&
         std::all_of(nodes.begin(), nodes.end(), [](const NumaNode& n) { return n.memory >= 0; });
}

}  // namespace

std::vector<int> parse_cpu_list(std::string_view text, std::string_view field) {
  std::vector<int> cpus;
  for_each_part(text, ',', [&](std::string_view part) {
    const size_t dash = part.find('-');
    int first = -1, last = -1;
    bool good = parse_number(part.substr(0, dash), &first);
    last = first;
    if (dash != std::string_view::npos) good = good && parse_number(part.substr(dash + 1), &last);
    if (!good || first < 0 || last < first || last >= CPU_SETSIZE) {
      fail(field, text,
           "lists of CPUs such as 0-3,8 of at most " + std::to_string(CPU_SETSIZE - 1));
    }
    for (int cpu = first; cpu <= last; ++cpu) {
      if (!contains(cpus, cpu)) cpus.push_back(cpu);
    }
  });
  return cpus;
}

std::vector<NumaNode> numa_nodes(int threads) {
  const std::vector<int> usable = usable_cpus();
  const char* declared = std::getenv(kTopology);
  std::vector<NumaNode> nodes =
      declared != nullptr ? declared_nodes(declared, usable) : system_nodes(usable);
  const auto count = static_cast<int>(nodes.size());
  int per_node = 0;
  if (const char* text = std::getenv(kThreads)) {
    const int most = kMostThreads / count;
    if (!parse_number(text, &per_node) || per_node < 1 || per_node > most) {
      fail(kThreads, text, "threads of a node, 1 to " + std::to_string(most));
    }
    threads = count * per_node;
  } else if (threads != 0 && (threads < count || threads > kMostThreads)) {
    throw Error(ErrorKind::invalid_argument, "threads", std::to_string(threads),
                "at least one for each of " + std::to_string(count) + " nodes and at most " +
                    std::to_string(kMostThreads));
  }
  for (int i = 0; i < count; ++i) {
    nodes[i].threads = threads == 0 ? static_cast<int>(nodes[i].cpus.size())
                                    : threads * (i + 1) / count - threads * i / count;
  }
  return nodes;
}

bool place_parts(std::span<const NumaNode> nodes, std::byte* data, size_t bytes) {
  if (!can_place(nodes)) return true;
  size_t threads = 0, before = 0;
  for (const NumaNode& node : nodes) threads += node.threads;
  const auto start = reinterpret_cast<uintptr_t>(data);
  bool all = true;
  for (const NumaNode& node : nodes) {
    const size_t after = before + node.threads;
    all &= set_policy(MPOL_PREFERRED, {node.memory}, start + bytes / threads * before,
                      after == threads ? start + bytes : start + bytes / threads * after);
    before = after;
  }
  return all;
}

bool interleave(std::span<const NumaNode> nodes, std::byte* data, size_t bytes) {
  if (!can_place(nodes)) return true;
  std::vector<int> ids;
  for (const NumaNode& node : nodes) ids.push_back(node.memory);
  const auto start = reinterpret_cast<uintptr_t>(data);
  return set_policy(MPOL_INTERLEAVE, ids, start, start + bytes);
}

}  // namespace slicellm::cpu
