// Checks of option values that several commands share: they fail while the command line is read, before anything loads.
#pragma once

#include <CLI/CLI.hpp>

#include <cstdint>

namespace distil_xlstm::cli {

CLI::Validator device_name();          // auto, cpu, cuda or cuda:N; whether the device is there shows later
CLI::Validator precision_name();       // auto, fp32, bf16 or fp16
CLI::Validator at_least(int64_t low);  // a number; text that is none is left to the conversion
CLI::Validator at_most(int64_t high);
CLI::Validator positive_number();
CLI::Validator output_file();  // where a file can be written; - is left to the command

}  // namespace distil_xlstm::cli
