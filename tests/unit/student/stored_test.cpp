// Initial values, stored names and layouts, loading what others wrote, decay groups.
#include <set>

#include "unit/student/student_testing.h"

namespace distil_xlstm::student {
namespace {

using ::testing::HasSubstr;

class StoredTest : public testing::OpTest {};

std::string load_error(const json& config, const std::shared_ptr<MemoryWeights>& weights) {
  try {
    (void)PaperStudent::load(memory_files(config, weights), at::kCPU);
  } catch (const DataError& error) {
    return error.what();
  }
  ADD_FAILURE() << "no DataError was thrown";
  return "";
}

TEST_F(StoredTest, BothLayoutsRoundTrip) {
  const auto student = small_student(small_config(), at::kCPU);
  const Tensor tokens = random_tokens(student->config(), 2, 8);
  const Tensor reference = student->forward_hidden(tokens);
  for (const SlstmLayout layout : {SlstmLayout::cuda, SlstmLayout::vanilla}) {
    auto weights = std::make_shared<MemoryWeights>(student->stored_tensors(layout, true));
    const auto loaded = PaperStudent::load(memory_files(student->config().to_json(), weights), at::kCPU, at::kDouble);
    for (size_t i = 0; i < student->parameters().size(); ++i) {
      EXPECT_EQ(loaded->parameters()[i].first, student->parameters()[i].first);
      EXPECT_TRUE(at::equal(loaded->parameters()[i].second, student->parameters()[i].second)) << student->parameters()[i].first;
    }
    EXPECT_TRUE(at::equal(loaded->forward_hidden(tokens), reference));
  }
}

TEST_F(StoredTest, LayoutsPutElementsWhereThePackageHasThem) {
  const auto student = small_student(small_config(), at::kCPU);
  const std::string cell = "xlstm_block_stack.blocks.0.xlstm.slstm_cell.";
  const auto find = [](const NamedTensors& tensors, const std::string& name) {
    for (const auto& [key, tensor] : tensors) {
      if (key == name) return tensor;
    }
    ADD_FAILURE() << name;
    return Tensor();
  };
  const Tensor r = find(student->parameters(), cell + "_recurrent_kernel_"), b = find(student->parameters(), cell + "_bias_");
  const NamedTensors cuda = student->stored_tensors(SlstmLayout::cuda, false),
                     vanilla = student->stored_tensors(SlstmLayout::vanilla, false);
  const Tensor r_cuda = find(cuda, cell + "_recurrent_kernel_"), r_vanilla = find(vanilla, cell + "_recurrent_kernel_");
  const Tensor b_cuda = find(cuda, cell + "_bias_"), b_vanilla = find(vanilla, cell + "_bias_");
  constexpr int64_t H = 3, K = 4;
  EXPECT_EQ(r_cuda.sizes(), (at::IntArrayRef{H, K, 4 * K}));
  EXPECT_EQ(r_vanilla.sizes(), (at::IntArrayRef{H, 4 * K, K}));
  for (int64_t h = 0; h < H; ++h)
    for (int64_t g = 0; g < 4; ++g)
      for (int64_t d = 0; d < K; ++d) {
        EXPECT_EQ(b_cuda[(h * 4 + g) * K + d].item<double>(), b[h][g][d].item<double>());
        EXPECT_EQ(b_vanilla[(g * H + h) * K + d].item<double>(), b[h][g][d].item<double>());
        for (int64_t e = 0; e < K; ++e) {
          EXPECT_EQ(r_cuda[h][e][g * K + d].item<double>(), r[h][e][g][d].item<double>());
          EXPECT_EQ(r_vanilla[h][g * K + d][e].item<double>(), r[h][e][g][d].item<double>());
        }
      }
}

TEST_F(StoredTest, AuthorsNamesAndEitherFrozenName) {
  const auto student = small_student(small_config(), at::kCPU);
  const Tensor tokens = random_tokens(student->config(), 2, 5);
  const Tensor reference = student->forward_hidden(tokens);
  for (const char* embedding : {"xlstm.embedding.weight", "xlstm.token_embedding.weight", "token_embedding.weight"}) {
    auto weights = std::make_shared<MemoryWeights>(NamedTensors{});
    const std::string ours = "xlstm_block_stack.";
    for (const auto& [name, tensor] : student->stored_tensors(SlstmLayout::cuda, true)) {
      const std::string renamed = name.starts_with(ours)     ? "xlstm.backbone." + name.substr(ours.size())
                                  : name == "lm_head.weight" ? name
                                                             : embedding;
      weights->tensors_[renamed] = tensor;
    }
    const json config = {{"model_type", "xlstm"}, {"xlstm_config", student->config().to_json()}};
    const auto loaded = PaperStudent::load(memory_files(config, weights), at::kCPU, at::kDouble);
    EXPECT_TRUE(at::equal(loaded->forward_hidden(tokens), reference));
    EXPECT_TRUE(at::equal(loaded->logits(reference), student->logits(reference)));
  }
}

TEST_F(StoredTest, TiedHeadIsStoredOnce) {
  StudentConfig config = small_config();
  config.tie_weights = true;
  const auto student = PaperStudent::create(config, at::randn({config.vocab_size, config.embedding_dim}), {}, 3, at::kCPU);
  const NamedTensors stored = student->stored_tensors(SlstmLayout::cuda, true);
  EXPECT_EQ(std::count_if(stored.begin(), stored.end(), [](const auto& named) { return named.first == "lm_head.weight"; }), 0);
  for (const char* name : {"token_embedding.weight", "lm_head.weight"}) {  // a reader must take either
    auto weights = std::make_shared<MemoryWeights>(stored);
    const Tensor matrix = weights->tensors_.at("token_embedding.weight");
    weights->tensors_.erase("token_embedding.weight");
    weights->tensors_[name] = matrix;
    const auto loaded = PaperStudent::load(memory_files(config.to_json(), weights), at::kCPU);
    EXPECT_TRUE(at::equal(loaded->head_weight(), matrix));
    EXPECT_TRUE(loaded->head_weight().is_same(loaded->embedding_weight()));
  }
}

// What is stored beats the configuration, as for teachers, and the export has it.
TEST_F(StoredTest, AStoredHeadOfOtherValuesIsUsed) {
  StudentConfig config = small_config();
  const auto student = small_student(config, at::kCPU, at::kFloat);
  config.tie_weights = true;
  auto weights = std::make_shared<MemoryWeights>(student->stored_tensors(SlstmLayout::cuda, true));
  const auto loaded = PaperStudent::load(memory_files(config.to_json(), weights), at::kCPU);
  EXPECT_TRUE(at::equal(loaded->head_weight(), student->head_weight()));
  EXPECT_TRUE(at::equal(loaded->embedding_weight(), student->embedding_weight()));
  EXPECT_FALSE(loaded->config().tie_weights);
  EXPECT_EQ(loaded->stored_tensors(SlstmLayout::cuda, true).size(), weights->tensors_.size());
  weights->tensors_["lm_head.weight"] = weights->tensors_.at("token_embedding.weight").clone();
  const auto tied = PaperStudent::load(memory_files(config.to_json(), weights), at::kCPU);
  EXPECT_TRUE(tied->head_weight().is_same(tied->embedding_weight()));
  EXPECT_TRUE(tied->config().tie_weights);
  weights->tensors_["lm_head.weight"] = at::randn({22, 12});
  EXPECT_THAT(load_error(config.to_json(), weights), HasSubstr("tensor 'lm_head.weight' is [22, 12], config.json asks for [23, 12]"));
}

TEST_F(StoredTest, GivenFrozenMatricesReplaceStoredOnes) {
  const auto student = small_student(small_config(), at::kCPU, at::kFloat);
  auto weights = std::make_shared<MemoryWeights>(student->stored_tensors(SlstmLayout::cuda, false));
  EXPECT_THAT(load_error(student->config().to_json(), weights), HasSubstr("2 missing tensors (token_embedding.weight, lm_head.weight)"));
  const Tensor embedding = at::randn({23, 12}), head = at::randn({23, 12});
  const auto loaded = PaperStudent::load(memory_files(student->config().to_json(), weights), at::kCPU, at::kFloat, embedding, head);
  EXPECT_EQ(loaded->embedding_weight().data_ptr(), embedding.data_ptr());
  EXPECT_EQ(loaded->head_weight().data_ptr(), head.data_ptr());
}

// A file may put a tensor at any byte.
class OddlyPlacedWeights final : public MemoryWeights {
 public:
  using MemoryWeights::MemoryWeights;
  [[nodiscard]] io::TensorView view(std::string_view name) const override {
    io::TensorView view = MemoryWeights::view(name);
    std::vector<std::byte>& bytes = moved_[std::string(name)];
    bytes.resize(view.bytes.size() + 1);
    std::copy(view.bytes.begin(), view.bytes.end(), bytes.begin() + 1);
    view.bytes = {bytes.data() + 1, view.bytes.size()};
    return view;
  }

