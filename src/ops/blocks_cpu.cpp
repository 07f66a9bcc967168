#include "ops/blocks_cpu.h"

#include <algorithm>
#include <vector>

#include "ops/cpu_glue.h"

namespace distil_xlstm::ops {
namespace {

constexpr int64_t kBlockRows = 256;          // tokens of a task: gradients of weights get one float32 sum for each
constexpr int64_t kLargestHeadDim = 64;      // wider heads are left to the library's matrix products
constexpr int64_t kElementsPerTask = 16384;  // of point-wise work

int64_t num_blocks_of(int64_t rows) {
  return (rows + kBlockRows - 1) / kBlockRows;
}

bool is_full_precision(const Tensor& x) {
  return x.is_cpu() && (x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble);
}

void run_blockdiag4(const Tensor& x_NF, const Tensor& w_4F, const Tensor& bias_F, const Tensor& y_NF, bool accumulate) {
  const kernels::Blockdiag4Args<float> args{.F = x_NF.size(1),
                                            .x_row = x_NF.stride(0),
                                            .accumulate = accumulate,
                                            .x_NF = x_NF.const_data_ptr<float>(),
                                            .w_4F = w_4F.const_data_ptr<float>(),
                                            .bias_F = bias_F.defined() ? bias_F.const_data_ptr<float>() : nullptr,
                                            .y_NF = y_NF.mutable_data_ptr<float>()};
  at::parallel_for(0, x_NF.size(0), kBlockRows, [&](int64_t begin, int64_t end) { cpu_kernels<float>().blockdiag4(args, begin, end); });
}

template <typename T>
kernels::HeadwiseArgs<T> headwise_arguments(const Tensor& x_NF, const Tensor& w_HKJ, const Tensor& wx_NHC, int64_t offset) {
  kernels::HeadwiseArgs<T> args{};
  args.N = x_NF.size(0);
  args.H = w_HKJ.size(0);
  args.K = w_HKJ.size(1);
  args.J = w_HKJ.size(2);
  args.block_rows = kBlockRows;
  args.y_row = wx_NHC.stride(0);
  args.y_head = wx_NHC.stride(1);
  args.x_NHK = x_NF.const_data_ptr<T>();
  args.w_HKJ = w_HKJ.const_data_ptr<T>();
  args.y = wx_NHC.mutable_data_ptr<T>() + offset;
  return args;
}

template <typename T>
kernels::SkipGateArgs<T> skip_gate_arguments(const Tensor& h, const Tensor& skip, const Tensor& c, const Tensor& z) {
  kernels::SkipGateArgs<T> args{};
  args.N = h.size(0);
  args.F = h.size(1);
  args.block_rows = kBlockRows;
  args.h_NF = h.const_data_ptr<T>();
  args.skip_F = skip.const_data_ptr<T>();
  args.c_NF = c.const_data_ptr<T>();
  args.z_NF = z.const_data_ptr<T>();
  return args;
}

}  // namespace

bool has_blockdiag4_cpu(const Tensor& x, const Tensor& weight_GOI) {
  return x.is_cpu() && x.scalar_type() == at::kFloat && weight_GOI.size(1) == 4 && weight_GOI.size(2) == 4;
}

bool has_headwise_cpu(const Tensor& x, int64_t head_dim, int64_t outputs) {
  if (!is_full_precision(x) || head_dim > kLargestHeadDim) return false;
  return outputs % (x.scalar_type() == at::kDouble ? cpu_kernels<double>().lanes : cpu_kernels<float>().lanes) == 0;
}

bool has_gelu_gate_cpu(const Tensor& gate, const Tensor& value) {
  return gate.is_cpu() && gate.scalar_type() == at::kFloat && gate.is_contiguous() && value.is_contiguous();
}

bool has_swiglu_cpu(const Tensor& gate_up) {
  return is_full_precision(gate_up) && gate_up.is_contiguous();
}

bool has_skip_gate_cpu(const Tensor& h, const Tensor& c, const Tensor& z) {
  return is_full_precision(h) && h.scalar_type() == c.scalar_type() && h.scalar_type() == z.scalar_type() && h.is_contiguous() &&
         c.is_contiguous() && z.is_contiguous();
}

Tensor blockdiag4_cpu(const Tensor& x_NF, const Tensor& weight_GOI, const Tensor& bias_F) {
  const Profiled profiled("distil_xlstm::blockdiag");
  const Tensor y_NF = at::empty(x_NF.sizes(), x_NF.options());
  run_blockdiag4(x_NF, weight_GOI.permute({2, 0, 1}).contiguous(), bias_F, y_NF, false);
  return y_NF;
}

void blockdiag4_input_cpu(const Tensor& grad_NF, const Tensor& weight_GOI, const Tensor& grad_x_NF, bool accumulate) {
  const Profiled profiled("distil_xlstm::blockdiag_backward_input");
  run_blockdiag4(grad_NF, weight_GOI.permute({1, 0, 2}).contiguous(), {}, grad_x_NF, accumulate);
}

Tensor blockdiag4_weight_cpu(const Tensor& grad_NF, const Tensor& x_NF, int64_t num_blocks) {
  const Profiled profiled("distil_xlstm::blockdiag_backward_weight");
  const int64_t tasks = num_blocks_of(x_NF.size(0));
  const Tensor sums_P4F = at::empty({tasks, 4, x_NF.size(1)}, x_NF.options());
  const kernels::Blockdiag4WeightArgs<float> args{.N = x_NF.size(0),
                                                  .F = x_NF.size(1),
                                                  .block_rows = kBlockRows,
                                                  .grad_row = grad_NF.stride(0),
                                                  .x_row = x_NF.stride(0),
                                                  .grad_NF = grad_NF.const_data_ptr<float>(),
                                                  .x_NF = x_NF.const_data_ptr<float>(),
                                                  .grad_w_P4F = sums_P4F.mutable_data_ptr<float>()};
  at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) { cpu_kernels<float>().blockdiag4_weight(args, begin, end); });
  return sums_P4F.sum(0).view({4, num_blocks, 4}).permute({1, 2, 0});
}

