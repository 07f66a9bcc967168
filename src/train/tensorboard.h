// TensorBoard event files, written by hand: a stream of records, each one small protobuf message.
//   record   uint64 length | uint32 masked CRC32C of the length | the message | uint32 masked CRC32C of the message   (little-endian)
//   Event    1: wall_time (double), 2: step (int64), 3: file_version (string), 5: summary { repeated 1: value { 1: tag, 2: simple_value
//   (float) } }
#pragma once

#include <cstdint>
#include <fstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/file.h"

namespace distil_xlstm::train {

// CRC-32C (Castagnoli) of the bytes, and TensorFlow's masked form of it.
uint32_t crc32c(std::string_view bytes);
uint32_t masked_crc32c(std::string_view bytes);

class EventWriter {
 public:
  // Goes on with `path` where it exists, else begins it. Throws IoError.
  explicit EventWriter(const fs::path& path);
  // One event with all scalars of a step, flushed; values that are not finite are left out.
  void write_scalars(int64_t step, const std::vector<std::pair<std::string, double>>& scalars);

 private:
  void write_record(const std::string& message);

  fs::path path_;
  std::ofstream stream_;
};

// "events.out.tfevents.1700000000.distil-xlstm": TensorBoard looks for the word tfevents.
std::string event_file_name();

}  // namespace distil_xlstm::train
