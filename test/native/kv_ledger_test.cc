// Block allocator and KV ledger: hand-worked cases, then random use against a model.
#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "check.h"
#include "kv/ledger.h"

using namespace slicellm;

namespace {

void test_allocator() {
  BlockAllocator pool(3);
  CHECK(pool.num_free() == 3 && pool.can_allocate(3) && !pool.can_allocate(4));
  const int32_t a = pool.allocate(), b = pool.allocate();
  CHECK(a != b && pool.refs(a) == 1 && pool.num_free() == 1);
  pool.share(a);
  pool.release(a);
  CHECK(pool.refs(a) == 1 && pool.num_free() == 1);
  pool.release(a);
  CHECK(pool.num_free() == 2 && pool.allocate() == a);  // recently freed first
  pool.allocate();
  CHECK(test::throws(ErrorKind::resource, "kv blocks", [&] { pool.allocate(); }));
  pool.release(b);
  CHECK(test::throws(ErrorKind::state, "kv block", [&] { pool.release(b); }));
  CHECK(test::throws(ErrorKind::state, "kv block", [&] { pool.share(b); }));
  CHECK(test::throws(ErrorKind::state, "kv block", [&] { pool.release(-1); }));
  CHECK(test::throws(ErrorKind::state, "kv block", [&] { pool.release(3); }));
  pool.check_integrity();
  CHECK(test::throws(ErrorKind::invalid_argument, "kv blocks", [] { BlockAllocator(-1); }));
}

void test_ledger() {
  KvLedger ledger(4, 2, 16);
  BlockTable table, other;
  std::vector<KvCopy> copies;
  ledger.grow(table, 16);
  CHECK(table.blocks.size() == 1 && table.state == KvState::device);
  ledger.grow(table, 17);
  ledger.grow(table, 20);
  CHECK(table.blocks.size() == 2);
  ledger.grow(other, 32);
  const std::vector<int32_t> before = table.blocks;
  CHECK(test::throws(ErrorKind::resource, "device KV", [&] { ledger.grow(table, 33); }));
  CHECK(table.blocks == before);
  CHECK(test::throws(ErrorKind::state, "swap in", [&] { ledger.swap_in(table, copies); }));

  ledger.swap_out(table, copies);
  CHECK(table.state == KvState::host && ledger.device().num_free() == 2);
  CHECK(copies.size() == 2 && copies[0].to_host && copies[0].device_block == before[0] &&
        copies[0].host_block == table.blocks[0] && copies[1].device_block == before[1]);
  CHECK(test::throws(ErrorKind::resource, "host KV", [&] { ledger.swap_out(other, copies); }));
  CHECK(test::throws(ErrorKind::state, "KV growth", [&] { ledger.grow(table, 48); }));
  CHECK(test::throws(ErrorKind::state, "host KV", [&] {
    ledger.release(other);
    ledger.check_all_free();
  }));
  copies.clear();
  ledger.swap_in(table, copies);
  CHECK(copies.size() == 2 && !copies[0].to_host && copies[0].device_block == table.blocks[0]);
  for (const int32_t block : before) {  // what was copied to the host is given out last
    CHECK(std::ranges::find(table.blocks, block) == table.blocks.end());
  }
  ledger.release(table);
  ledger.release(table);  // nothing left: no harm
  CHECK(table.state == KvState::none && table.blocks.empty());
  ledger.check_all_free();
  CHECK(test::throws(ErrorKind::invalid_argument, "block_tokens", [] { KvLedger(1, 1, 0); }));
}

// 200,000 random actions; a block is never in two tables and sums always add up.
void test_random() {
  std::mt19937_64 rng(1);
  auto pick = [&rng](int n) { return static_cast<int>(rng() % static_cast<uint64_t>(n)); };
  KvLedger ledger(64, 32, 8);
  std::map<int, BlockTable> tables;
  std::vector<KvCopy> copies;
  for (int i = 0; i < 200000; ++i) {
    BlockTable& table = tables[pick(24)];
    const KvState state = table.state;
    copies.clear();
    try {
      switch (pick(4)) {
        case 0:
          ledger.grow(table, pick(200));
          break;
        case 1:
          ledger.swap_out(table, copies);
          break;
        case 2:
          ledger.swap_in(table, copies);
          break;
        case 3:
          ledger.release(table);
          break;
      }
    } catch (const Error&) {
      CHECK(table.state == state);
    }
    if (i % 97 != 0) continue;
    std::set<int32_t> device, host;
    size_t sum = 0;
    for (const auto& [key, t] : tables) {
      (t.state == KvState::host ? host : device).insert(t.blocks.begin(), t.blocks.end());
      sum += t.blocks.size();
      CHECK((t.state == KvState::none) == t.blocks.empty());
    }
    CHECK(device.size() + host.size() == sum);
    CHECK(ledger.device().num_free() == 64 - static_cast<int32_t>(device.size()));
    CHECK(ledger.host().num_free() == 32 - static_cast<int32_t>(host.size()));
    ledger.check_integrity();
  }
  for (auto& [key, table] : tables) ledger.release(table);
  ledger.check_all_free();
}

void test_kept_blocks() {
  BlockAllocator pool(4);
  const int32_t a = pool.allocate(), b = pool.allocate(), c = pool.allocate();
  pool.release(b, true);
  pool.release(a, true);
  pool.release(c);
  CHECK(pool.num_free() == 4);
  pool.check_integrity();
  pool.share(a);  // taken back
  CHECK(pool.refs(a) == 1 && pool.num_free() == 3 && pool.num_shared() == 0);
  pool.share(a);
  CHECK(pool.num_shared() == 1);
  pool.release(a, true);
  CHECK(pool.num_shared() == 0);
  pool.release(a, true);
  CHECK(pool.allocate() == c);
  pool.allocate();
  CHECK(pool.allocate() == b);  // the longest kept
  CHECK(pool.allocate() == a && pool.num_free() == 0);
  CHECK(test::throws(ErrorKind::state, "kv block", [&] {
    pool.release(c);
    pool.share(c);  // free, not kept
  }));
  pool.check_integrity();
}

// 100,000 random actions of tables whose tokens often begin alike. What a block holds is modelled
// beside the ledger: a block that is attached must hold just what the table's tokens are.
void test_random_prefixes() {
  constexpr int kTokens = 4;
  std::mt19937_64 rng(2);
  auto pick = [&rng](int n) { return static_cast<int>(rng() % static_cast<uint64_t>(n)); };
  struct Task {
    std::vector<int32_t> tokens;
    int32_t cached = 0;
    BlockTable kv;
  };
  KvLedger ledger(40, 20, kTokens, true);
  std::vector<Task> tasks(12);
  std::map<int32_t, std::vector<int32_t>> held;  // by device block: all tokens up to its end
  std::vector<KvCopy> copies;
  int64_t attached = 0, shared_blocks = 0;
  for (int i = 0; i < 100000; ++i) {
    Task& task = tasks[pick(12)];
    copies.clear();
    switch (pick(5)) {
      case 0:
        ledger.release(task.kv);
        task.cached = 0;
        task.tokens.assign(1 + pick(40), 0);
        for (size_t k = 0, fork = pick(40); k < task.tokens.size(); ++k) {
          task.tokens[k] = k < fork ? 1 : pick(3);
        }
        break;
      case 1:
      case 2: {
        if (task.kv.state == KvState::host || task.tokens.empty()) break;
        const auto size = static_cast<int32_t>(task.tokens.size());
        if (task.cached == size) break;
        const int32_t end = task.cached + 1 + pick(size - task.cached);
        const std::span<const int32_t> chunk = std::span(task.tokens).first(end);
        const int32_t covered = ledger.attach(task.kv, task.cached, chunk);
        CHECK(covered >= task.cached && covered < end);
        for (int32_t k = task.cached / kTokens; k < covered / kTokens; ++k) {
          const auto first = task.tokens.begin();
          CHECK(held[task.kv.blocks[k]] == std::vector(first, first + (k + 1) * kTokens));
          ++attached;
        }
        task.cached = covered;
        try {
          ledger.grow(task.kv, end);
        } catch (const Error&) {
          break;
        }
        task.cached = end;
        for (size_t k = covered / kTokens; k < task.kv.blocks.size(); ++k) {
          const auto first = task.tokens.begin();
          const auto last = std::min(end, static_cast<int32_t>((k + 1) * kTokens));
          held[task.kv.blocks[k]].assign(first, first + last);
        }
        ledger.note(task.kv, chunk);
        break;
      }
      case 3:
        if (task.kv.state != KvState::device) break;
        if (ledger.host().can_allocate(static_cast<int32_t>(task.kv.blocks.size()))) {
          ledger.swap_out(task.kv, copies);
        }
        break;
      case 4:
        if (task.kv.state != KvState::host) break;
        if (!ledger.device().can_allocate(static_cast<int32_t>(task.kv.blocks.size()))) break;
        ledger.swap_in(task.kv, copies);
        for (size_t k = 0; k < task.kv.blocks.size(); ++k) {
          const auto last = std::min<size_t>(task.cached, (k + 1) * kTokens);
          held[task.kv.blocks[k]].assign(task.tokens.begin(), task.tokens.begin() + last);
        }
        break;
    }
    if (i % 31 != 0) continue;
    std::map<int32_t, int32_t> holders;
    for (const Task& t : tasks) {
      if (t.kv.state != KvState::device) continue;
      for (int32_t block : t.kv.blocks) ++holders[block];
    }
    for (const auto& [block, count] : holders) CHECK(ledger.device().refs(block) == count);
    for (const Task& t : tasks) {
      if (t.kv.state != KvState::device) continue;
      int32_t shared = 0;
      for (int32_t block : t.kv.blocks) shared += holders[block] > 1;
      CHECK(ledger.shared(t.kv) == shared);
      shared_blocks += shared;
    }
    CHECK(ledger.device().num_free() == 40 - static_cast<int32_t>(holders.size()));
    ledger.check_integrity();
  }
  CHECK(attached > 1000 && shared_blocks > 1000);
  for (Task& task : tasks) ledger.release(task.kv);
  ledger.check_all_free();
}

}  // namespace

int main() {
  test_allocator();
  test_ledger();
  test_random();
  test_kept_blocks();
  test_random_prefixes();
  return test::check_result();
}
