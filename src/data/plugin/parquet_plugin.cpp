// Arrow's Parquet reader behind the C interface in parquet_plugin.h.
#include "data/plugin/parquet_plugin.h"

#include <arrow/array.h>
#include <arrow/extension_type.h>
#include <arrow/record_batch.h>
#include <arrow/scalar.h>
#include <arrow/type.h>
#include <arrow/type_traits.h>
#include <parquet/arrow/reader.h>
#include <parquet/file_reader.h>
#include <parquet/metadata.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

struct DxParquet {
  std::unique_ptr<parquet::arrow::FileReader> reader;
  std::shared_ptr<arrow::Schema> schema;
  std::vector<int> columns;  // leaf columns, as asked for
  std::vector<std::string> names;
  std::unique_ptr<arrow::RecordBatchReader> batches;
  std::shared_ptr<arrow::RecordBatch> batch;
  int64_t rows_to_drop = 0;  // of the first row group read
  std::string json;          // of the value given last
  std::string type;          // asked for last
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
  switch (type.id()) {
    case arrow::Type::STRING:
    case arrow::Type::LARGE_STRING:
    case arrow::Type::STRING_VIEW:
    case arrow::Type::BINARY:
    case arrow::Type::LARGE_BINARY:
    case arrow::Type::BINARY_VIEW:
      return true;
    case arrow::Type::DICTIONARY:
      return is_text(*static_cast<const arrow::DictionaryType&>(type).value_type());
    case arrow::Type::EXTENSION:
      return is_text(*static_cast<const arrow::ExtensionType&>(type).storage_type());
    default:
      return false;
  }
}

bool is_list_or_struct(const arrow::DataType& type) {
  switch (type.id()) {
    case arrow::Type::LIST:
    case arrow::Type::LARGE_LIST:
    case arrow::Type::FIXED_SIZE_LIST:
    case arrow::Type::STRUCT:
      return true;
    default:
      return false;
  }
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
  const auto is_wanted = [&](const std::string& name) { return std::ranges::find(file->names, name) != file->names.end(); };
  for (int leaf = 0; leaf < metadata->num_columns(); ++leaf) {
    if (is_wanted(metadata->schema()->Column(leaf)->path()->ToDotVector().front())) file->columns.push_back(leaf);
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
std::string_view view(const arrow::Array& array, int64_t row) {
  return static_cast<const Array&>(array).GetView(row);
}

// A string where it lies; the array is of a type that is_text() names.
std::string_view text_of(const arrow::Array& array, int64_t row) {
  switch (array.type_id()) {
    case arrow::Type::LARGE_STRING:
    case arrow::Type::LARGE_BINARY:
      return view<arrow::LargeBinaryArray>(array, row);
    case arrow::Type::STRING_VIEW:
    case arrow::Type::BINARY_VIEW:
      return view<arrow::BinaryViewArray>(array, row);
    case arrow::Type::DICTIONARY: {
      const auto& dictionary = static_cast<const arrow::DictionaryArray&>(array);
      return text_of(*dictionary.dictionary(), dictionary.GetValueIndex(row));
    }
    case arrow::Type::EXTENSION:
      return text_of(*static_cast<const arrow::ExtensionArray&>(array).storage(), row);
    default:
      return view<arrow::BinaryArray>(array, row);
  }
}

bool is_null(const arrow::Array& array, int64_t row) {
  if (array.type_id() == arrow::Type::DICTIONARY && !array.IsNull(row)) {
    const auto& dictionary = static_cast<const arrow::DictionaryArray&>(array);
    return dictionary.dictionary()->IsNull(dictionary.GetValueIndex(row));
  }
  return array.IsNull(row);
}

void write_text(std::string& out, std::string_view text) {
  constexpr const char* kDigits = "0123456789abcdef";
  out += '"';
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20) {
      out += "\\u00";
      out += kDigits[byte >> 4];
      out += kDigits[byte & 15];
    } else {
      out += c;
    }
  }
  out += '"';
}

void write_value(std::string& out, const arrow::Array& array, int64_t row, int depth);

