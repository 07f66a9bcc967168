#include "teacher/fingerprint.h"

#include <ATen/Parallel.h>

#include <algorithm>

#include "base/hash.h"
#include "teacher/config.h"

namespace distil_xlstm::teacher {

json computing_config(const json& config) {
  nlohmann::json sorted = nlohmann::json::object();
  for (const auto& [key, value] : config.items()) {
    if (!is_harmless_key(key) && !value.is_null()) sorted[key] = nlohmann::json::parse(value.dump());
  }
  return json::parse(sorted.dump());
}

std::string weights_fingerprint(const io::WeightSource& weights) {
  constexpr size_t kPieceBytes = size_t{16} << 20;  // so that threads share a large matrix
  std::vector<std::string> names = weights.names();
  std::sort(names.begin(), names.end());
  std::vector<std::span<const std::byte>> pieces;
  std::string summary;
  for (const std::string& name : names) {
    const io::TensorView view = weights.view(name);
    summary += fmt::format("{} {} [{}] {}\n", name, io::traits(view.dtype).name, fmt::join(view.shape, ", "), view.bytes.size());
    for (size_t at = 0; at < view.bytes.size(); at += kPieceBytes)
      pieces.push_back(view.bytes.subspan(at, std::min(kPieceBytes, view.bytes.size() - at)));
  }
  std::vector<uint64_t> hashes(pieces.size());
  at::parallel_for(0, static_cast<int64_t>(pieces.size()), 1, [&](int64_t begin, int64_t end) {
    for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) hashes[i] = xxh3_64(pieces[i]);
  });
  const auto bytes = std::as_bytes(std::span(hashes));
  return xxh3_128_hex(summary.append(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

}  // namespace distil_xlstm::teacher
