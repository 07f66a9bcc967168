#include "ops/cuda_backend.h"

namespace distil_xlstm::ops {

CudaBackend& cuda_backend() {
  static CudaBackend table;
  return table;
}

}  // namespace distil_xlstm::ops
