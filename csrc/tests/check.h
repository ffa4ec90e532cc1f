// The few lines of a test framework that these tests need.
#pragma once

#include <cstdio>
#include <exception>
#include <string_view>

namespace serl_fast::test {

inline int failures = 0;

inline void report(const char* file, int line, const char* what) {
  ++failures;
  std::fprintf(stderr, "%s:%d: failed: %s\n", file, line, what);
}

// main() of a test: run every case, return summary().
inline int summary() { return failures == 0 ? 0 : 1; }

}  // namespace serl_fast::test

#define CHECK(condition) ((condition) ? void() : serl_fast::test::report(__FILE__, __LINE__, #condition))

// The statement throws `type`, and the message contains `part`.
#define CHECK_THROWS(statement, type, part)                                      \
  do {                                                                           \
    try {                                                                        \
      statement;                                                                 \
      serl_fast::test::report(__FILE__, __LINE__, "no exception: " #statement);  \
    } catch (const type& error) {                                                \
      if (std::string_view(error.what()).find(part) == std::string_view::npos) { \
        serl_fast::test::report(__FILE__, __LINE__, error.what());               \
      }                                                                          \
    }                                                                            \
  } while (false)
