#include "ops/causal_conv_forms.h"
#include "ops/mlstm_forms.h"
#include "ops/norm_forms.h"
#include "ops/slstm_forms.h"
namespace distil_xlstm::ops {
SlstmForward slstm_forward_cpu(const Tensor& a, const Tensor& b, const Tensor& c, const SlstmState& d, const Tensor& e, bool f) { return slstm_forward_aten(a, b, c, d, e, f); }
SlstmBackward slstm_backward_cpu(const Tensor& a, const SlstmState& b, const Tensor& c, const Tensor& d, const Tensor& e, const SlstmState& f, const Tensor& g) { return slstm_backward_aten(a, b, c, d, e, f, g); }
MlstmOutput mlstm_chunkwise_cpu(const MlstmInputs& a, int64_t b, const MlstmState& c) { return mlstm_chunkwise_aten(a, b, c); }
MlstmBackward mlstm_backward_cpu(const MlstmInputs& a, int64_t b, const MlstmState& c, const Tensor& d, const Tensor& e, const MlstmState& f) { return mlstm_backward_aten(a, b, c, d, e, f); }
MlstmOutput mlstm_recurrent_cpu(const MlstmInputs& a, const MlstmState& b) { return mlstm_recurrent_aten(a, b); }
CausalConvOutput causal_conv_forward_cpu(const Tensor& a, const Tensor& b, const Tensor& c, const Tensor& d, const Tensor& e) { return causal_conv_forward_aten(a, b, c, d, e); }
CausalConvBackward causal_conv_backward_cpu(const Tensor& a, const Tensor& b, const Tensor& c, const Tensor& d, const Tensor& e, const Tensor& f, const Tensor& g) { return causal_conv_backward_aten(a, b, c, d, e, f, g); }
LayerNormForward layer_norm_forward_cpu(const Tensor& a, const Tensor& b, double c) { return layer_norm_forward_aten(a, b, c); }
LayerNormBackward layer_norm_backward_cpu(const Tensor& a, const Tensor& b, const Tensor& c, const Tensor& d, const Tensor& e) { return layer_norm_backward_aten(a, b, c, d, e); }
}
