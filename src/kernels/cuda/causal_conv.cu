#include "kernels/cuda/causal_conv.h"

#include "kernels/cuda/vector.cuh"

namespace distil_xlstm::kernels::cuda {
namespace {

constexpr int kThreads = 128;

__device__ inline bool starts(const CausalConv& x, int b, int p) {
  return p >= 0 && x.is_start_BS && x.is_start_BS[int64_t(b) * x.S + p];
}

// Input at token p >= -J: rows below 0 come from the initial state.
template <typename T>
__device__ inline float input(const CausalConv& x, int b, int p, int f) {
  const int J = x.K - 1;
  if (p < 0 && !x.initial_BJF) return 0.0f;
  const int64_t at = p >= 0 ? (int64_t(b) * x.S + p) * x.F + f : (int64_t(b) * J + J + p) * x.F + f;
  return to_float(static_cast<const T*>(p >= 0 ? x.x_BSF : x.initial_BJF)[at]);
}

template <typename T>
__device__ inline float pre_activation(const CausalConv& x, int b, int t, int f) {
  float sum = x.bias_F[f];
  for (int age = 0; age < x.K; ++age) {
    sum += x.weight_FK[int64_t(f) * x.K + x.K - 1 - age] * input<T>(x, b, t - age, f);
    if (starts(x, b, t - age)) break;
  }
  return sum;
}

// grid: (features, tokens, batch); tokens S .. S + J - 1 stand for the rows of the state.
template <typename T>
__global__ void forward_kernel(CausalConv x) {
  const int f = blockIdx.x * kThreads + threadIdx.x, b = blockIdx.z, J = x.K - 1;
  if (f >= x.F) return;
  for (int t = blockIdx.y; t < x.S + J; t += gridDim.y) {
    if (t < x.S) {
      const float pre = pre_activation<T>(x, b, t, f);
      static_cast<T*>(x.y_BSF)[(int64_t(b) * x.S + t) * x.F + f] = from_float<T>(x.has_silu ? pre * sigmoid(pre) : pre);
    } else {
      const int p = t - J;
      bool cut = false;
      for (int later = p + 1; later < x.S; ++later) cut = cut || starts(x, b, later);
      static_cast<T*>(x.state_BJF)[(int64_t(b) * J + t - x.S) * x.F + f] = from_float<T>(cut ? 0.0f : input<T>(x, b, p, f));
    }
  }
}

// grid: (features, chunks of tokens, batch): gradients of the sums, and one partial sum of the weight's and the bias's gradients.
template <typename T>
__global__ void weight_kernel(CausalConvBackward g) {
  const CausalConv& x = g.forward;
  const int f = blockIdx.x * kThreads + threadIdx.x, b = blockIdx.z;
  if (f >= x.F) return;
  float sums[kConvMaxTaps] = {}, bias = 0.0f;
  const int first = blockIdx.y * kConvChunk, last = min(first + kConvChunk, x.S);
  for (int t = first; t < last; ++t) {
    const int64_t at = (int64_t(b) * x.S + t) * x.F + f;
    float grad = to_float(static_cast<const T*>(g.grad_y_BSF)[at]);
    if (x.has_silu) {
      const float pre = pre_activation<T>(x, b, t, f), s = sigmoid(pre);
      grad = grad * s * (1.0f + pre * (1.0f - s));
    }
    g.grad_pre_BSF[at] = grad;
    bias += grad;
    bool open = true;
#pragma unroll
    for (int age = 0; age < kConvMaxTaps; ++age) {
      if (age >= x.K) break;
      if (open) sums[age] += grad * input<T>(x, b, t - age, f);
      open = open && !starts(x, b, t - age);
    }
  }
  const int64_t p = int64_t(b) * gridDim.y + blockIdx.y;
#pragma unroll
  for (int age = 0; age < kConvMaxTaps; ++age) {
    if (age < x.K) g.grad_weight_PKF[(p * x.K + x.K - 1 - age) * x.F + f] = sums[age];
  }
  g.grad_bias_PF[p * x.F + f] = bias;
}

// grid: (features, J + S inputs, batch).
template <typename T>
__global__ void input_kernel(CausalConvBackward g) {
  const CausalConv& x = g.forward;
  const int f = blockIdx.x * kThreads + threadIdx.x, b = blockIdx.z, J = x.K - 1;
  if (f >= x.F) return;
  for (int row = blockIdx.y; row < J + x.S; row += gridDim.y) {
    const int p = row - J;
    float grad = 0.0f;
    for (int age = 0; age <= J; ++age) {
      const int t = p + age;
      if (t < 0) continue;
      if (t == x.S) {  // the state handed on
        if (g.grad_state_BJF) grad += to_float(static_cast<const T*>(g.grad_state_BJF)[(int64_t(b) * J + J - age) * x.F + f]);
        break;
      }
      if (age > 0 && starts(x, b, t)) break;
      grad += x.weight_FK[int64_t(f) * x.K + J - age] * g.grad_pre_BSF[(int64_t(b) * x.S + t) * x.F + f];
    }
    T* out = static_cast<T*>(p >= 0 ? g.grad_x_BSF : g.grad_initial_BJF);
    if (p >= 0 && g.grad_residual_BSF) grad += to_float(static_cast<const T*>(g.grad_residual_BSF)[(int64_t(b) * x.S + p) * x.F + f]);
    if (out) out[(p >= 0 ? int64_t(b) * x.S + p : int64_t(b) * J + row) * x.F + f] = from_float<T>(grad);
  }
}

constexpr int kTaps = 4, kTail = kTaps - 1;  // of the kernels below
constexpr int kFeatures = 2;                 // of a thread: more of them would leave too few threads to a multiprocessor
constexpr int kForwardTokens = 16;           // of a thread
constexpr int kRun = 4;                      // tokens whose loads are under way together

// Without the branches of an exact division, which would keep loads from moving up, for values that lie in memory as T.
template <typename T>
__device__ inline float fast_sigmoid(float x) {
  return __fdividef(1.0f, 1.0f + (sizeof(T) == 4 ? expf(-x) : __expf(-x)));
}

// kRun tokens: their inputs, and whether documents start there.
template <typename T>
struct Run {
  Packed<T, kFeatures> values[kRun];
  unsigned is_start[kRun];
};

// What a token sees, for kFeatures features from f on: inputs[a] is a tokens back, and those beyond `reach` belong to an earlier document.
// All threads of a block are at the same token.
template <typename T>
struct Window {
  const CausalConv& x;
  const int b, f;
  float inputs[kTaps][kFeatures] = {}, weight[kFeatures][kTaps], bias[kFeatures];
  int reach = kTail;

