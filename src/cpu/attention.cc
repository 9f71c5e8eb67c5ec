#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/attention_kernels.h"
#include "cpu/kv_storage.h"
#include "cpu/ops_cpu.h"
#include "cpu/rope.h"

// Attention over paged KV (blocks and tables as in Kwon et al., "Efficient Memory Management for
// Large Language Model Serving with PagedAttention", section 4) with a softmax over parts of the
// context that are merged in order (Milakov and Gimelshein, "Online normalizer calculation for
// softmax"; Dao et al., "Flash-Decoding").
namespace slicellm::cpu {
namespace {

constexpr int kTileRows = 96;  // rows that share a reading of K and V from the outer caches

const AttentionKernels& attention_kernels(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::avx512:
      return kAttentionKernelsAvx512;
    case Isa::avx2:
      return kAttentionKernelsAvx2;
#endif
    default:
      return kAttentionKernelsPortable;
  }
}

auto attend_kernel(const AttentionKernels& kernels, DType kv) {
  if (kv == DType::int8) return kernels.attend_int8;
  return kv == DType::float16 ? kernels.attend_half : kernels.attend_float;
}

// The queries [begin, end) of one sequence with the heads of one kv head, against the splits
// [first_split, last_split).
struct Item {
  const BatchSequence* sequence;
  int32_t kv_head;
  int32_t begin, end;
  int32_t first_split, last_split;
  int64_t work_before;  // of all items before this one
  int64_t work;
  int64_t partial;  // first of its rows of partial results; -1 when one thread does it all

  int32_t splits() const { return last_split - first_split; }
};

// A place in the list of items; an item of one query may be cut between splits.
struct Cut {
  size_t item;
  int32_t split;
};

// One call of rope_append_attend.
class Attention {
 public:
  Attention(ThreadPool& pool, Isa isa, const AttentionArgs& args)
      : pool_(pool),
        kernels_(attention_kernels(isa)),
        args_(args),
        shape_(args.shape),
        kv_(dynamic_cast<CpuKvStorage&>(*args.kv)),
        rope_(dynamic_cast<const CpuRope&>(*args.rope).table()),
        attend_(attend_kernel(kernels_, kv_.layout().dtype)),
        dtype_(kv_.layout().dtype),
        block_tokens_(kv_.layout().block_tokens),
        dim_(shape_.head_dim),
        padded_dim_((shape_.head_dim + kPanel - 1) / kPanel * kPanel),
        group_(shape_.heads / shape_.kv_heads),
        qkv_width_(int64_t{shape_.head_dim} * (shape_.heads + 2 * shape_.kv_heads)),
        tile_queries_(std::max(1, kTileRows / group_)) {}

  void append();
  void attend(Scratch& scratch);

 private:
  // What one thread works with.
  struct Workspace {
    float* queries;  // [tile rows, dim]
    float* scores;   // [max_rows, kSplitTokens]
    float* values;   // [max_rows, padded_dim]
    float* max;      // [tile rows], then max_rows more for the split at hand
    float* sum;
    float* appended;  // [2, dim]
  };

  void append_token(const BatchSequence& sequence, int32_t i, int32_t head, float* temporary);
  void plan_items();
  void plan_cuts();
  size_t workspace_floats() const;
  Workspace workspace(float* memory, int thread) const;
  void run_share(int64_t share, const Workspace& space);
  void run_item(const Item& item, int32_t first_split, int32_t last_split, const Workspace& space);
  void load_queries(const Item& item, float* queries) const;
  void run_split(const Item& item, int32_t split, const Workspace& space);
  void merge_partials(const Item& item);
  PartialRow partial(const Item& item, int32_t split, int32_t row) const;

  // Tokens [first, last) that the query at `position` sees.
  int32_t first_visible(int32_t position) const {
    return shape_.sliding_window > 0 ? std::max(0, position - shape_.sliding_window + 1) : 0;
  }
  int32_t last_visible(const BatchSequence& s, int32_t position) const {
    if (!shape_.bidirectional_prompt) return position + 1;
    return std::min(std::max(position + 1, s.prompt_len - 1), s.past + s.count);
  }
  float* out_row(const Item& item, int32_t row) const {
    const int64_t token = item.sequence->begin + item.begin + row / group_;
    const int64_t head = int64_t{item.kv_head} * group_ + row % group_;
    return args_.out->data() + (token * shape_.heads + head) * dim_;
  }
  int32_t rows(const Item& item) const { return (item.end - item.begin) * group_; }
  int32_t tile_rows() const { return tile_queries_ * group_; }
  size_t element_bytes() const { return dtype_bits(dtype_) / 8; }

