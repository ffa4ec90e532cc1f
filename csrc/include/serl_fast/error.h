// The error that a caller of the store can cause.
#pragma once

#include <stdexcept>
#include <string>

namespace serl_fast {

// A value, a shape or a setting that the store cannot take. The message names the field, says what was given
// and what is accepted. Whenever it is thrown the store is as it was before the call.
class Error : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

}  // namespace serl_fast
