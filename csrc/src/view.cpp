#include "serl_fast/view.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "serl_fast/error.h"

namespace serl_fast {

void View::validate() const {
  if (!(discount >= 0.0 && discount <= 1.0)) {
    throw Error("the discount is " + std::to_string(discount) + "; it lies in [0, 1]");
  }
  if (n_step == 0) throw Error("n_step is 0; a return has at least one step");
  if (n_step > 1 && length > 0) {
    throw Error("n_step is " + std::to_string(n_step) + " with a sequence length of " +
                std::to_string(length) + "; the rewards of a sequence are its returns already");
  }
}

std::size_t View::starts(std::size_t size) const {
  if (length <= 1 || pad == Pad::kLast) return size;
  return size >= length ? size - length + 1 : 0;
}

Layout::Layout(const Schema& schema, const View& given) : view(given) {
  using Kind = Output::Kind;
  view.validate();
  const bool sequence = view.length > 0;
  const std::size_t repeat = sequence ? view.length : 1;
  const auto add_all = [&](Kind kind, const std::vector<Field>& fields, const std::string& prefix,
                           bool each) {
    for (std::size_t f = 0; f < fields.size(); ++f) {
      Field field = fields[f];
      field.name = prefix + field.name;
      columns.push_back({kind, f, each ? repeat : 1, each && sequence, std::move(field)});
    }
  };
  const auto add = [&](Kind kind, const char* name, Dtype dtype, bool each) {
    columns.push_back({kind, 0, each ? repeat : 1, each && sequence, Field{name, dtype, {}, 1}});
  };
  add_all(Kind::kObservation, schema.observations, "", false);
  if (sequence) add_all(Kind::kFullObservations, schema.observations, "full_", true);
  add_all(Kind::kNextObservation, schema.observations, "next_", true);
  add_all(Kind::kStep, schema.steps, "", true);
  if (sequence) {
    const auto is_actions = [](const Field& field) { return field.name == "actions"; };
    const auto actions = std::find_if(schema.steps.begin(), schema.steps.end(), is_actions);
    if (actions != schema.steps.end()) {
      Field field = *actions;
      field.name = "next_actions";
      const auto index = static_cast<std::size_t>(actions - schema.steps.begin());
      columns.push_back({Kind::kNextActions, index, repeat, true, std::move(field)});
    }
  }
  add(Kind::kMasks, "masks", Dtype::kFloat32, true);
  add(Kind::kDiscounts, "discounts", Dtype::kFloat32, true);
  if (sequence) {
    add(Kind::kTerminals, "terminals", Dtype::kFloat32, true);
    add(Kind::kValid, "valid", Dtype::kFloat32, true);
  }
  add(Kind::kIds, "ids", Dtype::kInt64, false);
  add(Kind::kWeights, "weights", Dtype::kFloat32, false);
}

void put_ids(const Layout& layout, std::span<const std::uint64_t> ids, std::span<std::byte* const> out) {
  for (std::size_t c = 0; c < layout.columns.size(); ++c) {
    if (layout.columns[c].kind != Output::Kind::kIds || out[c] == nullptr) continue;
    std::memcpy(out[c], ids.data(), ids.size() * sizeof(std::uint64_t));
  }
}

}  // namespace serl_fast
