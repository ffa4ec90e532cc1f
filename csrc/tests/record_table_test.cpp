#include "serl_fast/record_table.h"

#include <cstring>
#include <deque>
#include <set>

#include "check.h"
#include "serl_fast/error.h"

using serl_fast::Dtype;
using serl_fast::Field;
using serl_fast::RecordTable;

namespace {

const Field kField{"observations", Dtype::kInt64, {}, 1};

// A queue of every length up to the limit, against a plain one: content stays, live slots are distinct.
void behaves_like_a_queue() {
  RecordTable table(std::span(&kField, 1), 5);
  std::uint64_t dropped = 0;
  for (std::uint64_t round = 0; round < 200; ++round) {
    const std::uint64_t keep = (round * 7) % 5;
    if (table.end() - table.begin() > keep) dropped = table.end() - keep;
    table.drop_before(dropped);
    const std::uint64_t sequence = table.push();
    CHECK(sequence == round);
    std::memcpy(table.frame(0, sequence), &sequence, sizeof(sequence));
    std::set<std::uint32_t> slots;
    for (std::uint64_t s = table.begin(); s < table.end(); ++s) {
      std::uint64_t value;
      std::memcpy(&value, table.frame(0, s), sizeof(value));
      CHECK(value == s);
      CHECK(slots.insert(table.slot(s)).second);
    }
  }
}

// The memory in use follows the live records, not the worst case.
void slots_are_used_again() {
  RecordTable table(std::span(&kField, 1), 1000);
  for (int i = 0; i < 500; ++i) {
    table.push();
    table.drop_before(table.end() - 1);
  }
  CHECK(table.slots_used() == 2);
  table.clear();
  CHECK(table.begin() == table.end());
}

void refuses_more_than_32_bits() {
  CHECK_THROWS(RecordTable(std::span(&kField, 1), std::size_t{1} << 33), serl_fast::Error, "8589934592");
}

}  // namespace

int main() {
  behaves_like_a_queue();
  slots_are_used_again();
  refuses_more_than_32_bits();
  return serl_fast::test::summary();
}
