#include "kernels/cuda/delta_rule.h"

#include <algorithm>

#include "kernels/cuda/arena.h"
#include "kernels/cuda/delta_rule_readout.cuh"
#include "kernels/cuda/delta_rule_scan.cuh"
#include "kernels/cuda/delta_rule_scores.cuh"
#include "kernels/cuda/vector.cuh"

namespace distil_xlstm::kernels::cuda {
namespace {

template <typename T>
int64_t units(const Work<T>& w) {
  return int64_t(w.B) * w.H * w.N;
}

template <typename T>
Work<T> make_work(const DeltaRuleInputs& x) {
  Work<T> w{};
  w.B = x.B;
  w.S = x.S;
  w.H = x.H;
  w.K = x.K;
  w.V = x.V;
  w.N = (x.S + L - 1) / L;
  w.q_BSHK = static_cast<const T*>(x.q_BSHK);
  w.k_BSHK = static_cast<const T*>(x.k_BSHK);
  w.v_BSHV = static_cast<const T*>(x.v_BSHV);
  w.igate_BSH = x.igate_BSH;
  w.fgate_BSH = x.fgate_BSH;
  w.is_start_BS = x.is_start_BS;
  w.initial_cell_BHKV = x.initial_cell_BHKV;
  return w;
}

template <typename T>
void take_kept(Arena& arena, Work<T>& w) {
  const int64_t U = units(w);
  for (float** p : {&w.beta_UL, &w.entry_UL, &w.exit_UL, &w.decay_UL, &w.rest_UL}) arena.take(*p, U * L);
  arena.take(w.document_UL, U * L);
  arena.take(w.inverse_ULL, U * kTile);
  arena.take(w.scores_ULL, U * kTile);
  arena.take(w.writes_ULV, U * L * w.V);
  arena.take(w.cells_UKV, U * w.K * w.V);
}
template <typename T>
void take_gradients(Arena& arena, Work<T>& w) {
  arena.take(w.grad_writes_ULV, units(w) * L * w.V);
  arena.take(w.grad_cells_UKV, units(w) * w.K * w.V);
}

template <typename T>
cudaError_t launch(void (*kernel)(Work<T>), const Work<T>& w, int64_t blocks, int threads, int64_t shared_elements, cudaStream_t stream) {
  if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  const int shared_bytes = int(shared_elements * int64_t(sizeof(T)));
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error != cudaSuccess) return error;
  kernel<<<unsigned(blocks), threads, size_t(shared_bytes), stream>>>(w);
  return cudaGetLastError();
}

template <typename T>
int64_t value_tiles(const Work<T>& w) {
  return (w.V + L - 1) / L;
}

// Few key columns take few stages: more blocks fit.
template <typename T>
cudaError_t launch_scores(const Work<T>& w, cudaStream_t stream) {
  const int64_t stages = std::min((w.K + L - 1) / L, kScoreStages);
  return launch(scores_kernel<T>, w, units(w), kTileThreads, std::max<int64_t>(stages * 2 * kTile, kInverseBytes / int64_t(sizeof(T))),
                stream);
}

template <typename T, int KP>
cudaError_t launch_states(const Work<T>& w, cudaStream_t stream) {
  return launch(states_kernel<T, KP>, w, int64_t(w.B) * w.H * value_tiles(w), kScanThreads, kStatesTiles<KP>, stream);
}
template <typename T, int KP>
cudaError_t launch_state_gradients(const Work<T>& w, cudaStream_t stream) {
  return launch(state_gradients_kernel<T, KP>, w, int64_t(w.B) * w.H * value_tiles(w), kScanThreads, kGradientsTiles<KP>, stream);
}

template <typename T>
cudaError_t forward(const DeltaRuleForward& x, cudaStream_t stream) {
  Work<T> w = make_work<T>(x.inputs);
  Arena arena{static_cast<unsigned char*>(x.kept)};
  take_kept(arena, w);
  w.h_BSHV = static_cast<T*>(x.h_BSHV);
  w.cell_BHKV = x.cell_BHKV;
  cudaError_t error = launch_scores(w, stream);
  if (error == cudaSuccess) error = w.K <= 128 ? launch_states<T, 128>(w, stream) : launch_states<T, 256>(w, stream);
  if (error == cudaSuccess) error = launch(output_kernel<T>, w, units(w) * value_tiles(w), kTileThreads, kOutputStages * 2 * kTile, stream);
  return error;
}

template <typename T>
cudaError_t backward(const DeltaRuleBackward& x, cudaStream_t stream) {
  Work<T> w = make_work<T>(x.inputs);
  Arena kept{static_cast<unsigned char*>(x.kept)}, workspace{static_cast<unsigned char*>(x.workspace)};
  take_kept(kept, w);
  take_gradients(workspace, w);
  w.grad_h_BSHV = static_cast<const T*>(x.grad_h_BSHV);
  w.grad_cell_BHKV = x.grad_cell_BHKV;
  w.grad_q_BSHK = static_cast<T*>(x.grad_q_BSHK);
  w.grad_k_BSHK = static_cast<T*>(x.grad_k_BSHK);
  w.grad_v_BSHV = static_cast<T*>(x.grad_v_BSHV);
  w.grad_igate_BSH = x.grad_igate_BSH;
  w.grad_fgate_BSH = x.grad_fgate_BSH;
  w.grad_initial_cell_BHKV = x.grad_initial_cell_BHKV;
  const cudaError_t error = w.K <= 128 ? launch_state_gradients<T, 128>(w, stream) : launch_state_gradients<T, 256>(w, stream);
  if (error != cudaSuccess) return error;
  return w.V <= 64 ? launch(input_gradients_kernel<T, 64>, w, units(w), kScanThreads, kGradientTiles<64>, stream)
                   : launch(input_gradients_kernel<T, 128>, w, units(w), kScanThreads, kGradientTiles<128>, stream);
}

// Rows are whole 16-byte pieces.
bool has_kernels(int K, int V) {
  return K > 0 && K <= 256 && K % 8 == 0 && V > 0 && V <= 128 && V % 8 == 0;
}

bool is_valid(const DeltaRuleInputs& x) {
  return x.B > 0 && x.S > 0 && x.H > 0 && has_kernels(x.K, x.V) && x.type != Type::float32 && are_aligned({x.q_BSHK, x.k_BSHK, x.v_BSHV});
}

}  // namespace

