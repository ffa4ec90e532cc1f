#include "serl_fast/slot_pool.h"

#include "check.h"
#include "serl_fast/error.h"

using serl_fast::SlotPool;

namespace {

void hands_out_the_last_freed_first() {
  SlotPool pool(5, 4);
  CHECK(pool.take() == 0 && pool.take() == 1 && pool.take() == 2);
  CHECK(pool.used() == 3 && pool.untouched() == 2 && pool.available() == 0);
  pool.retire(1, 10);
  pool.retire(0, 10);
  CHECK(pool.available() == 0);
  pool.reclaim(11);
  CHECK(pool.available() == 2);
  CHECK(pool.take() == 0 && pool.take() == 1);
  CHECK(pool.take() == 3 && pool.used() == 4);  // only then memory that was never touched
}

void a_retired_slot_waits_for_its_readers() {
  SlotPool pool(8, 3);
  for (int i = 0; i < 8; ++i) pool.take();
  pool.retire(5, 20);
  pool.retire(6, 21);
  pool.reclaim(20);  // a reader is at step 20
  CHECK(pool.available() == 0);
  pool.reclaim(21);
  CHECK(pool.available() == 1 && pool.take() == 5);
  CHECK(pool.can_retire(2) && !pool.can_retire(3));
  pool.retire(5, 22);
  pool.retire(7, 23);  // round the end of the ring
  CHECK(!pool.can_retire(1));
  pool.reclaim(23);
  CHECK(pool.available() == 2 && pool.take() == 5 && pool.take() == 6);
  pool.reclaim(24);
  CHECK(pool.take() == 7);
}

void starts_from_what_is_taken() {
  SlotPool pool(10, 2);
  pool.take();
  pool.retire(0, 1);
  pool.reset(4, {true, false, true, false});
  CHECK(pool.used() == 4 && pool.available() == 2);
  CHECK(pool.take() == 1 && pool.take() == 3 && pool.take() == 4);
  pool.reclaim(100);  // what was retired before is forgotten
  CHECK(pool.available() == 0 && pool.can_retire(2));
}

void refuses_more_than_32_bits() {
  CHECK_THROWS(SlotPool(std::size_t{1} << 32, 1), serl_fast::Error, "observation records");
}

}  // namespace

int main() {
  hands_out_the_last_freed_first();
  a_retired_slot_waits_for_its_readers();
  starts_from_what_is_taken();
  refuses_more_than_32_bits();
  return serl_fast::test::summary();
}
