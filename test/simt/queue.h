#pragma once

#include <cstdint>
#include <functional>
#include <string>

// Work that was started and that nobody has waited for yet. It is done as late as CUDA allows: when
// the host waits for it or for something that was started later, on the thread that waits. What the
// host changes or reads too early therefore shows. Streams share one queue, so that work of several
// streams runs in the order of its start. Thread-safe.
namespace simt {

// Returns the work's position; positions ascend from 1.
uint64_t enqueue(std::function<void()> work);
// Does everything up to `position`.
void finish(uint64_t position);
void finish_all();

// A kernel's fault: drops all work that is left, and is told to the host once.
void report_fault(std::string text);
bool take_fault(std::string& text);

}  // namespace simt
