#include "io/gguf.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "base/foreign_content.h"
#include "base/text.h"

namespace distil_xlstm::io {
namespace {

// GGUF's numbers for the types of metadata values.
enum class ValueType : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

// GGUF's numbers for the types of tensors, with those that exist but are not read, so that a message can name them.
struct TensorType {
  uint32_t number;
  std::string_view name;
  std::optional<DType> dtype;
};
constexpr std::array<TensorType, 36> kTensorTypes = {{
    {0, "F32", DType::f32},      {1, "F16", DType::f16},      {2, "Q4_0", DType::q4_0},  {3, "Q4_1", DType::q4_1},
    {6, "Q5_0", DType::q5_0},    {7, "Q5_1", DType::q5_1},    {8, "Q8_0", DType::q8_0},  {9, "Q8_1", std::nullopt},
    {10, "Q2_K", std::nullopt},  {11, "Q3_K", std::nullopt},  {12, "Q4_K", DType::q4_k}, {13, "Q5_K", DType::q5_k},
    {14, "Q6_K", DType::q6_k},   {15, "Q8_K", std::nullopt},  {16, "IQ2_XXS", {}},       {17, "IQ2_XS", {}},
    {18, "IQ3_XXS", {}},         {19, "IQ1_S", std::nullopt}, {20, "IQ4_NL", {}},        {21, "IQ3_S", {}},
    {22, "IQ2_S", std::nullopt}, {23, "IQ4_XS", {}},          {24, "I8", DType::i8},     {25, "I16", DType::i16},
    {26, "I32", DType::i32},     {27, "I64", DType::i64},     {28, "F64", DType::f64},   {29, "IQ1_M", {}},
    {30, "BF16", DType::bf16},   {31, "Q4_0_4_4", {}},        {32, "Q4_0_4_8", {}},      {33, "Q4_0_8_8", {}},
    {34, "TQ1_0", std::nullopt}, {35, "TQ2_0", {}},           {39, "MXFP4", {}},         {40, "NVFP4", {}},
}};

constexpr size_t kMaxDimensions = 4;

// Reads the header from front to back, never past the end of the file.
class Cursor {
 public:
  Cursor(std::span<const std::byte> bytes, std::string file) : bytes_(bytes), file_(std::move(file)) {}

  [[nodiscard]] size_t position() const { return at_; }
  [[nodiscard]] const std::string& file() const { return file_; }

  template <typename T>
  T number() {
    T value;
    std::memcpy(&value, take(sizeof(T)), sizeof(T));
    return value;
  }

  std::string text() {
    const auto length = number<uint64_t>();
    const auto* start = reinterpret_cast<const char*>(take(length));
    return {start, static_cast<size_t>(length)};
  }

  // Names and keys end up in messages and JSON.
  std::string utf8_text(std::string_view what) {
    std::string result = text();
    if (valid_utf8_prefix(result) != result.size())
      throw DataError("{}: {} before byte {} is not UTF-8: the file is corrupt", file_, what, at_);
    return result;
  }

  // That `count` items of at least `item_bytes` can follow at all.
  void expect_items(uint64_t count, size_t item_bytes) const {
    if (count > (bytes_.size() - at_) / item_bytes) throw_short();
  }

 private:
  const std::byte* take(uint64_t size) {
    if (size > bytes_.size() - at_) throw_short();
    const std::byte* start = bytes_.data() + at_;
    at_ += static_cast<size_t>(size);
    return start;
  }
  [[noreturn]] void throw_short() const {
    throw DataError("{}: the header goes on after the file's {} bytes (at byte {}): the download is incomplete", file_, bytes_.size(), at_);
  }