bool delta_rule_serves(int K, int V, int device) {
  if (!has_kernels(K, V)) return false;
  const size_t tiles =
      size_t(std::max(K <= 128 ? kGradientsTiles<128> : kGradientsTiles<256>, V <= 64 ? kGradientTiles<64> : kGradientTiles<128>));
  int available = 0;
  return cudaDeviceGetAttribute(&available, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) == cudaSuccess &&
         size_t(available) >= tiles * sizeof(__half) + sizeof(GradientShared);
}

size_t delta_rule_kept(const DeltaRuleInputs& x) {
  Arena arena{nullptr};
  Work<__half> w = make_work<__half>(x);
  take_kept(arena, w);
  return arena.used;
}
size_t delta_rule_backward_workspace(const DeltaRuleInputs& x) {
  Arena arena{nullptr};
  Work<__half> w = make_work<__half>(x);
  take_gradients(arena, w);
  return arena.used;
}

cudaError_t delta_rule_forward(const DeltaRuleForward& x, cudaStream_t stream) {
  if (!is_valid(x.inputs) || !x.kept || !are_aligned({x.h_BSHV})) return cudaErrorInvalidValue;
  return x.inputs.type == Type::bfloat16 ? forward<__nv_bfloat16>(x, stream) : forward<__half>(x, stream);
}
cudaError_t delta_rule_backward(const DeltaRuleBackward& x, cudaStream_t stream) {
  if (!is_valid(x.inputs) || !x.kept || !x.workspace || !are_aligned({x.grad_h_BSHV, x.grad_q_BSHK, x.grad_k_BSHK, x.grad_v_BSHV}))
    return cudaErrorInvalidValue;
  return x.inputs.type == Type::bfloat16 ? backward<__nv_bfloat16>(x, stream) : backward<__half>(x, stream);
}

}  // namespace distil_xlstm::kernels::cuda
