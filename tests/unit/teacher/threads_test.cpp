#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "teacher/teacher.h"
#include "unit/teacher/teacher_testing.h"

namespace distil_xlstm::teacher {
namespace {

// Generation chooses the number of its threads by speed (generate/decode_threads.h), so it must not change what is generated.
TEST(Threads, TheirNumberChangesNoBitOfADecodeStep) {
  const int before = at::get_num_threads();
  json config = {{"model_type", "llama"},  {"vocab_size", 5003},       {"hidden_size", 576},       {"intermediate_size", 1536},
                 {"num_hidden_layers", 2}, {"num_attention_heads", 9}, {"num_key_value_heads", 3}, {"max_position_embeddings", 512},
                 {"head_dim", 64}};
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const auto model = random_teacher(config, at::kCPU, {dtype}, at::kCPU, 0.05);
    const auto decode = [&](int threads) {
      at::set_num_threads(2);
      const auto state = model->new_state(1, 300);
      std::vector<Tensor> logits;
      Tensor hidden = model->forward_step(at::arange(270, at::kLong).view({1, 270}), *state);
      at::set_num_threads(threads);
      for (int64_t i = 0; i < 4; ++i) {
        hidden = model->forward_step(at::full({1, 1}, 100 + i, at::kLong), *state);
        logits.push_back(model->logits(hidden));
      }
      return at::cat(logits);
    };
    const Tensor expected = decode(1);
    for (const int threads : {2, 3, 4, 7}) EXPECT_TRUE(at::equal(decode(threads), expected)) << dtype << " " << threads;
  }
  at::set_num_threads(before);
}

}  // namespace
}  // namespace distil_xlstm::teacher
