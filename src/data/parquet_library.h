// The shared library that holds all that needs Arrow, opened on first use: most runs never need it.
#pragma once

#include "data/plugin/parquet_plugin.h"

namespace distil_xlstm::data {

// Its functions.
struct ParquetLibrary {
  decltype(&dx_parquet_open) open;
  decltype(&dx_parquet_close) close;
  decltype(&dx_parquet_column_kind) column_kind;
  decltype(&dx_parquet_column_type) column_type;
  decltype(&dx_parquet_select) select;
  decltype(&dx_parquet_next) next;
  decltype(&dx_parquet_value) value;
  decltype(&dx_parquet_num_rows) num_rows;
};

// Throws IoError that says where it was looked for, or why it cannot be loaded.
const ParquetLibrary& parquet_library();

struct CloseParquet {
  void operator()(DxParquet* file) const { parquet_library().close(file); }
};

enum class ColumnKind { none, text, nested, other };  // as the library numbers them

}  // namespace distil_xlstm::data
