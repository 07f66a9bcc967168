// Identities of the student as a whole: state in and out, resets, decoding, checkpointing, number formats.
#include "student/state.h"
#include "unit/student/student_testing.h"

namespace distil_xlstm::student {
namespace {

class StudentTest : public testing::OpTest {};

TEST_F(StudentTest, SplittingASequenceAnywhereChangesNothing) {
  for (const at::Device device : devices()) {
    const auto student = small_student(small_config(), device);
    const Tensor tokens = random_tokens(student->config(), 2, 13);
    // The state's path holds m_0 = 0 throughout, so the whole also starts from a zero state.
    const at::NoGradGuard no_grad;
    for (const ops::MlstmForm form : {ops::MlstmForm::chunkwise, ops::MlstmForm::recurrent}) {
      const StudentForwardOptions options{.compute_dtype = at::kDouble, .mlstm_form = form};
      const auto whole_state = student->new_state(2, 0);
      const Tensor whole = student->forward(tokens, {}, options, whole_state.get()).last_hidden_BSD;
      for (int64_t cut = 1; cut < 13; ++cut) {
        const auto state = student->new_state(2, 0);
        const Tensor first = student->forward(tokens.narrow(1, 0, cut), {}, options, state.get()).last_hidden_BSD;
        const Tensor second = student->forward(tokens.narrow(1, cut, 13 - cut), {}, options, state.get()).last_hidden_BSD;
        // Chunks begin elsewhere after a cut, and each form's m weighs eps differently.
        EXPECT_LT(relative_error(at::cat({first, second}, 1), whole), form == ops::MlstmForm::recurrent ? 1e-10 : 1e-6) << "cut at " << cut;
        EXPECT_EQ(state->num_tokens(), 13);
      }
    }
  }
}

TEST_F(StudentTest, SplitAtChunkBordersEqualsTheWholeExactly) {
  for (const at::Device device : devices()) {
    const auto student = small_student(small_config(), device);  // chunks of 5
    const Tensor tokens = random_tokens(student->config(), 2, 13);
    const at::NoGradGuard no_grad;
    const auto state = student->new_state(2, 0);
    const Tensor whole = student->forward(tokens, {}, in_double()).last_hidden_BSD;
    const Tensor first = student->forward(tokens.narrow(1, 0, 10), {}, in_double(), state.get()).last_hidden_BSD;
    const Tensor second = student->forward(tokens.narrow(1, 10, 3), {}, in_double(), state.get()).last_hidden_BSD;
    EXPECT_LT(relative_error(at::cat({first, second}, 1), whole), 1e-10);
  }
}

TEST_F(StudentTest, ResetsEqualSeparateRuns) {
  for (const at::Device device : devices()) {
    const auto student = small_student(small_config(), device);
    const Tensor tokens = random_tokens(student->config(), 2, 14);
    Tensor is_start = at::zeros({2, 14}, at::kByte);
    is_start[0][6] = 1;
    is_start[1][0] = 1;
    is_start[1][9] = 1;
    const at::NoGradGuard no_grad;
    for (const ops::MlstmForm form : {ops::MlstmForm::parallel, ops::MlstmForm::chunkwise, ops::MlstmForm::recurrent}) {
      const StudentForwardOptions options{.compute_dtype = at::kDouble, .mlstm_form = form};
      const Tensor together = student->forward(tokens, is_start, options).last_hidden_BSD;
      const auto part = [&](int64_t row, int64_t begin, int64_t end) {
        const Tensor alone = student->forward(tokens.narrow(0, row, 1).narrow(1, begin, end - begin), {}, options).last_hidden_BSD;
        EXPECT_LT(relative_error(together.narrow(0, row, 1).narrow(1, begin, end - begin), alone),
                  form == ops::MlstmForm::chunkwise ? 1e-6 : 1e-10)
            << row << " " << begin;
      };
      part(0, 0, 6);
      part(0, 6, 14);
      part(1, 0, 9);
      part(1, 9, 14);
    }
  }
}

TEST_F(StudentTest, DecodingEqualsTheFullForwardInConstantMemory) {
  for (const at::Device device : devices()) {
    const auto student = small_student(small_config(), device);
    const Tensor tokens = random_tokens(student->config(), 3, 17);
    const at::NoGradGuard no_grad;
    const Tensor full =
        student->forward(tokens, {}, {.compute_dtype = at::kDouble, .mlstm_form = ops::MlstmForm::recurrent}).last_hidden_BSD;
    const auto state = student->new_state(3, 0);
    const int64_t empty_bytes = state->size_bytes();
    EXPECT_GT(empty_bytes, 0);
    std::vector<Tensor> steps{student->forward_step(tokens.narrow(1, 0, 1), *state)};
    for (int64_t t = 1; t < 17; ++t) {
      steps.push_back(student->forward_step(tokens.narrow(1, t, 1), *state));
      EXPECT_EQ(state->size_bytes(), empty_bytes) << "after token " << t;
    }
    EXPECT_LT(relative_error(at::cat(steps, 1), full), 1e-10);
    EXPECT_EQ(state->num_tokens(), 17);

    const auto prompted = student->new_state(3, 0);
    const Tensor prompt = student->forward_step(tokens.narrow(1, 0, 12), *prompted);
    EXPECT_EQ(prompted->size_bytes(), empty_bytes);
    const Tensor next = student->forward_step(tokens.narrow(1, 12, 1), *prompted);
    EXPECT_LT(relative_error(at::cat({prompt, next}, 1), full.narrow(1, 0, 13)), 1e-6);
  }
}

TEST_F(StudentTest, CheckpointingGivesTheSameGradients) {
  for (const at::Device device : devices()) {
    StudentConfig config = small_config();
    config.bias = config.ffn_bias = true;
    const auto student = small_student(config, device);
    const Tensor tokens = random_tokens(config, 2, 11);
    const Tensor is_start = testing::random_starts(2, 11);
    const Tensor projection = at::randn({2, 11, config.embedding_dim}, at::kDouble);
    StudentForwardOptions options = in_double();
    const auto plain = parameter_gradients(*student, tokens, is_start, options, projection);
    options.activation_checkpointing = true;
    const auto recomputed = parameter_gradients(*student, tokens, is_start, options, projection);
    for (size_t i = 0; i < plain.size(); ++i) {
      ASSERT_TRUE(plain[i].defined() && recomputed[i].defined()) << student->parameters()[i].first;
      EXPECT_LT(relative_error(recomputed[i], plain[i]), 1e-12) << student->parameters()[i].first;
    }
  }
}

// With products in half precision, whose weights are converted once and kept.
TEST_F(StudentTest, CheckpointingInHalfPrecisionGivesTheSameBits) {
  for (const at::Device device : devices()) {
    const auto student = small_student(small_config(), device, at::kFloat);
    const Tensor tokens = random_tokens(student->config(), 2, 11), projection = at::randn({2, 11, student->config().embedding_dim});
    StudentForwardOptions options{.compute_dtype = at::kBFloat16};
    const auto plain = parameter_gradients(*student, tokens, {}, options, projection);
    options.activation_checkpointing = true;
    for (const auto& [name, tensor] : student->parameters()) tensor.mutable_grad() = Tensor();
    const Tensor out = student->forward(tokens, {}, options).last_hidden_BSD;
    {
      const at::NoGradGuard no_grad;  // another type between forward and backward: what the student keeps is replaced
      (void)student->forward(tokens, {}, {.compute_dtype = at::kHalf});
    }
    (out * projection.to(out.options())).sum().backward();
    for (size_t i = 0; i < plain.size(); ++i)
      EXPECT_TRUE(at::equal(student->parameters()[i].second.grad(), plain[i])) << student->parameters()[i].first;
  }
}

TEST_F(StudentTest, ConvertedWeightsFollowTheParameters) {
  for (const at::Device device : devices()) {
    const auto student = small_student(small_config(), device, at::kFloat);
    const Tensor tokens = random_tokens(student->config(), 2, 7), projection = at::randn({2, 7, student->config().embedding_dim});
    const StudentForwardOptions options{.compute_dtype = at::kBFloat16};
    const auto before = parameter_gradients(*student, tokens, {}, options, projection);
    {
      const at::NoGradGuard no_grad;
      for (const auto& [name, tensor] : student->parameters()) Tensor(tensor).mul_(1.25);
    }
    const auto after = parameter_gradients(*student, tokens, {}, options, projection);
    const auto fresh = parameter_gradients(*student->replica(), tokens, {}, options, projection);
    bool has_changed = false;
    for (size_t i = 0; i < after.size(); ++i) {
      EXPECT_TRUE(at::equal(after[i], fresh[i])) << student->parameters()[i].first;
      has_changed = has_changed || !at::equal(after[i], before[i]);
    }
    EXPECT_TRUE(has_changed);
  }
}

TEST_F(StudentTest, CheckpointingStartsFromTheStateItWasGiven) {
  for (const at::Device device : devices()) {
    const auto student = small_student(small_config(), device);
    const Tensor tokens = random_tokens(student->config(), 2, 9);
    const auto gradients_of = [&](bool checkpointing) {
      StudentForwardOptions options = in_double();
      options.activation_checkpointing = checkpointing;
      const auto state = student->new_state(2, 0);
      (void)student->forward(tokens.narrow(1, 0, 4), {}, options, state.get());
      for (const auto& [name, tensor] : student->parameters()) tensor.mutable_grad() = Tensor();
      student->forward(tokens.narrow(1, 4, 5), {}, options, state.get()).last_hidden_BSD.sin().sum().backward();
      std::vector<Tensor> grads;
      for (const auto& [name, tensor] : student->parameters()) grads.push_back(tensor.grad().clone());
      return grads;
    };
    const auto plain = gradients_of(false);
    const auto recomputed = gradients_of(true);
    for (size_t i = 0; i < plain.size(); ++i) EXPECT_LT(relative_error(recomputed[i], plain[i]), 1e-12) << student->parameters()[i].first;
  }
}

TEST_F(StudentTest, GradientsMatchDifferences) {
  StudentConfig config = small_config();
  config.bias = config.ffn_bias = true;
  config.ffn_act_fn = config::Activation::swish;
  at::manual_seed(5);  // the normaliser's max has kinks, which differences must not step over
  const auto student = small_student(config, at::kCPU);
  const Tensor tokens = random_tokens(config, 2, 9);
  const Tensor is_start = testing::random_starts(2, 9);
  const Tensor projection = at::randn({2, 9, config.embedding_dim}, at::kDouble);
  const auto grads = parameter_gradients(*student, tokens, is_start, in_double(), projection);
  const at::NoGradGuard no_grad;
  const auto loss = [&] { return (student->forward(tokens, is_start, in_double()).last_hidden_BSD * projection).sum().item<double>(); };
  constexpr double kStep = 1e-6;
  for (size_t i = 0; i < grads.size(); ++i) {
    const auto& [name, tensor] = student->parameters()[i];
    const Tensor direction = at::randn_like(tensor);
    tensor.add_(direction, kStep);
    const double above = loss();
    tensor.sub_(direction, 2 * kStep);
    const double below = loss();
    tensor.add_(direction, kStep);
    const double expected = (grads[i] * direction).sum().item<double>();
    const double scale = grads[i].norm().item<double>() * direction.norm().item<double>();
    EXPECT_NEAR((above - below) / (2 * kStep), expected, 1e-6 * scale + 1e-8) << name;
  }
}

TEST_F(StudentTest, HalfPrecisionIsCloseToFloat32) {
  for (const at::Device device : devices()) {
    StudentConfig config = small_config();
    config.embedding_dim = 48;
    config.mlstm_proj_factor = 2.0;
    config.qkv_proj_blocksize = 4;
    const auto student = small_student(config, device, at::kFloat, 0.03);  // near the initial scale, as a model in training is
    const Tensor tokens = random_tokens(config, 2, 21);
    const Tensor projection = at::randn({2, 21, config.embedding_dim}, at::kDouble);
    const Tensor reference = student->forward(tokens, {}, {}).last_hidden_BSD;
    const auto reference_grads = parameter_gradients(*student, tokens, {}, {}, projection);
    for (const at::ScalarType type : {at::kBFloat16, at::kHalf}) {
      const Tensor hidden = student->forward(tokens, {}, {.compute_dtype = type}).last_hidden_BSD;
      EXPECT_EQ(hidden.scalar_type(), at::kFloat);
      EXPECT_LT(relative_error(hidden, reference), 1e-2) << c10::toString(type);
      EXPECT_GT(relative_error(hidden, reference), 1e-5) << "nothing was rounded";
      const auto grads = parameter_gradients(*student, tokens, {}, {.compute_dtype = type}, projection);
      double difference = 0.0, scale = 0.0;
      for (size_t i = 0; i < grads.size(); ++i) {
        EXPECT_EQ(grads[i].scalar_type(), at::kFloat);
        difference += (grads[i] - reference_grads[i]).square().sum().item<double>();
        scale += reference_grads[i].square().sum().item<double>();
      }
      EXPECT_LT(std::sqrt(difference / scale), 2e-2) << c10::toString(type);  // backward rounds once more at every product
      student->set_compute_dtype(type);
      EXPECT_LT(relative_error(student->forward_hidden(tokens), hidden), 1e-6) << "converted weights differ";
    }
    // Converted weights follow the parameters.
    const Tensor before = student->forward_hidden(tokens);
    perturb(*student, 0.05);
    EXPECT_GT(relative_error(student->forward_hidden(tokens), before), 1e-3);
  }
}

// A denominator near zero enlarges every rounding before it, in any arithmetic. What one rounding of each weight to
// float32 does to the exact student's output is enlarged alike: the bound is a multiple of it, whatever the draw.
TEST_F(StudentTest, Float32IsCloseToFloat64) {
  for (const at::Device device : devices()) {
    for (int draw = 0; draw < 7; ++draw) {
      const auto exact = small_student(small_config(), device);
      auto weights = std::make_shared<MemoryWeights>(exact->stored_tensors(SlstmLayout::cuda, true));
      const auto student = PaperStudent::load(memory_files(exact->config().to_json(), weights), device);
      const Tensor tokens = random_tokens(student->config(), 2, 21);
      const Tensor out = student->forward(tokens, {}, {}).last_hidden_BSD;
      EXPECT_EQ(out.scalar_type(), at::kFloat);
      const Tensor reference = exact->forward(tokens, {}, in_double()).last_hidden_BSD;
      double one_rounding = 1e-7;
      for (int i = 0; i < 4; ++i) {
        const at::NoGradGuard no_grad;
        const auto moved = PaperStudent::load(memory_files(exact->config().to_json(), weights), device, at::kDouble);
        for (const auto& [name, tensor] : moved->parameters()) tensor.mul_(1.0 + 6e-8 * at::randn(tensor.sizes(), tensor.options()));
        one_rounding = std::max(one_rounding, relative_error(moved->forward(tokens, {}, in_double()).last_hidden_BSD, reference));
      }
      EXPECT_LT(relative_error(out, reference), std::min(20 * one_rounding, 1e-2));
    }
  }
}

TEST_F(StudentTest, OutputsOfEveryBlock) {
  const auto student = small_student(small_config(), at::kCPU);
  const Tensor tokens = random_tokens(student->config(), 2, 6);
  StudentForwardOptions options = in_double();
  options.collect_layers = true;
  const StudentOutput out = student->forward(tokens, {}, options);
  ASSERT_EQ(out.layer_outputs_BSD.size(), 4U);
  EXPECT_TRUE(out.layer_outputs_BSD.back().is_same(out.final_hidden_BSD));
  EXPECT_FALSE(at::allclose(out.final_hidden_BSD, out.last_hidden_BSD));
  EXPECT_TRUE(student->forward(tokens, {}, in_double()).layer_outputs_BSD.empty());
}

TEST_F(StudentTest, PaddingOnTheRightChangesNothingToItsLeft) {
  const auto student = small_student(small_config(), at::kCPU);
  const Tensor tokens = random_tokens(student->config(), 2, 12);
  Tensor padded = tokens.clone();
  padded.narrow(1, 8, 4).fill_(0);
  EXPECT_LT(relative_error(student->forward_hidden(padded).narrow(1, 0, 8), student->forward_hidden(tokens).narrow(1, 0, 8)), 1e-10);
}

TEST_F(StudentTest, LogitsAreTheHeadsProduct) {
  for (const at::Device device : devices()) {
    const auto student = small_student(small_config(), device, at::kFloat);
    const Tensor hidden = at::randn({2, 3, 12}).to(device);
    const Tensor logits = student->logits(hidden);
    EXPECT_EQ(logits.scalar_type(), at::kFloat);
    EXPECT_LT(relative_error(logits, at::matmul(hidden.to(at::kDouble), student->head_weight().to(at::kDouble).t())), 1e-5);
    const auto half =
        PaperStudent::create(student->config(), student->embedding_weight().to(at::kHalf), student->head_weight().to(at::kHalf), 1, device);
    EXPECT_EQ(half->logits(hidden).scalar_type(), at::kFloat);
    EXPECT_LT(relative_error(half->logits(hidden), logits), 1e-2);
    EXPECT_EQ(half->embedding_weight().scalar_type(), at::kHalf);
    EXPECT_EQ(half->forward_hidden(random_tokens(half->config(), 1, 3)).scalar_type(), at::kFloat);
  }
}

TEST_F(StudentTest, FrozenStorageIsSharedNotCopied) {
  StudentConfig config = small_config();
  config.tie_weights = true;
  const Tensor embedding = at::randn({config.vocab_size, config.embedding_dim});
  const auto student = PaperStudent::create(config, embedding, {}, 1, at::kCPU);
  EXPECT_EQ(student->embedding_weight().data_ptr(), embedding.data_ptr());
  EXPECT_EQ(student->head_weight().data_ptr(), embedding.data_ptr());
  EXPECT_FALSE(student->embedding_weight().requires_grad());
  for (const auto& [name, tensor] : student->parameters()) EXPECT_TRUE(tensor.is_leaf() && tensor.requires_grad()) << name;
}

TEST_F(StudentTest, VariantsRun) {
  StudentConfig config = small_config();
  config.add_post_blocks_norm = false;
  config.has_ffn = false;
  config.group_norm_weight = false;
  config.slstm_conv1d_kernel_size = 0;
  config.mlstm_conv1d_kernel_size = 1;
  const auto student = small_student(config, at::kCPU);
  const Tensor tokens = random_tokens(config, 2, 7);
  const StudentOutput out = student->forward(tokens, {}, in_double());
  EXPECT_TRUE(out.last_hidden_BSD.is_same(out.final_hidden_BSD));
  const at::NoGradGuard no_grad;
  const auto state = student->new_state(2, 0);
  std::vector<Tensor> steps;
  for (int64_t t = 0; t < 7; ++t) steps.push_back(student->forward_step(tokens.narrow(1, t, 1), *state));
  EXPECT_LT(relative_error(at::cat(steps, 1), out.last_hidden_BSD), 1e-6);
}

TEST_F(StudentTest, ShapesTellTheSizeOfAState) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    const auto student = small_student(small_config(), at::kCPU, at::kFloat);
    student->set_compute_dtype(type);
    EXPECT_EQ(student->new_state(3, 0)->size_bytes(), 3 * student->shape().state_bytes(0, type)) << c10::toString(type);
  }
}