void headwise_cpu(const Tensor& x_NF, const Tensor& w_HJK, const Tensor& wx_NHC, int64_t offset) {
  const Profiled profiled("distil_xlstm::headwise");
  with_type(x_NF, [&]<typename T>(T) {
    const Tensor w_HKJ = w_HJK.transpose(1, 2).contiguous();
    const auto args = headwise_arguments<T>(x_NF, w_HKJ, wx_NHC, offset);
    at::parallel_for(0, num_blocks_of(args.N), 1, [&](int64_t begin, int64_t end) { cpu_kernels<T>().headwise_forward(args, begin, end); });
  });
}

std::pair<Tensor, Tensor> headwise_backward_cpu(const Tensor& grad_NHC, int64_t offset, const Tensor& x_NF, const Tensor& w_HJK) {
  const Profiled profiled("distil_xlstm::headwise_backward");
  const int64_t tasks = num_blocks_of(x_NF.size(0));
  const Tensor w_HKJ = w_HJK.transpose(1, 2).contiguous();
  const Tensor grad_x_NF = at::empty_like(x_NF);
  const Tensor sums_PHKJ = at::empty({tasks, w_HKJ.size(0), w_HKJ.size(1), w_HKJ.size(2)}, x_NF.options());
  with_type(x_NF, [&]<typename T>(T) {
    auto args = headwise_arguments<T>(x_NF, w_HKJ, grad_NHC, offset);
    args.grad_x_NHK = grad_x_NF.mutable_data_ptr<T>();
    args.grad_w_PHKJ = sums_PHKJ.mutable_data_ptr<T>();
    at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      const Tensor workspace = at::empty({cpu_kernels<T>().headwise_workspace(args)}, x_NF.options());
      cpu_kernels<T>().headwise_backward(args, begin, end, workspace.mutable_data_ptr<T>());
    });
  });
  return {grad_x_NF, sums_PHKJ.sum(0).transpose(1, 2)};
}

Tensor swiglu_backward_cpu(const Tensor& grad, const Tensor& gate_up) {
  const Profiled profiled("distil_xlstm::swiglu_backward");
  const int64_t width = gate_up.size(-1) / 2, rows = gate_up.numel() / (2 * width);
  const Tensor grad_in = at::empty_like(gate_up);
  with_type(gate_up, [&]<typename T>(T) {
    at::parallel_for(0, rows, std::max<int64_t>(1, kElementsPerTask / width), [&](int64_t begin, int64_t end) {
      cpu_kernels<T>().swiglu_backward(width, grad.const_data_ptr<T>(), gate_up.const_data_ptr<T>(), grad_in.mutable_data_ptr<T>(), begin,
                                       end);
    });
  });
  return grad_in;
}

bool has_sigmoid_gate_cpu(const Tensor& gate, const Tensor& value) {
  return is_full_precision(gate) && value.scalar_type() == gate.scalar_type() && gate.is_contiguous() && value.is_contiguous();
}

Tensor sigmoid_gate_cpu(const Tensor& gate, const Tensor& value) {
  const Profiled profiled("distil_xlstm::sigmoid_gate");
  const Tensor y = at::empty_like(gate);
  with_type(gate, [&]<typename T>(T) {
    at::parallel_for(0, gate.numel(), kElementsPerTask, [&](int64_t begin, int64_t end) {
      cpu_kernels<T>().sigmoid_gate_forward(gate.const_data_ptr<T>() + begin, value.const_data_ptr<T>() + begin,
                                            y.mutable_data_ptr<T>() + begin, end - begin);
    });
  });
  return y;
}

std::pair<Tensor, Tensor> sigmoid_gate_backward_cpu(const Tensor& grad, const Tensor& gate, const Tensor& value) {
  const Profiled profiled("distil_xlstm::sigmoid_gate_backward");
  const Tensor given = grad.contiguous(), grad_gate = at::empty_like(gate), grad_value = at::empty_like(value);
  with_type(gate, [&]<typename T>(T) {
    at::parallel_for(0, gate.numel(), kElementsPerTask, [&](int64_t begin, int64_t end) {
      cpu_kernels<T>().sigmoid_gate_backward(given.const_data_ptr<T>() + begin, gate.const_data_ptr<T>() + begin,
                                             value.const_data_ptr<T>() + begin, grad_gate.mutable_data_ptr<T>() + begin,
                                             grad_value.mutable_data_ptr<T>() + begin, end - begin);
    });
  });
  return {grad_gate, grad_value};
}