  // At the token before `first`.
  __device__ Window(const CausalConv& x, int b, int f, int first) : x(x), b(b), f(f) {
#pragma unroll
    for (int i = 0; i < kFeatures; ++i) load_values(weight[i], x.weight_FK + (int64_t(f) + i) * kTaps);
    load_values(bias, x.bias_F + f);
    const Run<T> run = load(first - kTail, first);
#pragma unroll
    for (int i = 0; i < kTail; ++i) step(run, i);
  }

  // Tokens t .. t + kRun - 1, the last one again where `end` comes before; those below 0 are rows of the initial state.
  __device__ Run<T> load(int t, int end) const {
    Run<T> run;
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      const int p = min(t + i, end - 1);
      const T* rows = static_cast<const T*>(p >= 0 ? x.x_BSF : x.initial_BJF);
      run.values[i] = {};
      if (rows) run.values[i].load(rows + (p >= 0 ? int64_t(b) * x.S + p : int64_t(b) * kTail + kTail + p) * x.F + f);
      run.is_start[i] = p >= 0 && x.is_start_BS ? __ldg(x.is_start_BS + int64_t(b) * x.S + p) : 0;
    }
    return run;
  }

  // To the next token.
  __device__ void step(const Run<T>& run, int i) {
#pragma unroll
    for (int age = kTail; age > 0; --age) {
#pragma unroll
      for (int j = 0; j < kFeatures; ++j) inputs[age][j] = inputs[age - 1][j];
    }
    run.values[i].unpack_into(inputs[0]);
    reach = run.is_start[i] != 0 ? 0 : min(reach + 1, kTail);
  }

  __device__ float tap(int j, int age) const { return weight[j][kTail - age]; }

