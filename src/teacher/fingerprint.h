// What a teacher computes with, in short: a run that goes on later must find the same.
#pragma once

#include <string>

#include "base/json.h"
#include "io/weights.h"

namespace distil_xlstm::teacher {

// config.json without the keys that change nothing in what a frozen model computes, in alphabetical order.
json computing_config(const json& config);

// XXH3-128 over name, type, shape and every byte of each tensor as stored, hexadecimal. How tensors are spread over files does not matter.
// Reads all of the weights once, on all threads.
std::string weights_fingerprint(const io::WeightSource& weights);

}  // namespace distil_xlstm::teacher
