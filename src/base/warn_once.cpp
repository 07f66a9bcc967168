#include "base/warn_once.h"

#include <spdlog/spdlog.h>

#include <mutex>
#include <set>

namespace distil_xlstm {

void warn_once(const std::string& message) {
  static std::mutex mutex;
  static std::set<std::string> warned;
  const std::lock_guard lock(mutex);
  if (warned.insert(message).second) spdlog::warn("{}", message);
}

}  // namespace distil_xlstm
