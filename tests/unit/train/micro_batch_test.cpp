#include <ATen/Parallel.h>

#include "base/log.h"
#include "distill/method.h"
#include "ops/device.h"
#include "optim/adamw.h"
#include "small_run.h"
#include "support/devices.h"
#include "train/micro_batch.h"

namespace distil_xlstm::train {
namespace {

using testing::devices;

constexpr int64_t kContext = 24;

data::Batch random_batch(int64_t rows, uint64_t seed, bool has_inner_starts) {
  std::mt19937_64 random(seed);
  data::Batch batch{.num_rows = rows, .context_length = kContext};
  for (int64_t i = 0; i < rows * kContext; ++i) {
    batch.tokens.push_back(static_cast<int32_t>(random() % 512));
    batch.targets.push_back(static_cast<int32_t>(random() % 512));
    batch.mask.push_back(random() % 5 != 0);
    batch.is_start.push_back(i % kContext == 0 || (has_inner_starts && random() % 7 == 0));
    batch.num_targets += batch.mask.back();
  }
  return batch;
}

// Of stories260K and a fresh student on one device.
class MicroBatchTest : public ::testing::Test {
 protected:
  struct Result {
    LossSums sums;
    NamedTensors gradients;
  };

  void load(at::Device device, at::ScalarType teacher_dtype, at::ScalarType compute_dtype,
            config::AlignmentKind alignment = config::AlignmentKind::average, bool checkpoints_blocks = false) {
    const auto files = io::open_model("stories260K");
    teacher_ = teacher::load_teacher(files, device, teacher_dtype);
    auto config = small_config();
    config.distill.alignment.kind = alignment;
    if (alignment == config::AlignmentKind::block_wise) config.student.num_blocks = teacher_->num_layers();
    student_ = student::PaperStudent::create(student::derive_student(config.student, teacher::teacher_shape(files.config), kContext),
                                             teacher_->embedding_weight(), teacher_->head_weight(), config.seed, device);
    source_ = std::make_unique<teacher::LiveTeacher>(*teacher_);
    objective_.emplace(config.distill, teacher_->num_layers(), student_->config().num_blocks);
    settings_.head = distill::make_method(config.distill, 10, 1)->plan({.step = 0, .total_steps = 10, .epoch = 0, .num_epochs = 1}).head;
    settings_.measured = {true};
    settings_.hidden_scales = {0.3 / 6};
    settings_.target_scale = 1.0 / 100;
    settings_.student.compute_dtype = compute_dtype;
    settings_.student.collect_layers = objective_->needs_layers(settings_.measured);
    settings_.student.activation_checkpointing = checkpoints_blocks;
  }

  enum class Announced { nothing, the_next, another, other_options };

  // Each of `steps` in its calls, with an optimizer step after it. What comes next is announced to each call, or something else is. Returns
  // the last gradients and the sums of all steps, on the CPU; the weights are then as they were.
  Result run(const std::vector<std::vector<std::vector<data::Batch>>>& steps, Announced announced = Announced::nothing) {
    MicroBatches micro_batches(*source_, *student_, *objective_);
    const auto& parameters = student_->parameters();
    const NamedTensors before = copies_of(parameters);
    optim::AdamW optimizer(parameters, {}, std::vector<optim::ParameterRule>(parameters.size()));
    std::vector<const data::Batch*> firsts;
    for (const auto& calls : steps) {
      for (const auto& batches : calls) firsts.push_back(&batches.front());
    }
    Result result;
    size_t call = 0;
    for (const auto& calls : steps) {
      optimizer.zero_grad();
      LossSums sums;
      for (const auto& batches : calls) {
        ++call;
        const data::Batch& following = announced == Announced::another ? d_ : *firsts[std::min(call, firsts.size() - 1)];
        const NextBatch next{&following, {announced != Announced::other_options}};
        sums.add(micro_batches.run(batches, settings_, announced == Announced::nothing ? nullptr : &next));
      }
      result.sums.add(sums);
      result.gradients = copies_of_gradients(parameters);
      optimizer.step(1e-3, 1.5);
    }
    result.sums.head = result.sums.head.to(at::kCPU);
    result.sums.hidden.at(0) = result.sums.hidden.at(0).to(at::kCPU);
    const at::NoGradGuard no_grad;
    for (size_t i = 0; i < before.size(); ++i) Tensor(parameters[i].second).copy_(before[i].second);
    optimizer.zero_grad();
    return result;
  }

  static NamedTensors copies_of_gradients(const NamedTensors& parameters) {
    NamedTensors copies;
    for (const auto& [name, parameter] : parameters) copies.emplace_back(name, parameter.grad().to(at::kCPU, at::kDouble));
    return copies;
  }

