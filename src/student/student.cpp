#include "student/student.h"

#include "base/error.h"
#include "student/mixer.h"

namespace distil_xlstm::student {

Tensor Student::mixer_output(int64_t /*layer*/, const Tensor& /*x_BSD*/, const Tensor& /*is_start_BS*/,
                             const StudentForwardOptions& /*options*/) {
  throw ValueError("student: the layers of kind '{}' are not its teacher's", shape().kind());
}

Tensor Mixer::mixer_output(const MixerWeights& /*weights*/, const Tensor& /*x_BSD*/, const MixerCall& /*call*/) const {
  throw ValueError("student: a block of kind '{}' is no decoder layer with another mixer", kind());
}

Tensor Student::mixing_error_sum(int64_t /*layer*/, const Tensor& /*x_BSD*/, const Tensor& /*is_start_BS*/,
                                 const AttentionMatrix& /*attention*/, const StudentForwardOptions& /*options*/) {
  throw ValueError("student: the layers of kind '{}' are not its teacher's", shape().kind());
}

Tensor Mixer::mixing_error_sum(const MixerWeights& /*weights*/, const Tensor& /*x_BSD*/, const MixerCall& /*call*/,
                               const AttentionMatrix& /*attention*/) const {
  throw ValueError("student: a block of kind '{}' mixes tokens by no matrix that is known without them", kind());
}

// From its shapes: nothing is allocated.
int64_t Mixer::state_bytes(int64_t num_tokens, at::ScalarType compute_dtype) const {
  const auto state = zero_state(1, compute_dtype, at::TensorOptions(at::kMeta).dtype(at::kFloat));
  state->reserve(num_tokens);
  int64_t sum = 0;
  state->for_each([&](const Tensor& tensor) { sum += static_cast<int64_t>(tensor.nbytes()); });
  return sum;
}

}  // namespace distil_xlstm::student
