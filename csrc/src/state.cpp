#include "serl_fast/state.h"

namespace serl_fast {

StateView State::view() const {
  StateView view{.steps = steps,
                 .records = records,
                 .continues = continues.data(),
                 .record_columns = {},
                 .step_columns = {},
                 .seed = seed,
                 .draws = draws,
                 .appended = appended};
  for (const Column& column : record_columns) view.record_columns.push_back(column.data());
  for (const Column& column : step_columns) view.step_columns.push_back(column.data());
  return view;
}

}  // namespace serl_fast
