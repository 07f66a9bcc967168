#include "kernels/cuda/mlstm_chunkwise.h"

#include <algorithm>
#include <initializer_list>
#include <vector>

#include "kernels/cuda/arena.h"
#include "kernels/cuda/mlstm_gates.cuh"
#include "kernels/cuda/mlstm_readout.cuh"
#include "kernels/cuda/mlstm_scan.cuh"
#include "kernels/cuda/mlstm_scores.cuh"

namespace distil_xlstm::kernels::cuda {
namespace {

int64_t rounded(int64_t n, int64_t step) {
  return (n + step - 1) / step * step;
}

struct Plan {
  int num_chunks, segment_chunks, num_segments;
};

Plan make_plan(const MlstmInputs& x, bool backward) {
  const int64_t BH = int64_t(x.B) * x.H, cell = rounded(x.K, 8) * rounded(x.V, 8) * 2, unit = (backward ? 2 : 1) * (cell + kTile * 2);
  const int num_chunks = (x.S + L - 1) / L;
  int64_t fit = x.segment_chunks > 0 ? x.segment_chunks : int64_t(kMlstmWorkspaceGoal) / (BH * unit);
  fit = std::clamp<int64_t>(fit, 1, num_chunks);
  const int num_segments = int((num_chunks + fit - 1) / fit);
  return {num_chunks, (num_chunks + num_segments - 1) / num_segments, num_segments};
}

template <typename T>
void take_work(Arena& arena, const MlstmInputs& x, const Plan& plan, bool backward, Work<T>& w) {
  const int64_t BH = int64_t(x.B) * x.H, U = BH * plan.segment_chunks, borders = U + BH;
  for (float** p : {&w.decay_UL, &w.row_shift_UL, &w.col_shift_UL, &w.entry_UL, &w.exit_UL, &w.bound_UL, &w.read_UL, &w.pull_UL})
    arena.take(*p, U * L);
  arena.take(w.document_UL, U * L);
  arena.take(w.carry_U, U);
  arena.take(w.stabilizer_BHM, borders);
  arena.take(w.cell_BHMKV, borders * w.K * w.V);
  arena.take(w.normalizer_BHMK, borders * w.Kp);
  arena.take(w.scores_ULL, U * kTile);
  if (!backward) return;
  arena.take(w.grad_cell_UKV, U * w.K * w.V);
  arena.take(w.grad_normalizer_UK, U * w.Kp);
  arena.take(w.grad_scores_ULL, U * kTile);
  arena.take(w.leaving_BHMX, borders * w.state_tiles);
  arena.take(w.q_dots_XUL, U * L * w.key_tiles);
  arena.take(w.k_dots_XUL, U * L * w.key_tiles);
}

// A recurrent state at a segment's border.
struct Border {
  float *cell, *normalizer, *stabilizer;
};
void take_border(Arena& arena, const MlstmInputs& x, Border& b) {
  const int64_t BH = int64_t(x.B) * x.H;
  arena.take(b.cell, BH * x.K * x.V);
  arena.take(b.normalizer, BH * x.K);
  arena.take(b.stabilizer, BH);
}

// The kernels read and write whole 16-byte pieces. Tensors whose rows are not go through padded copies.
bool is_whole(int width, std::initializer_list<const void*> pointers) {
  uintptr_t bits = uintptr_t(width) * 2;
  for (const void* p : pointers) bits |= reinterpret_cast<uintptr_t>(p);
  return bits % 16 == 0;
}

// to[row][0 .. to_width) = from[row][0 .. from_width), zeros beyond
template <typename T>
__global__ void copy_rows_kernel(const T* from, int from_width, T* to, int to_width, int64_t count) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const int64_t row = i / to_width;
  const int col = int(i % to_width);
  to[i] = col < from_width ? from[row * from_width + col] : T(0.0f);
}
template <typename T>
cudaError_t copy_rows(const T* from, int from_width, T* to, int to_width, int64_t rows, cudaStream_t stream) {
  const int64_t count = rows * to_width;
  copy_rows_kernel<<<unsigned((count + 255) / 256), 256, 0, stream>>>(from, from_width, to, to_width, count);
  return cudaGetLastError();
}

// Copies of one call's tensors of one width, where they are needed. Copies nothing while the workspace is only counted.
struct Padding {
  Arena& arena;
  int width, padded;
  int64_t rows;
  bool is_used;
  cudaStream_t stream;
  Padding(Arena& arena, const MlstmInputs& x, int width, std::initializer_list<const void*> pointers, cudaStream_t stream)
      : arena(arena),
        width(width),
        padded(int(rounded(width, 8))),
        rows(int64_t(x.B) * x.S * x.H),
        is_used(!is_whole(width, pointers)),
        stream(stream) {}
  template <typename T>
  cudaError_t read(const void* from, const T*& tensor) const {
    tensor = static_cast<const T*>(from);
    if (!is_used) return cudaSuccess;
    T* copy;
    arena.take(copy, rows * padded);
    tensor = copy;
    return arena.base ? copy_rows(static_cast<const T*>(from), width, copy, padded, rows, stream) : cudaSuccess;
  }
  template <typename T>
  void write(void* to, T*& tensor) const {
    tensor = static_cast<T*>(to);
    if (is_used) arena.take(tensor, rows * padded);
  }
  template <typename T>
  cudaError_t written(const T* tensor, void* to) const {
    return is_used ? copy_rows(tensor, padded, static_cast<T*>(to), width, rows, stream) : cudaSuccess;
  }
};

int tile_width(int width) {
  return width <= 64 ? 64 : 128;
}

// The part of C that one block of the scan keeps: the largest that still fills the chip.
struct ScanTile {
  int keys, values;
};
ScanTile scan_tile(const MlstmInputs& x) {
  const int64_t large_blocks = int64_t(x.B) * x.H * ((x.K + 127) / 128) * ((x.V + 63) / 64);
  return {x.K <= 64 || large_blocks < 128 ? 64 : 128, 64};
}

template <typename T>
Work<T> make_work(const MlstmInputs& x) {
  Work<T> w{};
  w.B = x.B;
  w.S = x.S;
  w.H = x.H;
  w.K = int(rounded(x.K, 8));
  w.V = int(rounded(x.V, 8));
  w.cell_K = x.K;
  w.cell_V = x.V;
  w.Kp = int(rounded(x.K, 64));
  const ScanTile tile = scan_tile(x);
  w.state_tiles = ((x.K + tile.keys - 1) / tile.keys) * ((x.V + tile.values - 1) / tile.values);
  w.key_tiles = (x.K + tile_width(x.K) - 1) / tile_width(x.K);
  w.scale = float(1.0 / __builtin_sqrt(double(x.K)));
  w.plain_sum = x.normalizer == MlstmNormalizer::plain_sum;
  w.igate_BSH = x.igate_BSH;
  w.fgate_BSH = x.fgate_BSH;
  w.is_start_BS = x.is_start_BS;
  return w;
}

template <typename T>
void set_segment(const MlstmInputs& x, const Plan& plan, int segment, const Border& initial, Work<T>& w) {
  w.first = segment * plan.segment_chunks * L;
  w.length = std::min(plan.segment_chunks * L, x.S - w.first);
  w.N = (w.length + L - 1) / L;
  w.initial_cell_BHKV = segment == 0 ? x.initial_cell_BHKV : initial.cell;
  w.initial_normalizer_BHK = segment == 0 ? x.initial_normalizer_BHK : initial.normalizer;
  w.initial_stabilizer_BH = segment == 0 ? x.initial_stabilizer_BH : initial.stabilizer;
}

template <typename T>
cudaError_t launch(void (*kernel)(Work<T>), const Work<T>& w, int64_t blocks, int threads, size_t shared_bytes, cudaStream_t stream) {
  if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  if (shared_bytes > 0) {  // with the static part it may pass the default limit
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  kernel<<<unsigned(blocks), threads, shared_bytes, stream>>>(w);
  return cudaGetLastError();
}

template <typename T>
int64_t units(const Work<T>& w) {
  return int64_t(w.B) * w.H * w.N;
}

template <typename T, bool kReverse>
cudaError_t launch_scan(const MlstmInputs& x, const Work<T>& w, cudaStream_t stream) {
  const auto [keys, values] = scan_tile(x);
  const auto kernel = keys == 64 ? scan_kernel<T, 64, 64, kReverse> : scan_kernel<T, 128, 64, kReverse>;
  return launch(kernel, w, int64_t(w.B) * w.H * w.state_tiles, kScanThreads, size_t(kStages * L * (keys + values)) * sizeof(T), stream);
}

template <typename T>
cudaError_t launch_states(const MlstmInputs& x, const Work<T>& w, cudaStream_t stream) {
  const cudaError_t error = launch(gates_kernel<T>, w, int64_t(w.B) * w.H, 32 * std::min(32, w.N), 0, stream);
  return error != cudaSuccess ? error : launch_scan<T, false>(x, w, stream);
}

// Few steps take few stages: more blocks fit.
template <typename T>
size_t scores_bytes(const Work<T>& w, bool backward) {
  const int steps = (w.K + L - 1) / L + (backward ? (w.V + L - 1) / L : 0);
  return size_t(std::min(kStages, steps) * (backward ? 3 : 2) * kTile) * sizeof(T);
}

template <typename T>
size_t read_out_bytes(int columns) {
  return size_t(kStages * L * (L + columns)) * sizeof(T);
}

template <typename T>
cudaError_t launch_output(const Work<T>& w, cudaStream_t stream) {
  const int nt = tile_width(w.V);
  const int64_t blocks = units(w) * ((w.V + nt - 1) / nt);
  return launch(nt == 64 ? output_kernel<T, 64> : output_kernel<T, 128>, w, blocks, kTileThreads, read_out_bytes<T>(nt), stream);
}

template <typename T>
cudaError_t launch_input_gradients(const Work<T>& w, cudaStream_t stream) {
  const int nk = tile_width(w.K), nv = tile_width(w.V);
  const cudaError_t error = launch(nk == 64 ? key_gradients_kernel<T, 64> : key_gradients_kernel<T, 128>, w, units(w) * 2 * w.key_tiles,
                                   kTileThreads, read_out_bytes<T>(nk), stream);
  if (error != cudaSuccess) return error;
  return launch(nv == 64 ? value_gradients_kernel<T, 64> : value_gradients_kernel<T, 128>, w, units(w) * ((w.V + nv - 1) / nv),
                kTileThreads, read_out_bytes<T>(nv), stream);
}

cudaError_t first_error(std::initializer_list<cudaError_t> errors) {
  for (const cudaError_t error : errors) {
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

// Without a workspace: launches nothing, counts what is needed.
template <typename T>
cudaError_t forward(const MlstmForward& x, Arena& arena, cudaStream_t stream) {
  const MlstmInputs& in = x.inputs;
  const Plan plan = make_plan(in, false);
  Work<T> w = make_work<T>(in);
  take_work(arena, in, plan, false, w);
  const Padding keys(arena, in, in.K, {in.q_BSHK, in.k_BSHK}, stream), values(arena, in, in.V, {in.v_BSHV, x.h_BSHV}, stream);
  cudaError_t error = first_error({keys.read(in.q_BSHK, w.q_BSHK), keys.read(in.k_BSHK, w.k_BSHK), values.read(in.v_BSHV, w.v_BSHV)});
  values.write(x.h_BSHV, w.h_BSHV);
  Border last{x.cell_BHKV, x.normalizer_BHK, x.stabilizer_BH};  // where each segment leaves its state for the next
  if (!last.cell && plan.num_segments > 1) take_border(arena, in, last);
  if (!arena.base || error != cudaSuccess) return error;
  w.cell_BHKV = last.cell;
  w.normalizer_BHK = last.normalizer;
  w.stabilizer_BH = last.stabilizer;
  w.stores_cells = true;
  for (int segment = 0; segment < plan.num_segments; ++segment) {
    set_segment(in, plan, segment, last, w);
    error = launch_states(in, w, stream);
    if (error == cudaSuccess) error = launch(scores_kernel<T, false>, w, units(w), kTileThreads, scores_bytes(w, false), stream);
    if (error == cudaSuccess) error = launch_output(w, stream);
    if (error != cudaSuccess) return error;
  }
  return values.written(w.h_BSHV, x.h_BSHV);
}

template <typename T>
cudaError_t backward_segment(const MlstmInputs& x, const Work<T>& w, cudaStream_t stream) {
  cudaError_t error = launch_states(x, w, stream);
  if (error == cudaSuccess) error = launch(scores_kernel<T, true>, w, units(w), kTileThreads, scores_bytes(w, true), stream);
  if (error == cudaSuccess) error = launch_scan<T, true>(x, w, stream);
  if (error == cudaSuccess) error = launch_input_gradients(w, stream);
  if (error == cudaSuccess) error = launch(gate_gradients_kernel<T>, w, (units(w) + 3) / 4, 128, 0, stream);
  return error;
}

template <typename T>
cudaError_t backward(const MlstmBackward& x, Arena& arena, cudaStream_t stream) {
  const MlstmInputs& in = x.inputs;
  const Plan plan = make_plan(in, true);
  Work<T> w = make_work<T>(in);
  take_work(arena, in, plan, true, w);
  const Padding keys(arena, in, in.K, {in.q_BSHK, in.k_BSHK, x.grad_q_BSHK, x.grad_k_BSHK}, stream);
  const Padding values(arena, in, in.V, {in.v_BSHV, x.h_BSHV, x.grad_h_BSHV, x.grad_v_BSHV}, stream);
  cudaError_t error = first_error({keys.read(in.q_BSHK, w.q_BSHK), keys.read(in.k_BSHK, w.k_BSHK), values.read(in.v_BSHV, w.v_BSHV),
                                   values.read(x.h_BSHV, w.read_h_BSHV), values.read(x.grad_h_BSHV, w.grad_h_BSHV)});
  keys.write(x.grad_q_BSHK, w.grad_q_BSHK);
  keys.write(x.grad_k_BSHK, w.grad_k_BSHK);
  values.write(x.grad_v_BSHV, w.grad_v_BSHV);
  // States at the segments' borders; what goes back from one segment to the one before.
  std::vector<Border> initial(size_t(plan.num_segments), Border{});
  for (int segment = 1; segment < plan.num_segments; ++segment) take_border(arena, in, initial[size_t(segment)]);
  Border grad{};
  if (plan.num_segments > 1) take_border(arena, in, grad);
  if (!arena.base || error != cudaSuccess) return error;
  w.grad_igate_BSH = x.grad_igate_BSH;
  w.grad_fgate_BSH = x.grad_fgate_BSH;

  for (int segment = 0; segment + 1 < plan.num_segments; ++segment) {  // states alone
    set_segment(in, plan, segment, initial[size_t(segment)], w);
    const Border& next = initial[size_t(segment) + 1];
    w.cell_BHKV = next.cell;
    w.normalizer_BHK = next.normalizer;
    w.stabilizer_BH = next.stabilizer;
    error = launch_states(in, w, stream);
    if (error != cudaSuccess) return error;
  }
  w.cell_BHKV = w.normalizer_BHK = w.stabilizer_BH = nullptr;
  w.stores_cells = true;
  for (int segment = plan.num_segments - 1; segment >= 0; --segment) {
    set_segment(in, plan, segment, initial[size_t(segment)], w);
    const bool is_last = segment == plan.num_segments - 1, is_first = segment == 0;
    w.grad_cell_BHKV = is_last ? x.grad_cell_BHKV : grad.cell;
    w.grad_normalizer_BHK = is_last ? x.grad_normalizer_BHK : grad.normalizer;
    w.grad_initial_cell_BHKV = is_first ? x.grad_initial_cell_BHKV : grad.cell;
    w.grad_initial_normalizer_BHK = is_first ? x.grad_initial_normalizer_BHK : grad.normalizer;
    w.grad_initial_stabilizer_BH = is_first ? x.grad_initial_stabilizer_BH : nullptr;
    error = backward_segment(in, w, stream);
    if (error != cudaSuccess) return error;
  }
  return first_error({keys.written(w.grad_q_BSHK, x.grad_q_BSHK), keys.written(w.grad_k_BSHK, x.grad_k_BSHK),
                      values.written(w.grad_v_BSHV, x.grad_v_BSHV)});
}

bool is_valid(const MlstmInputs& x) {
  return x.B > 0 && x.S > 0 && x.H > 0 && x.K > 0 && x.V > 0 && x.type != Type::float32;
}

}  // namespace

size_t mlstm_forward_workspace(const MlstmForward& x) {
  Arena arena{nullptr};
  forward<__half>(x, arena, nullptr);
  return arena.used;
}
size_t mlstm_backward_workspace(const MlstmBackward& x) {
  Arena arena{nullptr};
  backward<__half>(x, arena, nullptr);
  return arena.used;
}

cudaError_t mlstm_forward(const MlstmForward& x, cudaStream_t stream) {
  if (!is_valid(x.inputs) || !x.workspace) return cudaErrorInvalidValue;
  Arena arena{static_cast<unsigned char*>(x.workspace)};
  return x.inputs.type == Type::bfloat16 ? forward<__nv_bfloat16>(x, arena, stream) : forward<__half>(x, arena, stream);
}
cudaError_t mlstm_backward(const MlstmBackward& x, cudaStream_t stream) {
  if (!is_valid(x.inputs) || !x.workspace) return cudaErrorInvalidValue;
  Arena arena{static_cast<unsigned char*>(x.workspace)};
  return x.inputs.type == Type::bfloat16 ? backward<__nv_bfloat16>(x, arena, stream) : backward<__half>(x, arena, stream);
}

}  // namespace distil_xlstm::kernels::cuda
