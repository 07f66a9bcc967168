// A golden model whose numbers come from the PyPI package in double precision.
#include "student/paper/mlstm.h"
#include "student/paper/slstm.h"
#include "student/state.h"
#include "unit/student/student_testing.h"

namespace distil_xlstm::student {
namespace {

StudentConfig golden_config() {
  StudentConfig config;
  config.vocab_size = 11;
  config.embedding_dim = 8;
  config.num_blocks = 3;
  config.context_length = 6;
  config.slstm_at = {0, 2};
  config.slstm_num_heads = config.mlstm_num_heads = 2;
  config.chunk_size = 4;
  return config;
}

// Tensor p in byte order of the names has 0.3 sin(1.3 p + 0.71 j + 0.2) at element j, in the layout of the vanilla backend.
std::unique_ptr<PaperStudent> golden_student(at::Device device) {
  const StudentConfig config = golden_config();
  const Tensor blank = at::zeros({11, 8}, at::kDouble);
  const auto shapes =
      PaperStudent::create(config, blank, blank.clone(), 0, at::kCPU, at::kDouble)->stored_tensors(SlstmLayout::vanilla, true);
  auto weights = std::make_shared<MemoryWeights>(shapes);
  double p = 0;
  for (auto& [name, tensor] : weights->tensors_) {
    tensor = at::arange(tensor.numel(), at::kDouble).mul_(0.71).add_(1.3 * p + 0.2).sin_().mul_(0.3).view(tensor.sizes());
    p += 1;
  }
  EXPECT_EQ(p, 43);
  return PaperStudent::load(memory_files(config.to_json("vanilla"), weights), device, at::kDouble);
}

Tensor golden_tokens() {
  return at::tensor({1, 4, 2, 8, 5, 7, 3, 1, 4, 1, 5, 9}, at::kLong).view({2, 6});
}
Tensor golden_targets() {
  return at::tensor({4, 2, 8, 5, 7, 0, 1, 4, 1, 5, 9, 2}, at::kLong);
}

constexpr double kPrinted = 2e-10;  // the numbers are printed with ten digits

class GoldenModel : public ::testing::TestWithParam<ops::MlstmForm> {};

TEST_P(GoldenModel, LogitsLossAndGradients) {
  // The package's parallel form and the recurrent one differ by their stabilisers' weight in eps: about 1e-8 here.
  const double allowed = GetParam() == ops::MlstmForm::parallel ? 5e-10 : 1e-6;
  for (const at::Device device : devices()) {
    const auto student = golden_student(device);
    student->embedding_weight().requires_grad_();
    const Tensor head = student->head_weight().requires_grad_();
    const StudentOutput out = student->forward(golden_tokens(), {}, {.compute_dtype = at::kDouble, .mlstm_form = GetParam()});
    const Tensor logits = at::linear(out.last_hidden_BSD, head);
    const Tensor loss = at::cross_entropy_loss(logits.view({12, 11}), golden_targets().to(device));
    loss.backward();

    const std::vector<double> last_logits{-0.4576038101, -0.2442729498, 0.0552702026,  0.3353066071,  0.4970018232,  0.4832880698,
                                          0.2990054003,  0.0091934819,  -0.2838631312, -0.4767347209, -0.5013502958, -0.0497119125,
                                          -0.1544125247, -0.2046156672, -0.1826029311, -0.0961433651, 0.0242484881,  0.1360822191,
                                          0.1998878732,  0.1931462491,  0.1182366970,  0.0015973641};
    const Tensor last = logits.select(1, 5).reshape({-1}).detach().cpu();
    for (size_t i = 0; i < last_logits.size(); ++i) EXPECT_NEAR(last[static_cast<int64_t>(i)].item<double>(), last_logits[i], allowed) << i;
    EXPECT_NEAR(logits.sum().item<double>(), 1.4114542517, 10 * allowed);
    EXPECT_NEAR(logits.square().sum().item<double>(), 45.4461817981, 10 * allowed);
    EXPECT_NEAR(loss.item<double>(), 2.5636280714, allowed);

    const std::map<std::string, double> norms{{"0.xlstm_norm.weight", 0.07104012892},
                                              {"2.xlstm_norm.weight", 0.08684786361},
                                              {"0.xlstm.conv1d.conv.weight", 0.07919956408},
                                              {"2.xlstm.conv1d.conv.weight", 0.005071172832},
                                              {"0.xlstm.conv1d.conv.bias", 0.01981194278},
                                              {"2.xlstm.conv1d.conv.bias", 0.00197718942},
                                              {"0.xlstm.fgate.weight", 0.0516534668},
                                              {"2.xlstm.fgate.weight", 0.006852745438},
                                              {"0.xlstm.igate.weight", 0.08906279289},
                                              {"2.xlstm.igate.weight", 0.007034777102},
                                              {"0.xlstm.zgate.weight", 0.6471419862},
                                              {"2.xlstm.zgate.weight", 0.5024569563},
                                              {"0.xlstm.ogate.weight", 0.1588505207},
                                              {"2.xlstm.ogate.weight", 0.110377183},
                                              {"0.xlstm.slstm_cell._recurrent_kernel_", 0.1922642219},
                                              {"2.xlstm.slstm_cell._recurrent_kernel_", 0.07339164803},
                                              {"0.xlstm.slstm_cell._bias_", 0.5218273948},
                                              {"2.xlstm.slstm_cell._bias_", 0.2845075668},
                                              {"0.xlstm.group_norm.weight", 0.1812680526},
                                              {"2.xlstm.group_norm.weight", 0.09346801269},
                                              {"0.ffn_norm.weight", 0.01021401413},
                                              {"2.ffn_norm.weight", 0.002551165012},
                                              {"0.ffn.proj_up.weight", 0.1189629987},
                                              {"2.ffn.proj_up.weight", 0.07150393522},
                                              {"0.ffn.proj_down.weight", 0.1156417337},
                                              {"2.ffn.proj_down.weight", 0.09023457886},
                                              {"1.xlstm_norm.weight", 0.02314913302},
                                              {"1.xlstm.learnable_skip", 0.006271718583},
                                              {"1.xlstm.proj_up.weight", 0.2057385801},
                                              {"1.xlstm.q_proj.weight", 0.003820810385},
                                              {"1.xlstm.k_proj.weight", 0.004444217912},
                                              {"1.xlstm.v_proj.weight", 0.08591056595},
                                              {"1.xlstm.conv1d.conv.weight", 0.008519485225},
                                              {"1.xlstm.conv1d.conv.bias", 0.009043239254},
                                              {"1.xlstm.mlstm_cell.igate.weight", 0.01091103731},
                                              {"1.xlstm.mlstm_cell.igate.bias", 0.002773372993},
                                              {"1.xlstm.mlstm_cell.fgate.weight", 0.002501463412},
                                              {"1.xlstm.mlstm_cell.fgate.bias", 0.001297959374},
                                              {"1.xlstm.mlstm_cell.outnorm.weight", 0.03109797373},
                                              {"1.xlstm.proj_down.weight", 0.245665412}};
    double squares = head.grad().square().sum().item<double>() + student->embedding_weight().grad().square().sum().item<double>();
    EXPECT_NEAR(head.grad().norm().item<double>(), 0.8402653826, allowed);
    EXPECT_NEAR(student->embedding_weight().grad().norm().item<double>(), 0.2919210973, allowed);
    size_t num_compared = 0;
    for (const auto& [name, tensor] : student->parameters()) {
      const double norm = tensor.grad().norm().item<double>();
      squares += norm * norm;
      const std::string prefix = "xlstm_block_stack.blocks.";
      if (!name.starts_with(prefix)) {
        EXPECT_NEAR(norm, 0.1950342258, allowed) << name;
        continue;
      }
      EXPECT_NEAR(norm, norms.at(name.substr(prefix.size())), allowed) << name;
      ++num_compared;
    }
    EXPECT_EQ(num_compared, norms.size());
    EXPECT_NEAR(std::sqrt(squares), 1.4690020944, allowed);
  }
}

INSTANTIATE_TEST_SUITE_P(Forms, GoldenModel, ::testing::Values(ops::MlstmForm::parallel, ops::MlstmForm::chunkwise),
                         [](const auto& info) { return info.param == ops::MlstmForm::parallel ? "parallel" : "chunkwise"; });

// sLSTM and mLSTM blocks in turn.
Tensor conv_tail(const StudentState& state, size_t block) {
  MixerState* mixer = state.blocks()[block].get();
  return block % 2 == 0 ? own_state<SlstmMixerState>(mixer)->conv_tail_BJF : own_state<MlstmMixerState>(mixer)->conv_tail_BJF;
}

TEST(GoldenModel, StepStates) {
  for (const at::Device device : devices()) {
    const auto student = golden_student(device);
    auto decode_state = student->new_state(2, 6);
    auto& state = dynamic_cast<StudentState&>(*decode_state);
    std::vector<Tensor> third_inputs;  // of the convolutions: ours keep three, the package four
    for (int64_t t = 0; t < 6; ++t) {
      (void)student->forward_step(golden_tokens().narrow(1, t, 1), state);
      if (t != 4) continue;
      for (size_t block = 0; block < state.blocks().size(); ++block) third_inputs.push_back(conv_tail(state, block).select(1, 0));
    }
    const auto norm = [](const Tensor& x) { return x.norm().item<double>(); };
    const auto conv_norm = [&](size_t block) { return std::hypot(norm(conv_tail(state, block)), norm(third_inputs[block])); };
    const std::array<std::array<double, 5>, 2> slstm{{{0.7258736561, 2.7989804472, 7.9232188654, 0.7901603322, 8.1984141555},
                                                      {0.5134994618, 2.2001863093, 8.0609024587, 0.9274748804, 8.3255385448}}};
    for (const size_t i : {0, 1}) {
      const ops::SlstmState& s = own_state<SlstmMixerState>(state.blocks()[2 * i].get())->cell;
      EXPECT_NEAR(norm(s.hidden_BHK), slstm[i][0], kPrinted);
      EXPECT_NEAR(norm(s.cell_BHK), slstm[i][1], kPrinted);
      EXPECT_NEAR(norm(s.normalizer_BHK), slstm[i][2], kPrinted);
      EXPECT_NEAR(norm(s.stabilizer_BHK), slstm[i][3], kPrinted);
      EXPECT_NEAR(conv_norm(2 * i), slstm[i][4], kPrinted);
    }
    const ops::MlstmState& m = own_state<MlstmMixerState>(state.blocks()[1].get())->cell;
    EXPECT_NEAR(norm(m.cell_BHKV), 0.2290841797, kPrinted);
    EXPECT_NEAR(norm(m.normalizer_BHK), 0.3209192595, kPrinted);
    EXPECT_NEAR(norm(m.stabilizer_BH), 0.8040207795, kPrinted);
    EXPECT_NEAR(conv_norm(1), 10.8937602888, kPrinted);
  }
}

}  // namespace
}  // namespace distil_xlstm::student