  // The sum of feature j.
  __device__ float pre_activation(int j) const {
    float sum = bias[j];
#pragma unroll
    for (int age = 0; age < kTaps; ++age) sum += age <= reach ? tap(j, age) * inputs[age][j] : 0.0f;
    return sum;
  }
};

// grid: (features, tokens, batch).
template <typename T>
__global__ void __launch_bounds__(kThreads) window_forward_kernel(const __grid_constant__ CausalConv x) {
  const int f = int(blockIdx.x * kThreads + threadIdx.x) * kFeatures, b = int(blockIdx.z);
  if (f >= x.F) return;
  const int first = int(blockIdx.y) * kForwardTokens, last = min(first + kForwardTokens, x.S);
  Window<T> window(x, b, f, first);
  Run<T> next = window.load(first, last);
  for (int t = first; t < last; t += kRun) {
    const Run<T> run = next;
    if (t + kRun < last) next = window.load(t + kRun, last);  // under way while these are worked on
#pragma unroll
    for (int i = 0; i < kRun; ++i) {  // tokens behind the last one do no harm
      window.step(run, i);
      float y[kFeatures];
#pragma unroll
      for (int j = 0; j < kFeatures; ++j) {
        const float pre = window.pre_activation(j);
        y[j] = x.has_silu ? pre * fast_sigmoid<T>(pre) : pre;
      }
      if (t + i < last) store_values(static_cast<T*>(x.y_BSF) + (int64_t(b) * x.S + t + i) * x.F + f, y);
    }
  }
  if (last < x.S) return;
  const Run<T> tail = window.load(x.S - kTail, x.S);
  bool is_cut = false;
#pragma unroll
  for (int i = kTail - 1; i >= 0; --i) {
    float values[kFeatures] = {};
    if (!is_cut) tail.values[i].unpack_into(values);
    store_values(static_cast<T*>(x.state_BJF) + (int64_t(b) * kTail + i) * x.F + f, values);
    is_cut = is_cut || tail.is_start[i] != 0;
  }
}

// grid: (features, chunks of tokens, batch). A chunk owns the gradients of its inputs, the first one also those of the initial state: an
// input is done kTail tokens later, so a chunk runs that far into the next one.
template <typename T>
__global__ void __launch_bounds__(kThreads, 5) window_backward_kernel(const __grid_constant__ CausalConvBackward g) {
  const CausalConv& x = g.forward;
  const int f = int(blockIdx.x * kThreads + threadIdx.x) * kFeatures, b = int(blockIdx.z);
  if (f >= x.F) return;
  const int first = int(blockIdx.y) * kConvChunk, last = min(first + kConvChunk, x.S), end = min(last + kTail, x.S);
  Window<T> window(x, b, f, first);
  // Of the input `age` tokens back; of the weights and the bias.
  float grad_inputs[kTaps][kFeatures] = {}, grad_weight[kTaps][kFeatures] = {}, grad_bias[kFeatures] = {};
  const auto owns = [&](int p) { return p < last && (p >= first || first == 0); };
  const auto residual_of = [&](int p) {
    Packed<T, kFeatures> residual{};
    if (g.grad_residual_BSF && p >= 0 && owns(p))
      residual.load(static_cast<const T*>(g.grad_residual_BSF) + (int64_t(b) * x.S + p) * x.F + f);
    return residual;
  };
  const auto store_input = [&](int p, float (&grad)[kFeatures], const Packed<T, kFeatures>& residual) {
    if (!owns(p)) return;
    float others[kFeatures];
    residual.unpack_into(others);
#pragma unroll
    for (int j = 0; j < kFeatures; ++j) grad[j] += others[j];
    T* rows = static_cast<T*>(p >= 0 ? g.grad_x_BSF : g.grad_initial_BJF);
    if (rows) store_values(rows + (p >= 0 ? int64_t(b) * x.S + p : int64_t(b) * kTail + kTail + p) * x.F + f, grad);
  };
  // Of kRun tokens: the gradients of their outputs, and what is added to those of the inputs that are done with them.
  struct Given {
    Packed<T, kFeatures> grads[kRun], residuals[kRun];
  };
  const auto load_given = [&](int t0) {
    Given given;
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      given.grads[i].load(static_cast<const T*>(g.grad_y_BSF) + (int64_t(b) * x.S + min(t0 + i, end - 1)) * x.F + f);
      given.residuals[i] = residual_of(t0 + i - kTail);
    }
    return given;
  };
  Run<T> next = window.load(first, end);
  Given next_given = load_given(first);
  for (int t0 = first; t0 < end; t0 += kRun) {
    const Run<T> run = next;
    const Given given = next_given;
    if (t0 + kRun < end) {  // under way while these are worked on
      next = window.load(t0 + kRun, end);
      next_given = load_given(t0 + kRun);
    }
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      const int t = t0 + i;
      if (t >= end) break;
      window.step(run, i);
      float grad[kFeatures], owned[kFeatures];  // the next chunk adds up the weights' gradients of its own tokens
      given.grads[i].unpack_into(grad);
#pragma unroll
      for (int j = 0; j < kFeatures; ++j) {
        if (x.has_silu) {
          const float pre = window.pre_activation(j), s = fast_sigmoid<T>(pre);
          grad[j] *= s * (1.0f + pre * (1.0f - s));
        }
        owned[j] = t < last ? grad[j] : 0.0f;
        grad_bias[j] += owned[j];
      }
#pragma unroll
      for (int age = 0; age < kTaps; ++age) {
        if (age > window.reach) break;
#pragma unroll
        for (int j = 0; j < kFeatures; ++j) {
          grad_inputs[age][j] += window.tap(j, age) * grad[j];
          grad_weight[age][j] += window.inputs[age][j] * owned[j];
        }
      }
      store_input(t - kTail, grad_inputs[kTail], given.residuals[i]);
#pragma unroll
      for (int j = 0; j < kFeatures; ++j) {
#pragma unroll
        for (int age = kTail; age > 0; --age) grad_inputs[age][j] = grad_inputs[age - 1][j];
        grad_inputs[0][j] = 0.0f;
      }
    }
  }
  if (end == x.S) {  // the last inputs go on to the state
#pragma unroll
    for (int age = kTail - 1; age >= 0; --age) {
      float grad[kFeatures] = {};
      if (g.grad_state_BJF) load_values(grad, static_cast<const T*>(g.grad_state_BJF) + (int64_t(b) * kTail + kTail - 1 - age) * x.F + f);
#pragma unroll
      for (int j = 0; j < kFeatures; ++j) grad[j] = grad_inputs[age + 1][j] + (age <= window.reach ? grad[j] : 0.0f);
      store_input(x.S - 1 - age, grad, residual_of(x.S - 1 - age));
    }
  }
  const int64_t p = int64_t(b) * gridDim.y + blockIdx.y;
