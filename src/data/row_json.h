// A row's JSON as a tree that keeps the order of keys: templates write them out in it.
#pragma once

#include <string>
#include <string_view>

#include "base/json.h"

namespace distil_xlstm::data {

// "" or what is wrong: no JSON, or nested more deeply than any real row is. Of a key that occurs twice in an object the last value
// stands, as in Python. Time does not grow with the square of an object's keys, as `json::parse` does.
std::string parse_row(std::string_view text, json& row);

}  // namespace distil_xlstm::data