  ThreadPool& pool_;
  const AttentionKernels& kernels_;
  const AttentionArgs& args_;
  const AttentionShape& shape_;
  const CpuKvStorage& kv_;
  const RopeTable& rope_;
  void (*const attend_)(const SplitTask& task);
  const DType dtype_;  // of K and V
  const int32_t block_tokens_;
  const int32_t dim_, padded_dim_, group_;
  const int64_t qkv_width_;
  const int32_t tile_queries_;

  std::vector<Item> items_;
  std::vector<Cut> cuts_;  // share i is [cuts_[i], cuts_[i + 1])
  int64_t partial_rows_ = 0;
  float* partials_ = nullptr;  // [partial_rows_, dim + 2]: values, max, sum
};

// The tokens of sequences with several: those of one are appended by the item that attends to them.
void Attention::append() {
  constexpr int64_t kGrain = 16;  // tokens worth a thread
  std::vector<std::pair<const BatchSequence*, int32_t>> tokens;
  for (const BatchSequence& s : args_.batch->sequences) {
    for (int32_t i = 0; s.count > 1 && i < s.count; ++i) tokens.emplace_back(&s, i);
  }
  const auto count = static_cast<int64_t>(tokens.size());
  pool_.parallel_for(count, kGrain, [&](int64_t begin, int64_t end, int /*thread*/) {
    std::vector<float> temporary(2 * dim_);
    for (int64_t t = begin; t < end; ++t) {
      for (int32_t head = 0; head < shape_.kv_heads; ++head) {
        append_token(*tokens[t].first, tokens[t].second, head, temporary.data());
      }
    }
  });
}

void Attention::append_token(const BatchSequence& s, int32_t i, int32_t head, float* temporary) {
  const int32_t index = s.past + i;
  const int32_t block = s.blocks[index / block_tokens_];
  const int32_t slot = index % block_tokens_;
  const RopePosition where = rope_position(rope_.style, index, s.prompt_len);
  const float* row = args_.qkv->data() + (s.begin + i) * qkv_width_;
  const float* key = row + int64_t{dim_} * (shape_.heads + head);
  const float* value = key + int64_t{dim_} * shape_.kv_heads;
  std::byte* keys = kv_.keys(block, args_.layer, head);
  std::byte* values = kv_.values(block, args_.layer, head);
  rotate_head(key, dim_, rope_, where, 1.0f, temporary);
  if (dtype_ == DType::int8) {
    auto* codes = reinterpret_cast<int8_t*>(temporary + dim_);
    kv_.scales(keys)[slot] = kernels_.to_int8(temporary, dim_, codes);
    auto* to = reinterpret_cast<int8_t*>(keys) + slot;
    for (int32_t d = 0; d < dim_; ++d) to[d * block_tokens_] = codes[d];
    kv_.scales(values)[slot] =
        kernels_.to_int8(value, dim_, reinterpret_cast<int8_t*>(values) + slot * dim_);
  } else if (dtype_ == DType::float16) {
    auto* halves = reinterpret_cast<uint16_t*>(temporary + dim_);
    kernels_.to_half(temporary, dim_, halves);
    auto* to = reinterpret_cast<uint16_t*>(keys) + slot;
    for (int32_t d = 0; d < dim_; ++d) to[d * block_tokens_] = halves[d];
    kernels_.to_half(value, dim_, reinterpret_cast<uint16_t*>(values) + slot * dim_);
  } else {
    auto* to = reinterpret_cast<float*>(keys) + slot;
    for (int32_t d = 0; d < dim_; ++d) to[d * block_tokens_] = temporary[d];
    std::memcpy(reinterpret_cast<float*>(values) + slot * dim_, value, dim_ * sizeof(float));
  }
}

// Cuts the batch into items, a sequence's items of one kv head next to each other.
void Attention::plan_items() {
  int64_t work_before = 0;
  for (const BatchSequence& s : args_.batch->sequences) {
    for (int32_t head = 0; head < shape_.kv_heads; ++head) {
      for (int32_t begin = 0; begin < s.count; begin += tile_queries_) {
        const int32_t end = std::min(begin + tile_queries_, s.count);
        const int32_t first = first_visible(s.past + begin);
        const int32_t last = last_visible(s, s.past + end - 1);
        const int64_t work = int64_t{end - begin} * (last - first + kPanel);
        items_.push_back({&s, head, begin, end, first / kSplitTokens,
                          (last + kSplitTokens - 1) / kSplitTokens, work_before, work, -1});
        work_before += work;
      }
    }
  }
}

// Cuts the items into shares of about the same work: runs of items or of an item's splits.
void Attention::plan_cuts() {
  constexpr int64_t kLeastWork =
      64;  // per thread: below it a second thread costs more than it does
  const int64_t work = items_.back().work_before + items_.back().work;
  const int64_t useful = work * group_ * dim_ / (kLeastWork * 1024) + 1;
  const auto threads = static_cast<int>(std::min<int64_t>(pool_.threads(), useful));
  cuts_.push_back({0, items_[0].first_split});
  for (int thread = 1; thread < threads; ++thread) {
    const int64_t target = work * thread / threads;
    const auto next =
        std::upper_bound(items_.begin(), items_.end(), target,
                         [](int64_t value, const Item& item) { return value < item.work_before; });
    const auto index = static_cast<size_t>(next - items_.begin()) - 1;
    Item& item = items_[index];
    // Round to the nearest place where a cut is allowed.
    const int32_t pieces = item.end - item.begin == 1 ? item.splits() : 1;
    const auto piece =
        static_cast<int32_t>(((target - item.work_before) * pieces * 2 / item.work + 1) / 2);
    Cut cut = {index, item.first_split + piece};
    if (piece == pieces) {
      cut.item = index + 1;
      cut.split = cut.item < items_.size() ? items_[cut.item].first_split : 0;
    } else if (piece > 0 && item.partial < 0) {
      item.partial = partial_rows_;
      partial_rows_ += int64_t{rows(item)} * item.splits();
    }
    cuts_.push_back(cut);
  }
  cuts_.push_back({items_.size(), 0});
}

size_t Attention::workspace_floats() const {
  const size_t rows = tile_rows(), most = kernels_.max_rows;
  const size_t floats =
      (rows + 2) * dim_ + most * kSplitTokens + most * padded_dim_ + 2 * (rows + most);
  return (floats + 15) / 16 * 16;  // whole cache lines
}

Attention::Workspace Attention::workspace(float* memory, int thread) const {
  Workspace space;
  const size_t rows = tile_rows(), most = kernels_.max_rows;
  space.scores = memory + thread * workspace_floats();
  space.values = space.scores + most * kSplitTokens;
  space.queries = space.values + most * padded_dim_;
  space.max = space.queries + rows * dim_;
  space.sum = space.max + rows + most;
  space.appended = space.sum + rows + most;
  return space;
}

void Attention::attend(Scratch& scratch) {
  plan_items();
  if (items_.empty()) return;
  plan_cuts();
  const auto shares = static_cast<int64_t>(cuts_.size()) - 1;
  const auto threads = static_cast<size_t>(pool_.threads());
  float* memory =
      scratch.get<float>(threads * workspace_floats() + partial_rows_ * (size_t{2} + dim_));
  partials_ = memory + threads * workspace_floats();
  pool_.parallel_for(shares, 1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t share = begin; share < end; ++share) run_share(share, workspace(memory, thread));
  });
  if (partial_rows_ == 0) return;
  for (const Item& item : items_) {
    if (item.partial >= 0) merge_partials(item);
  }
}

