// Block allocator and KV ledger: hand-worked cases, then random use against a model.
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

}  // namespace

int main() {
  test_allocator();
  test_ledger();
  test_random();
  return test::check_result();
}
