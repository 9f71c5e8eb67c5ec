#include "simt/queue.h"

#include <deque>
#include <limits>
#include <mutex>
#include <utility>

namespace simt {
namespace {

struct Queue {
  std::mutex running;  // held while work is done, before `state`
  std::mutex state;
  std::deque<std::function<void()>> work;
  uint64_t done = 0;
  std::string fault;
};

Queue& queue() {
  static auto* instance = new Queue;  // outlives what is freed at exit
  return *instance;
}

}  // namespace

uint64_t enqueue(std::function<void()> work) {
  Queue& q = queue();
  const std::lock_guard lock(q.state);
  q.work.push_back(std::move(work));
  return q.done + q.work.size();
}

void finish(uint64_t position) {
  Queue& q = queue();
  const std::lock_guard running(q.running);
  for (;;) {
    std::function<void()> work;
    {
      const std::lock_guard lock(q.state);
      if (q.work.empty() || q.done >= position) return;
      work = std::move(q.work.front());
      q.work.pop_front();
      ++q.done;
    }
    work();
  }
}

void finish_all() { finish(std::numeric_limits<uint64_t>::max()); }

void report_fault(std::string text) {
  Queue& q = queue();
  const std::lock_guard lock(q.state);
  q.done += q.work.size();
  q.work.clear();
  q.fault = std::move(text);
}

bool take_fault(std::string& text) {
  Queue& q = queue();
  const std::lock_guard lock(q.state);
  if (q.fault.empty()) return false;
  text = std::exchange(q.fault, {});
  return true;
}

}  // namespace simt
