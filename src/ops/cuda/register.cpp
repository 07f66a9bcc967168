// What the program calls when it opens this library.
#include <string_view>

#include "ops/cuda/glue.h"

// The program finds both by name (kCudaTargetsSymbol, kCudaRegisterSymbol).
extern "C" __attribute__((visibility("default"))) const char distil_xlstm_cuda_targets[] = DX_CUDA_TARGETS;

extern "C" __attribute__((visibility("default"))) bool distil_xlstm_register_kernels(distil_xlstm::ops::CudaBackend* table,
                                                                                     const char* interface) {
  using namespace distil_xlstm::ops;
  if (std::string_view(interface) != DX_CUDA_INTERFACE) return false;
  *table = {};
  for (const auto add : {register_blockdiag, register_causal_conv, register_delta_rule, register_fp8_rows, register_gate_parts,
                         register_gated, register_head_loss, register_layer_norm, register_mlstm_chunkwise, register_rms_norm,
                         register_rotary, register_slstm_scan, register_softmax_pair, register_state_sum, register_swiglu_product})
    add(*table);
  return true;
}