void write_list(std::string& out, const arrow::Array& items, int depth) {
  out += '[';
  for (int64_t i = 0; i < items.length(); ++i) {
    if (i > 0) out += ',';
    write_value(out, items, i, depth);
  }
  out += ']';
}

void write_struct(std::string& out, const arrow::StructArray& array, int64_t row, int depth) {
  out += '{';
  for (int i = 0; i < array.num_fields(); ++i) {
    if (i > 0) out += ',';
    write_text(out, array.struct_type()->field(i)->name());
    out += ':';
    write_value(out, *array.field(i), row, depth);
  }
  out += '}';
}

void write_scalar(std::string& out, const arrow::Scalar& scalar) {
  std::string text = scalar.ToString();
  const auto id = scalar.type->id();
  if (arrow::is_floating(id)) {
    const bool is_finite = text.find_first_not_of("+-.0123456789eE") == std::string::npos;
    if (text.find_first_of(".eE") == std::string::npos) text += ".0";  // as Python writes it: a template may
    out += is_finite ? text : "null";
  } else if (arrow::is_integer(id) || id == arrow::Type::BOOL) {
    out += text;
  } else {
    write_text(out, text);
  }
}

// As JSON: numbers and truth as they are, what JSON has no word for (dates, decimals) as a string.
void write_value(std::string& out, const arrow::Array& array, int64_t row, int depth) {
  constexpr int kMaxDepth = 100;
  if (depth > kMaxDepth) throw std::runtime_error("nested more than 100 levels deep");
  if (is_null(array, row)) {
    out += "null";
  } else if (is_text(*array.type())) {
    write_text(out, text_of(array, row));
  } else if (array.type_id() == arrow::Type::LIST) {
    write_list(out, *static_cast<const arrow::ListArray&>(array).value_slice(row), depth + 1);
  } else if (array.type_id() == arrow::Type::LARGE_LIST) {
    write_list(out, *static_cast<const arrow::LargeListArray&>(array).value_slice(row), depth + 1);
  } else if (array.type_id() == arrow::Type::FIXED_SIZE_LIST) {
    write_list(out, *static_cast<const arrow::FixedSizeListArray&>(array).value_slice(row), depth + 1);
  } else if (array.type_id() == arrow::Type::STRUCT) {
    write_struct(out, static_cast<const arrow::StructArray&>(array), row, depth + 1);
  } else {
    write_scalar(out, *take(array.GetScalar(row)));
  }
}

const char* value(DxParquet* file, size_t column, int64_t row, size_t* size) {
  const auto array = file->batch->GetColumnByName(file->names[column]);
  if (!array || is_null(*array, row)) return nullptr;
  std::string_view text;
  if (is_text(*array->type())) {
    text = text_of(*array, row);
  } else {
    file->json.clear();
    write_value(file->json, *array, row, 0);
    text = file->json;
  }
  *size = text.size();
  return text.data() != nullptr ? text.data() : "";
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
  if (is_text(*field->type())) return 1;
  return is_list_or_struct(*field->type()) ? 2 : 3;
}

const char* dx_parquet_column_type(DxParquet* file, const char* name) {
  const auto field = file->schema->GetFieldByName(name);
  file->type = field ? field->type()->ToString() : "";
  return file->type.c_str();
}

int dx_parquet_select(DxParquet* file, const char* const* names, size_t num_names, int64_t first_row, char* message, size_t message_size) {
  return guarded([&] { return select(file, names, num_names, first_row); }, -1, message, message_size);
}

int64_t dx_parquet_next(DxParquet* file, char* message, size_t message_size) {
  return guarded([&] { return next(file); }, int64_t{-1}, message, message_size);
}

const char* dx_parquet_value(DxParquet* file, size_t column, int64_t row, size_t* size, char* message, size_t message_size) {
  *size = 0;
  if (message_size > 0) message[0] = 0;
  return guarded([&] { return value(file, column, row, size); }, static_cast<const char*>(nullptr), message, message_size);
}

int64_t dx_parquet_num_rows(DxParquet* file) {
  return file->reader->parquet_reader()->metadata()->num_rows();
}

}  // extern "C"
