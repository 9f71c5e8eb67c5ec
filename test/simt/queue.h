#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

// Work that was started and that nobody has waited for yet: a queue for each stream. Work of one
// queue is done in its order, work of different queues in any order that the waits between them
// allow; what the host changes or reads too early, and two streams that should wait for each other,
// therefore show. Work is done when the host waits for it, on the thread that waits. The
// environment variable SLICELLM_SIMT_ORDER, read at every wait, chooses among the orders:
//   late (default)  only what must be: the queue that is waited for, and what its work waits for;
//   early           before each piece of work of that queue, all of the others' that may be done.
// Thread-safe.
namespace simt {

class Queue;

// A place in a queue, behind its first `position` pieces of work. Without a queue, the beginning.
struct Place {
  std::shared_ptr<Queue> queue;
  uint64_t position = 0;
};

// Its work is done even if nobody holds it any more.
std::shared_ptr<Queue> make_queue();
// Returns the place behind it.
Place enqueue(const std::shared_ptr<Queue>& queue, std::function<void()> work);
// What is enqueued after this is done after what is before `place`.
void enqueue_wait(const std::shared_ptr<Queue>& queue, const Place& place);
// Behind the work enqueued so far.
Place end_of(const std::shared_ptr<Queue>& queue);

// Does everything before `place`.
void finish(const Place& place);
void finish_all();
// Pieces of work that have not been done, in all queues.
size_t pending();

// A kernel's fault: drops all work that is left, and is told to the host once.
void report_fault(std::string text);
bool take_fault(std::string& text);

}  // namespace simt