void Attention::run_share(int64_t share, const Workspace& space) {
  const Cut from = cuts_[share], to = cuts_[share + 1];
  for (size_t i = from.item; i < items_.size(); ++i) {
    const Item& item = items_[i];
    const int32_t first = i == from.item ? from.split : item.first_split;
    const int32_t last = i == to.item ? to.split : item.last_split;
    if (i > to.item || (i == to.item && last <= first)) return;
    run_item(item, first, last, space);
  }
}

void Attention::run_item(const Item& item, int32_t first_split, int32_t last_split,
                         const Workspace& space) {
  if (item.sequence->count == 1 && last_split == item.last_split) {
    append_token(*item.sequence, 0, item.kv_head, space.appended);
  }
  load_queries(item, space.queries);
  std::fill_n(space.sum, rows(item), 0.0f);
  for (int32_t split = first_split; split < last_split; ++split) run_split(item, split, space);
  if (item.partial >= 0) return;
  for (int32_t row = 0; row < rows(item); ++row) {
    float* out = out_row(item, row);
    for (int32_t d = 0; d < dim_; ++d) out[d] /= space.sum[row];
  }
}

void Attention::load_queries(const Item& item, float* queries) const {
  const BatchSequence& s = *item.sequence;
  for (int32_t i = item.begin; i < item.end; ++i) {
    const RopePosition where = rope_position(rope_.style, s.past + i, s.prompt_len);
    const float* query =
        args_.qkv->data() + (s.begin + i) * qkv_width_ + int64_t{item.kv_head} * group_ * dim_;
    for (int32_t head = 0; head < group_; ++head, query += dim_, queries += dim_) {
      rotate_head(query, dim_, rope_, where, args_.scale, queries);
    }
  }
}

