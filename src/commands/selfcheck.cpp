// distil-xlstm selfcheck: whether this machine computes what it should.
#include <ATen/core/Generator.h>

#include <chrono>

#include "base/error.h"
#include "base/log.h"
#include "base/text.h"
#include "cli/counted.h"
#include "cli/options/selfcheck.h"
#include "commands/compute.h"
#include "measure/selfcheck.h"
#include "ops/device.h"

namespace distil_xlstm::commands {

void run_selfcheck(const cli::SelfcheckOptions& options) {
  const at::Device device = ops::parse_device(options.device);
  at::manual_seed(static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count()));
  fmt::print("device {}\n", device.str());
  int failures = 0;
  const double begin = monotonic_seconds();
  for (const auto& check : measure::all_checks(device)) {
    const double error = check.error();
    const bool is_good = error <= check.bound;
    failures += is_good ? 0 : 1;
    fmt::print("{}  {:<58} error {:.1e}, at most {:.0e}\n", is_good ? "ok  " : "FAIL", check.name, error, check.bound);
  }
  fmt::print("{} in {}\n", failures == 0 ? "all good" : fmt::format("{} FAILED", failures), format_duration(monotonic_seconds() - begin));
  if (failures > 0)
    throw DeviceError("selfcheck: {} failed on {}: do not trust results of this machine; please report it", cli::counted(failures, "check"),
                      device.str());
}

}  // namespace distil_xlstm::commands
