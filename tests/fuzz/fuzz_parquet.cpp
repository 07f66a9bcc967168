// A Parquet file as it stands; the mutator keeps its magic bytes and the length of its footer, so that what is between is reached.
#include <cstring>

#include "data/text_reader.h"
#include "fuzz/fuzz_target.h"

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  constexpr size_t kFrame = 4 + 8;  // "PAR1" first; the footer's length and "PAR1" last
  if (size < kFrame || seed % 8 == 0) return LLVMFuzzerMutate(data, size, max_size);
  uint32_t footer = 0;
  std::memcpy(&footer, data + size - 8, sizeof footer);
  const size_t inner = LLVMFuzzerMutate(data + 4, size - kFrame, max_size - kFrame);
  const auto grown = static_cast<int64_t>(inner) - static_cast<int64_t>(size - kFrame);
  if (seed % 2 == 0) footer = static_cast<uint32_t>(footer + grown);
  std::memcpy(data, "PAR1", 4);
  std::memcpy(data + 4 + inner, &footer, sizeof footer);
  std::memcpy(data + 8 + inner, "PAR1", 4);
  return inner + kFrame;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace distil_xlstm;
  static const fuzz::Folder folder;
  const fs::path path = folder.write("rows.parquet", {reinterpret_cast<const char*>(data), size});
  for (const auto kind : {data::RowKind::text, data::RowKind::chat}) {
    fuzz::tolerate([&] {
      data::ReaderOptions options;
      options.inputs = {path.string()};
      options.rows = kind;
      options.bad_rows = data::BadRowPolicy::replace;
      data::TextReader reader(options);
      data::Document document;
      for (int i = 0; i < 64 && reader.next(document); ++i) {
      }
    });
  }
  return 0;
}