  std::span<const std::byte> bytes_;
  std::string file_;
  size_t at_ = 0;
};

template <typename Stored, typename Value>
std::vector<Value> read_numbers(Cursor& cursor, uint64_t count) {
  cursor.expect_items(count, sizeof(Stored));
  std::vector<Value> values(count);
  for (Value& value : values) value = static_cast<Value>(cursor.number<Stored>());  // NOLINT(bugprone-signed-char-misuse): int8 is a number
  return values;
}

GgufValue read_array(Cursor& cursor, const std::string& key) {
  const auto type = static_cast<ValueType>(cursor.number<uint32_t>());
  const auto count = cursor.number<uint64_t>();
  switch (type) {
    case ValueType::boolean:
    case ValueType::u8:
      return read_numbers<uint8_t, int64_t>(cursor, count);
    case ValueType::i8:
      return read_numbers<int8_t, int64_t>(cursor, count);
    case ValueType::u16:
      return read_numbers<uint16_t, int64_t>(cursor, count);
    case ValueType::i16:
      return read_numbers<int16_t, int64_t>(cursor, count);
    case ValueType::u32:
      return read_numbers<uint32_t, int64_t>(cursor, count);
    case ValueType::i32:
      return read_numbers<int32_t, int64_t>(cursor, count);
    case ValueType::u64:
      return read_numbers<uint64_t, double>(cursor, count);
    case ValueType::i64:
      return read_numbers<int64_t, int64_t>(cursor, count);
    case ValueType::f32:
      return read_numbers<float, double>(cursor, count);
    case ValueType::f64:
      return read_numbers<double, double>(cursor, count);
    case ValueType::string: {
      cursor.expect_items(count, sizeof(uint64_t));
      std::vector<std::string> values(count);
      for (std::string& value : values) value = cursor.text();
      return values;
    }
    default:
      throw DataError("{}: metadata key '{}' is an array of type {}, which is not read", cursor.file(), key, static_cast<uint32_t>(type));
  }
}

// The double that prints as the float does.
double shortest(float value) {
  return std::strtod(fmt::format("{}", value).c_str(), nullptr);
}

GgufValue unsigned_value(uint64_t value) {
  if (value > static_cast<uint64_t>(INT64_MAX)) return static_cast<double>(value);
  return static_cast<int64_t>(value);
}

GgufValue read_value(Cursor& cursor, const std::string& key) {
  const auto type = static_cast<ValueType>(cursor.number<uint32_t>());
  switch (type) {
    case ValueType::u8:
      return int64_t{cursor.number<uint8_t>()};
    case ValueType::i8:
      return int64_t{cursor.number<int8_t>()};
    case ValueType::u16:
      return int64_t{cursor.number<uint16_t>()};
    case ValueType::i16:
      return int64_t{cursor.number<int16_t>()};
    case ValueType::u32:
      return int64_t{cursor.number<uint32_t>()};
    case ValueType::i32:
      return int64_t{cursor.number<int32_t>()};
    case ValueType::u64:
      return unsigned_value(cursor.number<uint64_t>());
    case ValueType::i64:
      return cursor.number<int64_t>();
    case ValueType::f32:
      return shortest(cursor.number<float>());
    case ValueType::f64:
      return cursor.number<double>();
    case ValueType::boolean:
      return cursor.number<uint8_t>() != 0;
    case ValueType::string:
      return cursor.text();
    case ValueType::array:
      return read_array(cursor, key);
  }
  throw DataError("{}: metadata key '{}' has the unknown type {}: the file is corrupt", cursor.file(), key, static_cast<uint32_t>(type));
}

DType read_tensor_type(Cursor& cursor, const std::string& tensor) {
  const auto number = cursor.number<uint32_t>();
  std::string name = fmt::format("number {}", number);
  std::vector<std::string> readable;
  for (const TensorType& type : kTensorTypes) {
    if (type.number == number && type.dtype) return *type.dtype;
    if (type.number == number) name = type.name;
    if (type.dtype) readable.emplace_back(type.name);
  }
  throw DataError("{}: tensor '{}' has type {}, which is not supported: {} are", cursor.file(), tensor, name, join(readable, ", "));
}

struct Entry {
  TensorView tensor;
  uint64_t offset = 0;
  size_t size_bytes = 0;
};

Entry read_entry(Cursor& cursor) {
  Entry entry;
  entry.tensor.name = cursor.utf8_text("a tensor's name");
  const std::string where = fmt::format("{}: tensor '{}'", cursor.file(), entry.tensor.name);
  const auto num_dimensions = cursor.number<uint32_t>();
  if (num_dimensions == 0 || num_dimensions > kMaxDimensions) {
    throw DataError("{} has {} dimensions, 1 to {} are possible: the file is corrupt", where, num_dimensions, kMaxDimensions);
  }
  entry.tensor.shape.resize(num_dimensions);
  for (size_t i = num_dimensions; i-- > 0;) entry.tensor.shape[i] = cursor.number<int64_t>();
  entry.tensor.dtype = read_tensor_type(cursor, entry.tensor.name);
  const size_t elements = checked_elements(entry.tensor.shape, where);
  const DTypeTraits type = traits(entry.tensor.dtype);
  if (const int64_t row = entry.tensor.shape.back(); row % static_cast<int64_t>(type.block_elements) != 0) {
    throw DataError("{}: rows of {} do not divide into {}'s blocks of {}", where, row, type.name, type.block_elements);
  }
  entry.size_bytes = storage_bytes(entry.tensor.dtype, elements);
  entry.offset = cursor.number<uint64_t>();
  return entry;
}

struct Counts {
  uint64_t tensors, pairs;
};

Counts read_counts(Cursor& cursor, std::string_view content) {
  throw_if_foreign(content, cursor.file(), ContentKind::binary);
  if (cursor.number<uint32_t>() != 0x46554747U) throw DataError("{}: does not begin with 'GGUF': this is not a GGUF file", cursor.file());
  const auto version = cursor.number<uint32_t>();
  if ((version & 0xffffU) == 0 && version != 0) throw DataError("{}: a big-endian GGUF file, which is not supported", cursor.file());
  if (version != 2 && version != 3) throw DataError("{}: GGUF version {}, which is not supported: 2 and 3 are", cursor.file(), version);
  const auto tensors = cursor.number<uint64_t>();
  const auto pairs = cursor.number<uint64_t>();
  return {tensors, pairs};
}

uint64_t align_up(uint64_t value, uint64_t alignment) {
  return (value + alignment - 1) / alignment * alignment;
}

}  // namespace

GgufFile::GgufFile(const fs::path& path) : file_(path) {
  const std::span<const std::byte> bytes = file_.bytes();
  const std::string name = path.string();
  Cursor cursor(bytes, name);
  const Counts counts = read_counts(cursor, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  for (uint64_t i = 0; i < counts.pairs; ++i) {
    const std::string key = cursor.utf8_text("a metadata key");
    if (!metadata_.emplace(key, read_value(cursor, key)).second) throw DataError("{}: metadata key '{}' is there twice", name, key);
  }
  const int64_t alignment = get_or<int64_t>("general.alignment", 32);
  if (alignment < 8 || alignment % 8 != 0 || alignment > (1 << 20))
    throw DataError("{}: general.alignment is {}, which is no alignment", name, alignment);
  std::vector<Entry> entries;
  entries.reserve(std::min<uint64_t>(counts.tensors, 4096));  // the number is not to be trusted yet
  for (uint64_t i = 0; i < counts.tensors; ++i) entries.push_back(read_entry(cursor));

  // Offsets are known in advance: each tensor follows the one before it.
  const uint64_t data_begin = align_up(cursor.position(), static_cast<uint64_t>(alignment));
  uint64_t expected = 0;
  for (Entry& entry : entries) {
    if (entry.offset != expected) {
      throw DataError("{}: tensor '{}': its data begin at {}, where {} is expected: the file is corrupt", name, entry.tensor.name,
                      entry.offset, expected);
    }
    const uint64_t end = data_begin + expected + entry.size_bytes;
    if (end > bytes.size()) {
      throw DataError("{}: tensor '{}' ends at byte {}, the file has {}: the download is incomplete", name, entry.tensor.name, end,
                      bytes.size());
    }
    entry.tensor.bytes = bytes.subspan(data_begin + expected, entry.size_bytes);
    expected = align_up(expected + entry.size_bytes, static_cast<uint64_t>(alignment));
    if (!index_.emplace(entry.tensor.name, tensors_.size()).second)
      throw DataError("{}: tensor '{}' is there twice", name, entry.tensor.name);
    tensors_.push_back(std::move(entry.tensor));
  }
}

const TensorView* GgufFile::find(std::string_view name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &tensors_[it->second];
}

void GgufFile::throw_wrong_type(std::string_view key) const {
  throw DataError("{}: metadata key '{}' has another type than it should", path().string(), key);
}

void GgufFile::throw_missing(std::string_view key) const {
  throw DataError("{}: metadata key '{}' is missing", path().string(), key);
}

}  // namespace distil_xlstm::io