TEST_F(StudentTest, WrongInputs) {
  const auto student = small_student(small_config(), at::kCPU, at::kFloat);
  const Tensor tokens = random_tokens(student->config(), 2, 4);
  EXPECT_THROW((void)student->forward(tokens.to(at::kInt), {}, {}), ShapeError);
  EXPECT_THROW((void)student->forward(tokens.flatten(), {}, {}), ShapeError);
  EXPECT_THROW((void)student->forward(tokens, at::zeros({2, 5}, at::kByte), {}), ShapeError);
  EXPECT_THROW((void)student->forward(tokens, {}, {.compute_dtype = at::kLong}), ValueError);
  EXPECT_THROW((void)student->forward(tokens, {}, {.mlstm_form = ops::MlstmForm::recurrent}), ValueError) << "no gradient";
  const auto state = student->new_state(3, 0);
  EXPECT_THROW((void)student->forward_step(tokens, *state), ShapeError);
  const auto fitting = student->new_state(2, 0);
  EXPECT_THROW((void)student->forward(tokens, {}, {.mlstm_form = ops::MlstmForm::parallel}, fitting.get()), ValueError);
  EXPECT_THROW((void)student->new_state(0, 0), ValueError);
  const StudentConfig config = small_config();
  EXPECT_THROW((void)PaperStudent::create(config, at::randn({22, 12}), at::randn({23, 12}), 0, at::kCPU), ShapeError);
  EXPECT_THROW((void)PaperStudent::create(config, at::randn({23, 12}), {}, 0, at::kCPU), ShapeError);
  EXPECT_THROW((void)PaperStudent::create(config, at::randn({23, 12}), at::randn({23, 12}), 0, at::kCPU, at::kHalf), ValueError);
}

}  // namespace
}  // namespace distil_xlstm::student
