#include "data/parquet_library.h"

#include <dlfcn.h>

#include <string>
#include <type_traits>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/text.h"

namespace distil_xlstm::data {

namespace {

constexpr const char* kLibrary = "libdistil_xlstm_parquet.so";

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

}  // namespace

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
    find(found.column_type, "dx_parquet_column_type");
    find(found.select, "dx_parquet_select");
    find(found.next, "dx_parquet_next");
    find(found.value, "dx_parquet_value");
    find(found.num_rows, "dx_parquet_num_rows");
    return found;
  }();
  return library;
}

}  // namespace distil_xlstm::data