Tensor swiglu_cpu(const Tensor& gate_up) {
  const Profiled profiled("distil_xlstm::swiglu");
  const int64_t width = gate_up.size(-1) / 2, rows = width > 0 ? gate_up.numel() / (2 * width) : 0;
  std::vector<int64_t> sizes = gate_up.sizes().vec();
  sizes.back() = width;
  const Tensor y = at::empty(sizes, gate_up.options());
  with_type(gate_up, [&]<typename T>(T) {
    const T* in = gate_up.const_data_ptr<T>();
    T* out = y.mutable_data_ptr<T>();
    const int64_t rows_per_task = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(width, 1));
    at::parallel_for(0, rows, rows_per_task, [&](int64_t begin, int64_t end) { cpu_kernels<T>().swiglu(width, in, out, begin, end); });
  });
  return y;
}

Tensor gelu_gate_cpu(const Tensor& gate_NP, const Tensor& value_NP) {
  const Profiled profiled("distil_xlstm::gelu_gate");
  const Tensor y_NP = at::empty_like(gate_NP);
  const float *gate = gate_NP.const_data_ptr<float>(), *value = value_NP.const_data_ptr<float>();
  auto* y = y_NP.mutable_data_ptr<float>();
  at::parallel_for(0, gate_NP.numel(), kElementsPerTask, [&](int64_t begin, int64_t end) {
    cpu_kernels<float>().gelu_gate_forward(gate + begin, value + begin, y + begin, end - begin);
  });
  return y_NP;
}

std::pair<Tensor, Tensor> gelu_gate_backward_cpu(const Tensor& grad_NP, const Tensor& gate_NP, const Tensor& value_NP) {
  const Profiled profiled("distil_xlstm::gelu_gate_backward");
  const Tensor grad = grad_NP.contiguous();
  const Tensor grad_gate_NP = at::empty_like(gate_NP), grad_value_NP = at::empty_like(gate_NP);
  const float *grad_y = grad.const_data_ptr<float>(), *gate = gate_NP.const_data_ptr<float>(), *value = value_NP.const_data_ptr<float>();
  auto *grad_gate = grad_gate_NP.mutable_data_ptr<float>(), *grad_value = grad_value_NP.mutable_data_ptr<float>();
  at::parallel_for(0, gate_NP.numel(), kElementsPerTask, [&](int64_t begin, int64_t end) {
    cpu_kernels<float>().gelu_gate_backward(grad_y + begin, gate + begin, value + begin, grad_gate + begin, grad_value + begin,
                                            end - begin);
  });
  return {grad_gate_NP, grad_value_NP};
}

Tensor skip_gate_cpu(const Tensor& h_NF, const Tensor& skip_F, const Tensor& c_NF, const Tensor& z_NF) {
  const Profiled profiled("distil_xlstm::skip_gate");
  const Tensor y_NF = at::empty_like(h_NF);
  with_type(h_NF, [&]<typename T>(T) {
    auto args = skip_gate_arguments<T>(h_NF, skip_F, c_NF, z_NF);
    args.y_NF = y_NF.mutable_data_ptr<T>();
    at::parallel_for(0, num_blocks_of(args.N), 1,
                     [&](int64_t begin, int64_t end) { cpu_kernels<T>().skip_gate_forward(args, begin, end); });
  });
  return y_NF;
}

SkipGateGradients skip_gate_backward_cpu(const Tensor& grad_NF, const Tensor& h_NF, const Tensor& skip_F, const Tensor& c_NF,
                                         const Tensor& z_NF) {
  const Profiled profiled("distil_xlstm::skip_gate_backward");
  const int64_t tasks = num_blocks_of(h_NF.size(0));
  const Tensor grad = grad_NF.contiguous();
  const Tensor grad_h = at::empty_like(h_NF), grad_c = at::empty_like(h_NF), grad_z = at::empty_like(h_NF);
  const Tensor sums_PF = at::empty({tasks, h_NF.size(1)}, h_NF.options());
  with_type(h_NF, [&]<typename T>(T) {
    auto args = skip_gate_arguments<T>(h_NF, skip_F, c_NF, z_NF);
    args.grad_y_NF = grad.const_data_ptr<T>();
    args.grad_h_NF = grad_h.mutable_data_ptr<T>();
    args.grad_skip_PF = sums_PF.mutable_data_ptr<T>();
    args.grad_c_NF = grad_c.mutable_data_ptr<T>();
    args.grad_z_NF = grad_z.mutable_data_ptr<T>();
    at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) { cpu_kernels<T>().skip_gate_backward(args, begin, end); });
  });
  return {grad_h, sums_PF.sum(0), grad_c, grad_z};
}

}  // namespace distil_xlstm::ops
