#include "batch_form.h"

#include <algorithm>
#include <map>

#include "serl_fast/error.h"

namespace serl_fast::bindings {

BatchForm::BatchForm(const Layout& layout, const std::vector<std::string>& names)
    : tree_(names), has_sources_(names.size() == layout.columns.size() + 1) {
  if (!has_sources_ && names.size() != layout.columns.size()) {
    throw Error("got " + std::to_string(names.size()) + " names for " +
                std::to_string(layout.columns.size()) + " columns");
  }
  for (const Output& output : layout.columns) forms_.push_back(of(output));
  if (has_sources_) forms_.push_back(ArrayForm{"sources", Dtype::kInt32, {}});

  std::map<std::string, std::size_t> numbers;  // of the dicts
  for (std::size_t c = 0; c < names.size(); ++c) {
    wanted_.push_back(!names[c].empty());
    if (!names[c].empty()) forms_[c].name = names[c];
    dtypes_.emplace_back(std::string(name_of(forms_[c].dtype)));
    std::size_t dict = 0, from = 0;
    for (std::size_t to = names[c].find('/'); to != std::string::npos; to = names[c].find('/', from)) {
      const auto [known, is_new] = numbers.try_emplace(names[c].substr(0, to), dicts_.size() + 1);
      if (is_new) dicts_.push_back({dict, py::str(names[c].substr(from, to - from))});
      dict = known->second;
      from = to + 1;
    }
    places_.push_back({dict, py::str(names[c].substr(from))});
  }
  while (first_ < wanted_.size() && !wanted_[first_]) ++first_;
  if (first_ == wanted_.size()) throw Error("no field is wanted");
}

ArrayForm BatchForm::of(const Output& output) {
  ArrayForm form = ArrayForm::of(output.field);
  if (output.sequence) form.shape.insert(form.shape.begin(), output.repeat);
  return form;
}

std::vector<bool> BatchForm::wanted() const {
  return {wanted_.begin(), wanted_.end() - static_cast<std::ptrdiff_t>(has_sources_)};
}

BatchForm::Columns BatchForm::split(std::vector<std::byte*> data, std::size_t rows) const {
  Columns columns;
  columns.data = std::move(data);
  columns.rows = rows;
  if (!has_sources_) return columns;
  columns.sources = reinterpret_cast<std::int32_t*>(columns.data.back());
  columns.data.pop_back();
  return columns;
}

std::optional<BatchForm::Columns> BatchForm::read(py::handle batch) const {
  std::vector<PyObject*> values(forms_.size(), nullptr);
  if (!tree_.read(batch.ptr(), values.data()) || !py::isinstance<py::array>(values[first_])) return {};
  const auto* array = py::detail::array_proxy(values[first_]);
  if (array->nd == 0 || array->dimensions[0] == 0) return {};
  const auto rows = static_cast<std::size_t>(array->dimensions[0]);
  std::vector<std::byte*> data(forms_.size(), nullptr);
  for (std::size_t c = 0; c < forms_.size(); ++c) {
    if (!wanted_[c]) continue;
    data[c] = fast_data(values[c], forms_[c], rows);
    if (data[c] == nullptr) return {};
    const int flags = py::detail::array_proxy(values[c])->flags;
    if ((flags & py::detail::npy_api::NPY_ARRAY_WRITEABLE_) == 0) return {};
  }
  Columns columns = split(std::move(data), rows);
  columns.held = Held(values.data(), values.size());
  return columns;
}

BatchForm::Columns BatchForm::read(const py::list& arrays, std::size_t rows) const {
  if (arrays.size() != forms_.size()) {
    throw Error("got " + std::to_string(arrays.size()) + " columns; a batch has " +
                std::to_string(forms_.size()));
  }
  std::vector<std::byte*> data(forms_.size(), nullptr);
  for (std::size_t c = 0; c < forms_.size(); ++c) {
    if (wanted_[c]) data[c] = rows_of(arrays[c], forms_[c], rows, true);
  }
  return split(std::move(data), rows);
}

py::dict BatchForm::make(std::byte* data, const std::vector<std::size_t>& offsets, std::size_t rows,
                         py::handle owner) const {
  std::vector<py::dict> dicts(1 + dicts_.size());
  for (std::size_t d = 0; d < dicts_.size(); ++d) dicts[dicts_[d].dict][dicts_[d].key] = dicts[d + 1];
  std::vector<py::ssize_t> shape;
  for (std::size_t c = 0; c < forms_.size(); ++c) {
    if (!wanted_[c]) continue;
    shape.assign(1, static_cast<py::ssize_t>(rows));
    for (const std::size_t length : forms_[c].shape) shape.push_back(static_cast<py::ssize_t>(length));
    dicts[places_[c].dict][places_[c].key] = py::array(dtypes_[c], shape, data + offsets[c], owner);
  }
  return dicts[0];
}

}  // namespace serl_fast::bindings
