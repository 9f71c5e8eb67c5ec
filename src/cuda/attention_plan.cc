#include <algorithm>
#include <bit>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/attention.h"
#include "slicellm/error.h"

namespace slicellm::cuda {
namespace {

constexpr int64_t kBlocksPerMultiprocessor = 2;  // that run at the same time, about
constexpr int64_t kInts = sizeof(int32_t);
constexpr int64_t kPlaceInts = sizeof(TokenPlace) / kInts;
constexpr int64_t kItemInts = sizeof(AttentionItem) / kInts;

// No further tile is cut when its parts' results would take more.
constexpr size_t kMostPartialBytes = size_t{256} << 20;

size_t partial_row_bytes(int32_t head_dim) {
  return sizeof(float) * padded_head_dim(head_dim) + sizeof(float2);
}

int32_t ceil_div(int32_t a, int32_t b) { return (a + b - 1) / b; }

// Rows of one sequence that one block of threads works on, before it is cut into items.
struct Tile {
  AttentionItem item;
  int32_t splits() const { return item.last_split - item.first_split; }
  bool wide() const { return item.rows > kNarrowRows; }
};

int32_t first_seen(const AttentionShape& shape, int32_t position) {
  return shape.sliding_window > 0 ? std::max(0, position - shape.sliding_window + 1) : 0;
}

int32_t last_seen(const AttentionShape& shape, const BatchSequence& s, int32_t position) {
  if (!shape.bidirectional_prompt) return position + 1;
  return std::min(std::max(position + 1, s.prompt_len - 1), s.past + s.count);
}

// ChatGLM-6B counts positions up to the last but one prompt token and stays there; from the next
// on, the block position counts 1, 2, ... (its modelling code, get_position_ids).
TokenPlace place_of(const AttentionShape& shape, const BatchSequence& s, int32_t position) {
  TokenPlace place = {};
  place.position = position;
  if (shape.rope_style == RopeStyle::glm_2d && position >= s.prompt_len - 1) {
    place.position = std::max(s.prompt_len - 2, 0);
    place.block_position = position - place.position;
  }
  place.slot = s.blocks[position / kKvBlockTokens] * kKvBlockTokens + position % kKvBlockTokens;
  place.first = first_seen(shape, position);
  place.last = last_seen(shape, s, position);
  return place;
}

void add_tiles(const AttentionShape& shape, const BatchSequence& s, int32_t table,
               std::vector<Tile>& tiles) {
  const int32_t group = shape.heads / shape.kv_heads;
  const int32_t rows = s.count * group;
  for (int32_t row = 0; row < rows;) {
    Tile tile = {};
    AttentionItem& item = tile.item;
    item.first_token = s.begin;
    item.first_row = row;
    item.rows = std::min(rows - row, kWideRows);
    item.table = table;
    item.end = s.past + s.count;
    item.first_seen = first_seen(shape, s.past + row / group);
    item.last_seen = last_seen(shape, s, s.past + (row + item.rows - 1) / group);
    item.first_split = item.tile_first = item.first_seen / kSplitTokens;
    item.last_split = item.tile_last = ceil_div(item.last_seen, kSplitTokens);
    item.partial = -1;
    item.tile_items = 1;
    row += item.rows;
    tiles.push_back(tile);
  }
}

}  // namespace

int32_t padded_head_dim(int32_t head_dim) {
  for (int32_t padded : {32, 64, 96, 128}) {
    if (head_dim > 0 && head_dim % 2 == 0 && head_dim <= padded) return padded;
  }
  throw Error(ErrorKind::unsupported, "head_dim", std::to_string(head_dim),
              "an even number up to 128 on a GPU");
}

AttentionPlan::AttentionPlan(const Batch& batch, const AttentionShape& shape, int multiprocessors)
    : shape_(shape), tokens_(static_cast<int64_t>(batch.tokens.size())) {
  std::vector<TokenPlace> places;
  std::vector<int32_t> tables;
  std::vector<Tile> tiles;
  places.reserve(batch.tokens.size());
  int64_t splits = 0;
  for (const BatchSequence& s : batch.sequences) {
    for (int32_t i = 0; i < s.count; ++i) places.push_back(place_of(shape, s, s.past + i));
    const size_t first_tile = tiles.size();
    add_tiles(shape, s, static_cast<int32_t>(tables.size()), tiles);
    for (size_t t = first_tile; t < tiles.size(); ++t) splits += tiles[t].splits();
    tables.insert(tables.end(), s.blocks.begin(), s.blocks.end());
  }

  // Longest first, so that the last blocks of threads to end are short ones.
  std::ranges::stable_sort(tiles, std::ranges::greater{}, &Tile::splits);
  // A tile is cut if the device would be idle beside it: at decode, where a part's result costs
  // little beside its reading of K and V, into pieces of a quarter of a multiprocessor's share.
  const int64_t share =
      splits * shape.kv_heads / std::max<int64_t>(1, kBlocksPerMultiprocessor * multiprocessors);
  const auto piece = static_cast<int32_t>(std::clamp<int64_t>(share / 4, 1, 1 << 20));
  const auto most_partial_rows =
      static_cast<int64_t>(kMostPartialBytes / (partial_row_bytes(shape.head_dim) *
                                                static_cast<size_t>(shape.kv_heads)));
  std::vector<AttentionItem> items;
  for (const Tile& tile : tiles) {
    AttentionItem item = tile.item;
    wide_ = wide_ || tile.wide();
    const int64_t partial_rows = int64_t{item.rows} * tile.splits();
    const bool cut = tile.splits() > (tile.wide() ? share : piece) &&
                     partial_rows_ + partial_rows <= most_partial_rows;
    const int32_t pieces = cut ? ceil_div(tile.splits(), piece) : 1;
    if (pieces > 1) {
      item.partial = static_cast<int32_t>(partial_rows_);
      item.tile_items = pieces;
      item.counter = cut_tiles_++;
      partial_rows_ += partial_rows;
    }
    for (int32_t p = 0; p < pieces; ++p) {
      const auto at = [&](int32_t n) {
        return tile.item.first_split + static_cast<int32_t>(int64_t{tile.splits()} * n / pieces);
      };
      item.first_split = at(p);
      item.last_split = at(p + 1);
      items.push_back(item);
    }
  }

  if (is_decode_step(batch)) {
    items.resize(std::bit_ceil(items.size()));
    tables.resize(std::bit_ceil(tables.size()));
    partial_rows_ =
        std::min(static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(partial_rows_))),
                 std::max<int64_t>(1, most_partial_rows));
    cut_tiles_ = static_cast<int32_t>(tiles.size());  // at most
  }
  items_ = static_cast<int64_t>(items.size());
  first_item_ = static_cast<int64_t>(places.size()) * kPlaceInts;
  first_table_ = first_item_ + items_ * kItemInts;
  image_.resize(first_table_ + tables.size());
  std::memcpy(image_.data(), places.data(), places.size() * sizeof(TokenPlace));
  std::memcpy(image_.data() + first_item_, items.data(), items.size() * sizeof(AttentionItem));
  std::ranges::copy(tables, image_.begin() + first_table_);
}