  std::unique_ptr<teacher::Teacher> teacher_;
  std::unique_ptr<student::PaperStudent> student_;
  std::unique_ptr<teacher::LiveTeacher> source_;
  std::optional<distill::Objective> objective_;
  GradientSettings settings_;
  const data::Batch a_ = random_batch(2, 1, false), b_ = random_batch(3, 2, true), c_ = random_batch(1, 3, false),
                    d_ = random_batch(2, 4, false);
};

// All threads first, then trials of fewer, which take several shares each: the bits must not show it.
TEST_F(MicroBatchTest, WhoTakesTheSharesChangesNoBit) {
  const int threads = at::get_num_threads();
  at::set_num_threads(3);
  load(at::kCPU, at::kFloat, at::kFloat);
  MicroBatches micro_batches(*source_, *student_, *objective_);
  NamedTensors expected;
  const double begin = monotonic_seconds();
  for (int call = 0; call < 40 || monotonic_seconds() - begin < 0.5; ++call) {
    for (const auto& [name, parameter] : student_->parameters()) parameter.mutable_grad() = Tensor();
    (void)micro_batches.run({b_}, settings_);
    const NamedTensors gradients = copies_of_gradients(student_->parameters());
    if (expected.empty()) expected = gradients;
    ASSERT_EQ(max_difference(gradients, expected), 0.0) << call;
  }
  at::set_num_threads(threads);
}

// The state is that of a longer row, whose first part has no gradient; and who takes which rows does not matter.
TEST_F(MicroBatchTest, RowsStartWhereOthersEnded) {
  const int threads = at::get_num_threads();
  for (const at::Device device : devices()) {
    // 4 rows have 3 others each: more are not read.
    for (const auto& [rows_before, has_inner_starts] :
         std::vector<std::pair<int64_t, bool>>{{0, true}, {1, false}, {1, true}, {2, true}, {7, false}}) {
      SCOPED_TRACE(fmt::format("{} {} {}", device.str(), rows_before, has_inner_starts));
      const data::Batch batch = random_batch(4, 5, has_inner_starts);
      load(device, at::kFloat, at::kFloat);
      settings_.rows_before = rows_before;
      at::set_num_threads(1);
      const Result alone = run({{{batch}}});
      at::set_num_threads(3);
      const Result shared = run({{{batch}}});
      at::set_num_threads(threads);

      const auto on_device = nn::to_device(batch, device);
      Tensor inner_BS = at::zeros_like(on_device.mask_BS);  // a row's own beginning begins no document here
      if (has_inner_starts) inner_BS.narrow(1, 1, kContext - 1).copy_(on_device.is_start_BS.narrow(1, 1, kContext - 1));
      std::vector<Tensor> tokens, starts;
      const int64_t reads = std::min<int64_t>(rows_before, 3);
      for (int64_t back = reads; back >= 0; --back) {
        tokens.push_back(on_device.tokens_BS.roll(back, 0));
        starts.push_back(inner_BS.roll(back, 0));
      }
      const Tensor hidden_BSD = student_->forward_hidden(at::cat(tokens, 1), at::cat(starts, 1)).narrow(1, reads * kContext, kContext);
      const Tensor log_p_BSV = student_->logits(hidden_BSD).log_softmax(2);
      const Tensor nll_BS = -log_p_BSV.gather(2, on_device.targets_BS.unsqueeze(2)).squeeze(2);
      const double expected = (nll_BS * on_device.mask_BS).sum().item<double>();
      const auto names = objective_->names();
      const int64_t place = std::ranges::find(names, "ce_loss") - names.begin();
      EXPECT_NEAR(alone.sums.head[place].item<double>(), expected, 1e-4 * expected);
      EXPECT_NEAR(shared.sums.head[place].item<double>(), expected, 1e-4 * expected);
      double difference = 0.0, scale = 0.0;
      for (size_t i = 0; i < alone.gradients.size(); ++i) {
        difference += (alone.gradients[i].second - shared.gradients[i].second).square().sum().item<double>();
        scale += alone.gradients[i].second.square().sum().item<double>();
      }
      EXPECT_LT(std::sqrt(difference / scale), 1e-4);
      ASSERT_GT(scale, 0.0);
    }
  }
}

// On a GPU each but the first has its teacher's part beside the student's of the one before, of the step before where it was announced. The
// bits must not show it.
TEST_F(MicroBatchTest, SeveralInOneCallAreThoseOneAfterTheOther) {
  for (const at::Device device : devices()) {
    for (const auto dtype : {at::kFloat, at::kBFloat16}) {
      if (device.is_cpu() && dtype != at::kFloat) continue;
      for (const auto alignment : {config::AlignmentKind::average, config::AlignmentKind::block_wise}) {
        for (const bool checkpoints_blocks : {false, true}) {
          SCOPED_TRACE(fmt::format("{} {} {}{}", device.str(), c10::toString(dtype), config::name_of(alignment),
                                   checkpoints_blocks ? " checkpoints" : ""));
          load(device, dtype, dtype, alignment, checkpoints_blocks);
          const Result expected = run({{{a_}, {b_}, {c_}}, {{b_}, {c_}, {b_}}});
          for (int repeat = 0; repeat < (device.is_cpu() ? 1 : 12); ++repeat) {
            const ops::PriorityStream stream(device);
            const auto announced = static_cast<Announced>(repeat % 4);
            const Result got = run({{{a_, b_, c_}}, {{b_, c_, b_}}}, announced);
            EXPECT_TRUE(at::equal(got.sums.head, expected.sums.head));
            EXPECT_TRUE(at::equal(got.sums.hidden.at(0), expected.sums.hidden.at(0)));
            EXPECT_EQ(max_difference(got.gradients, expected.gradients), 0.0);
          }
        }
      }
    }
  }
}

TEST_F(MicroBatchTest, EveryDeviceGivesTheCpusGradients) {
  std::optional<Result> expected;
  for (const at::Device device : devices()) {  // the CPU first
    load(device, at::kFloat, at::kFloat);
    const Result got = run({{{a_, b_}, {c_}}});
    if (!expected) {
      expected = got;
      continue;
    }
    EXPECT_TRUE(at::allclose(got.sums.head, expected->sums.head, 1e-4, 1e-4));
    EXPECT_TRUE(at::allclose(got.sums.hidden.at(0), expected->sums.hidden.at(0), 1e-4));
    for (size_t i = 0; i < got.gradients.size(); ++i) {
      const auto& [name, wanted] = expected->gradients[i];
      const double distance = (got.gradients[i].second - wanted).norm().item<double>();
      EXPECT_LE(distance, 1e-3 * wanted.norm().item<double>() + 1e-9) << name << " on " << device.str();
    }
  }
}

}  // namespace
}  // namespace distil_xlstm::train