void Attention::run_split(const Item& item, int32_t split, const Workspace& space) {
  const BatchSequence& s = *item.sequence;
  const int32_t start = split * kSplitTokens;
  const int32_t most = tile_rows();
  const void* keys[kSplitPanels];
  const void* values[kSplitPanels];
  const uint16_t* key_scales[kSplitPanels];
  const uint16_t* value_scales[kSplitPanels];
  const int32_t end = last_visible(s, s.past + item.end - 1);
  for (int32_t panel = 0; panel < kSplitPanels && start + panel * kPanel < end; ++panel) {
    const int32_t token = start + panel * kPanel;
    const int32_t block = s.blocks[token / block_tokens_];
    const size_t slot = token % block_tokens_;
    std::byte* block_keys = kv_.keys(block, args_.layer, item.kv_head);
    std::byte* block_values = kv_.values(block, args_.layer, item.kv_head);
    keys[panel] = block_keys + slot * element_bytes();
    values[panel] = block_values + slot * dim_ * element_bytes();
    if (dtype_ != DType::int8) continue;
    key_scales[panel] = kv_.scales(block_keys) + slot;
    value_scales[panel] = kv_.scales(block_values) + slot;
  }

  int32_t first[kMostRows], last[kMostRows];
  SplitTask task;
  task.head_dim = dim_;
  task.keys = keys;
  task.key_stride = block_tokens_;
  task.values = values;
  task.key_scales = key_scales;
  task.value_scales = value_scales;
  task.first = first;
  task.last = last;
  task.scores = space.scores;
  task.out = space.values;
  task.max = space.max + most;
  task.sum = space.sum + most;
  const int32_t count = rows(item);
  const int32_t groups = (count + kernels_.max_rows - 1) / kernels_.max_rows;
  for (int32_t g = 0; g < groups; ++g) {
    const int32_t begin = count * g / groups;
    task.rows = count * (g + 1) / groups - begin;
    task.queries = space.queries + int64_t{begin} * dim_;
    task.any_first = kSplitTokens;
    task.any_last = 0;
    for (int32_t r = 0; r < task.rows; ++r) {
      const int32_t position = s.past + item.begin + (begin + r) / group_;
      first[r] = std::clamp(first_visible(position) - start, 0, kSplitTokens);
      last[r] = std::clamp(last_visible(s, position) - start, 0, kSplitTokens);
      if (first[r] >= last[r]) continue;
      task.any_first = std::min(task.any_first, first[r]);
      task.any_last = std::max(task.any_last, last[r]);
    }
    if (task.any_first >= task.any_last) {  // no row sees anything of this split
      std::fill_n(task.sum, task.rows, 0.0f);
    } else {
      attend_(task);
    }
    for (int32_t r = 0; r < task.rows; ++r) {
      const int32_t row = begin + r;
      const PartialRow part = {task.out + int64_t{r} * padded_dim_, task.max + r, task.sum + r};
      const PartialRow into = item.partial < 0
                                  ? PartialRow{out_row(item, row), space.max + row, space.sum + row}
                                  : partial(item, split, row);
      if (item.partial >= 0) *into.sum = 0;
      kernels_.merge(into, part, dim_);
    }
  }
}

PartialRow Attention::partial(const Item& item, int32_t split, int32_t row) const {
  const int64_t index = item.partial + int64_t{split - item.first_split} * rows(item) + row;
  float* values = partials_ + index * (dim_ + 2);
  return {values, values + dim_, values + dim_ + 1};
}

void Attention::merge_partials(const Item& item) {
  for (int32_t row = 0; row < rows(item); ++row) {
    float* out = out_row(item, row);
    float max = 0, sum = 0;
    for (int32_t split = item.first_split; split < item.last_split; ++split) {
      kernels_.merge({out, &max, &sum}, partial(item, split, row), dim_);
    }
    for (int32_t d = 0; d < dim_; ++d) out[d] /= sum;
  }
}

}  // namespace

void rope_append_attend(ThreadPool& pool, Isa isa, Scratch& scratch, const AttentionArgs& args) {
  Attention attention(pool, isa, args);
  attention.append();
  attention.attend(scratch);
}

}  // namespace slicellm::cpu
