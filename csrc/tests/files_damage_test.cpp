// Stores on disk in which bits have flipped: damage is named or passed over, never given out.
#include <random>

#include "serl_fast/sampler.h"
#include "stored.h"

using namespace serl_fast;
using namespace serl_fast::test;

namespace {

// Whichever byte is flipped: nothing crashes, and every row that is given out is right.
void a_flipped_bit_is_found() {
  const Folder folder;
  {
    const auto store = open_it(folder / "good");
    append_steps(*store, 0, 50);
  }
  std::size_t refused = 0, named = 0, harmless = 0;
  for (const auto& entry : fs::directory_iterator(folder / "good")) {
    const std::string name = entry.path().filename();
    const std::size_t size = std::min<std::size_t>(fs::file_size(entry.path()), 6000);
    for (std::size_t offset = 0; offset < size; offset += name == "range" ? 97 : 29) {
      fs::remove_all(folder / "bad");
      fs::copy(folder / "good", folder / "bad");
      flip(folder / "bad" + "/" + name, offset, static_cast<int>(offset % 8));
      try {
        OpenOptions options;
        options.damaged = OnDamage::kSkip;
        options.write = offset % 2 == 0;
        const auto store = open_store(folder / "bad", nullptr, 0, options);
        const std::vector<Damage> found = store->verify(0, 1000);
        CHECK(store->size() == 20);
        CHECK(found.size() < 20);
        (found.empty() ? harmless : named) += 1;
        Sampler sampler(*store, View{}, Order::kUniform, 0);
        Rows batch(schema(), 16, schema().columns_in());
        std::vector<std::byte*> out = batch.pointers();
        out.resize(sampler.layout().columns.size());
        sampler.sample(16, out);
        for (std::size_t row = 0; row < 16; ++row) {
          const int time = static_cast<int>(batch.as<float>(kRewards)[row]);
          CHECK(time >= 30 && time < 50);
          CHECK(is_step(batch, row, time, time - time % kEpisode, kStack));
        }
        if (options.write) append_steps(*store, 50, 90);
        snapshot(*store, folder / "copy");
      } catch (const Error& error) {
        ++refused;
        CHECK(std::string(error.what()).find(folder.path) != std::string::npos);
      }
    }
  }
  CHECK(named > 20 && harmless > 20);
  CHECK(refused == 0);
}

void damage_is_named() {
  const Folder folder;
  const auto make = [&] {
    fs::remove_all(folder / "store");
    const auto store = open_it(folder / "store");
    append_steps(*store, 0, 10);
  };
  const auto raised = [&](const std::string& message) {
    const auto store = open_store(folder / "store", nullptr, 0, reading());
    CHECK_THROWS(holds(*store, 0, 10), Error, message);
    OpenOptions all;
    all.verify_all = true;
    CHECK_THROWS(open_store(folder / "store", nullptr, 0, all), Error, message);
    const auto skipping = open_store(folder / "store", nullptr, 0, reading(OnDamage::kSkip));
    const auto loaded = load_store(folder / "store", OnDamage::kSkip);
    CHECK(loaded->size() + skipping->verify(0, 10).size() == 10);
    CHECK(loaded->size() < 10 && loaded->size() >= 7);
  };
  make();
  flip(folder / "store" + "/journal", 4 * 32 + 8);
  raised("/journal, byte 128: the entry of the step is damaged, so step 4 is lost");
  make();
  flip(folder / "store" + "/steps.0", 5 * 64 + 30);
  raised("so step 5 is lost; open the store with damaged='skip'");
  make();
  flip(folder / "store" + "/records.0", 9 * 32 + 1);
  raised("/records.0, byte 288: observation record 9 is damaged");
  make();
  flip(folder / "store" + "/checksums", 9 * 4);
  raised("/checksums, byte 36: the checksum of observation record 9 is damaged");
  make();
  flip(folder / "store" + "/steps.0", 5 * 64 + 16);  // a slot, which still exists
  raised("links to its observations are damaged, or the checksums of those (checksums, byte ");
  make();
  fs::resize_file(folder / "store" + "/journal", 7 * 32 + 3);
  raised("/journal, byte 224: the file ends before, so step 7 is lost");
}

void damaged_neighbours_keep_their_records() {
  // Stacks of 2: steps on both sides of a damaged one share a record, which must outlive the older of them.
  const Folder folder;
  for (std::size_t lost = 21; lost < 29; ++lost) {
    fs::remove_all(folder / "store");
    {
      const auto store = open_it(folder / "store");
      append_steps(*store, 0, 30);
    }
    flip(folder / "store" + "/journal", lost % 36 * 32);
    OpenOptions options;
    options.damaged = OnDamage::kSkip;
    const auto store = open_store(folder / "store", nullptr, 0, options);
    for (int time = 30; time < 90; ++time) {
      append(*store, step(time));
      const std::vector<Damage> found = store->verify(0, 1000);
      CHECK(found.size() == (time < static_cast<int>(lost) + 20 ? 1U : 0U));
    }
  }
}

// Whether step `id` is what was written, or refused.
bool is_right_or_refused(const Store& store, std::uint64_t id, bool& refused) {
  const Layout layout(store.schema(), View{});
  Rows batch(store.schema(), 1, store.schema().columns_in());
  std::vector<std::byte*> out = batch.pointers();
  out.resize(layout.columns.size());
  const auto number = static_cast<std::int64_t>(id);
  refused = false;
  try {
    store.gather_ids(std::span(&number, 1), layout, out);
  } catch (const std::exception&) {
    return refused = true;
  }
  const int time = static_cast<int>(id);
  return is_step(batch, 0, time, time - time % kEpisode, kStack);
}

// A step that is lost stays lost, also when what is written over its records makes it look whole: otherwise
// it would take steps with it that were appended since.
void a_lost_step_does_not_come_back() {
  const char* const names[] = {"/steps.0", "/journal", "/checksums", "/records.0"};
  const Folder folder;
  const std::string path = folder / "store";
  OpenOptions options;
  options.damaged = OnDamage::kSkip;
  for (unsigned round = 0; round < 150; ++round) {
    std::mt19937 random(6281 + round);  // the first one is a store of which that was true
    fs::remove_all(path);
    const std::size_t capacity = 1 + random() % 24;
    {
      const auto store = open_it(path, capacity);
      append_steps(*store, 0, static_cast<int>(1 + random() % 60));
      if (random() % 2 != 0) store->close();
    }
    for (unsigned flips = 1 + random() % 4; flips > 0; --flips) {
      const std::string file = path + names[random() % 4];
      const std::size_t size = std::min<std::size_t>(fs::file_size(file), 4000);
      const auto bit = static_cast<int>(random() % 8);
      flip(file, random() % size, bit);
    }
    auto store = open_it(path, capacity, options);
    const std::uint64_t first = store->appended();
    const auto reader = open_store(path, nullptr, 0, reading());
    for (int i = 0; i < 50; ++i) {
      append(*store, step(static_cast<int>(store->appended())));
      if (i % 7 == 6 && random() % 3 == 0) {
        store.reset();
        store = open_it(path, capacity, options);
      }
      for (std::uint64_t id = store->first_id(); id < store->appended(); ++id) {
        bool refused = false;
        CHECK(is_right_or_refused(*store, id, refused));
        CHECK(!refused || id < first);
        if (i % 5 != 0) continue;
        CHECK(is_right_or_refused(*reader, id, refused));
        CHECK(!refused || id < first);
      }
    }
  }
}

void other_versions_are_refused() {
  const Folder folder;
  open_it(folder / "store");
  std::vector<std::size_t> places = {8};
  places.push_back(fs::file_size(folder / "store" + "/header") / 2 + 8);
  flip(folder / "store" + "/header", places[0], 1);
  open_it(folder / "store");  // the other copy
  flip(folder / "store" + "/header", places[0], 1);
  open_it(folder / "store");
  flip(folder / "store" + "/header", places[0], 1);
  flip(folder / "store" + "/header", places[1], 1);
  CHECK_THROWS(open_it(folder / "store"), Error, "it has format 3; this version of serl_fast reads format 1");
  CHECK_THROWS(inspect_store(folder / "store"), Error, "format 3");
}

}  // namespace

int main() {
  a_flipped_bit_is_found();
  damage_is_named();
  damaged_neighbours_keep_their_records();
  a_lost_step_does_not_come_back();
  other_versions_are_refused();
  return serl_fast::test::summary();
}