 private:
  mutable std::map<std::string, std::vector<std::byte>> moved_;
};

TEST_F(StoredTest, UnalignedTensors) {
  const auto student = small_student(small_config(), at::kCPU);
  const auto weights = std::make_shared<OddlyPlacedWeights>(student->stored_tensors(SlstmLayout::cuda, true));
  const auto loaded = PaperStudent::load(memory_files(student->config().to_json(), weights), at::kCPU, at::kDouble);
  const Tensor tokens = random_tokens(student->config(), 2, 5);
  EXPECT_TRUE(at::equal(loaded->forward_hidden(tokens), student->forward_hidden(tokens)));
}

TEST_F(StoredTest, WrongTensorsAreNamed) {
  const auto student = small_student(small_config(), at::kCPU, at::kFloat);
  const json config = student->config().to_json();
  const auto error_with = [&](auto change) {
    auto weights = std::make_shared<MemoryWeights>(student->stored_tensors(SlstmLayout::cuda, true));
    change(weights->tensors_);
    return load_error(config, weights);
  };
  EXPECT_THAT(error_with([](auto& t) { t.erase("xlstm_block_stack.blocks.1.xlstm.learnable_skip"); }),
              HasSubstr("memory: 1 missing tensors (xlstm_block_stack.blocks.1.xlstm.learnable_skip)"));
  EXPECT_THAT(error_with([](auto& t) { t["extra.weight"] = at::zeros({1}); }), HasSubstr("1 unexpected tensors (extra.weight)"));
  EXPECT_THAT(error_with([](auto& t) { t["lm_head.weight"] = at::zeros({22, 12}); }),
              HasSubstr("'lm_head.weight' is [22, 12], config.json asks for [23, 12]"));
  EXPECT_THAT(error_with([](auto& t) { t["xlstm_block_stack.blocks.3.xlstm.slstm_cell._recurrent_kernel_"] = at::zeros({3, 8, 8}); }),
              HasSubstr("is [3, 8, 8], config.json asks for [3, 4, 16] or [3, 16, 4]"));
}

TEST_F(StoredTest, InitialValues) {
  StudentConfig config;
  config.vocab_size = 5;
  config.embedding_dim = 256;
  config.num_blocks = 3;
  config.slstm_at = {0, 2};
  const Tensor frozen = at::zeros({5, 256});
  const auto student = PaperStudent::create(config, frozen, frozen, 11, at::kCPU, at::kDouble);
  std::map<std::string, Tensor> named(student->parameters().begin(), student->parameters().end());
  const auto at_block = [&](int64_t block, const std::string& name) { return named.at(block_prefix(block) + name).detach(); };
  const auto expect_normal = [](const Tensor& x, double standard_deviation) {
    const double error = 5.0 / std::sqrt(static_cast<double>(x.numel()));
    EXPECT_NEAR(x.mean().item<double>() / standard_deviation, 0.0, error);
    EXPECT_NEAR(x.std().item<double>() / standard_deviation, 1.0, error);
    EXPECT_GT(x.abs().max().item<double>(), 2.5 * standard_deviation);
  };
  const auto expect_uniform = [](const Tensor& x, double bound) {
    EXPECT_LE(x.abs().max().item<double>(), bound);
    EXPECT_NEAR(x.std().item<double>() / bound, 1.0 / std::sqrt(3.0), 4.0 / std::sqrt(static_cast<double>(x.numel())));
  };
  const double small = std::sqrt(2.0 / (5.0 * 256.0)), wang = 2.0 / (3.0 * 16.0);
  for (const char* name : {"xlstm.fgate.weight", "xlstm.igate.weight", "xlstm.zgate.weight", "xlstm.ogate.weight", "ffn.proj_up.weight"})
    expect_normal(at_block(0, name), small);
  expect_normal(at_block(2, "ffn.proj_down.weight"), wang);
  expect_normal(at_block(1, "xlstm.proj_up.weight"), small);
  expect_normal(at_block(1, "xlstm.proj_down.weight"), wang);
  expect_normal(at_block(1, "xlstm.q_proj.weight"), small);
  expect_normal(at_block(1, "xlstm.v_proj.weight"), small);
  expect_uniform(at_block(0, "xlstm.conv1d.conv.weight"), 0.5);
  expect_uniform(at_block(1, "xlstm.conv1d.conv.bias"), 0.5);
  for (const char* name :
       {"xlstm_norm.weight", "xlstm.mlstm_cell.igate.weight", "xlstm.mlstm_cell.fgate.weight", "xlstm.mlstm_cell.outnorm.weight"})
    EXPECT_EQ(at_block(1, name).abs().max().item<double>(), 0.0) << name;
  EXPECT_EQ(at_block(0, "xlstm.slstm_cell._recurrent_kernel_").abs().max().item<double>(), 0.0);
  EXPECT_TRUE(at::equal(at_block(1, "xlstm.learnable_skip"), at::ones({512}, at::kDouble)));
  EXPECT_TRUE(at::allclose(at_block(1, "xlstm.mlstm_cell.fgate.bias"), at::linspace(3, 6, 4, at::kDouble)));
  EXPECT_LT(at_block(1, "xlstm.mlstm_cell.igate.bias").abs().max().item<double>(), 0.6);
  EXPECT_GT(at_block(1, "xlstm.mlstm_cell.igate.bias").abs().max().item<double>(), 0.0);
}

TEST_F(StoredTest, SlstmBiasInitialisations) {
  StudentConfig config;
  config.vocab_size = 2;
  config.embedding_dim = 8;
  config.num_blocks = 2;
  config.slstm_at = {0, 1};
  config.slstm_num_heads = 2;
  const auto bias_of = [&](int64_t block) {
    const Tensor frozen = at::zeros({2, 8});
    const auto student = PaperStudent::create(config, frozen, frozen, 5, at::kCPU, at::kDouble);
    std::map<std::string, Tensor> named(student->parameters().begin(), student->parameters().end());
    return named.at(block_prefix(block) + "xlstm.slstm_cell._bias_").detach();  // [2, 4, 4]
  };
  const auto forget_row = [](const Tensor& bias, int64_t head) { return bias[head][1]; };
  // r = 1 in the last block: the specification's check values, in both heads.
  for (const int64_t head : {0, 1})
    EXPECT_TRUE(at::allclose(forget_row(bias_of(1), head), at::tensor({5.0, 2.9309, -1.2724, -7.0}, at::kDouble), 0, 5e-5));
  EXPECT_TRUE(at::allclose(forget_row(bias_of(0), 0), 5 - 12 * at::tensor({0.0, 1.0 / 3, 2.0 / 3, 1.0}, at::kDouble).pow(0.3)));
  for (const int64_t gate : {0, 2, 3}) EXPECT_EQ(bias_of(0).select(1, gate).abs().max().item<double>(), 0.0);
  config.bias_init = config::BiasInit::small_init;
  EXPECT_TRUE(at::allclose(forget_row(bias_of(0), 1), at::linspace(3, 6, 4, at::kDouble)));
  EXPECT_EQ(bias_of(0).select(1, 0).abs().max().item<double>(), 0.0);
  config.bias_init = config::BiasInit::zeros;
  EXPECT_EQ(bias_of(0).abs().max().item<double>(), 0.0);
  config.bias_init = config::BiasInit::standard;
  EXPECT_GT(bias_of(0).select(1, 3).abs().min().item<double>(), 0.0);
  EXPECT_LE(bias_of(0).abs().max().item<double>(), 1.0 / std::sqrt(8.0));
  config.recurrent_weight_init = config::RecurrentWeightInit::standard;
  const Tensor frozen = at::zeros({2, 8});
  const auto student = PaperStudent::create(config, frozen, frozen, 5, at::kCPU);
  for (const auto& [name, tensor] : student->parameters()) {
    if (!name.ends_with("_recurrent_kernel_")) continue;
    EXPECT_LE(tensor.abs().max().item<double>(), 1.0 / std::sqrt(8.0));
    EXPECT_GT(tensor.abs().max().item<double>(), 0.2);
  }
}

TEST_F(StoredTest, SeedsDecideAllAndOnlyThey) {
  const StudentConfig config = small_config();
  const Tensor frozen = at::zeros({23, 12});
  const auto first = PaperStudent::create(config, frozen, frozen, 1, at::kCPU);
  for (const at::Device device : devices()) {
    const auto same = PaperStudent::create(config, frozen, frozen, 1, device);
    for (size_t i = 0; i < first->parameters().size(); ++i)
      EXPECT_TRUE(at::equal(first->parameters()[i].second, same->parameters()[i].second.cpu())) << first->parameters()[i].first;
  }
  const auto other = PaperStudent::create(config, frozen, frozen, 2, at::kCPU);
  EXPECT_FALSE(at::equal(first->parameters()[1].second, other->parameters()[1].second));
}

TEST_F(StoredTest, DecayGroupsOfTheSpecification) {
  StudentConfig config = small_config();
  config.bias = config.ffn_bias = true;
  const Tensor frozen = at::zeros({23, 12});
  const std::set<std::string> decayed{"proj_up.weight", "proj_down.weight", "q_proj.weight", "k_proj.weight", "v_proj.weight",
                                      "conv.weight",    "fgate.weight",     "igate.weight",  "zgate.weight",  "ogate.weight"};
  std::set<std::string> seen;
  const auto student = PaperStudent::create(config, frozen, frozen, 0, at::kCPU);
  const auto traits = student->parameter_traits();
  ASSERT_EQ(traits.size(), student->parameters().size());
  for (size_t i = 0; i < traits.size(); ++i) {
    const std::string& name = student->parameters()[i].first;
    const auto last = name.rfind('.', name.rfind('.') - 1);
    const std::string tail = name.substr(last + 1);
    seen.insert(tail);
    EXPECT_EQ(traits[i].decays, decayed.contains(tail)) << name;
    EXPECT_EQ(traits[i].group == "norm", name.find("norm") != std::string::npos) << name;
    EXPECT_EQ(traits[i].group == "feed_forward", tail.starts_with("proj_") && name.find(".ffn.") != std::string::npos) << name;
  }
  for (const std::string& tail : decayed) EXPECT_TRUE(seen.contains(tail)) << tail;
}

}  // namespace
}  // namespace distil_xlstm::student
