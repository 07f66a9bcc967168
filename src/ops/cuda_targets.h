// Which GPUs a CUDA library serves, told from the list of architectures that it was compiled for.
#pragma once

#include <string>
#include <string_view>

namespace distil_xlstm::ops {

// Whether code for `targets` (CMake's CMAKE_CUDA_ARCHITECTURES, parted by commas: "80-real,90a-real,80-virtual"; without -real or -virtual
// an entry is both) runs on a GPU of this compute capability (90 for 9.0). Machine code (real) runs on the same major version from its
// minor one on (Jetson's 8.7 is not told apart), PTX (virtual) on all that are not older; with the suffix "a" either runs on that one
// version alone, with "f" on its major version. An entry without a number ("native", "all") tells nothing and counts as code for every GPU.
bool cuda_targets_cover(std::string_view targets, int capability);

// What to tell who computes on a GPU of this capability, which a library for `targets` has no code for.
std::string no_code_message(std::string_view targets, int capability);

// What the library exports: its list of architectures, a zero-terminated string.
inline constexpr const char* kCudaTargetsSymbol = "distil_xlstm_cuda_targets";

}  // namespace distil_xlstm::ops
