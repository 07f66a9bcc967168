// Arrow's Parquet reader behind the C interface in parquet_plugin.h.
#include "data/plugin/parquet_plugin.h"

#include <arrow/array.h>
#include <arrow/record_batch.h>
#include <arrow/type.h>
#include <parquet/arrow/reader.h>
#include <parquet/file_reader.h>
#include <parquet/metadata.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

struct DxParquet {
  std::unique_ptr<parquet::arrow::FileReader> reader;
  std::shared_ptr<arrow::Schema> schema;
  std::vector<int> columns;  // leaf columns, as asked for
  std::vector<std::string> names;
  std::unique_ptr<arrow::RecordBatchReader> batches;
  std::shared_ptr<arrow::RecordBatch> batch;
  int64_t rows_to_drop = 0;  // of the first row group read
};

namespace {

constexpr int64_t kBatchRows = 256;

void check(const arrow::Status& status) {
  if (!status.ok()) throw std::runtime_error(status.ToString());
}

template <typename T>
T take(arrow::Result<T> result) {
  check(result.status());
  return std::move(result).ValueUnsafe();
}

// Runs `body`; what it throws becomes the message and `failed` the result.
template <typename Body, typename Result>
Result guarded(Body&& body, Result failed, char* message, size_t message_size) noexcept {
  try {
    return body();
  } catch (const std::exception& error) {
    if (message_size > 0) {
      std::strncpy(message, error.what(), message_size - 1);
      message[message_size - 1] = 0;
    }
  } catch (...) {
    if (message_size > 0) message[0] = 0;
  }
  return failed;
}

bool is_text(const arrow::DataType& type) {
  return type.id() == arrow::Type::STRING || type.id() == arrow::Type::LARGE_STRING || type.id() == arrow::Type::BINARY ||
         type.id() == arrow::Type::LARGE_BINARY;
}

DxParquet* open(const char* path) {
  auto file = std::make_unique<DxParquet>();
  parquet::ReaderProperties properties = parquet::default_reader_properties();
  properties.enable_buffered_stream();  // a page at a time instead of a whole column chunk
  properties.set_buffer_size(1 << 18);
  parquet::ArrowReaderProperties arrow_properties;
  arrow_properties.set_batch_size(kBatchRows);
  arrow_properties.set_pre_buffer(false);
  arrow_properties.set_use_threads(false);
  parquet::arrow::FileReaderBuilder builder;
  check(builder.OpenFile(path, false, properties));
  builder.properties(arrow_properties);
  file->reader = take(builder.Build());
  check(file->reader->GetSchema(&file->schema));
  return file.release();
}

int select(DxParquet* file, const char* const* names, size_t num_names, int64_t first_row) {
  const auto metadata = file->reader->parquet_reader()->metadata();
  file->columns.clear();
  file->names.assign(names, names + num_names);
  for (const auto& name : file->names) {
    const int leaf = metadata->schema()->ColumnIndex(name);
    if (leaf < 0) throw std::runtime_error("no column '" + name + "'");
    file->columns.push_back(leaf);
  }
  std::vector<int> groups;
  file->rows_to_drop = first_row;
  for (int group = 0; group < metadata->num_row_groups(); ++group) {
    const int64_t rows = metadata->RowGroup(group)->num_rows();
    if (groups.empty() && file->rows_to_drop >= rows) {
      file->rows_to_drop -= rows;
    } else {
      groups.push_back(group);
    }
  }
  file->batch.reset();
  file->batches.reset();
  if (!groups.empty()) file->batches = take(file->reader->GetRecordBatchReader(groups, file->columns));
  return 0;
}

int64_t next(DxParquet* file) {
  file->batch.reset();
  while (file->batches) {
    std::shared_ptr<arrow::RecordBatch> batch;
    check(file->batches->ReadNext(&batch));
    if (!batch) return 0;
    const int64_t dropped = std::min(file->rows_to_drop, batch->num_rows());
    file->rows_to_drop -= dropped;
    if (dropped == batch->num_rows()) continue;
    check(batch->Validate());
    file->batch = dropped > 0 ? batch->Slice(dropped) : batch;
    return file->batch->num_rows();
  }
  return 0;
}

template <typename Array>
const char* view(const arrow::Array& array, int64_t row, size_t* size) {
  const auto value = static_cast<const Array&>(array).GetView(row);
  *size = value.size();
  return value.data() != nullptr ? value.data() : "";
}

}  // namespace

extern "C" {

DxParquet* dx_parquet_open(const char* path, char* message, size_t message_size) {
  return guarded([&] { return open(path); }, static_cast<DxParquet*>(nullptr), message, message_size);
}

void dx_parquet_close(DxParquet* file) {
  delete file;
}

int dx_parquet_column_kind(DxParquet* file, const char* name) {
  const auto field = file->schema->GetFieldByName(name);
  if (!field) return 0;
  return is_text(*field->type()) ? 1 : 2;
}

int dx_parquet_select(DxParquet* file, const char* const* names, size_t num_names, int64_t first_row, char* message, size_t message_size) {
  return guarded([&] { return select(file, names, num_names, first_row); }, -1, message, message_size);
}

int64_t dx_parquet_next(DxParquet* file, char* message, size_t message_size) {
  return guarded([&] { return next(file); }, int64_t{-1}, message, message_size);
}

const char* dx_parquet_value(DxParquet* file, size_t column, int64_t row, size_t* size) {
  *size = 0;
  const auto array = file->batch->GetColumnByName(file->names[column]);
  if (!array || array->IsNull(row)) return nullptr;
  switch (array->type_id()) {
    case arrow::Type::STRING:
    case arrow::Type::BINARY:
      return view<arrow::BinaryArray>(*array, row, size);
    case arrow::Type::LARGE_STRING:
    case arrow::Type::LARGE_BINARY:
      return view<arrow::LargeBinaryArray>(*array, row, size);
    default:
      return nullptr;
  }
}

int64_t dx_parquet_num_rows(DxParquet* file) {
  return file->reader->parquet_reader()->metadata()->num_rows();
}

}  // extern "C"
