#pragma once

#include <memory>
#include <string>
#include <vector>

#include "slicellm/tensor.h"

namespace slicellm {

// Rows [begin, end) of a matrix, or elements [begin, end) of a vector.
struct RowRange {
  std::shared_ptr<const Weight> weight;
  int64_t begin = 0, end = 0;
};

// One tensor called `name` with the rows of all parts in order. A single part that is a whole
// tensor is returned without a copy. Throws Error(unsupported) for parts that differ in dtype,
// width or group size.
Weight stack_rows(const std::string& name, const std::vector<RowRange>& parts);

}  // namespace slicellm
