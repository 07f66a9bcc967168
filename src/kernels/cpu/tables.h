// The tables of kernels, one per instruction set that this build knows.
#pragma once

#include <utility>

#include "kernels/cpu/kernels.h"
#include "kernels/mlstm_constants.h"

namespace distil_xlstm::kernels {

struct CpuKernelTables {
  CpuKernels<float> single;
  CpuKernels<double> wide;
};

extern const CpuKernelTables kBaselineTables;
#if defined(__x86_64__)
extern const CpuKernelTables kAvx2Tables;
extern const CpuKernelTables kAvx512Tables;
#endif

}  // namespace distil_xlstm::kernels
