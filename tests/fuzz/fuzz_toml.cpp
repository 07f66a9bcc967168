// A run file as it stands, and its first line as what --set gives.
#include "config/toml.h"
#include "fuzz/fuzz_target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace distil_xlstm;
  const std::string text(reinterpret_cast<const char*>(data), size);
  fuzz::tolerate([&] {
    const auto loaded = config::load_config_text(text, "run.toml");
    const std::string written = config::to_toml(loaded.run);
    if (config::to_toml(config::load_config_text(written, "run.toml").run) != written) __builtin_trap();  // reads back as it is
  });
  fuzz::tolerate([&] { (void)config::load_config_text("", "run.toml", {config::parse_override(text.substr(0, text.find('\n')))}); });
  return 0;
}
