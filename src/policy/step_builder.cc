#include "policy/step_builder.h"

#include <algorithm>
#include <utility>

namespace slicellm {

StepBuilder::StepBuilder(const View& view, int32_t max_rows, int32_t max_prompt_tokens)
    : view_(view),
      rows_left_(std::min(max_rows, view.max_rows)),
      tokens_left_(view.max_step_tokens),
      prompt_left_(std::min(max_prompt_tokens, view.max_step_tokens)),
      free_(view.free_blocks),
      free_host_(view.free_host_blocks) {}

int32_t StepBuilder::growth(int32_t slot, int32_t tokens) const {
  const TaskView& task = view_.tasks[slot];
  return std::max(0, view_.blocks_for(int64_t{task.cached} + tokens) - task.blocks);
}

int32_t StepBuilder::whole_prefill(int32_t slot) const {
  const TaskView& task = view_.tasks[slot];
  const bool first = plan_.prefill.empty();
  const bool whole = first && !task.prefill_divisible;  // may exceed what prompts get in a step
  const int32_t room = whole ? tokens_left_ : std::min(tokens_left_, prompt_left_);
  if (rows_left_ <= 0 || room <= 0) return 0;
  if (task.pending() <= room) return task.pending();
  return first && task.prefill_divisible ? room : 0;
}

int32_t StepBuilder::chunk(int32_t slot) const {
  const TaskView& task = view_.tasks[slot];
  if (!task.prefill_divisible) return whole_prefill(slot);
  if (rows_left_ <= 0) return 0;
  return std::max(0, std::min({task.pending(), tokens_left_, prompt_left_}));
}

bool StepBuilder::decode(int32_t slot) {
  const int32_t blocks = growth(slot, 1);
  if (rows_left_ <= 0 || tokens_left_ <= 0 || blocks > free_) return false;
  plan_.decode.push_back(slot);
  rows_left_ -= 1;
  tokens_left_ -= 1;
  free_ -= blocks;
  return true;
}

bool StepBuilder::prefill(int32_t slot, int32_t tokens) {
  const int32_t blocks = growth(slot, tokens);
  if (tokens <= 0 || rows_left_ <= 0 || tokens > tokens_left_ || blocks > free_) return false;
  plan_.prefill.push_back({slot, tokens});
  rows_left_ -= 1;
  tokens_left_ -= tokens;
  prompt_left_ -= tokens;
  free_ -= blocks;
  return true;
}

bool StepBuilder::swap_in(int32_t slot) {
  const int32_t blocks = view_.tasks[slot].blocks;
  if (blocks > free_) return false;
  plan_.kv.push_back({KvActionKind::swap_in, slot});
  free_ -= blocks;
  free_host_ += blocks;
  return true;
}

bool StepBuilder::swap_out(int32_t slot) {
  const TaskView& task = view_.tasks[slot];
  if (task.blocks > free_host_) return false;
  plan_.kv.push_back({KvActionKind::swap_out, slot});
  free_ += task.freed();
  free_host_ -= task.blocks;
  return true;
}

bool StepBuilder::pad_row(int32_t context) {
  const int32_t blocks = view_.blocks_for(int64_t{context} + 1);
  if (rows_left_ <= 0 || tokens_left_ <= 0 || blocks > free_) return false;
  plan_.padding.rows.push_back(context);
  rows_left_ -= 1;
  tokens_left_ -= 1;
  free_ -= blocks;
  return true;
}

int32_t StepBuilder::pad_prompt(int32_t tokens) {
  const int64_t room = int64_t{free_} * view_.block_tokens;
  tokens = static_cast<int32_t>(std::min<int64_t>({tokens, tokens_left_, prompt_left_, room}));
  if (tokens <= 0) return 0;
  plan_.padding.prompts.push_back(tokens);
  tokens_left_ -= tokens;
  prompt_left_ -= tokens;
  free_ -= view_.blocks_for(tokens);
  return tokens;
}

void StepBuilder::drop(int32_t slot) {
  const TaskView& task = view_.tasks[slot];
  plan_.kv.push_back({KvActionKind::drop, slot});
  free_ += task.freed();
  const int32_t tokens = task.prompt_len + task.produced;
  if (!task.prefill_divisible && tokens > view_.max_step_tokens) {
    reject(slot, "its KV is dropped, and its " + std::to_string(tokens) +
                     " tokens cannot be computed again in one step of at most " +
                     std::to_string(view_.max_step_tokens));
  }
}

void StepBuilder::evict(int32_t slot) {
  if (!swap_out(slot)) drop(slot);
}

void StepBuilder::reject(int32_t slot, std::string message) {
  plan_.endings.push_back({slot, FinishReason::rejected, std::move(message)});
}

std::string never_runs(const TaskView& task, const View& view) {
  const int64_t tokens = most_kv_tokens(task);
  const int64_t room = int64_t{view.total_blocks} * view.block_tokens;
  if (tokens > room) {
    return "prompt + max_tokens: got " + std::to_string(tokens + 1) + " tokens, expected at most " +
           std::to_string(room + 1) + ", which the KV cache can hold";
  }
  if (!task.prefill_divisible && task.prompt_len > view.max_step_tokens) {
    return "prompt: got " + std::to_string(task.prompt_len) + " tokens, expected at most " +
           std::to_string(view.max_step_tokens) +
           ", the size of a step, as this model's prefill is not divisible";
  }
  return "";
}

}  // namespace slicellm
