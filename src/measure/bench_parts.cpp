#include "measure/bench_parts.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <functional>
#include <tuple>

#include "base/error.h"
#include "measure/device_speed.h"
#include "measure/operations.h"
#include "ops/device.h"
#include "ops/head_loss.h"
#include "train/estimate.h"

namespace distil_xlstm::measure {
namespace {

constexpr int64_t kErrorTokens = 64;  // enough for every kernel's paths, and quick in float64 on a CPU

// Sizes of the run's operations. Letters: B rows, S context, N = B S, D width, H heads of each mixer, K sLSTM and I / H mLSTM head width,
// I the mLSTM's inner width, P feed-forward width.
struct Sizes {
  int64_t B, S, N, D, H, K, I, mlstm_H, P, block, num_taps, chunk_size;
  config::Activation act;
};

Sizes sizes_of(const BenchSubject& subject, int64_t B, int64_t S) {
  const auto& s = subject.student.value();
  return {.B = B,
          .S = S,
          .N = B * S,
          .D = s.embedding_dim,
          .H = s.slstm_num_heads,
          .K = s.embedding_dim / s.slstm_num_heads,
          .I = s.mlstm_inner_dim(),
          .mlstm_H = s.mlstm_num_heads,
          .P = s.ffn_dim(),
          .block = s.qkv_proj_blocksize,
          .num_taps = s.mlstm_conv1d_kernel_size,
          .chunk_size = s.chunk_size,
          .act = s.ffn_act_fn};
}

// What an operation must do at least. Bytes are those of activations and weights in the compute type.
struct Work {
  double flops = 0.0, elements = 0.0;
};

enum class Owner { slstm, mlstm, both };  // the blocks that run it

struct OperationPart {
  std::string name;
  Owner owner;
  std::string (*shape)(const Sizes&);
  Operation (*make)(const Sizes&);
  Work (*forward)(const Sizes&);
  Work (*backward)(const Sizes&);
};

double product(std::initializer_list<int64_t> factors) {
  double result = 1.0;
  for (const int64_t factor : factors) result *= static_cast<double>(factor);
  return result;
}

const std::vector<OperationPart>& operation_parts() {
  static const std::vector<OperationPart> parts = {
      {"layer_norm", Owner::both, [](const Sizes& z) { return fmt::format("{} x {}", z.N, z.D); },
       [](const Sizes& z) { return norm_operation(z.N, z.D, 1); }, [](const Sizes& z) { return Work{.elements = product({2, z.N, z.D})}; },
       [](const Sizes& z) { return Work{.elements = product({3, z.N, z.D})}; }},
      {"convolution", Owner::mlstm, [](const Sizes& z) { return fmt::format("{} x {} x {}, {} taps, SiLU", z.B, z.S, z.I, z.num_taps); },
       [](const Sizes& z) { return convolution_operation(z.B, z.S, z.I, z.num_taps, Borders::none); },
       [](const Sizes& z) { return Work{.elements = product({2, z.N, z.I})}; },
       [](const Sizes& z) { return Work{.elements = product({3, z.N, z.I})}; }},
      {"slstm_gates", Owner::slstm, [](const Sizes& z) { return fmt::format("{} x {}, {} heads of {}", z.N, z.D, z.H, z.K); },
       [](const Sizes& z) { return gate_operation(z.N, z.H, z.K); },
       [](const Sizes& z) { return Work{product({8, z.N, z.D, z.K}), product({6, z.N, z.D})}; },
       [](const Sizes& z) { return Work{product({16, z.N, z.D, z.K}), product({8, z.N, z.D})}; }},
      {"slstm", Owner::slstm, [](const Sizes& z) { return fmt::format("{} x {}, {} heads of {}", z.B, z.S, z.H, z.K); },
       [](const Sizes& z) { return slstm_operation(z.B, z.S, z.H, z.K, Borders::none); },
       [](const Sizes& z) { return Work{product({8, z.N, z.D, z.K}), product({5, z.N, z.D})}; },
       [](const Sizes& z) { return Work{product({16, z.N, z.D, z.K}), product({10, z.N, z.D})}; }},
      {"feed_forward", Owner::slstm,
       [](const Sizes& z) { return fmt::format("{} x {}, {} inside, {}", z.N, z.D, z.P, config::name_of(z.act)); },
       [](const Sizes& z) { return feed_forward_operation(z.N, z.D, z.P, z.act); },
       [](const Sizes& z) { return Work{product({6, z.N, z.D, z.P}), product({2, z.N, z.D}) + product({3, z.D, z.P})}; },
       [](const Sizes& z) { return Work{product({12, z.N, z.D, z.P}), product({3, z.N, z.D}) + product({6, z.D, z.P})}; }},
      {"qkv_projection", Owner::mlstm, [](const Sizes& z) { return fmt::format("{} x {}, blocks of {}", z.N, z.I, z.block); },
       [](const Sizes& z) { return projection_operation(z.N, z.I, z.block); },
       [](const Sizes& z) { return Work{product({6, z.N, z.I, z.block}), product({5, z.N, z.I})}; },
       [](const Sizes& z) { return Work{product({12, z.N, z.I, z.block}), product({7, z.N, z.I})}; }},
      {"mlstm_gates", Owner::mlstm, [](const Sizes& z) { return fmt::format("{} x 3 x {}, {} heads", z.N, z.I, z.mlstm_H); },
       [](const Sizes& z) { return mlstm_gate_operation(z.N, z.mlstm_H, z.I); },
       [](const Sizes& z) { return Work{product({12, z.N, z.I, z.mlstm_H}), product({3, z.N, z.I})}; },
       [](const Sizes& z) { return Work{product({24, z.N, z.I, z.mlstm_H}), product({6, z.N, z.I})}; }},
      {"mlstm", Owner::mlstm, [](const Sizes& z) { return fmt::format("{} x {}, {} heads of {}", z.B, z.S, z.mlstm_H, z.I / z.mlstm_H); },
       [](const Sizes& z) { return mlstm_operation(z.B, z.S, z.mlstm_H, z.I / z.mlstm_H, z.chunk_size, Borders::none); },
       [](const Sizes& z) { return Work{product({4, z.N, z.I, z.I / z.mlstm_H}), product({4, z.N, z.I})}; },
       [](const Sizes& z) { return Work{product({8, z.N, z.I, z.I / z.mlstm_H}), product({7, z.N, z.I})}; }},
      {"multi_head_norm", Owner::mlstm, [](const Sizes& z) { return fmt::format("{} x {}, {} groups", z.N, z.I, z.mlstm_H); },
       [](const Sizes& z) { return norm_operation(z.N, z.I, z.mlstm_H); },
       [](const Sizes& z) { return Work{.elements = product({2, z.N, z.I})}; },
       [](const Sizes& z) { return Work{.elements = product({3, z.N, z.I})}; }},
      {"skip_gate", Owner::mlstm, [](const Sizes& z) { return fmt::format("{} x {}", z.N, z.I); },
       [](const Sizes& z) { return skip_operation(z.N, z.I); }, [](const Sizes& z) { return Work{.elements = product({4, z.N, z.I})}; },
       [](const Sizes& z) { return Work{.elements = product({7, z.N, z.I})}; }},
  };
  return parts;
}

double floor_of(const BenchSubject& subject, const Work& work, at::ScalarType type) {
  const double bytes = work.elements * static_cast<double>(c10::elementSize(type));
  return std::max(work.flops / subject.flops_per_second, bytes / subject.bytes_per_second);
}

PartResult bench_operation(const BenchSubject& subject, const OperationPart& part) {
  const Sizes sizes = sizes_of(subject, subject.config.train.micro_batch_size, subject.config.data.context_length);
  const auto type = subject.compute_dtype;
  PartResult result{.name = part.name, .shape = part.shape(sizes)};
  result.floor_seconds = floor_of(subject, part.forward(sizes), type) + floor_of(subject, part.backward(sizes), type);
  result.error = errors_of(part.make(sizes_of(subject, 1, kErrorTokens)), subject.device, type).all;

  const Operation operation = part.make(sizes);
  auto inputs = inputs_of(operation, subject.device, type);
  for (auto& input : inputs) input.requires_grad_(true);
  std::vector<Tensor> gradients;
  for (const auto& output : operation.run(inputs, type)) gradients.push_back(at::randn_like(output.detach()));
  result.forward_seconds = median_seconds([&] { operation.run(inputs, type); }, subject.device);
  result.both_seconds = median_seconds(
      [&] {
        for (auto& input : inputs) input.mutable_grad() = Tensor();
        torch::autograd::backward(operation.run(inputs, type), gradients);
      },
      subject.device);
  return result;
}

struct HeadCase {
  Tensor student_ND;
  ops::Head student_head_VD;
  Tensor teacher_ND;
  ops::Head teacher_head_VD;
  Tensor targets_N, mask_N;
};

// Both models' last hidden states over heads of their own, or one where the geometry ties it to the embedding.
HeadCase head_case(const BenchSubject& subject, int64_t N) {
  const int64_t V = subject.teacher.vocab_size, D = subject.teacher.hidden_size;
  const auto type = subject.compute_dtype;
  const auto normal = [&](int64_t rows, double scale) { return draw({1, rows, D}, scale).to(type); };
  HeadCase c;
  c.student_ND = normal(N, 1.0);
  c.teacher_ND = normal(N, 1.0);
  c.student_head_VD = normal(V, 0.02)[0];
  c.teacher_head_VD = subject.teacher.is_tied ? c.student_head_VD : ops::Head(normal(V, 0.02)[0]);
  c.targets_N = at::randint(V, {1, N}, at::kLong);
  c.mask_N = at::ones({1, N}, at::kByte);
  return c;
}

// With heads as a training run has them.
HeadCase moved(const HeadCase& c, at::Device device, at::ScalarType type) {
  const Tensor student_head_VD = c.student_head_VD.weight().to(device, type);
  HeadCase out{c.student_ND.to(device, type),
               type == at::kDouble ? ops::Head(student_head_VD) : ops::Head::packed(student_head_VD, /*with_gradient=*/true),
               c.teacher_ND.to(device, type),
               {},
               c.targets_N.to(device),
               c.mask_N.to(device)};
  if (c.teacher_head_VD.weight().is_same(c.student_head_VD.weight())) {
    out.teacher_head_VD = out.student_head_VD;
  } else {
    const Tensor teacher_head_VD = c.teacher_head_VD.weight().to(device, type);
    out.teacher_head_VD = type == at::kDouble ? ops::Head(teacher_head_VD) : ops::Head::packed(teacher_head_VD, /*with_gradient=*/false);
  }
  return out;
}

ops::HeadLosses run_head(const HeadCase& c) {
  const ops::HeadObjective objective{.ce_weight = 0.2, .kd_weight = 0.7, .temperature = 2.0};
  return ops::head_losses(c.student_ND, c.student_head_VD, c.teacher_ND, c.teacher_head_VD, c.targets_N, c.mask_N, objective,
                          1.0 / static_cast<double>(c.targets_N.size(1)));
}

PartResult bench_head_loss(const BenchSubject& subject) {
  const int64_t N = subject.tokens(), V = subject.teacher.vocab_size, D = subject.teacher.hidden_size;
  PartResult result{.name = "head_loss", .shape = fmt::format("{} x {} x {}, CE and KL", N, V, D)};
  const Work work{product({6, N, V, D}), product({subject.teacher.is_tied ? 1 : 2, V, D}) + product({3, N, D})};
  result.floor_seconds = floor_of(subject, work, subject.compute_dtype);
  const at::NoGradGuard no_grad;
  {
    const HeadCase few = head_case(subject, kErrorTokens);
    const auto got = run_head(moved(few, subject.device, subject.compute_dtype)), expected = run_head(moved(few, at::kCPU, at::kDouble));
    result.error = largest_error({relative(got.sums.slice(0, 0, 2), expected.sums.slice(0, 0, 2)),
                                  relative(got.grad_student_hidden_BSD, expected.grad_student_hidden_BSD)});
  }
  const HeadCase all = moved(head_case(subject, N), subject.device, subject.compute_dtype);
  result.both_seconds = median_seconds([&] { run_head(all); }, subject.device);
  return result;
}

// Two layers of the widths of the whole say how exact it is.
json with_two_layers(json config) {
  config["num_hidden_layers"] = 2;
  if (config.contains("layer_types") && config["layer_types"].is_array()) {
    auto& types = config["layer_types"];
    while (types.size() > 2) types.erase(types.size() - 1);
  }
  return config;
}

PartResult bench_teacher(const BenchSubject& subject) {
  const int64_t B = subject.config.train.micro_batch_size, S = subject.config.data.context_length, V = subject.teacher.vocab_size;
  PartResult result{.name = "teacher_forward",
                    .shape = fmt::format("{} x {}, {} layers of {}, mean of their states", B, S, subject.teacher.num_layers,
                                         subject.teacher.hidden_size)};
  const auto flops = train::count_flops(subject.teacher, *subject.shape, S);
  result.floor_seconds = flops.teacher_body * static_cast<double>(subject.tokens()) / subject.teacher_flops_per_second;
  {
    const json few_layers = with_two_layers(subject.teacher_config);
    constexpr uint64_t kSeed = 7;
    const auto run = [&](at::Device device, const teacher::Precision& precision) {
      at::manual_seed(kSeed);
      const auto model = teacher::random_teacher(few_layers, device, precision, at::kCPU);
      return model->forward_hidden(at::randint(V, {1, kErrorTokens}, at::kLong).to(device));
    };
    const Tensor exact = run(at::kCPU, {at::kDouble});
    result.error = relative(run(subject.device, subject.teacher_precision), exact);
  }
  const auto model = teacher::random_teacher(subject.teacher_config, subject.device, subject.teacher_precision, subject.device);
  const Tensor tokens = at::randint(V, {B, S}, at::kLong).to(subject.device);
  result.forward_seconds = median_seconds([&] { std::ignore = model->forward(tokens, {}, {.collect_mean = true}); }, subject.device);
  return result;
}

}  // namespace

std::vector<std::string> known_part_names() {
  std::vector<std::string> all = {"teacher_forward"};
  for (const auto& part : operation_parts()) all.push_back(part.name);
  all.insert(all.end(), {"head_loss", "step"});
  return all;
}

bool has_bench_part(const BenchSubject& subject, const std::string& name) {
  for (const auto& part : operation_parts()) {
    if (part.name != name) continue;
    if (!subject.student) return false;
    const auto num_slstm = static_cast<int64_t>(subject.student->slstm_at.size());
    if (part.owner == Owner::mlstm) return num_slstm < subject.student->num_blocks;
    return part.owner == Owner::both || (num_slstm > 0 && (name != "feed_forward" || subject.student->has_ffn));
  }
  return true;
}

PartResult bench_part(const BenchSubject& subject, const std::string& name) {
  if (name == "teacher_forward") return bench_teacher(subject);
  if (name == "head_loss") return bench_head_loss(subject);
  for (const auto& part : operation_parts()) {
    if (part.name == name) return bench_operation(subject, part);
  }
  throw ValueError("bench: no part \"{}\": must be one of {}", name, fmt::join(known_part_names(), ", "));
}

}  // namespace distil_xlstm::measure
