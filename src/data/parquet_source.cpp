// Rows of a Parquet file, through a shared library that is opened on first use: most runs never need Arrow.
#include <dlfcn.h>

#include <array>
#include <optional>

#include "base/error.h"
#include "base/foreign_content.h"
#include "base/text.h"
#include "data/plugin/parquet_plugin.h"
#include "data/row_keys.h"
#include "data/text_reader.h"

namespace distil_xlstm::data {

namespace {

constexpr const char* kLibrary = "libdistil_xlstm_parquet.so";

// The functions of the library.
struct ParquetLibrary {
  decltype(&dx_parquet_open) open;
  decltype(&dx_parquet_close) close;
  decltype(&dx_parquet_column_kind) column_kind;
  decltype(&dx_parquet_select) select;
  decltype(&dx_parquet_next) next;
  decltype(&dx_parquet_value) value;
  decltype(&dx_parquet_num_rows) num_rows;
};

void* open_library() {
  std::error_code error;
  const fs::path directory = fs::read_symlink("/proc/self/exe", error).parent_path();
  std::vector<std::string> tried;
  for (const auto& path : {directory / kLibrary, directory.parent_path() / kLibrary, directory.parent_path() / "lib" / kLibrary}) {
    if (!fs::exists(path)) {
      tried.push_back(path.string());
      continue;
    }
    void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) throw IoError("{}: cannot be loaded, so Parquet files cannot be read: {}", path.string(), ::dlerror());
    return library;
  }
  throw IoError(
      "Parquet files need {}, which is not beside the program (looked for {}): build it with pyarrow in the environment, or "
      "convert the files to JSONL",
      kLibrary, join(tried, ", "));
}

const ParquetLibrary& parquet_library() {
  static const ParquetLibrary library = [] {
    void* handle = open_library();
    const auto find = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(::dlsym(handle, name));
      if (function == nullptr) throw IoError("{}: no function {}: it belongs to another version of the program", kLibrary, name);
    };
    ParquetLibrary found{};
    find(found.open, "dx_parquet_open");
    find(found.close, "dx_parquet_close");
    find(found.column_kind, "dx_parquet_column_kind");
    find(found.select, "dx_parquet_select");
    find(found.next, "dx_parquet_next");
    find(found.value, "dx_parquet_value");
    find(found.num_rows, "dx_parquet_num_rows");
    return found;
  }();
  return library;
}

class ParquetSource : public RowSource {
 public:
  ParquetSource(const fs::path& path, const ReaderOptions& options)
      : path_(path), policy_(options.bad_rows), library_(parquet_library()), size_bytes_(fs::file_size(path)) {
    file_.reset(library_.open(path.c_str(), message_.data(), message_.size()));
    if (!file_) {
      throw_if_foreign(read_beginning(path), path.string(), ContentKind::binary);
      fail();
    }
    choose_columns(options);
    select(0);
  }

  bool next(Document& document, RowStatus& status, std::string& problem) override {
    if (row_ == num_rows_ && !read_batch()) return false;
    const int64_t row = row_++;
    status = RowStatus::ok;
    std::array<std::string, 3> values;
    for (size_t i = 0; i < columns_.size(); ++i) {
      size_t size = 0;
      const char* value = library_.value(file_.get(), i, row, &size);
      if (value == nullptr && i < 2) {
        status = RowStatus::malformed;
        problem = fmt::format("'{}' is null", columns_[i]);
        return true;
      }
      if (value != nullptr) values[i].assign(value, size);
      const RowStatus utf8 = check_utf8(values[i], policy_, problem);
      if (utf8 != RowStatus::ok) status = utf8;
    }
    if (is_chat_) {
      add_turn(std::move(values[0]), values[2], std::move(values[1]), document.messages);
    } else {
      document.text = std::move(values[0]);
    }
    return true;
  }

  void skip(uint64_t num_rows) override {
    if (num_rows > 0) select(static_cast<int64_t>(num_rows));
  }
  // By rows: what Arrow has read of the file is not known.
  [[nodiscard]] uint64_t bytes_done() const override {
    const double share =
        static_cast<double>(rows_before_ + row_) / static_cast<double>(std::max<int64_t>(1, library_.num_rows(file_.get())));
    return static_cast<uint64_t>(share * static_cast<double>(size_bytes_));
  }

 private:
  [[noreturn]] void fail() const { throw DataError("{}: cannot read it as Parquet: {}", path_.string(), message_.data()); }

  void choose_columns(const ReaderOptions& options) {
    const auto kind = [&](const std::string& name) { return library_.column_kind(file_.get(), name.c_str()); };
    if (options.rows != RowKind::chat && kind(options.text_key) == 1) {
      columns_ = {options.text_key};
      return;
    }
    for (const auto& keys : prompt_answer_keys(options)) {
      if (options.rows == RowKind::text || kind(keys.prompt) != 1 || kind(keys.answer) != 1) continue;
      is_chat_ = true;
      columns_ = {keys.prompt, keys.answer};
      if (!keys.input.empty() && kind(keys.input) == 1) columns_.push_back(keys.input);
      return;
    }
    if (options.rows != RowKind::chat && kind(options.text_key) == 2) {
      throw DataError("{}: column '{}' holds no strings", path_.string(), options.text_key);
    }
    throw DataError("{}: no column of strings '{}' (--text-key names another) and no {}", path_.string(), options.text_key,
                    conversation_keys(options));
  }

  void select(int64_t first_row) {
    std::vector<const char*> names;
    for (const auto& column : columns_) names.push_back(column.c_str());
    if (library_.select(file_.get(), names.data(), names.size(), first_row, message_.data(), message_.size()) != 0) fail();
    rows_before_ = first_row;
    row_ = num_rows_ = 0;
  }

  bool read_batch() {
    rows_before_ += num_rows_;
    row_ = 0;
    num_rows_ = library_.next(file_.get(), message_.data(), message_.size());
    if (num_rows_ < 0) fail();
    return num_rows_ > 0;
  }

  struct Close {
    void operator()(DxParquet* file) const { parquet_library().close(file); }
  };

  fs::path path_;
  BadRowPolicy policy_;
  const ParquetLibrary& library_;
  uint64_t size_bytes_;
  std::array<char, 1024> message_{};
  std::unique_ptr<DxParquet, Close> file_;
  std::vector<std::string> columns_;
  bool is_chat_ = false;
  int64_t rows_before_ = 0;  // before the batch at hand
  int64_t row_ = 0;          // in it
  int64_t num_rows_ = 0;     // of it
};

}  // namespace

std::unique_ptr<RowSource> open_parquet_source(const fs::path& path, const ReaderOptions& options) {
  return std::make_unique<ParquetSource>(path, options);
}

}  // namespace distil_xlstm::data
