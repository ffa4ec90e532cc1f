// What the arrays of a batch look like, and where they lie in its nested dict.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "convert.h"
#include "serl_fast/view.h"

namespace serl_fast::bindings {

class BatchForm {
 public:
  // `names`: per column of the layout where it lies in a batch, empty where it is not wanted; one more than
  // that adds the column of sources, int32 [B], under the last name. Throws Error where nothing is wanted.
  BatchForm(const Layout& layout, const std::vector<std::string>& names);

  // What an array of this column looks like.
  static ArrayForm of(const Output& output);

  struct Columns {
    std::vector<std::byte*> data;  // in the order of the layout, null where not wanted
    std::int32_t* sources = nullptr;
    std::size_t rows = 0;
    Held held{nullptr, 0};  // the arrays
  };
  // The arrays of a batch; nothing where it is not made of exactly the wanted ones.
  std::optional<Columns> read(py::handle batch) const;
  // The same from a list of arrays, None where not wanted; raises where one does not fit.
  Columns read(const py::list& arrays, std::size_t rows) const;
  // A batch of arrays over memory that `owner` keeps alive; column c begins at data + offsets[c].
  py::dict make(std::byte* data, const std::vector<std::size_t>& offsets, std::size_t rows,
                py::handle owner) const;

  std::vector<bool> wanted() const;  // per column of the layout
  bool has_sources() const { return has_sources_; }

 private:
  struct Place {  // of an array in the tree of dicts
    std::size_t dict;
    py::str key;
  };

  Columns split(std::vector<std::byte*> data, std::size_t rows) const;

  const Tree tree_;
  const bool has_sources_;
  std::vector<bool> wanted_;
  std::vector<ArrayForm> forms_;
  std::vector<py::dtype> dtypes_;
  std::vector<Place> places_;  // of the columns
  std::vector<Place> dicts_;   // of the dicts but the root, which has number 0
  std::size_t first_ = 0;      // a wanted column
};

}  // namespace serl_fast::bindings
