#include "cli/compute_commands.h"

#include <dlfcn.h>

#include <array>
#include <cstdlib>

#include "base/error.h"
#include "base/file.h"

namespace distil_xlstm::cli {
namespace {

constexpr const char* kLibrary = "libdistil_xlstm_commands.so";

// At a barrier libgomp's threads spin 300 000 times by default before they sleep. When another program wants a core, the thread that all
// wait for is the one that does not run, and the others burn its time (docs/kernels/cpu_step.md, "Beside other programs"). Who sets either
// variable has decided.
void limit_spinning() {
  if (std::getenv("OMP_WAIT_POLICY") == nullptr) ::setenv("GOMP_SPINCOUNT", "1000", /*overwrite=*/0);
}

const ComputeCommands* open_commands() {
  limit_spinning();
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error).parent_path();
  for (const fs::path& folder : {program, program / ".." / "lib"}) {
    const fs::path path = folder / kLibrary;
    if (!fs::exists(path, error)) continue;
    void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL);
    if (library == nullptr) throw IoError("{}: {}", path.string(), ::dlerror());
    const auto commands = reinterpret_cast<ComputeCommandsOf>(::dlsym(library, kComputeCommandsSymbol));
    const ComputeCommands* found = commands == nullptr ? nullptr : commands(DX_COMPUTE_INTERFACE);
    if (found == nullptr) throw IoError("{}: built from other sources than the program: run 'make build'", path.string());
    return found;
  }
  throw IoError("{} is not beside the program, {}: copy both", kLibrary, program.string());
}

}  // namespace

const ComputeCommands& compute_commands() {
  static const ComputeCommands* commands = open_commands();
  return *commands;
}

}  // namespace distil_xlstm::cli
