// A file's bytes as UTF-8 text: told at once when it is something else, so that no row of it is read as garbage.
#pragma once

#include <memory>
#include <string>

#include "data/byte_stream.h"

namespace distil_xlstm::data {

struct TextStream {
  std::unique_ptr<ByteStream> bytes;  // decompressed, without a byte order mark
  std::string head;                   // how they begin
};

// Throws DataError that names what the file holds: UTF-16 or UTF-32, another compression, Parquet.
TextStream open_text_stream(const fs::path& path);

}  // namespace distil_xlstm::data
