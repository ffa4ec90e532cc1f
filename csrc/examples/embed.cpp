// The replay store in a program of one's own: one thread acts, another learns.
#include <serl_fast/sampler.h>
#include <serl_fast/store.h>

#include <array>
#include <cstdio>
#include <thread>
#include <vector>

namespace {

using namespace serl_fast;

constexpr std::size_t kState = 3, kAction = 2, kBatch = 64;

// One field is one array of every row. Observations are stored once and given back twice.
Schema make_schema() {
  return Schema{.observations = {{.name = "observations", .dtype = Dtype::kFloat32, .shape = {kState}}},
                .steps = {{.name = "actions", .dtype = Dtype::kFloat32, .shape = {kAction}},
                          {.name = "rewards", .dtype = Dtype::kFloat32},
                          {.name = "terminated", .dtype = Dtype::kBool},
                          {.name = "truncated", .dtype = Dtype::kBool}}};
}

template <typename T>
const std::byte* bytes(const T& value) {
  return reinterpret_cast<const std::byte*>(&value);
}

// Episodes of 50 steps whose observation is the time.
void act(Store& store, int steps) {
  for (int t = 0; t < steps; ++t) {
    const auto time = static_cast<float>(t % 50);
    const std::array<float, kState> now{time, time, time}, next{time + 1, time + 1, time + 1};
    const std::array<float, kAction> action{0.5F, -0.5F};
    const float reward = t % 50 == 49 ? 1.0F : 0.0F;
    const bool terminated = t % 50 == 49, truncated = false;
    // In the order of the schema: observations, next observations, steps.
    const std::array columns{bytes(now),    bytes(next),       bytes(action),
                             bytes(reward), bytes(terminated), bytes(truncated)};
    store.append(columns, 1, {});
  }
}

// Draws 3-step returns and checks what they say; returns the number of wrong rows.
int learn(Sampler& sampler, int batches) {
  std::vector<std::vector<std::byte>> memory;
  std::vector<std::byte*> out;
  std::size_t observations = 0, next = 0, discounts = 0;
  for (const Output& column : sampler.layout().columns) {
    if (column.kind == Output::Kind::kObservation) observations = out.size();
    if (column.kind == Output::Kind::kNextObservation) next = out.size();
    if (column.kind == Output::Kind::kDiscounts) discounts = out.size();
    memory.emplace_back(kBatch * column.row_bytes());
    out.push_back(memory.back().data());
  }
  int wrong = 0;
  for (int b = 0; b < batches; ++b) {
    sampler.sample(kBatch, out);
    const auto* now = reinterpret_cast<const float*>(out[observations]);
    const auto* later = reinterpret_cast<const float*>(out[next]);
    const auto* discount = reinterpret_cast<const float*>(out[discounts]);
    for (std::size_t i = 0; i < kBatch; ++i) {
      const float steps = later[i * kState] - now[i * kState];  // 3, fewer at the end
      if (!(steps >= 1 && steps <= 3) || discount[i] < 0 || discount[i] > 0.99F) ++wrong;
    }
  }
  return wrong;
}

}  // namespace

int main() {
  Store store(make_schema(), /*capacity=*/10'000, /*seed=*/0);
  act(store, 1'000);
  Sampler sampler(store, View{.discount = 0.99, .n_step = 3}, Order::kUniform, /*beta=*/0.0);
  int wrong = 0;
  {
    const std::jthread actor([&] { act(store, 50'000); });
    wrong = learn(sampler, 2'000);
  }
  std::printf("%zu of %zu transitions, %llu appended, %d wrong rows\n", store.size(), store.capacity(),
              static_cast<unsigned long long>(store.appended()), wrong);
  return wrong == 0 && store.size() == store.capacity() ? 0 : 1;
}
