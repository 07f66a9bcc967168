// model_dump for students. --dtype float64 computes in float64; --form chooses the mLSTM's form; --hidden: hidden.N of every block.
// --gradients mean-ce (needs targets): loss, and grad.NAME for every tensor under its stored name, in the layout of --layout.
// --states N: after N single-token steps, state.BLOCK.{y,c,n,m,conv} or state.BLOCK.{C,n,m,conv}, and step_logits [B, N, V].
// --write DIRECTORY: the student's own checkpoint, in the layout of --layout.
#include "base/error.h"
#include "student/paper/mlstm.h"
#include "student/paper/slstm.h"
#include "student/paper/stored.h"
#include "student/state.h"
#include "tools/model_dump.h"

namespace distil_xlstm {
namespace {

using student::PaperStudent;

class Options {
 public:
  explicit Options(const Request& request) : given_(request.student_options) {}
  [[nodiscard]] std::string get(const std::string& name, const std::string& fallback) const {
    const auto it = given_.find(name);
    return it == given_.end() ? fallback : it->second;
  }
  [[nodiscard]] bool has(const std::string& name) const { return given_.contains(name); }
  [[nodiscard]] at::ScalarType dtype() const { return get("--dtype", "float32") == "float64" ? at::kDouble : at::kFloat; }
  [[nodiscard]] student::SlstmLayout layout() const {
    return get("--layout", "cuda") == "vanilla" ? student::SlstmLayout::vanilla : student::SlstmLayout::cuda;
  }
  [[nodiscard]] student::StudentForwardOptions forward() const {
    const std::string form = get("--form", "chunkwise");
    const auto value = form == "parallel"    ? ops::MlstmForm::parallel
                       : form == "recurrent" ? ops::MlstmForm::recurrent
                                             : ops::MlstmForm::chunkwise;
    return {.compute_dtype = dtype(), .collect_layers = true, .mlstm_form = value};
  }

 private:
  const std::map<std::string, std::string>& given_;
};

void dump_forward(PaperStudent& student, const Input& input, const Request& request, const Options& options, NamedTensors& out) {
  const at::NoGradGuard no_grad;
  const student::StudentOutput output = student.forward(input.tokens_BS, input.is_start_BS, options.forward());
  out.emplace_back("last_hidden", output.last_hidden_BSD);
  out.emplace_back("logits", student.logits(output.last_hidden_BSD));
  if (!request.with_hidden) return;
  for (size_t block = 0; block < output.layer_outputs_BSD.size(); ++block)
    out.emplace_back(fmt::format("hidden.{}", block), output.layer_outputs_BSD[block]);
}

void dump_gradients(PaperStudent& student, const Input& input, const Options& options, NamedTensors& out) {
  if (!input.targets_BS.defined()) throw ConfigError("model_dump: --gradients needs targets");
  const Tensor embedding_VD = student.embedding_weight().requires_grad_();
  const Tensor head_VD = student.head_weight().requires_grad_();
  const Tensor hidden_BSD = student.forward(input.tokens_BS, input.is_start_BS, options.forward()).last_hidden_BSD;
  const Tensor logits_NV = at::linear(hidden_BSD, head_VD.to(hidden_BSD.scalar_type())).flatten(0, 1);
  const Tensor loss = at::cross_entropy_loss(logits_NV, input.targets_BS.flatten());
  loss.backward();
  out.emplace_back("loss", loss.detach().reshape({1}));
  out.emplace_back("grad.token_embedding.weight", embedding_VD.grad());
  if (!head_VD.is_same(embedding_VD)) out.emplace_back("grad.lm_head.weight", head_VD.grad());
  const auto specs = student::parameter_specs(student.config());
  for (size_t i = 0; i < specs.size(); ++i) {
    const Tensor& parameter = student.parameters()[i].second;
    out.emplace_back("grad." + specs[i].name, student::to_stored(parameter.grad(), specs[i].role, options.layout()));
  }
}

void dump_states(PaperStudent& student, const Input& input, int64_t num_steps, NamedTensors& out) {
  const auto decode_state = student.new_state(input.tokens_BS.size(0), num_steps);
  std::vector<Tensor> logits;
  for (int64_t t = 0; t < num_steps; ++t)
    logits.push_back(student.logits(student.forward_step(input.tokens_BS.narrow(1, t, 1), *decode_state)));
  out.emplace_back("step_logits", at::cat(logits, 1));
  auto& state = dynamic_cast<student::StudentState&>(*decode_state);
  for (size_t i = 0; i < state.blocks().size(); ++i) {
    student::MixerState* block = state.blocks()[i].get();
    const auto add = [&](const char* name, const Tensor& tensor) {
      if (tensor.defined()) out.emplace_back(fmt::format("state.{}.{}", i, name), tensor);
    };
    if (const auto* slstm = dynamic_cast<student::SlstmMixerState*>(block)) {
      add("conv", slstm->conv_tail_BJF);
      add("y", slstm->cell.hidden_BHK);
      add("c", slstm->cell.cell_BHK);
      add("n", slstm->cell.normalizer_BHK);
      add("m", slstm->cell.stabilizer_BHK);
    }
    if (const auto* mlstm = dynamic_cast<student::MlstmMixerState*>(block)) {
      add("conv", mlstm->conv_tail_BJF);
      add("C", mlstm->cell.cell_BHKV);
      add("n", mlstm->cell.normalizer_BHK);
      add("m", mlstm->cell.stabilizer_BH);
    }
  }
}

void write_checkpoint(const PaperStudent& student, const Options& options, const fs::path& directory) {
  fs::create_directories(directory);
  write_json(directory / "config.json", student.config().to_json(options.get("--layout", "cuda")));
  write_tensors(directory / "model.safetensors", student.stored_tensors(options.layout(), true));
}

}  // namespace

void dump_student(const io::ModelFiles& files, const Input& input, const Request& request, NamedTensors& out) {
  const Options options(request);
  const auto student = PaperStudent::load(files, at::kCPU, options.dtype());
  student->set_compute_dtype(options.dtype());
  dump_forward(*student, input, request, options, out);
  if (options.has("--states")) dump_states(*student, input, std::stoll(options.get("--states", "")), out);
  if (options.has("--write")) write_checkpoint(*student, options, options.get("--write", ""));
  if (options.has("--gradients")) dump_gradients(*student, input, options, out);
}

}  // namespace distil_xlstm
