// Glue of the mean of a teacher's states.
#include "kernels/cuda/state_sum.h"

#include "ops/cuda/glue.h"

namespace distil_xlstm::ops {
namespace {

void add_states_cuda(Tensor& sum, const std::vector<Tensor>& states) {
  const Tensor& first = states.front();
  const c10::cuda::CUDAGuard guard(first.device());
  gpu::StateSum args{.type = type_of(first), .count = first.numel(), .num_states = int(states.size()), .accumulates = sum.defined()};
  if (!sum.defined()) sum = at::empty(first.sizes(), first.options().dtype(at::kFloat));
  for (size_t i = 0; i < states.size(); ++i) args.states[i] = pointer(states[i]);
  args.sum = floats(sum);
  check(gpu::state_sum(args, c10::cuda::getCurrentCUDAStream()), "add_states, states", first);
}

}  // namespace

void register_state_sum(CudaBackend& table) {
  table.add_states = add_states_cuda;
  table.max_summed_states = gpu::kStateSumMax;
}

}  // namespace distil_xlstm::ops
