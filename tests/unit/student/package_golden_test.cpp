// A mid-size student against values of the PyPI package in float64 (tests/golden/make_student.py).
#include "io/safetensors.h"
#include "student/paper/mlstm.h"
#include "student/paper/slstm.h"
#include "student/paper/stored.h"
#include "student/state.h"
#include "support/source_directory.h"
#include "unit/student/student_testing.h"

namespace distil_xlstm::student {
namespace {

class PackageGolden : public ::testing::Test {
 protected:
  PackageGolden() : file_(golden_directory() / "student.safetensors") {
    config_ = StudentConfig::from_json(parse_json(file_.metadata().at("config"), "golden"), "golden");
    config_.chunk_size = 6;
  }

  [[nodiscard]] Tensor tensor(const std::string& name) const {
    const io::TensorView& view = file_.at(name);
    const at::ScalarType type = view.dtype == io::DType::f64 ? at::kDouble : view.dtype == io::DType::i64 ? at::kLong : at::kFloat;
    return at::from_blob(const_cast<std::byte*>(view.bytes.data()), view.shape, type).clone();
  }

  [[nodiscard]] std::unique_ptr<PaperStudent> load(at::Device device, at::ScalarType dtype) const {
    NamedTensors stored;
    const std::string prefix = "parameter.";
    for (const auto& view : file_.tensors()) {
      if (view.name.starts_with(prefix)) stored.emplace_back(view.name.substr(prefix.size()), tensor(view.name));
    }
    auto student = PaperStudent::load(memory_files(config_.to_json(), std::make_shared<MemoryWeights>(stored)), device, dtype);
    student->set_compute_dtype(dtype);
    return student;
  }

  io::SafetensorsFile file_;
  StudentConfig config_;
};

TEST_F(PackageGolden, HiddenStatesLogitsAndGradients) {
  for (const at::Device device : devices()) {
    for (const at::ScalarType dtype : {at::kDouble, at::kFloat}) {
      for (const ops::MlstmForm form : {ops::MlstmForm::parallel, ops::MlstmForm::chunkwise}) {
        // The forms' stabilisers weigh eps differently: about 1e-7 in the outputs, 1e-6 in the gates' gradients.
        const bool is_chunkwise = form == ops::MlstmForm::chunkwise;
        const double allowed = is_chunkwise ? std::max(1e-6, tolerance(dtype)) : tolerance(dtype);
        const double gradients_allowed = is_chunkwise ? 1e-5 : tolerance(dtype);
        const auto student = load(device, dtype);
        const Tensor embedding = student->embedding_weight().requires_grad_(), head = student->head_weight().requires_grad_();
        const StudentOutput out =
            student->forward(tensor("tokens"), {}, {.compute_dtype = dtype, .collect_layers = true, .mlstm_form = form});
        const Tensor logits = at::linear(out.last_hidden_BSD, head.to(dtype));
        EXPECT_LT(relative_error(logits, tensor("logits")), allowed);
        EXPECT_LT(relative_error(out.last_hidden_BSD, tensor("last_hidden")), allowed);
        for (size_t i = 0; i < out.layer_outputs_BSD.size(); ++i)
          EXPECT_LT(relative_error(out.layer_outputs_BSD[i], tensor(fmt::format("hidden.{}", i))), allowed);
        const Tensor loss = at::cross_entropy_loss(logits.flatten(0, 1), tensor("targets").to(device).flatten());
        EXPECT_LT(relative_error(loss.reshape({1}), tensor("loss")), allowed);
        loss.backward();
        for (const auto& [name, parameter] : student->parameters())
          EXPECT_LT(relative_error(parameter.grad().norm().reshape({1}), tensor("grad_norm." + name)), gradients_allowed) << name;
        // Embedding and head are float32 here, and so are their gradients.
        EXPECT_LT(relative_error(embedding.grad().norm().reshape({1}), tensor("grad_norm.token_embedding.weight")),
                  std::max(gradients_allowed, 1e-6));
        EXPECT_LT(relative_error(head.grad().norm().reshape({1}), tensor("grad_norm.lm_head.weight")), std::max(gradients_allowed, 1e-6));
      }
    }
  }
}

TEST_F(PackageGolden, StepsAndStates) {
  for (const at::Device device : devices()) {
    for (const at::ScalarType dtype : {at::kDouble, at::kFloat}) {
      const auto student = load(device, dtype);
      const auto decode_state = student->new_state(2, 0);
      std::vector<Tensor> logits;
      for (int64_t t = 0; t < 19; ++t)
        logits.push_back(student->logits(student->forward_step(tensor("tokens").narrow(1, t, 1), *decode_state)));
      EXPECT_LT(relative_error(at::cat(logits, 1), tensor("step_logits")), tolerance(dtype));
      auto& state = dynamic_cast<StudentState&>(*decode_state);
      for (size_t i = 0; i < 4; ++i) {
        MixerState* block = state.blocks()[i].get();
        const auto expect = [&](const char* name, const Tensor& value) {
          EXPECT_LT(relative_error(value, tensor(fmt::format("state.{}.{}", i, name))), tolerance(dtype)) << i << " " << name;
        };
        if (config_.mixer_at(static_cast<int64_t>(i)) == "slstm") {
          const auto& slstm = *own_state<SlstmMixerState>(block);
          expect("conv", slstm.conv_tail_BJF);
          expect("y", slstm.cell.hidden_BHK);
          expect("c", slstm.cell.cell_BHK);
          expect("n", slstm.cell.normalizer_BHK);
          expect("m", slstm.cell.stabilizer_BHK);
        } else {
          const auto& mlstm = *own_state<MlstmMixerState>(block);
          expect("conv", mlstm.conv_tail_BJF);
          expect("C", mlstm.cell.cell_BHKV);
          expect("n", mlstm.cell.normalizer_BHK);
          expect("m", mlstm.cell.stabilizer_BH);
        }
      }
    }
  }
}

}  // namespace
}  // namespace distil_xlstm::student
