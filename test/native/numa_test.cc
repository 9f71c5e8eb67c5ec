// NUMA nodes: what the environment declares, threads that stay on their node's CPUs, memory placed
// where it was asked to be.
#include "cpu/numa.h"

#include <linux/mempolicy.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/memory.h"
#include "cpu/thread_pool.h"
#include "slicellm/ops.h"

namespace slicellm {
namespace {

using cpu::NumaNode;
using test::throws;
using Cpus = std::vector<int>;

constexpr char kTopology[] = "SLICELLM_NUMA_TOPOLOGY";
constexpr char kThreads[] = "FASTLLM_NUMA_THREADS";

// Sets a variable of the environment while it lives.
class Setting {
 public:
  Setting(const char* name, const std::string& value) : name_(name) {
    setenv(name, value.c_str(), 1);
  }
  ~Setting() { unsetenv(name_); }

 private:
  const char* name_;
};

Cpus usable() {
  cpu_set_t set;
  CHECK(sched_getaffinity(0, sizeof(set), &set) == 0);
  Cpus cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  return cpus;
}

void test_lists() {
  CHECK(cpu::parse_cpu_list("0", "x") == Cpus({0}));
  CHECK(cpu::parse_cpu_list("2-4,0,3-5", "x") == Cpus({2, 3, 4, 0, 5}));
  for (const char* bad :
       {"", "a", "-1", "1-", "2-1", "1,,2", "1 ", "0-9999999999", "1024", "1-2-3"}) {
    CHECK(throws(ErrorKind::invalid_argument, "x", [&] { cpu::parse_cpu_list(bad, "x"); }));
  }
}

void test_threads() {
  const Cpus cpus = usable();
  const std::string first = std::to_string(cpus.front()), last = std::to_string(cpus.back());
  const auto threads = [](int wanted) {
    Cpus found;
    for (const NumaNode& node : cpu::numa_nodes(wanted)) found.push_back(node.threads);
    return found;
  };
  {
    const Setting topology(kTopology, first + ";" + first + "," + last + ";" + last);
    const auto nodes = cpu::numa_nodes(0);
    CHECK(nodes.size() == 3 && nodes[0].cpus == Cpus({cpus.front()}) && nodes[0].memory == -1);
    CHECK(nodes[1].cpus.front() == cpus.front() && nodes[1].cpus.back() == cpus.back());
    CHECK(threads(0) == Cpus({1, cpus.size() > 1 ? 2 : 1, 1}));  // one for each CPU
    CHECK(threads(3) == Cpus({1, 1, 1}));
    CHECK(threads(8) == Cpus({2, 3, 3}));
    for (int bad : {2, -1, 1025, 1 << 30}) {
      CHECK(throws(ErrorKind::invalid_argument, "threads", [&] { cpu::numa_nodes(bad); }));
    }
    {
      const Setting per_node(kThreads, "4");
      CHECK(threads(0) == Cpus({4, 4, 4}));
      CHECK(threads(1) == Cpus({4, 4, 4}));  // as in fastllm, it goes before --threads
    }
    for (const char* bad : {"", "0", "-2", "two", "342", "3 "}) {
      const Setting per_node(kThreads, bad);
      CHECK(throws(ErrorKind::invalid_argument, kThreads, [] { cpu::numa_nodes(0); }));
      CHECK(throws(ErrorKind::invalid_argument, kThreads, [] { make_device("numa", {}); }));
    }
  }
  for (const char* bad : {"", ";", "0;", "0;x", "1023"}) {
    const Setting topology(kTopology, bad);
    if (bad == std::string("1023") && cpus.back() == 1023) continue;
    CHECK(throws(ErrorKind::invalid_argument, kTopology, [] { cpu::numa_nodes(0); }));
  }
  // Without a declaration: the system's nodes hold every CPU that this process may use.
  size_t all = 0;
  for (const NumaNode& node : cpu::numa_nodes(0)) all += node.cpus.size();
  CHECK(all == cpus.size());
}

void test_pinning() {
  const int cpu = usable().back();
  const std::vector<NumaNode> nodes = {{.threads = 1, .cpus = {cpu}, .memory = -1},
                                       {.threads = 2, .cpus = {cpu}, .memory = -1}};
  cpu::ThreadPool pool(nodes);
  CHECK(pool.threads() == 3);
  std::atomic<int> seen{0};  // the other threads, as bits
  for (int job = 0; job < 10000 && seen != 6; ++job) {
    pool.parallel_for(24, 1, [&](int64_t, int64_t, int thread) {
      if (thread == 0) {
        std::this_thread::sleep_for(std::chrono::microseconds(100));
      } else {
        CHECK(usable() == Cpus({cpu}));
        seen |= 1 << thread;
      }
    });
  }
  CHECK(seen == 6);
  CHECK(throws(ErrorKind::resource, "threads", [] {  // no such CPU
    const NumaNode nowhere{.threads = 2, .cpus = {CPU_SETSIZE - 1}, .memory = -1};
    cpu::ThreadPool nobody(std::span(&nowhere, 1));
  }));
}

// The policy of the page at `at`, or -1 where the system does not tell.
int policy_of(const std::byte* at) {
  int mode = -1;
  if (syscall(SYS_get_mempolicy, &mode, nullptr, 0, at, MPOL_F_ADDR) != 0) return -1;
  return mode;
}

void test_placement() {
  constexpr size_t kBytes = size_t{8} << 20;
  const auto memory = cpu::allocate_bytes(3 * kBytes, "test");
  std::byte* data = memory.get();
  // One real node twice, as this is all that every machine has.
  const std::vector<NumaNode> nodes = {{.threads = 1, .cpus = {}, .memory = 0},
                                       {.threads = 3, .cpus = {}, .memory = 0}};
  if (policy_of(data) < 0 || !std::ifstream("/sys/devices/system/node/node0/cpulist")) {
    std::puts("skipped: this system does not place memory");
    return;
  }
  CHECK(cpu::place_parts(nodes, data, kBytes));
  CHECK(cpu::interleave(nodes, data + kBytes, kBytes));
  CHECK(policy_of(data) == MPOL_PREFERRED && policy_of(data + kBytes - 1) == MPOL_PREFERRED);
  CHECK(policy_of(data + kBytes) == MPOL_INTERLEAVE);
  CHECK(policy_of(data + 2 * kBytes) == MPOL_DEFAULT);
  std::vector<NumaNode> declared = nodes;
  declared[1].memory = -1;
  CHECK(cpu::place_parts(declared, data + 2 * kBytes, kBytes));
  CHECK(policy_of(data + 2 * kBytes) == MPOL_DEFAULT);
  declared[1].memory = 1000;
  CHECK(!cpu::place_parts(declared, data + 2 * kBytes, kBytes));  // no such node; no harm either
}

}  // namespace
}  // namespace slicellm

int main() {
  slicellm::test_lists();
  slicellm::test_threads();
  slicellm::test_pinning();
  slicellm::test_placement();
  return slicellm::test::check_result();
}
