#pragma once

namespace simt {

// While a kernel runs, a bad memory access of a thread ends its block with a report, as
// Block::fail does; other faults of the process go where they went before.
void catch_faults();

}  // namespace simt
