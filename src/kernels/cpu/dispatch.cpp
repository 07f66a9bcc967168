#include "kernels/cpu/tables.h"

namespace distil_xlstm::kernels {
namespace {

const CpuKernelTables& tables(InstructionSet set) {
  switch (set) {
#if defined(__x86_64__)
    case InstructionSet::avx512:
      return kAvx512Tables;
    case InstructionSet::avx2:
      return kAvx2Tables;
#endif
    default:
      return kBaselineTables;
  }
}

}  // namespace

std::vector<InstructionSet> supported_instruction_sets() {
  std::vector<InstructionSet> sets{InstructionSet::baseline};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    sets.push_back(InstructionSet::avx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      sets.push_back(InstructionSet::avx512);
    }
  }
#endif
  return sets;
}

InstructionSet best_instruction_set() {
  static const InstructionSet best = supported_instruction_sets().back();
  return best;
}

const char* name(InstructionSet set) {
  switch (set) {
    case InstructionSet::avx512:
      return "avx512";
    case InstructionSet::avx2:
      return "avx2";
    default:
      return "baseline";
  }
}

template <>
const CpuKernels<float>& cpu_kernels(InstructionSet set) {
  return tables(set).single;
}
template <>
const CpuKernels<double>& cpu_kernels(InstructionSet set) {
  return tables(set).wide;
}

template <typename T>
const CpuKernels<T>& cpu_kernels() {
  return cpu_kernels<T>(best_instruction_set());
}
template const CpuKernels<float>& cpu_kernels<float>();
template const CpuKernels<double>& cpu_kernels<double>();

}  // namespace distil_xlstm::kernels