void AttentionPlan::add_to(Signature& signature) const {
  for (const int64_t number :
       {tokens_, items_, first_item_, first_table_, partial_rows_, int64_t{cut_tiles_}}) {
    signature.push_back(static_cast<uint64_t>(number));
  }
  signature.push_back(wide_);
}

size_t AttentionPlan::query_bytes() const {
  return sizeof(__half) * tokens_ * shape_.heads * shape_.head_dim;
}

size_t AttentionPlan::partial_bytes() const {
  return partial_row_bytes(shape_.head_dim) * partial_rows_ * shape_.kv_heads;
}

size_t AttentionPlan::counter_bytes() const {
  return sizeof(int32_t) * cut_tiles_ * shape_.kv_heads;
}

// A wide tile (64 rows) is cut where it has more splits than `share`: then all tiles together have
// fewer than kBlocksPerMultiprocessor * multiprocessors times the longest's. A narrow one (16 rows)
// is cut from a quarter of that on. Both ways the rows of the parts are at most `rows`, and twice
// that rounded up.
size_t AttentionPlan::most_bytes(const StepBounds& most, int multiprocessors) {
  const int64_t splits = most.context / kSplitTokens + 1;
  const int64_t rows =
      std::min(kWideRows * kBlocksPerMultiprocessor * multiprocessors, most.tokens * most.heads) *
      splits;
  const size_t partials =
      std::min(2 * static_cast<size_t>(rows) * partial_row_bytes(most.head_dim), kMostPartialBytes);
  return sizeof(__half) * static_cast<size_t>(most.tokens * most.heads * most.head_dim) + partials +
         sizeof(int32_t) * static_cast<size_t>(rows);
}

size_t AttentionPlan::most_image_bytes(const StepBounds& most, int multiprocessors) {
  const int64_t group = most.heads / most.kv_heads;
  const int64_t tiles = most.sequences + most.tokens * group / kWideRows;
  const int64_t pieces = 8 * kBlocksPerMultiprocessor * multiprocessors;  // of those that are cut
  const int64_t ints = most.tokens * kPlaceInts + (2 * tiles + pieces) * kItemInts +
                       2 * most.sequences * (most.context / kKvBlockTokens + 1);
  return static_cast<size_t>(most.attention_shapes * ints * kInts);
}

}  // namespace slicellm::cuda
