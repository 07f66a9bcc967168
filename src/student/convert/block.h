// One layer of a converted student: the teacher's, with an mLSTM that starts from its attention (docs/convert.md).
#pragma once

#include <memory>

#include "student/convert/config.h"
#include "student/mixer.h"

namespace distil_xlstm::student {

std::unique_ptr<const Mixer> make_convert_block(const ConvertConfig& config);

// "model.layers.3."
std::string convert_block_prefix(int64_t layer);

// Fills the parameters that start from the teacher, which are all of a layer's but the mixer's own: grouped keys and values repeated, gate
// and up joined. `parameters` are those of the whole student by their full names. Throws DataError where the teacher lacks one.
void copy_from_teacher(const ConvertConfig& config, const nn::LanguageModel& teacher, NamedTensors& parameters);

}  // namespace distil_xlstm::student
