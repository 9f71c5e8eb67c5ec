#include "simt/queue.h"

#include <cstdlib>
#include <deque>
#include <mutex>
#include <string_view>
#include <utility>
#include <vector>

namespace simt {

class Queue {
 public:
  // Either a wait for a place, or work.
  struct Item {
    std::function<void()> work;
    Place after;
  };

  std::deque<Item> items;
  uint64_t done = 0;

  // Its first item waits for nothing that is left.
  bool ready() const { return !items.empty() && reached(items.front().after); }
  static bool reached(const Place& place) {
    return !place.queue || place.queue->done >= place.position;
  }
};

namespace {

struct Device {
  std::mutex running;  // held while work is done, before `state`
  std::mutex state;    // of everything below, and of the queues
  std::vector<std::shared_ptr<Queue>> queues;
  std::string fault;
};

Device& device() {
  static auto* instance = new Device;  // outlives what is freed at exit
  return *instance;
}

bool early() {
  const char* order = std::getenv("SLICELLM_SIMT_ORDER");
  return order && std::string_view(order) == "early";
}

// The queue whose first item is to be done on the way to `place`, which is not reached. There is
// one: a wait is for a place that was there before it, so queues never wait in a circle.
Queue& next(const Device& d, const Place& place) {
  if (early()) {
    for (const std::shared_ptr<Queue>& queue : d.queues) {
      if (queue != place.queue && queue->ready()) return *queue;
    }
  }
  Queue* queue = place.queue.get();
  while (!queue->ready()) queue = queue->items.front().after.queue.get();
  return *queue;
}

void reach(Device& d, const Place& place) {
  for (;;) {
    Queue::Item item;
    {
      const std::lock_guard lock(d.state);
      if (Queue::reached(place)) return;
      Queue& queue = next(d, place);
      item = std::move(queue.items.front());
      queue.items.pop_front();
      ++queue.done;
    }
    if (item.work) item.work();
  }
}

// With the state locked.
Place end(const std::shared_ptr<Queue>& queue) {
  return {queue, queue->done + queue->items.size()};
}

Place add(const std::shared_ptr<Queue>& queue, Queue::Item item) {
  const std::lock_guard lock(device().state);
  queue->items.push_back(std::move(item));
  return end(queue);
}

}  // namespace

std::shared_ptr<Queue> make_queue() {
  Device& d = device();
  const std::lock_guard lock(d.state);
  std::erase_if(d.queues, [](const auto& q) { return q.use_count() == 1 && q->items.empty(); });
  return d.queues.emplace_back(std::make_shared<Queue>());
}

Place enqueue(const std::shared_ptr<Queue>& queue, std::function<void()> work) {
  return add(queue, {std::move(work), {}});
}

void enqueue_wait(const std::shared_ptr<Queue>& queue, const Place& place) {
  add(queue, {{}, place});
}

Place end_of(const std::shared_ptr<Queue>& queue) {
  const std::lock_guard lock(device().state);
  return end(queue);
}

void finish(const Place& place) {
  Device& d = device();
  const std::lock_guard running(d.running);
  reach(d, place);
}

void finish_all() {
  Device& d = device();
  std::vector<Place> ends;
  {
    const std::lock_guard lock(d.state);
    for (const auto& queue : d.queues) ends.push_back(end(queue));
  }
  for (const Place& place : ends) finish(place);
}

size_t pending() {
  Device& d = device();
  const std::lock_guard lock(d.state);
  size_t count = 0;
  for (const auto& queue : d.queues) count += queue->items.size();
  return count;
}

void report_fault(std::string text) {
  Device& d = device();
  const std::lock_guard lock(d.state);
  for (const auto& queue : d.queues) {
    queue->done += queue->items.size();
    queue->items.clear();
  }
  d.fault = std::move(text);
}

bool take_fault(std::string& text) {
  Device& d = device();
  const std::lock_guard lock(d.state);
  if (d.fault.empty()) return false;
  text = std::exchange(d.fault, {});
  return true;
}

}  // namespace simt
