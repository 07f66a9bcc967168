// The mixers of the paper's student, block by block, and what they add up to.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "student/mixer.h"
#include "student/paper/config.h"

namespace distil_xlstm::student {

// Makes the mixer of a block from the student's shape.
using MakeMixer = std::function<std::unique_ptr<const Mixer>(const StudentConfig& config, int64_t block)>;

// Adds a kind beside "slstm" and "mlstm". Throws ValueError when the name is taken. Not while students are made on other threads.
void add_mixer_kind(const std::string& name, MakeMixer make);

// The mixers of all blocks, by StudentConfig::mixer_at. Throws ConfigError that names a kind which is not known, and those which are.
std::vector<std::shared_ptr<const Mixer>> make_mixers(const StudentConfig& config);

// All trainable tensors in the order of the blocks, by their full names; frozen ones (embedding, head) are not among them.
std::vector<ParameterSpec> parameter_specs(const StudentConfig& config);
int64_t num_trainable_parameters(const StudentConfig& config);

// "xlstm_block_stack.blocks.3."
std::string block_prefix(int64_t block);

}  // namespace distil_xlstm::student
