#include "model/batch_check.h"

#include <string>

#include "slicellm/error.h"

namespace slicellm {
namespace {

[[noreturn]] void fail(const char* field, int64_t value, const std::string& expected) {
  throw Error(ErrorKind::invalid_argument, field, std::to_string(value), expected);
}

std::string below(int64_t limit) { return "0 to " + std::to_string(limit - 1); }

void check_sequence(const BatchSequence& sequence, const ModelSpec& spec, const KvStorage& kv) {
  if (sequence.past < 0) fail("past", sequence.past, "0 or more");
  const int64_t end = int64_t{sequence.past} + sequence.count;
  if (end > spec.max_positions) {
    fail("past + count", end,
         "at most " + std::to_string(spec.max_positions) + " tokens, the model's longest context");
  }
  if (sequence.prompt_len < 1) fail("prompt_len", sequence.prompt_len, "1 or more");
  if (!spec.prefill_divisible && sequence.past < sequence.prompt_len &&
      (sequence.past > 0 || sequence.count < sequence.prompt_len)) {
    fail("count", sequence.count,
         "the whole prompt of " + std::to_string(sequence.prompt_len) + " tokens in one step, as " +
             spec.family + " attends both ways in it");
  }
  const int64_t block_tokens = kv.layout().block_tokens;
  if (static_cast<int64_t>(sequence.blocks.size()) * block_tokens < end) {
    fail("blocks", static_cast<int64_t>(sequence.blocks.size()),
         "blocks of " + std::to_string(block_tokens) + " for " + std::to_string(end) + " tokens");
  }
  for (int32_t block : sequence.blocks) {
    if (block < 0 || block >= kv.num_blocks()) fail("block", block, below(kv.num_blocks()));
  }
}

void check_layout(const KvLayout& got, const KvLayout& expected) {
  if (got.layers == expected.layers && got.kv_heads == expected.kv_heads &&
      got.head_dim == expected.head_dim && got.block_tokens > 0) {
    return;
  }
  auto text = [](const KvLayout& layout) {
    return std::to_string(layout.layers) + " layers of " + std::to_string(layout.kv_heads) +
           " heads of " + std::to_string(layout.head_dim);
  };
  throw Error(ErrorKind::invalid_argument, "kv", text(got), text(expected));
}

}  // namespace

void check_batch(const Batch& batch, const ModelSpec& spec, const KvLayout& expected,
                 const KvStorage& kv, std::span<const int32_t> rows) {
  check_layout(kv.layout(), expected);
  const int64_t n = static_cast<int64_t>(batch.tokens.size());
  if (n < 1) fail("tokens", n, "at least one token");
  int64_t next = 0;
  for (const BatchSequence& sequence : batch.sequences) {
    if (sequence.begin != next) fail("begin", sequence.begin, std::to_string(next));
    if (sequence.count < 1 || sequence.count > n - next) {
      fail("count", sequence.count, "1 to " + std::to_string(n - next));
    }
    next += sequence.count;
    check_sequence(sequence, spec, kv);
  }
  if (next != n) fail("tokens", n, std::to_string(next) + " tokens, the sum over sequences");
  for (int32_t token : batch.tokens) {
    if (token < 0 || token >= spec.vocab) fail("token", token, below(spec.vocab));
  }
  for (int32_t row : rows) {
    if (row < 0 || row >= n) fail("row", row, below(n));
  }
}

}  // namespace slicellm
