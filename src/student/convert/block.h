// One layer of a converted student: the teacher's, with a mixer that starts from its attention (docs/convert.md).
#pragma once

#include <memory>
#include <string>

#include "student/convert/config.h"
#include "student/mixer.h"

namespace distil_xlstm::student {

// With one of convert_mixer_names() in attention's place.
std::unique_ptr<const Mixer> make_convert_block(const ConvertConfig& config, const std::string& mixer);

}  // namespace distil_xlstm::student
