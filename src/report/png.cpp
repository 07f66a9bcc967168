#include <dlfcn.h>

#include "base/error.h"
#include "base/output_stream.h"
#include "base/temporary_path.h"
#include "report/figures.h"
#include "report/plugin/png_plugin.h"

namespace distil_xlstm::report {
namespace {

DrawPng open_plugin() {
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error).parent_path();
  std::string problem = "libdistil_xlstm_png.so is not beside the program";
  for (const fs::path& folder : {program, program / "..", program / ".." / "lib"}) {
    const fs::path library = folder / "libdistil_xlstm_png.so";
    if (!fs::exists(library)) continue;
    void* handle = ::dlopen(library.c_str(), RTLD_NOW);
    if (handle != nullptr) {
      if (void* symbol = ::dlsym(handle, kDrawPngSymbol); symbol != nullptr) return reinterpret_cast<DrawPng>(symbol);
    }
    problem = ::dlerror();
  }
  throw IoError("PNG figures need Cairo: {} (the HTML report does without)", problem);
}

}  // namespace

void write_png(const fs::path& path, const std::vector<Figure>& figures) {
  const DrawPng draw = open_plugin();
  std::vector<std::vector<PlotCurve>> curves;
  std::vector<std::vector<double>> smooth;
  std::vector<PlotFigure> plots;
  size_t num_curves = 0;
  for (const auto& figure : figures) num_curves += figure.curves.size();
  smooth.reserve(num_curves);
  curves.reserve(figures.size());
  for (const auto& figure : figures) {
    auto& list = curves.emplace_back();
    for (const auto& curve : figure.curves) {
      const double* line = nullptr;
      if (figure.is_smoothed) line = smooth.emplace_back(smoothed(curve.y)).data();
      list.push_back(
          {curve.name.c_str(), curve.x.data(), curve.y.data(), line, static_cast<int>(curve.y.size()), curve.run, curve.is_dashed ? 1 : 0});
    }
    plots.push_back({figure.title.c_str(), figure.x_label.c_str(), figure.y_label.c_str(), list.data(), static_cast<int>(list.size()),
                     figure.is_log ? 1 : 0});
  }
  std::error_code error;  // told by what follows
  if (path.has_parent_path()) fs::create_directories(path.parent_path(), error);
  // Beside /dev/stdout nothing can be made.
  const TemporaryPath staging(is_stream(path) ? fs::temp_directory_path() / "distil-xlstm.png" : path, TemporaryPath::Kind::file);
  if (const char* problem = draw(staging.path().c_str(), plots.data(), static_cast<int>(plots.size())); problem != nullptr) {
    throw IoError("{}: {}", path.string(), problem);
  }
  write_file_atomic(path, read_file(staging.path()));
}

}  // namespace distil_xlstm::report
