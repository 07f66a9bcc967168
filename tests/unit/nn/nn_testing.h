// The message of an expected error, beside what all tensor tests share.
#pragma once

#include <typeinfo>

#include "unit/ops/op_testing.h"

namespace distil_xlstm::testing {

// The message of the exception of type E that `call` throws, or a text that says what happened instead.
template <typename E, typename F>
std::string error_of(F&& call) {
  try {
    call();
  } catch (const E& error) {
    return error.what();
  } catch (const std::exception& error) {
    return std::string("<another exception> ") + typeid(error).name() + ": " + error.what();
  }
  return "<no exception>";
}

}  // namespace distil_xlstm::testing
