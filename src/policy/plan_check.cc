#include <cmath>
#include <string>

#include "slicellm/error.h"
#include "slicellm/policy.h"

namespace slicellm {
namespace {

[[noreturn]] void broken(const char* list, size_t index, const std::string& got,
                         const std::string& expected) {
  throw Error(ErrorKind::state, "plan." + std::string(list) + "[" + std::to_string(index) + "]",
              got, expected);
}

[[noreturn]] void broken(const char* what, const std::string& got, const std::string& expected) {
  throw Error(ErrorKind::state, std::string("plan ") + what, got, expected);
}

std::string on_slot(int32_t slot, const std::string& what) {
  return "slot " + std::to_string(slot) + " " + what;
}

const char* place(KvState kv) {
  return kv == KvState::none     ? "without KV"
         : kv == KvState::device ? "with KV on the device"
                                 : "with KV on the host";
}

bool dropped_by(const StepPlan& plan, int32_t slot) {
  for (const KvAction& action : plan.kv) {
    if (action.slot == slot && action.kind == KvActionKind::drop) return true;
  }
  return false;
}

}  // namespace

const char* to_string(MissCause cause) {
  switch (cause) {
    case MissCause::not_admitted:
      return "not_admitted";
    case MissCause::too_late:
      return "too_late";
    case MissCause::starved:
      return "starved";
    case MissCause::length:
      return "length";
    case MissCause::slow_steps:
      return "slow_steps";
  }
  return "";
}

StepFeatures features_of(const StepPlan& plan, const View& view) {
  StepFeatures f;
  for (int32_t slot : plan.decode) {
    f.tokens += 1;
    f.rows += 1;
    f.context += view.tasks[slot].cached;
  }
  for (const PrefillChunk& chunk : plan.prefill) {
    const TaskView& task = view.tasks[chunk.slot];
    const int32_t start = !plan.kv.empty() && dropped_by(plan, chunk.slot) ? 0 : task.cached;
    f.tokens += chunk.tokens;
    f.prefill_tokens += chunk.tokens;
    f.rows += start + chunk.tokens == task.prompt_len + task.produced;
    f.chunk_work += chunk.tokens * (start + 0.5 * chunk.tokens);
  }
  for (int32_t context : plan.padding.rows) {
    f.tokens += 1;
    f.rows += 1;
    f.context += context;
  }
  for (int32_t pads : plan.padding.prompts) {
    f.tokens += pads;
    f.prefill_tokens += pads;
    f.chunk_work += 0.5 * pads * pads;
  }
  for (const KvAction& action : plan.kv) {
    if (action.kind == KvActionKind::drop) continue;
    f.swap_bytes += static_cast<double>(view.block_bytes) * view.tasks[action.slot].blocks;
  }
  return f;
}

PlanChecker::Slot& PlanChecker::touch(const char* list, size_t index, int32_t slot,
                                      const View& view) {
  if (slot < 0 || static_cast<size_t>(slot) >= view.tasks.size() || view.tasks[slot].id < 0 ||
      view.tasks[slot].ended != FinishReason::none) {
    broken(list, index, "slot " + std::to_string(slot), "a slot that holds a live task");
  }
  if (slots_.size() < view.tasks.size()) slots_.resize(view.tasks.size());
  Slot& state = slots_[slot];
  if (state.stamp != stamp_) {
    const TaskView& task = view.tasks[slot];
    state = {stamp_, task.kv, task.blocks, task.freed(), task.cached};
  }
  return state;
}

void PlanChecker::check(const StepPlan& plan, const View& view) {
  ++stamp_;
  int64_t free = view.free_blocks, free_host = view.free_host_blocks;

  for (size_t i = 0; i < plan.kv.size(); ++i) {
    const KvAction& action = plan.kv[i];
    Slot& s = touch("kv", i, action.slot, view);
    const bool to_device = action.kind == KvActionKind::swap_in;
    if (s.kv == KvState::none ||
        (action.kind == KvActionKind::swap_out && s.kv != KvState::device) ||
        (to_device && s.kv != KvState::host)) {
      broken("kv", i, on_slot(action.slot, place(s.kv)),
             action.kind == KvActionKind::drop       ? "a task with KV to drop"
             : action.kind == KvActionKind::swap_out ? "a task with KV on the device to swap out"
                                                     : "a task with KV on the host to swap in");
    }
    (s.kv == KvState::device ? free : free_host) += s.freed;
    if (action.kind == KvActionKind::drop) {
      s.kv = KvState::none;
      s.blocks = s.freed = s.cached = 0;
      continue;
    }
    s.freed = s.blocks;  // copies of its own
    int64_t& target = to_device ? free : free_host;
    if (s.blocks > target) {
      broken("kv", i, on_slot(action.slot, "with " + std::to_string(s.blocks) + " blocks"),
             "at most the " + std::to_string(target) + " blocks free on the " +
                 (to_device ? "device" : "host"));
    }
    target -= s.blocks;
    s.kv = to_device ? KvState::device : KvState::host;
  }

  for (size_t i = 0; i < plan.endings.size(); ++i) {
    const Ending& ending = plan.endings[i];
    Slot& s = touch("endings", i, ending.slot, view);
    if (s.used) broken("endings", i, on_slot(ending.slot, "a second time"), "each slot once");
    if (ending.reason != FinishReason::rejected && ending.reason != FinishReason::deadline) {
      broken("endings", i, on_slot(ending.slot, "with another reason"), "rejected or deadline");
    }
    s.used = true;
    if (s.kv != KvState::none) (s.kv == KvState::device ? free : free_host) += s.freed;
  }

  for (size_t i = 0; i < plan.relegated.size(); ++i) {
    const int32_t slot = plan.relegated[i].slot;
    Slot& s = touch("relegated", i, slot, view);
    if (s.relegated) broken("relegated", i, on_slot(slot, "a second time"), "each slot once");
    s.relegated = true;
  }

  int64_t tokens = 0, blocks = 0;
  for (size_t i = 0; i < plan.prefill.size(); ++i) {
    const PrefillChunk& chunk = plan.prefill[i];
    Slot& s = touch("prefill", i, chunk.slot, view);
    const TaskView& task = view.tasks[chunk.slot];
    if (s.used) broken("prefill", i, on_slot(chunk.slot, "a second time"), "each slot once");
    if (s.kv == KvState::host) {
      broken("prefill", i, on_slot(chunk.slot, place(s.kv)), "KV on the device or none");
    }
    const int32_t pending = task.prompt_len + task.produced - s.cached;
    if (task.produced > 0 && pending == 1) {
      broken("prefill", i, on_slot(chunk.slot, "that is ready to decode"), "it under decode");
    }
    if (chunk.tokens < 1 || chunk.tokens > pending) {
      broken("prefill", i, on_slot(chunk.slot, "with " + std::to_string(chunk.tokens) + " tokens"),
             "1 to " + std::to_string(pending) + " pending tokens");
    }
    if (!task.prefill_divisible && chunk.tokens != pending) {
      broken("prefill", i, on_slot(chunk.slot, "with " + std::to_string(chunk.tokens) + " tokens"),
             "all " + std::to_string(pending) + " pending tokens, as its prefill is not divisible");
    }
    s.used = true;
    tokens += chunk.tokens;
    blocks += std::max(0, view.blocks_for(s.cached + int64_t{chunk.tokens}) - s.blocks);
  }
  for (size_t i = 0; i < plan.decode.size(); ++i) {
    const int32_t slot = plan.decode[i];
    Slot& s = touch("decode", i, slot, view);
    const TaskView& task = view.tasks[slot];
    if (s.used) broken("decode", i, on_slot(slot, "a second time"), "each slot once");
    const int32_t pending = task.prompt_len + task.produced - s.cached;
    if (task.produced < 1 || pending != 1) {
      broken("decode", i, on_slot(slot, "with " + std::to_string(pending) + " tokens pending"),
             "a task whose prefill is done");
    }
    if (s.kv != KvState::device) {
      broken("decode", i, on_slot(slot, place(s.kv)), "KV on the device");
    }
    s.used = true;
    tokens += 1;
    blocks += std::max(0, view.blocks_for(int64_t{s.cached} + 1) - s.blocks);
  }

  for (size_t i = 0; i < plan.padding.rows.size(); ++i) {
    const int32_t context = plan.padding.rows[i];
    if (context < 1) broken("padding.rows", i, std::to_string(context), "at least 1 token in KV");
    tokens += 1;
    blocks += view.blocks_for(int64_t{context} + 1);
  }
  for (size_t i = 0; i < plan.padding.prompts.size(); ++i) {
    const int32_t pads = plan.padding.prompts[i];
    if (pads < 1) broken("padding.prompts", i, std::to_string(pads), "at least 1 token");
    tokens += pads;
    blocks += view.blocks_for(pads);
  }

  const size_t rows = plan.prefill.size() + plan.decode.size() + plan.padding.rows.size();
  if (rows > static_cast<size_t>(std::max(0, view.max_rows))) {
    broken("rows", std::to_string(rows), "at most max_rows = " + std::to_string(view.max_rows));
  }
  if (tokens > view.max_step_tokens) {
    broken("tokens", std::to_string(tokens),
           "at most max_step_tokens = " + std::to_string(view.max_step_tokens));
  }
  if (blocks > free) {
    broken("blocks", std::to_string(blocks) + " new KV blocks",
           "at most the " + std::to_string(free) + " that are free after its KV actions");
  }
  if (std::isnan(plan.wake_at)) broken("wake_at", "nan", "a time or infinity");
  if (plan.empty() && !view.live.empty() &&
      !(plan.wake_at > view.now && std::isfinite(plan.wake_at))) {
    broken("is empty with wake_at", std::to_string(plan.wake_at),
           "a step, or a finite wake_at after now = " + std::to_string(view.now) +
               ", while tasks are live");
  }
}

}  // namespace slicellm