#pragma unroll
  for (int age = 0; age < kTaps; ++age) store_values(g.grad_weight_PKF + (p * kTaps + kTail - age) * x.F + f, grad_weight[age]);
  store_values(g.grad_bias_PF + p * x.F + f, grad_bias);
}

dim3 grid_of(const CausalConv& x, int rows) {
  return dim3((x.F + kThreads - 1) / kThreads, rows < 65535 ? rows : 65535, x.B);
}

dim3 window_grid(const CausalConv& x, int tokens) {
  return dim3((x.F / kFeatures + kThreads - 1) / kThreads, (x.S + tokens - 1) / tokens, x.B);
}

}  // namespace

bool causal_conv_holds_window(const CausalConv& x) {
  return x.K == kTaps && x.F % kFeatures == 0 && x.S <= kForwardTokens * 65535 &&
         are_aligned({x.x_BSF, x.weight_FK, x.bias_F, x.initial_BJF, x.y_BSF, x.state_BJF});
}

cudaError_t causal_conv_forward(const CausalConv& x, cudaStream_t stream) {
  return with_type(x.type, [&](auto zero) {
    using T = decltype(zero);
    if (causal_conv_holds_window(x)) {
      window_forward_kernel<T><<<window_grid(x, kForwardTokens), kThreads, 0, stream>>>(x);
    } else {
      forward_kernel<T><<<grid_of(x, x.S + x.K - 1), kThreads, 0, stream>>>(x);
    }
    return cudaGetLastError();
  });
}

cudaError_t causal_conv_backward(const CausalConvBackward& g, cudaStream_t stream) {
  const CausalConv& x = g.forward;
  // Each chunk of tokens is a block of its own in one dimension of the grid.
  if (x.K > kConvMaxTaps || (x.S + kConvChunk - 1) / kConvChunk > 65535) return cudaErrorInvalidValue;
  const bool holds_window = causal_conv_holds_window(x);
  if (holds_window && !are_aligned({g.grad_y_BSF, g.grad_state_BJF, g.grad_residual_BSF, g.grad_x_BSF, g.grad_initial_BJF,
                                    g.grad_weight_PKF, g.grad_bias_PF}))
    return cudaErrorInvalidValue;
  return with_type(x.type, [&](auto zero) {
    using T = decltype(zero);
    if (holds_window) {
      window_backward_kernel<T><<<window_grid(x, kConvChunk), kThreads, 0, stream>>>(g);
    } else {
      weight_kernel<T><<<grid_of(x, (x.S + kConvChunk - 1) / kConvChunk), kThreads, 0, stream>>>(g);
      input_kernel<T><<<grid_of(x, x.S + x.K - 1), kThreads, 0, stream>>>(g);
    }
    return cudaGetLastError();
  });
}

}  // namespace distil_xlstm::kernels::cuda
