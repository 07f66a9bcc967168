// The converted student: that it starts from its teacher, computes what docs/convert.md says, and does so in every form.
#include <fmt/ranges.h>

#include <set>

#include "base/error.h"
#include "student/convert/large_form.h"
#include "student/convert/layer.h"
#include "student/convert/student.h"
#include "student_testing.h"
#include "teacher/teacher.h"
#include "unit/nn/nn_testing.h"

namespace distil_xlstm::student {
namespace {

constexpr int64_t kVocabulary = 37;

struct Family {
  std::string name;
  json config;
};

// Every family, with biases, grouped heads, head norms, odd head widths, and a head of its own.
std::vector<Family> families() {
  const auto config = [](const std::string& type, const json& more) {
    json all = {{"model_type", type},         {"vocab_size", kVocabulary}, {"hidden_size", 12},        {"intermediate_size", 20},
                {"num_hidden_layers", 2},     {"num_attention_heads", 4},  {"num_key_value_heads", 2}, {"head_dim", 6},
                {"tie_word_embeddings", true}};
    all.update(more);
    return all;
  };
  return {{"llama", config("llama", {{"num_key_value_heads", 4}})},
          {"llama with biases", config("llama", {{"attention_bias", true}, {"mlp_bias", true}, {"num_key_value_heads", 1}})},
          {"qwen2", config("qwen2", {{"head_dim", 3 * 2}, {"hidden_size", 24}})},
          {"qwen3", config("qwen3", {{"head_dim", 10}, {"tie_word_embeddings", false}})}};
}

struct Pair {
  std::unique_ptr<teacher::Teacher> teacher;
  std::unique_ptr<StudentShape> shape;
  std::unique_ptr<Student> student;
};

Pair convert(const json& config, const config::StudentSettings& settings = {}, at::Device device = at::kCPU,
             at::ScalarType dtype = at::kDouble) {
  Pair pair;
  at::manual_seed(7);
  pair.teacher = teacher::random_teacher(config, device, {dtype}, at::kCPU, 0.4);
  auto wanted = settings;
  wanted.kind = "convert";
  wanted.chunk_size = 5;
  pair.shape = derive_shape(wanted, teacher::teacher_shape(config), 32);
  pair.student = pair.shape->fresh({.device = device,
                                    .parameter_dtype = dtype,
                                    .embedding_VD = pair.teacher->embedding_weight(),
                                    .head_VD = pair.teacher->head_weight(),
                                    .teacher = pair.teacher.get()},
                                   3);
  pair.student->set_compute_dtype(dtype);
  return pair;
}

Tensor tokens_of(int64_t rows, int64_t length, at::Device device = at::kCPU) {
  return at::randint(kVocabulary, {rows, length}, at::kLong).to(device);
}

std::map<std::string, Tensor> named(const Student& student) {
  return {student.parameters().begin(), student.parameters().end()};
}

// Keys or values of groups, once for each of their heads.
Tensor for_each_head(const Tensor& grouped, int64_t heads, int64_t groups, int64_t width) {
  std::vector<Tensor> rows;
  for (int64_t head = 0; head < heads; ++head) rows.push_back(grouped.narrow(0, head / (heads / groups) * width, width));
  return at::cat(rows);
}

// Every mixer, alone and beside others.
std::vector<config::StudentSettings> every_kind() {
  return {{.mixers = {"mlstm"}},
          {.conv1d_kernel_size = 0, .mixers = {"mlstm"}},
          {.mixers = {"gated-delta"}},
          {.conv1d_kernel_size = 0, .mixers = {"mlstm", "gated-delta"}},
          {.mixers = {"mlstm", "gated-delta"}, .normalizer = config::Normalizer::bounded, .head_norm = true},
          {.mixers = {"slstm"}},
          {.conv1d_kernel_size = 0, .mixers = {"slstm", "mlstm"}},
          {.mixers = {"mlstm", "xlstm-large"}},
          {.conv1d_kernel_size = 0, .mixers = {"xlstm-large", "slstm"}},
          {.mixers = {"attention"}},
          {.mixers = {"mlstm", "attention"}, .attention_window = 5},
          {.mixers = {"attention", "slstm"}, .attention_window = 4, .attention_sinks = 3}};
}

std::string name_of(const config::StudentSettings& settings) {
  return fmt::format("{}, {} taps, window {} and {}{}", fmt::join(settings.mixers, " "), settings.conv1d_kernel_size,
                     settings.attention_window, settings.attention_sinks, settings.head_norm ? ", normed heads, bounded" : "");
}

bool keeps_attention(const config::StudentSettings& settings) {
  return std::ranges::find(settings.mixers, "attention") != settings.mixers.end();
}

TEST(Convert, EveryMixerIsTried) {
  std::set<std::string> tried;
  for (const auto& settings : every_kind()) tried.insert(settings.mixers.begin(), settings.mixers.end());
  EXPECT_EQ(tried, [] {
    const auto names = convert_mixer_names();
    return std::set<std::string>(names.begin(), names.end());
  }());
}

TEST(Convert, StartsFromItsTeacher) {
  struct Case {
    std::string name;
    json config;
    std::string mixer;
  };
  std::vector<Case> cases;
  for (const auto& [family, of_family] : families()) {
    for (const char* mixer : {"mlstm", "slstm", "attention"}) cases.push_back({family + " " + mixer, of_family, mixer});
  }
  for (const auto& [name, config, mixer] : cases) {
    SCOPED_TRACE(name);
    const Pair pair = convert(config, {.mixers = {mixer}});
    const auto parameters = named(*pair.student);
    const int64_t heads = config["num_attention_heads"], groups = config["num_key_value_heads"], width = config["head_dim"];
    std::map<std::string, Tensor> teacher;
    pair.teacher->for_each_weight([&](const std::string& weight, const Tensor& values) {
      const bool is_grouped =
          mixer != "attention" && (weight.find("k_proj") != std::string::npos || weight.find("v_proj") != std::string::npos);
      teacher[weight] = is_grouped ? for_each_head(values, heads, groups, width) : values;
    });
    int compared = 0;
    for (const auto& [parameter, values] : parameters) {
      if (parameter.find("mixer.") != std::string::npos) continue;
      const auto joined = [&](const std::string& whole, const std::vector<std::string>& parts) {
        std::vector<Tensor> tensors;
        for (const auto& part : parts)
          tensors.push_back(teacher.at(std::string(parameter).replace(parameter.find(whole), whole.size(), part)));
        return at::cat(tensors);
      };
      const Tensor expected = parameter.find("qkv_proj") != std::string::npos  ? joined("qkv_proj", {"q_proj", "k_proj", "v_proj"})
                              : parameter.find("gate_up") != std::string::npos ? joined("gate_up_proj", {"gate_proj", "up_proj"})
                                                                               : teacher.at(parameter);
      EXPECT_TRUE(at::equal(values, expected)) << parameter;
      ++compared;
    }
    EXPECT_GE(compared, 2 * 6 + 1);
    EXPECT_EQ(pair.student->embedding_weight().const_data_ptr(), pair.teacher->embedding_weight().const_data_ptr());
    EXPECT_EQ(pair.student->head_weight().const_data_ptr(), pair.teacher->head_weight().const_data_ptr());
    EXPECT_EQ(pair.shape->num_trainable_parameters(), [&] {
      int64_t count = 0;
      for (const auto& [parameter, tensor] : pair.student->parameters()) count += tensor.numel();
      return count;
    }());
  }
}

// One layer by the formulas, a position at a time.
TEST(Convert, ALayerIsItsDefinition) {
  struct Variant {
    bool has_rope = true;
    double sharpness = 1.0;  // sharp features hardly overlap
    config::Normalizer normalizer = config::Normalizer::sum;
    bool has_head_norm = false;
  };
  for (const auto& [has_rope, sharpness, normalizer, has_head_norm] :
       {Variant{}, {.has_rope = false}, {.sharpness = 20.0}, {.normalizer = config::Normalizer::bounded}, {.has_head_norm = true}}) {
    SCOPED_TRACE(fmt::format("{} {} {} {}", has_rope, sharpness, config::name_of(normalizer), has_head_norm));
    const json config = families()[0].config;  // no biases, no head norms, no groups
    const Pair pair = convert(config, {.feature_factor = 4, .rope = has_rope, .normalizer = normalizer, .head_norm = has_head_norm});
    perturb(*pair.student, 0.2);
    const auto w = named(*pair.student);
    {
      const at::NoGradGuard no_grad;
      Tensor(w.at("model.layers.0.self_attn.qkv_proj.weight")).narrow(0, 0, 4 * 6).mul_(sharpness);
    }
    const int64_t S = 11, H = 4, K = 6, M = 12;
    const Tensor tokens = tokens_of(1, S);
    const auto of = [&](const std::string& name) { return w.at("model.layers.0." + name).detach(); };
    const auto norm = [](const Tensor& x, const Tensor& weight) { return x / (x.square().mean(-1, true) + 1e-6).sqrt() * weight; };
    const Tensor x_SD = at::embedding(pair.student->embedding_weight(), tokens)[0];
    const Tensor u_SD = norm(x_SD, of("input_layernorm.weight"));
    const auto heads = [&](int64_t part) {
      const auto rows = [&](const char* name) { return of(name).narrow(0, part * H * K, H * K); };
      const Tensor in_SE = at::linear(u_SD, rows("self_attn.qkv_proj.weight")), taps_EJ = rows("mixer.conv.weight");
      Tensor out_SE = at::zeros_like(in_SE);
      for (int64_t t = 0; t < S; ++t) {
        for (int64_t j = 0; j < 4 && j <= t; ++j) out_SE[t] += taps_EJ.select(1, 3 - j) * in_SE[t - j];
      }
      return out_SE.view({S, H, K});
    };
    const auto turned = [&](const Tensor& x_SHK) {
      if (!has_rope) return x_SHK;
      const Tensor frequency = at::pow(10000.0, -at::arange(0, K, 2, at::kDouble) / static_cast<double>(K));
      const Tensor angle_S1I = (at::arange(S, at::kDouble).unsqueeze(1) * frequency).unsqueeze(1);
      const Tensor a = x_SHK.narrow(2, 0, K / 2), b = x_SHK.narrow(2, K / 2, K / 2);
      return at::cat({a * angle_S1I.cos() - b * angle_S1I.sin(), b * angle_S1I.cos() + a * angle_S1I.sin()}, 2);
    };
    const auto features = [&](const Tensor& x_SHK, const char* map) {
      const Tensor z_SHM = at::einsum("shk,hkm->shm", {x_SHK, of(map)});
      return at::cat({z_SHM.softmax(2), (-z_SHM).softmax(2)}, 2) * std::sqrt(static_cast<double>(K));
    };
    const Tensor q = features(turned(heads(0)), "mixer.feature_q.weight");
    const Tensor k = features(turned(heads(1)), "mixer.feature_k.weight");
    const Tensor v = heads(2);
    ASSERT_EQ(q.size(2), 2 * M);
    const Tensor input_SH = at::linear(u_SD, of("mixer.igate.weight"), of("mixer.igate.bias"));
    const Tensor log_forget_SH = at::log_sigmoid(at::linear(u_SD, of("mixer.fgate.weight"), of("mixer.fgate.bias")));
    Tensor y_SHK = at::zeros({S, H, K}, at::kDouble);
    int num_bounded = 0;
    for (int64_t i = 0; i < S; ++i) {
      for (int64_t h = 0; h < H; ++h) {
        double sum = 0.0;
        for (int64_t j = 0; j <= i; ++j) {
          const double decay = j < i ? log_forget_SH.narrow(0, j + 1, i - j).select(1, h).sum().item<double>() : 0.0;
          const double weight = (q[i][h] * k[j][h]).sum().item<double>() * std::exp(decay + input_SH[j][h].item<double>());
          y_SHK[i][h] += weight * v[j][h];
          sum += weight;
        }
        const double bound = normalizer == config::Normalizer::bounded ? std::sqrt(2.0 * M) : 0.0;
        if (sum < bound) ++num_bounded;
        y_SHK[i][h] /= std::max(sum, bound);
      }
    }
    EXPECT_EQ(num_bounded > 0, normalizer == config::Normalizer::bounded);
    if (has_head_norm) {
      const Tensor centred_SHK = y_SHK - y_SHK.mean(2, true);
      y_SHK = centred_SHK / (centred_SHK.square().mean(2, true) + 1e-6).sqrt() * of("mixer.head_norm.weight").view({H, K});
    }
    const Tensor gated = y_SHK.reshape({S, H * K}) * at::sigmoid(at::linear(u_SD, of("mixer.ogate.weight"), of("mixer.ogate.bias")));
    Tensor out_SD = x_SD + at::linear(gated, of("self_attn.o_proj.weight"));
    const Tensor both = at::linear(norm(out_SD, of("post_attention_layernorm.weight")), of("mlp.gate_up_proj.weight"));
    out_SD = out_SD + at::linear(at::silu(both.narrow(1, 0, 20)) * both.narrow(1, 20, 20), of("mlp.down_proj.weight"));
    const auto got = pair.student->forward(tokens, {}, {.compute_dtype = at::kDouble, .collect_layers = true}, nullptr);
    EXPECT_LT(relative_error(got.layer_outputs_BSD[0][0], out_SD), 1e-5);
  }
}

TEST(Convert, EveryFormIsOne) {
  for (const at::Device device : devices()) {
    for (const auto& [name, config] : families()) {
      for (const config::StudentSettings& settings : every_kind()) {
        SCOPED_TRACE(fmt::format("{} {} {}", device.str(), name, name_of(settings)));
        const Pair pair = convert(config, settings, device);
        perturb(*pair.student, 0.2);
        const at::NoGradGuard no_grad;
        const int64_t S = 19;
        const Tensor tokens = tokens_of(2, S, device);
        const Tensor whole = pair.student->forward_hidden(tokens);
        for (const int64_t split : {1, 4, 7}) {  // a prompt, then tokens one by one
          const auto state = pair.student->new_state(2, S);
          std::vector<Tensor> parts = {pair.student->forward_step(tokens.narrow(1, 0, split), *state)};
          const int64_t size = state->size_bytes();
          for (int64_t t = split; t < S; ++t) parts.push_back(pair.student->forward_step(tokens.narrow(1, t, 1), *state));
          EXPECT_EQ(state->size_bytes(), size);
          EXPECT_LT(relative_error(at::cat(parts, 1), whole), 1e-6) << split;
        }
        const Tensor parallel =
            pair.student->forward(tokens, {}, {.compute_dtype = at::kDouble, .mlstm_form = ops::MlstmForm::parallel}, nullptr)
                .last_hidden_BSD;
        EXPECT_LT(relative_error(parallel, whole), 1e-6);
      }
    }
  }
}

// The angles of rotary positions are float32's, which attention keeps: from another place on they are others by their rounding.
double bound_elsewhere(const config::StudentSettings& settings) {
  return keeps_attention(settings) ? 1e-5 : 1e-6;
}

// A document that begins in a prompt leaves nothing of the one before in the state.
TEST(Convert, StatesForgetWhatADocumentEnds) {
  for (config::StudentSettings settings : every_kind()) {
    SCOPED_TRACE(name_of(settings));
    settings.rope = false;
    const Pair pair = convert(families()[1].config, settings);
    perturb(*pair.student, 0.2);
    const at::NoGradGuard no_grad;
    const Tensor tokens = tokens_of(1, 12);
    for (const int64_t border : {4, 6, 7, 8}) {  // of a prompt of 9: the convolutions see 3 tokens back
      Tensor starts = at::zeros({1, 9}, at::kByte);
      starts[0][border] = 1;
      const auto carried = pair.student->new_state(1, 12), fresh = pair.student->new_state(1, 12);
      const StudentForwardOptions options{.compute_dtype = at::kDouble};
      (void)pair.student->forward(tokens.narrow(1, 0, 9), starts, options, carried.get());
      (void)pair.student->forward(tokens.narrow(1, border, 9 - border), {}, options, fresh.get());
      for (int64_t t = 9; t < 12; ++t) {
        EXPECT_LT(relative_error(pair.student->forward_step(tokens.narrow(1, t, 1), *carried),
                                 pair.student->forward_step(tokens.narrow(1, t, 1), *fresh)),
                  bound_elsewhere(settings))
            << border;
      }
    }
  }
}

// Without rotary positions a document does not know where in its row it begins.
TEST(Convert, DocumentsAreApart) {
  for (const at::Device device : devices()) {
    for (config::StudentSettings settings : every_kind()) {
      SCOPED_TRACE(name_of(settings));
      settings.rope = false;
      const Pair pair = convert(families()[1].config, settings, device);
      perturb(*pair.student, 0.2);
      const at::NoGradGuard no_grad;
      const Tensor tokens = tokens_of(1, 20, device);
      for (const int64_t border : {1, 2, 9, 19}) {
        Tensor starts = at::zeros({1, 20}, at::kByte);
        starts[0][0] = starts[0][border] = 1;
        const Tensor together = pair.student->forward_hidden(tokens, starts);
        const Tensor apart = at::cat({pair.student->forward_hidden(tokens.narrow(1, 0, border)),
                                      pair.student->forward_hidden(tokens.narrow(1, border, 20 - border))},
                                     1);
        EXPECT_LT(relative_error(together, apart), bound_elsewhere(settings)) << border;
      }
    }
  }
}

// Rows with documents that begin at places of their own, cut into any parts.
TEST(Convert, AnySplitOfRowsWithDocumentsIsTheWhole) {
  for (const at::Device device : devices()) {
    for (const config::StudentSettings& settings : every_kind()) {
      SCOPED_TRACE(device.str() + " " + name_of(settings));
      const Pair pair = convert(families()[1].config, settings, device);
      perturb(*pair.student, 0.2);
      const at::NoGradGuard no_grad;
      const StudentForwardOptions options{.compute_dtype = at::kDouble};
      const int64_t S = 40;
      const Tensor tokens = tokens_of(3, S, device), starts = (at::rand({3, S}) < 0.08).to(at::kByte);
      const Tensor whole = pair.student->forward(tokens, starts, options, nullptr).last_hidden_BSD;
      for (int64_t round = 0; round < 3; ++round) {
        const auto state = pair.student->new_state(3, round * 30);
        std::vector<Tensor> parts;
        std::string sizes;
        for (int64_t at = 0; at < S;) {
          const int64_t size = std::min(at::randint(1, 9, {1}, at::kLong).item<int64_t>(), S - at);
          const Tensor own = starts.narrow(1, at, size);
          const bool has_starts = own.any().item<bool>() || size % 2 == 0;
          parts.push_back(
              pair.student->forward(tokens.narrow(1, at, size), has_starts ? own : Tensor(), options, state.get()).last_hidden_BSD);
          sizes += std::to_string(size) + " ";
          at += size;
        }
        EXPECT_LT(relative_error(at::cat(parts, 1), whole), 1e-6) << sizes;
      }
    }
  }
}

// Rows of a state that come, go and change places, with documents that begin inside some of them, and room for other numbers of tokens.
TEST(Convert, RowsOfStatesComeAndGo) {
  for (const at::Device device : devices()) {
    for (const config::StudentSettings& settings : every_kind()) {
      SCOPED_TRACE(device.str() + " " + name_of(settings));
      const Pair pair = convert(families()[3].config, settings, device);
      perturb(*pair.student, 0.2);
      const at::NoGradGuard no_grad;
      const StudentForwardOptions options{.compute_dtype = at::kDouble};
      const int64_t S = 9;
      Tensor tokens = tokens_of(3, S, device), starts = at::zeros({3, S}, at::kByte);
      starts[1][4] = starts[2][7] = starts[2][8] = 1;
      const auto state = pair.student->new_state(3, 20), other = pair.student->new_state(2, 0);
      (void)pair.student->forward(tokens, starts, options, state.get());
      const Tensor others = tokens_of(2, S, device);
      (void)pair.student->forward_step(others, *other);
      const auto places = [&](const std::vector<int64_t>& rows) {
        const Tensor list = at::tensor(rows, at::kLong);
        state->gather_rows(list);
        tokens = tokens.index_select(0, list.to(device));
        starts = starts.index_select(0, list);
      };
      const auto go_on = [&](int64_t count) {
        const Tensor next = tokens_of(tokens.size(0), count, device);
        const Tensor hidden = pair.student->forward_step(next, *state);
        tokens = at::cat({tokens, next}, 1);
        starts = at::cat({starts, at::zeros({tokens.size(0), count}, at::kByte)}, 1);
        const Tensor whole = pair.student->forward(tokens, starts, options, nullptr).last_hidden_BSD;
        EXPECT_LT(relative_error(hidden, whole.narrow(1, whole.size(1) - count, count)), 1e-6) << tokens.size(1);
      };
      state->append_rows(*other);
      tokens = at::cat({tokens, others});
      starts = at::cat({starts, at::zeros({2, S}, at::kByte)});
      go_on(1);
      places({4, 2, 2, 0, 1});
      for (const int64_t count : {1, 1, 3}) go_on(count);
      state->append_rows(*state);
      tokens = at::cat({tokens, tokens});
      starts = at::cat({starts, starts});
      go_on(1);
      places({6});
      for (const int64_t count : {2, 1, 1}) go_on(count);
    }
  }
}

TEST(Convert, GradientsMatchDifferences) {
  for (const at::Device device : devices()) {
    for (const auto& [family, settings] :
         {std::pair<size_t, config::StudentSettings>{1, {.mixers = {"mlstm", "gated-delta"}}},
          {3, {.mixers = {"mlstm", "gated-delta"}}},
          {1, {.mixers = {"slstm", "attention"}}},
          {3, {.mixers = {"attention", "slstm"}}},
          {1, {.mixers = {"attention"}, .attention_window = 3}},
          {3, {.conv1d_kernel_size = 0, .mixers = {"slstm", "attention"}, .attention_window = 3, .attention_sinks = 2}},
          {1, {.mixers = {"xlstm-large"}}},
          {3, {.mixers = {"xlstm-large", "mlstm"}}}}) {
      SCOPED_TRACE(device.str() + " " + families()[family].name + " " + name_of(settings));
      // The large block has a kink where its divisor meets the bound, and bends sharply where a head's output is near 0, unless eps is
      // large.
      const bool is_large = settings.mixers.front() == "xlstm-large";
      json config = families()[family].config;
      if (is_large) config["rms_norm_eps"] = 0.1;
      const Pair pair = convert(config, settings, device);
      perturb(*pair.student, 0.2);
      const Tensor tokens = tokens_of(2, 13, device);
      Tensor starts = at::zeros({2, 13}, at::kByte);
      starts.select(1, 0).fill_(1);
      starts[1][6] = 1;
      const Tensor weight = at::randn({2, 13, pair.student->hidden_size()}, at::kDouble).to(device);
      const auto value = [&](bool checkpoints) {
        return (pair.student->forward(tokens, starts, {.compute_dtype = at::kDouble, .activation_checkpointing = checkpoints}, nullptr)
                    .last_hidden_BSD *
                weight)
            .sum();
      };
      value(false).backward();
      NamedTensors gradients;
      for (const auto& [parameter, tensor] : pair.student->parameters()) {
        gradients.emplace_back(parameter, tensor.grad().clone());
        Tensor(tensor).mutable_grad() = Tensor();
      }
      value(true).backward();
      for (size_t i = 0; i < gradients.size(); ++i) {
        const auto& [parameter, tensor] = pair.student->parameters()[i];
        EXPECT_TRUE(at::allclose(tensor.grad(), gradients[i].second, 1e-10, 1e-10)) << parameter << " with activation checkpointing";
        const at::NoGradGuard no_grad;
        const Tensor direction = at::randn_like(tensor);
        const auto at_step = [&](double step) {
          Tensor(tensor).add_(direction, step);
          const double result = value(false).item<double>();
          Tensor(tensor).sub_(direction, step);
          return result;
        };
        const auto difference_at = [&](double step) { return (at_step(step) - at_step(-step)) / (2 * step); };
        const double expected = (gradients[i].second * direction).sum().item<double>(), bound = 1e-5 * std::max(1.0, std::abs(expected));
        double difference = difference_at(1e-5);
        if (is_large && std::abs(difference - expected) > bound) difference = difference_at(1e-7);  // a kink lay between
        EXPECT_NEAR(difference, expected, bound) << parameter;
      }
    }
  }
}

// One layer's mixer by itself is what that layer adds, and its gradient that of the whole.
TEST(Convert, AMixerAloneIsWhatItsLayerAdds) {
  for (const at::Device device : devices()) {
    for (const config::StudentSettings& settings : every_kind()) {
      SCOPED_TRACE(name_of(settings));
      const Pair pair = convert(families()[1].config, settings, device);
      perturb(*pair.student, 0.2);
      const Tensor x_BSD = at::randn({2, 9, pair.student->hidden_size()}, at::kDouble).to(device);
      const StudentForwardOptions options{.compute_dtype = at::kDouble};
      const Tensor alone = pair.student->mixer_output(1, x_BSD, {}, options);
      alone.square().sum().backward();
      for (const auto& [name, tensor] : pair.student->parameters()) {
        const bool is_behind = name.find("mlp") != std::string::npos || name.find("post_attention") != std::string::npos;
        EXPECT_EQ(tensor.grad().defined(), name.starts_with("model.layers.1.") && !is_behind) << name;
      }
      // With a feed-forward that adds nothing the layer's output is its input and what the mixer adds.
      const at::NoGradGuard no_grad;
      for (const auto& [name, tensor] : pair.student->parameters()) {
        if (name.find("down_proj") != std::string::npos) Tensor(tensor).zero_();
      }
      const std::vector<Tensor> inputs = {x_BSD};
      const auto whole = pair.student->forward(
          tokens_of(2, 9, device), {}, {.compute_dtype = at::kDouble, .collect_layers = true, .layer_inputs_BSD = &inputs}, nullptr);
      EXPECT_LT(relative_error(alone.detach(), whole.layer_outputs_BSD[1] - x_BSD), 1e-12);
    }
  }
}

// Of a teacher's attention by plain operations; a head that only sees itself looks back 0 tokens.
TEST(Convert, ForgetGatesStartFromHowFarTheTeacherLooksBack) {
  for (const auto& [name, config] : families()) {
    SCOPED_TRACE(name);
    const Pair pair = convert(config);
    const Tensor tokens = tokens_of(3, 24);
    Tensor starts = at::zeros({3, 24}, at::kByte);
    starts.select(1, 0).fill_(1);
    starts[2][10] = 1;
    const auto seen = pair.teacher->forward(tokens, starts, {.collect_attention = true});
    ASSERT_TRUE(pair.student->starts_from_rows());
    pair.student->start_from_rows(seen.layer_inputs_BSD, starts);
    const auto parameters = named(*pair.student);
    // A half-life lies within the longest distance of a row, and 2 is the least.
    for (int64_t layer = 0; layer < 2; ++layer) {
      const Tensor bias = parameters.at(fmt::format("model.layers.{}.mixer.fgate.bias", layer)).detach();
      const Tensor half_life = -std::log(2.0) / at::log_sigmoid(bias);
      EXPECT_TRUE((half_life > 2.0 - 1e-6).all().item<bool>()) << half_life;
      EXPECT_TRUE((half_life < 24.0).all().item<bool>()) << half_life;
    }
  }
  // Queries and keys of nothing attend evenly: i / 2 tokens back in the mean, over the queries from S / 4 on.
  const Pair pair = convert(families()[0].config);
  Tensor qkv = named(*pair.student).at("model.layers.0.self_attn.qkv_proj.weight");
  {
    const at::NoGradGuard no_grad;
    qkv.zero_();
  }
  const Tensor x_BSD = at::randn({1, 40, pair.student->hidden_size()}, at::kDouble);
  pair.student->start_from_rows({x_BSD, x_BSD}, {});
  const Tensor bias = named(*pair.student).at("model.layers.0.mixer.fgate.bias").detach();
  EXPECT_TRUE(at::allclose(-std::log(2.0) / at::log_sigmoid(bias), at::full({4}, (10 + 39) / 2.0 / 2.0, at::kDouble), 1e-9)) << bias;
}

// Each head's values are scaled by what brings it nearest to the attention that it replaces: no other factor comes nearer.
TEST(Convert, ValuesStartWithTheFactorsOfLeastSquares) {
  const json config = families()[2].config;  // as wide as its heads together, biases on q, k and v, grouped heads
  const int64_t H = config["num_attention_heads"], G = config["num_key_value_heads"], K = config["head_dim"], E = H * K;
  for (const std::string mixer : {"mlstm", "gated-delta"}) {
    SCOPED_TRACE(mixer);
    const Pair pair =
        convert(config, {.mixers = {mixer}, .gate_init = config::GateInit::spread, .value_init = config::ValueInit::least_squares});
    const Pair plain = convert(config, {.mixers = {mixer}, .gate_init = config::GateInit::spread});
    EXPECT_FALSE(plain.student->starts_from_rows());
    ASSERT_TRUE(pair.student->starts_from_rows());
    Tensor starts = at::zeros({3, 24}, at::kByte);
    starts.select(1, 0).fill_(1);
    starts[2][10] = 1;
    const Tensor x_BSD = at::randn({3, 24, pair.student->hidden_size()}, at::kDouble);
    pair.student->start_from_rows({x_BSD, x_BSD}, starts);
    const auto before = named(*plain.student), after = named(*pair.student);
    const std::string layer = "model.layers.1.";
    std::vector<double> factors;
    for (const char* name : {"self_attn.qkv_proj.weight", "self_attn.qkv_proj.bias"}) {
      const Tensor was = before.at(layer + name).detach(), is = after.at(layer + name).detach();
      EXPECT_TRUE(at::equal(was.narrow(0, 0, 2 * E), is.narrow(0, 0, 2 * E))) << name;
      for (int64_t head = 0; head < H; ++head) {
        const Tensor a = was.narrow(0, 2 * E + head * K, K), b = is.narrow(0, 2 * E + head * K, K);
        if (a.dim() == 2) factors.push_back((b.norm() / a.norm()).item<double>());
        EXPECT_TRUE(at::allclose(b, a * factors[static_cast<size_t>(head)], 1e-12)) << name;
      }
    }
    // What each head gives, through an output projection that changes nothing.
    for (const Pair* one : {&pair, &plain}) {
      const at::NoGradGuard no_grad;
      Tensor(named(*one->student).at(layer + "self_attn.o_proj.weight")).copy_(at::eye(E, at::kDouble));
    }
    const at::NoGradGuard no_grad;
    const auto heads_of = [&](const Pair& one) {
      return one.student->mixer_output(1, x_BSD, starts, in_double()).view({3, 24, H, K}).transpose(1, 2);
    };
    const Tensor got_BHSK = heads_of(pair), unscaled_BHSK = heads_of(plain);
    // Attention by plain operations.
    std::map<std::string, Tensor> w;
    pair.teacher->for_each_weight([&](const std::string& name, const Tensor& values) { w[name] = values; }, layer);
    const auto heads = [&](const std::string& name, int64_t count) {
      const Tensor norm_D = w.at(layer + "input_layernorm.weight");
      const Tensor u_BSD = x_BSD * (x_BSD.square().mean(2, true) + 1e-6).rsqrt() * norm_D;
      return at::linear(u_BSD, w.at(layer + "self_attn." + name + ".weight"), w.at(layer + "self_attn." + name + ".bias"))
          .view({3, 24, count, K});
    };
    const nn::Rotary rotary(teacher::teacher_shape(config).rope, K, at::kCPU);
    const auto spread = [&](const Tensor& x_BSGK) { return x_BSGK.repeat_interleave(H / G, 2).transpose(1, 2); };
    const Tensor q = rotary.rotate(heads("q_proj", H), 0).transpose(1, 2), k = spread(rotary.rotate(heads("k_proj", G), 0)),
                 v = spread(heads("v_proj", G));
    const Tensor document_BS = starts.cumsum(1, at::kInt);
    const Tensor place_S = at::arange(24);
    const Tensor is_hidden = (place_S.unsqueeze(1) < place_S.unsqueeze(0)) | (document_BS.unsqueeze(2) != document_BS.unsqueeze(1));
    const Tensor wanted_BHSK = at::matmul(
        (at::matmul(q, k.transpose(2, 3)) / std::sqrt(static_cast<double>(K))).masked_fill(is_hidden.unsqueeze(1), -INFINITY).softmax(3),
        v);
    const auto error = [&](const Tensor& given, int64_t head) { return (given - wanted_BHSK).select(1, head).norm().item<double>(); };
    for (int64_t head = 0; head < H; ++head) {
      const double factor = factors[static_cast<size_t>(head)], nearest = error(got_BHSK, head);
      EXPECT_LE(nearest, error(unscaled_BHSK, head) + 1e-12);
      EXPECT_TRUE(factor <= 0.1 + 1e-9 || nearest < error(got_BHSK * 0.99, head)) << factor;
      EXPECT_TRUE(factor >= 10.0 - 1e-9 || nearest < error(got_BHSK * 1.01, head)) << factor;
    }
  }
}

// Channel by channel no other factor brings a head nearer to attention's, and all else starts as without norms.
TEST(Convert, NormedHeadsStartNearAttentions) {
  const json config = families()[2].config;
  const int64_t H = config["num_attention_heads"], K = config["head_dim"], E = H * K;
  for (const std::string mixer : {"mlstm", "gated-delta"}) {
    SCOPED_TRACE(mixer);
    const Pair pair = convert(config, {.mixers = {mixer}, .gate_init = config::GateInit::spread, .head_norm = true});
    ASSERT_TRUE(pair.student->starts_from_rows());
    const Tensor tokens = tokens_of(2, 24);
    teacher::TeacherOutput seen = pair.teacher->forward(tokens, {}, {.collect_attention = true});
    pair.student->start_from_rows(seen.layer_inputs_BSD, {});
    const at::NoGradGuard no_grad;
    const auto with_norms = named(*pair.student);
    for (const auto& [name, values] : named(*convert(config, {.mixers = {mixer}, .gate_init = config::GateInit::spread}).student))
      EXPECT_TRUE(at::equal(values, with_norms.at(name))) << name;
    for (int64_t layer = 0; layer < pair.shape->num_layers(); ++layer) {
      // Through an output projection that changes nothing; the teacher's is undone.
      const Tensor o_DE = Tensor(named(*pair.student).at(fmt::format("model.layers.{}.self_attn.o_proj.weight", layer)));
      const Tensor o_before_DE = o_DE.clone();
      const auto heads = [&](const Tensor& out_BSD) {
        return at::linalg_solve(o_before_DE, out_BSD.unsqueeze(3)).squeeze(3).view({2, 24, E});
      };
      const Tensor attention_BSE = heads(seen.attention_outputs_BSD[static_cast<size_t>(layer)]);
      const Tensor student_BSE =
          heads(pair.student->mixer_output(layer, seen.layer_inputs_BSD[static_cast<size_t>(layer)], {}, in_double()));
      const auto product_E = [](const Tensor& x_BSE, const Tensor& y_BSE) { return (x_BSE * y_BSE).flatten(0, 1).sum(0); };
      EXPECT_TRUE(at::allclose(product_E(student_BSE, attention_BSE), product_E(student_BSE, student_BSE), 1e-7, 1e-9)) << layer;
    }
  }
}

// Values that name their token show the matrix by which a layer mixes them: its error is what plain sums over it give.
TEST(Convert, MixingErrorIsThatOfTheMatrixThatMixes) {
  const json config = families()[2].config;  // as wide as its heads together
  const int64_t H = config["num_attention_heads"], G = config["num_key_value_heads"], K = config["head_dim"], E = H * K, S = K;
  for (const bool has_start : {false, true}) {
    const Pair pair = convert(config, {.conv1d_kernel_size = 0});
    const at::NoGradGuard no_grad;
    auto parameters = named(*pair.student);
    const std::string layer = "model.layers.1.";
    for (const char* name : {"mixer.feature_q.weight", "mixer.feature_k.weight", "mixer.igate.weight", "mixer.fgate.weight"}) {
      Tensor& x = parameters.at(layer + name);
      x.add_(at::randn(x.sizes(), at::kDouble), 0.3);
    }
    Tensor starts = at::zeros({1, S}, at::kByte);
    if (has_start) starts[0][2] = 1;
    const Tensor tokens = tokens_of(1, S);
    const auto seen = pair.teacher->forward(tokens, starts, {.collect_attention = true, .collect_heads = true});
    const Tensor x_BSD = seen.layer_inputs_BSD.at(1);
    const Tensor u_SD = (x_BSD * (x_BSD.square().mean(2, true) + 1e-6).rsqrt() * parameters.at(layer + "input_layernorm.weight"))[0];
    const Tensor mask = at::ones({1, S}, at::kByte);
    mask[0][3] = 0;
    const AttentionMatrix attention{seen.queries_BSHK.at(1), seen.keys_BSGK.at(1), mask};
    const double error = pair.student->mixing_error_sum(1, x_BSD, starts, attention, in_double()).item<double>();

    parameters.at(layer + "self_attn.qkv_proj.weight").narrow(0, 2 * E, E).copy_(at::linalg_pinv(u_SD, 1e-12).t().repeat({H, 1}));
    parameters.at(layer + "self_attn.qkv_proj.bias").narrow(0, 2 * E, E).zero_();
    parameters.at(layer + "self_attn.o_proj.weight").copy_(at::eye(E, at::kDouble));
    parameters.at(layer + "mixer.ogate.bias").fill_(60.0);
    const Tensor mixing_HSS = pair.student->mixer_output(1, x_BSD, starts, in_double()).view({S, H, K}).transpose(0, 1);
    double expected = 0.0;
    for (int64_t head = 0; head < H; ++head) {
      const Tensor scores_SS = at::matmul(attention.q_BSHK[0].select(1, head), attention.k_BSGK[0].select(1, head / (H / G)).t()) /
                               std::sqrt(static_cast<double>(K));
      const Tensor document_S = starts[0].cumsum(0, at::kInt);
      const Tensor is_hidden = at::ones({S, S}, at::kBool).triu(1) | (document_S.unsqueeze(1) != document_S.unsqueeze(0));
      const Tensor counts = mask[0].to(at::kDouble).unsqueeze(1);
      const Tensor a_SS = scores_SS.masked_fill(is_hidden, -INFINITY).softmax(1);
      expected += (((a_SS - mixing_HSS[head]).square() * counts).sum() / (a_SS.square() * counts).sum()).item<double>();
    }
    EXPECT_NEAR(error, expected / static_cast<double>(H), 1e-9 * expected);
    EXPECT_GT(expected, 1e-3);
  }
  const Pair mixed = convert(config, {.mixers = {"mlstm", "gated-delta"}});
  EXPECT_EQ(mixed.shape->num_mixing_matrices(), 1);
  const Tensor x_BSD = at::randn({1, S, mixed.student->hidden_size()}, at::kDouble);
  const AttentionMatrix attention{at::randn({1, S, H, K}, at::kDouble), at::randn({1, S, G, K}, at::kDouble), at::ones({1, S}, at::kByte)};
  EXPECT_TRUE(mixed.student->mixing_error_sum(0, x_BSD, {}, attention, in_double()).defined());
  EXPECT_FALSE(mixed.student->mixing_error_sum(1, x_BSD, {}, attention, in_double()).defined());
}

TEST(Convert, ShapesTellTheSizeOfAState) {
  for (const std::string& mixer : convert_mixer_names()) {
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
      const Pair pair = convert(families()[1].config, {.mixers = {mixer}}, at::kCPU, at::kFloat);
      pair.student->set_compute_dtype(type);
      for (const int64_t tokens : {0, 7, 300}) {
        EXPECT_EQ(3 * pair.shape->state_bytes(tokens, type), pair.student->new_state(3, tokens)->size_bytes()) << mixer << ", " << tokens;
      }
    }
  }
  EXPECT_THROW((void)convert(families()[0].config, {.rope = false, .rope_max_wavelength = 20.0}), ConfigError);
}

// Slow channels keep what does not depend on positions; the others turn as ever.
TEST(Convert, RotaryPositionsMayEndAtAWavelength) {
  nn::RopeConfig rope{.theta = 100.0};
  const Tensor all = nn::rope_frequencies(rope, 8);
  const double between = (2 * M_PI / all[1].item<double>() + 2 * M_PI / all[2].item<double>()) / 2;
  rope.max_wavelength = between;
  const Tensor some = nn::rope_frequencies(rope, 8);
  EXPECT_TRUE(at::equal(some.narrow(0, 0, 2), all.narrow(0, 0, 2)));
  EXPECT_TRUE(at::equal(some.narrow(0, 2, 2), at::zeros({2})));

  const json config = families()[3].config;
  const Pair partial = convert(config, {.rope_max_wavelength = 20.0}), none = convert(config, {.rope = false}),
             shortest = convert(config, {.rope_max_wavelength = 1.0}), whole = convert(config);
  const Tensor tokens = tokens_of(2, 24);
  const auto hidden = [&](const Pair& pair) { return pair.student->forward_hidden(tokens); };
  EXPECT_TRUE(at::equal(hidden(shortest), hidden(none))) << "no channel turns within one token";
  EXPECT_GT(relative_error(hidden(partial), hidden(none)), 1e-6);
  EXPECT_GT(relative_error(hidden(partial), hidden(whole)), 1e-6);
  const auto read = read_shape(partial.shape->to_json(""), "here");
  EXPECT_EQ(read->to_json(""), partial.shape->to_json(""));
  EXPECT_THAT(read->description(), ::testing::HasSubstr("up to 20 tokens a turn"));
}

// Read in pieces longer than a chunk and then token by token, several rows at once, in a type of 16 bits: as near to float32 as rows that
// are read as a whole. Heads as wide as kernels on tensor cores take them.
TEST(Convert, StatesInHalfPrecisionAreAsNearAsWholeRows) {
  for (const at::Device device : devices()) {
    for (const config::StudentSettings& settings : every_kind()) {
      for (const at::ScalarType type : {at::kBFloat16, at::kHalf}) {
        SCOPED_TRACE(fmt::format("{} {} {}", device.str(), name_of(settings), c10::toString(type)));
        json config = families()[0].config;
        config["head_dim"] = 16;
        config["rms_norm_eps"] = 0.1;  // a head whose products nearly cancel is not blown up
        const Pair pair = convert(config, settings, device, at::kFloat);
        perturb(*pair.student, 0.05);
        const at::NoGradGuard no_grad;
        const int64_t B = 5, S = 150;
        const Tensor tokens = tokens_of(B, S, device);
        const auto whole = [&](at::ScalarType compute) {
          return pair.student->forward(tokens, {}, {.compute_dtype = compute}, nullptr).last_hidden_BSD;
        };
        const Tensor exact = whole(at::kFloat);
        const double of_whole = relative_error(whole(type), exact);
        pair.student->set_compute_dtype(type);
        const auto state = pair.student->new_state(B, S);
        std::vector<Tensor> parts;
        for (int64_t at_token = 0; at_token < S;) {
          const int64_t count = at_token == 0 ? 130 : at_token == 130 ? 7 : 1;
          parts.push_back(pair.student->forward_step(tokens.narrow(1, at_token, count), *state));
          at_token += count;
        }
        const Tensor stepped = at::cat(parts, 1);
        const double allowed = std::clamp(2 * of_whole, 3e-2, 0.1);
        EXPECT_LT(relative_error(stepped, exact), allowed);
        EXPECT_LT(relative_error(stepped.narrow(1, 130, 20), exact.narrow(1, 130, 20)), allowed) << "after the prompt";
      }
    }
  }
}

TEST(Convert, HalfPrecisionIsNearFloat32) {
  for (const at::Device device : devices()) {
    for (const auto& [mixers, type] : {std::pair<std::vector<std::string>, at::ScalarType>{{"mlstm", "gated-delta"}, at::kBFloat16},
                                       {{"mlstm", "gated-delta"}, at::kHalf},
                                       {{"slstm", "attention"}, at::kBFloat16},
                                       {{"attention", "slstm"}, at::kHalf},
                                       {{"xlstm-large"}, at::kBFloat16},
                                       {{"xlstm-large"}, at::kHalf}}) {
      SCOPED_TRACE(fmt::format("{} {}", fmt::join(mixers, " "), c10::toString(type)));
      json config = families()[1].config;
      if (mixers.front() == "xlstm-large") config["rms_norm_eps"] = 0.1;  // a head whose products nearly cancel is not blown up
      const Pair pair = convert(config, {.mixers = mixers}, device, at::kFloat);
      const Tensor tokens = tokens_of(2, 21, device);
      const auto run = [&](at::ScalarType compute) {
        for (const auto& [name, tensor] : pair.student->parameters()) Tensor(tensor).mutable_grad() = Tensor();
        const Tensor hidden = pair.student->forward(tokens, {}, {.compute_dtype = compute}, nullptr).last_hidden_BSD;
        hidden.square().sum().backward();
        std::vector<Tensor> gradients;
        for (const auto& [name, tensor] : pair.student->parameters()) gradients.push_back(tensor.grad().flatten());
        return std::pair(hidden.detach(), at::cat(gradients));
      };
      const auto exact = run(at::kFloat), half = run(type);
      EXPECT_LT(relative_error(half.first, exact.first), 3e-2);
      EXPECT_LT(relative_error(half.second, exact.second), 1e-1);
    }
  }
}

TEST(Convert, StoredAndReadAgainIsTheSame) {
  for (const auto& [name, config] : families()) {
    SCOPED_TRACE(name);
    const Pair pair = convert(config, {.feature_factor = 4, .rope = false, .mixers = {"gated-delta", "mlstm"}}, at::kCPU, at::kFloat);
    perturb(*pair.student, 0.1);
    const json stored = pair.shape->to_json("");
    const auto weights = std::make_shared<MemoryWeights>(pair.student->stored_tensors("", /*with_frozen=*/true));
    const auto again = load_student(memory_files(stored, weights));
    EXPECT_EQ(again->shape().to_json(""), stored);
    EXPECT_TRUE(pair.shape->differences(again->shape()).empty());
    const at::NoGradGuard no_grad;
    const Tensor tokens = tokens_of(1, 9);
    EXPECT_TRUE(at::equal(again->forward_hidden(tokens), pair.student->forward_hidden(tokens)));
    EXPECT_TRUE(at::equal(again->head_weight(), pair.student->head_weight()));
    const Pair hybrid =
        convert(config, {.mixers = {"slstm", "attention"}, .attention_window = 4, .attention_sinks = 2}, at::kCPU, at::kFloat);
    perturb(*hybrid.student, 0.1);
    const json stored_hybrid = hybrid.shape->to_json("");
    EXPECT_EQ(stored_hybrid["distil_xlstm"]["attention_window"], 4);
    EXPECT_EQ(stored_hybrid["distil_xlstm"]["attention_sinks"], 2);
    const auto hybrid_again =
        load_student(memory_files(stored_hybrid, std::make_shared<MemoryWeights>(hybrid.student->stored_tensors("", true))));
    EXPECT_EQ(hybrid_again->shape().to_json(""), stored_hybrid);
    EXPECT_TRUE(at::equal(hybrid_again->forward_hidden(tokens), hybrid.student->forward_hidden(tokens)));
    weights->tensors_.erase("model.layers.1.mixer.fgate.bias");
    weights->tensors_["model.layers.1.mixer.gate"] = at::ones({1});
    EXPECT_THROW((void)load_student(memory_files(stored, weights)), DataError);
  }
  // A checkpoint may lack a bias that its configuration speaks of: the student remembers what there was.
  auto without = teacher::teacher_shape(families()[1].config);
  without.has_o_bias = false;
  const auto derived = derive_shape({.kind = "convert"}, without, 8), read = read_shape(derived->to_json(""), "stored");
  EXPECT_EQ(read->num_trainable_parameters(), derived->num_trainable_parameters());
  EXPECT_LT(read->num_trainable_parameters(),
            derive_shape({.kind = "convert"}, teacher::teacher_shape(families()[1].config), 8)->num_trainable_parameters());
  json other = families()[0].config;
  other["rope_theta"] = 500000.0;
  EXPECT_FALSE(convert(other).shape->differences(*convert(families()[0].config).shape).empty());

  const Pair wide = convert(families()[0].config, {.feature_factor = 4}), narrow = convert(families()[0].config);
  EXPECT_THAT(wide.shape->differences(*narrow.shape), ::testing::ElementsAre(::testing::HasSubstr("feature_factor")));
  EXPECT_THROW((void)derive_shape({.kind = "convert", .mixers = {"mlstm", "delta"}}, teacher::teacher_shape(families()[0].config), 8),
               ConfigError);
  EXPECT_THROW((void)derive_shape({.kind = "convert", .feature_factor = 3}, teacher::teacher_shape(families()[0].config), 8), ConfigError);
  EXPECT_THROW((void)narrow.shape->fresh({.embedding_VD = narrow.teacher->embedding_weight(), .head_VD = narrow.teacher->head_weight()}, 0),
               ValueError);
}

// ---- Attention that is kept.

// At once and token by token; there is nothing to align.
TEST(Convert, KeptAttentionIsItsTeachers) {
  for (const at::Device device : devices()) {
    for (const auto& [name, config] : families()) {
      SCOPED_TRACE(device.str() + " " + name);
      const Pair pair =
          convert(config, {.rope = false, .mixers = {"attention"}}, device);  // whose positions are the teacher's all the same
      const Tensor tokens = tokens_of(3, 23, device);
      Tensor starts = at::zeros({3, 23}, at::kByte);
      starts.select(1, 0).fill_(1);
      starts[1][6] = starts[2][22] = 1;
      for (const Tensor& is_start : {Tensor(), starts}) {
        const at::NoGradGuard no_grad;
        EXPECT_LT(relative_error(pair.student->forward_hidden(tokens, is_start), pair.teacher->forward_hidden(tokens, is_start)), 1e-12);
        const auto seen = pair.teacher->forward(tokens, is_start, {.collect_attention = true});
        for (int64_t layer = 0; layer < 2; ++layer) {
          const auto l = static_cast<size_t>(layer);
          const Tensor alone = pair.student->mixer_output(layer, seen.layer_inputs_BSD[l], is_start, {.compute_dtype = at::kDouble});
          EXPECT_LT(relative_error(alone, seen.attention_outputs_BSD[l]), 1e-12);
          EXPECT_TRUE(pair.student->keeps_mixer(layer));
        }
      }
      const auto own = pair.student->new_state(3, 0), teachers = pair.teacher->new_state(3, 23);
      for (const auto& [at, size] : {std::pair<int64_t, int64_t>{0, 7}, {7, 1}, {8, 4}, {12, 1}, {13, 1}}) {
        const Tensor part = tokens.narrow(1, at, size);
        EXPECT_LT(relative_error(pair.student->forward_step(part, *own), pair.teacher->forward_step(part, *teachers)), 1e-12) << at;
      }
    }
  }
}

// What a token sees, pair by pair, and attention over that; longer than a block of queries.
TEST(Convert, AWindowIsItsDefinition) {
  for (const at::Device device : devices()) {
    for (const auto& [window, sinks, has_documents] : {std::tuple<int64_t, int64_t, bool>{0, 0, true},
                                                       {5, 0, false},
                                                       {5, 0, true},
                                                       {5, 3, false},
                                                       {5, 3, true},
                                                       {70, 2, false},
                                                       {1, 1, true}}) {
      SCOPED_TRACE(fmt::format("{} window {}, {} sinks, documents {}", device.str(), window, sinks, has_documents));
      const Pair pair =
          convert(families()[1].config, {.mixers = {"attention"}, .attention_window = window, .attention_sinks = sinks}, device);
      perturb(*pair.student, 0.2);
      const int64_t B = 2, S = 150, H = 4, G = 1, K = 6;
      const Tensor x_BSD = at::randn({B, S, 12}, at::kDouble).to(device);
      const Tensor starts = has_documents ? (at::rand({B, S}) < 0.05).to(at::kByte) : Tensor();
      const auto w = named(*pair.student);
      const auto of = [&](const std::string& name) { return w.at("model.layers.0." + name).detach().cpu(); };
      const Tensor x = x_BSD.cpu(), u = x / (x.square().mean(-1, true) + 1e-6).sqrt() * of("input_layernorm.weight");
      const Tensor qkv = at::linear(u, of("self_attn.qkv_proj.weight"), of("self_attn.qkv_proj.bias")).view({B, S, H + 2 * G, K});
      const Tensor frequency = at::pow(10000.0, -at::arange(0, K, 2, at::kDouble) / static_cast<double>(K));
      const Tensor angle_S1I = (at::arange(S, at::kDouble).unsqueeze(1) * frequency).unsqueeze(1);
      const auto turned = [&](const Tensor& heads) {
        const Tensor a = heads.narrow(3, 0, K / 2), b = heads.narrow(3, K / 2, K / 2);
        return at::cat({a * angle_S1I.cos() - b * angle_S1I.sin(), b * angle_S1I.cos() + a * angle_S1I.sin()}, 3);
      };
      const Tensor q = turned(qkv.narrow(2, 0, H)), k = turned(qkv.narrow(2, H, G)), v = qkv.narrow(2, H + G, G);
      Tensor is_hidden = at::ones({B, 1, S, S}, at::kBool);
      for (int64_t b = 0; b < B; ++b) {
        int64_t document = 0;
        for (int64_t t = 0; t < S; ++t) {
          if (starts.defined() && starts[b][t].item<bool>()) document = t;
          for (int64_t j = document; j <= t; ++j) {
            if (window == 0 || t - j < window || j - document < sinks) is_hidden[b][0][t][j] = false;
          }
        }
      }
      const Tensor scores = at::einsum("bthk,bjgk->bhtj", {q, k}) / std::sqrt(static_cast<double>(K));
      const Tensor mixed = at::einsum("bhtj,bjgk->bthk", {scores.masked_fill(is_hidden, -INFINITY).softmax(3), v}).reshape({B, S, H * K});
      const Tensor expected = at::linear(mixed, of("self_attn.o_proj.weight"), of("self_attn.o_proj.bias"));
      for (const bool records : {false, true}) {  // in kernels of their own
        const at::AutoGradMode grad_mode(records);
        const Tensor found = pair.student->mixer_output(0, x_BSD, starts, {.compute_dtype = at::kDouble});
        EXPECT_LT(relative_error(found.detach().cpu(), expected), 1e-5) << records;  // angles are float32's
      }
    }
  }
}

TEST(Convert, AStateIsAsLargeAsItsWindowOrGrowsSeldom) {
  const at::NoGradGuard no_grad;
  const auto sizes = [&](const config::StudentSettings& settings, int64_t count) {
    const Pair pair = convert(families()[2].config, settings);
    std::set<int64_t> found;
    const auto state = pair.student->new_state(1, 0);
    for (int64_t t = 0; t < count; ++t) {
      (void)pair.student->forward_step(tokens_of(1, 1), *state);
      found.insert(state->size_bytes());
    }
    EXPECT_EQ(pair.shape->has_constant_state(), found.size() == 1);
    return found;
  };
  const int64_t a_token = 2 * 2 * 2 * 6 * 8;  // keys and values of two layers, two heads of six channels, in float64
  EXPECT_EQ(sizes({.mixers = {"attention"}, .attention_window = 9, .attention_sinks = 2}, 30), (std::set<int64_t>{11 * a_token + 2 * 8}));
  EXPECT_EQ(sizes({.mixers = {"mlstm", "slstm"}}, 30).size(), 1);
  const auto grown = sizes({.mixers = {"attention"}}, 400);
  EXPECT_LE(grown.size(), 7);
  EXPECT_GE(*grown.rbegin(), 400 * a_token);
  EXPECT_LE(*grown.rbegin(), 700 * a_token);
  const Pair pair = convert(families()[2].config, {.mixers = {"attention"}});
  EXPECT_EQ(pair.student->new_state(1, 50)->size_bytes(), 50 * a_token + 2 * 8) << "room for what is to come";
}

// A state that is read from twice, once for a gradient.
TEST(Convert, ACarriedStateServesACheckpointedBackward) {
  for (const config::StudentSettings& settings : every_kind()) {
    SCOPED_TRACE(name_of(settings));
    const Pair pair = convert(families()[1].config, settings);
    perturb(*pair.student, 0.2);
    const Tensor before = tokens_of(2, 7), tokens = tokens_of(2, 6), weight = at::randn({2, 6, 12}, at::kDouble);
    const auto gradients = [&](bool checkpoints) {
      const auto state = pair.student->new_state(2, 0);
      (void)pair.student->forward_step(before, *state);
      for (const auto& [name, tensor] : pair.student->parameters()) Tensor(tensor).mutable_grad() = Tensor();
      const auto out =
          pair.student->forward(tokens, {}, {.compute_dtype = at::kDouble, .activation_checkpointing = checkpoints}, state.get());
      (out.last_hidden_BSD * weight).sum().backward();
      std::vector<Tensor> all;
      for (const auto& [name, tensor] : pair.student->parameters()) all.push_back(tensor.grad().flatten());
      return at::cat(all);
    };
    EXPECT_LT(relative_error(gradients(true), gradients(false)), 1e-10);
  }
}

TEST(Convert, WindowsThatCannotBeAreRefused) {
  const auto teacher = teacher::teacher_shape(families()[0].config);
  const auto refusal = [&](const config::StudentSettings& settings) {
    auto of_kind = settings;
    of_kind.kind = "convert";
    return testing::error_of<ConfigError>([&] { (void)derive_shape(of_kind, teacher, 8); });
  };
  EXPECT_THAT(refusal({.attention_window = 4}), ::testing::HasSubstr("student.attention_window = 4: no layer keeps its attention"));
  EXPECT_THAT(refusal({.mixers = {"mlstm", "slstm", "attention"}, .attention_window = 4}),
              ::testing::HasSubstr("no layer keeps its attention"))
      << "of two layers";
  EXPECT_THAT(refusal({.mixers = {"attention"}, .attention_sinks = 4}),
              ::testing::HasSubstr("student.attention_sinks = 4: without a window"));
  EXPECT_THAT(refusal({.mixers = {"attention"}, .attention_window = -1}), ::testing::HasSubstr("student.attention_window = -1"));
  EXPECT_THAT(refusal({.mixers = {"attention"}, .attention_window = 2, .attention_sinks = -3}),
              ::testing::HasSubstr("student.attention_sinks = -3"));
  // A configuration of before there were windows.
  json stored = derive_shape({.kind = "convert"}, teacher, 8)->to_json("");
  stored["distil_xlstm"].erase("attention_window");
  stored["distil_xlstm"].erase("attention_sinks");
  EXPECT_EQ(read_shape(stored, "stored")->to_json("")["distil_xlstm"]["attention_window"], 0);
  stored["distil_xlstm"]["attention_window"] = 8;
  EXPECT_THAT(testing::error_of<ConfigError>([&] { (void)read_shape(stored, "stored"); }),
              ::testing::AllOf(::testing::HasSubstr("stored"), ::testing::HasSubstr("no layer keeps its attention")));
}

TEST(Convert, NormsAndBoundsWithoutAPlaceAreRefused) {
  const auto teacher = teacher::teacher_shape(families()[0].config);
  const auto refusal = [&](config::StudentSettings settings) {
    settings.kind = "convert";
    return testing::error_of<ConfigError>([&] { (void)derive_shape(settings, teacher, 8); });
  };
  EXPECT_THAT(refusal({.mixers = {"gated-delta"}, .normalizer = config::Normalizer::bounded}),
              ::testing::HasSubstr("student.normalizer = \"bounded\": only mixer \"mlstm\""));
  EXPECT_THAT(refusal({.mixers = {"slstm", "xlstm-large"}, .head_norm = true}), ::testing::HasSubstr("student.head_norm = true"));
  EXPECT_THAT(refusal({.value_init = config::ValueInit::least_squares, .head_norm = true}),
              ::testing::HasSubstr("student.value_init = \"least-squares\": the size of values has no effect"));
  // A configuration of before there were either.
  json stored = derive_shape({.kind = "convert"}, teacher, 8)->to_json("");
  stored["distil_xlstm"].erase("normalizer");
  stored["distil_xlstm"].erase("head_norm");
  EXPECT_EQ(read_shape(stored, "stored")->to_json("")["distil_xlstm"]["normalizer"], "sum");
  stored["distil_xlstm"]["normalizer"] = "maximum";
  EXPECT_THAT(testing::error_of<ConfigError>([&] { (void)read_shape(stored, "stored"); }),
              ::testing::AllOf(::testing::HasSubstr("stored"), ::testing::HasSubstr("maximum")));
}

TEST(Convert, AHybridSaysThatItIsOne) {
  const auto teacher = teacher::teacher_shape(families()[0].config);
  const auto text = [&](const config::StudentSettings& settings) {
    auto of_kind = settings;
    of_kind.kind = "convert";
    return derive_shape(of_kind, teacher, 8)->description();
  };
  EXPECT_THAT(text({.mixers = {"mlstm", "attention"}}),
              ::testing::HasSubstr("a hybrid: attention kept in 1 of them over whole documents, so that the state grows with the text"));
  EXPECT_THAT(text({.mixers = {"attention", "slstm"}, .attention_window = 16, .attention_sinks = 4}),
              ::testing::HasSubstr("over the last 16 tokens and a document's first 4; elsewhere attention replaced by slstm"));
  EXPECT_THAT(text({}), ::testing::Not(::testing::HasSubstr("hybrid")));
}

// ---- sLSTM.

// One layer's mixer by the formulas, a token at a time.
TEST(Convert, AnSlstmIsItsDefinition) {
  for (const int64_t taps : {4, 0}) {
    const Pair pair = convert(families()[1].config, {.conv1d_kernel_size = taps, .mixers = {"slstm"}});
    perturb(*pair.student, 0.3);
    const auto w = named(*pair.student);
    const auto of = [&](const std::string& name) { return w.at("model.layers.0." + name).detach(); };
    const int64_t S = 12, H = 4, K = 6, E = H * K;
    const Tensor x_SD = at::randn({S, 12}, at::kDouble);
    const Tensor u_SD = x_SD / (x_SD.square().mean(-1, true) + 1e-6).sqrt() * of("input_layernorm.weight");
    const Tensor in_SE = at::linear(u_SD, of("self_attn.v_proj.weight"), of("self_attn.v_proj.bias"));
    Tensor v_SE = taps > 0 ? at::zeros_like(in_SE) : in_SE;
    for (int64_t t = 0; taps > 0 && t < S; ++t) {
      for (int64_t j = 0; j < taps && j <= t; ++j) v_SE[t] += of("mixer.conv.weight").select(1, taps - 1 - j) * in_SE[t - j];
    }
    const auto gate = [&](const std::string& name) {
      return at::linear(u_SD, of("mixer." + name + ".weight"), of("mixer." + name + ".bias")).view({S, H, K});
    };
    const Tensor a_HK = of("mixer.log_range.weight").exp().view({H, K});
    const Tensor i = gate("igate"), f = gate("fgate"), o = gate("ogate"), z = v_SE.view({S, H, K}) / a_HK;
    Tensor y = at::zeros({H, K}, at::kDouble), c = y.clone(), n = y.clone(), out_SE = at::zeros({S, E}, at::kDouble);
    for (int64_t t = 0; t < S; ++t) {
      const Tensor back_HGK = at::einsum("he,hegd->hgd", {y, of("mixer.recurrent.weight")});
      const auto of_gate = [&](const Tensor& own, int64_t index) { return own[t] + back_HGK.select(1, index); };
      const Tensor input = of_gate(i, 0).exp(), forget = of_gate(f, 1).sigmoid();
      c = forget * c + input * of_gate(z, 2).tanh();
      n = forget * n + input;
      y = of_gate(o, 3).sigmoid() * c / n;
      out_SE[t] = (a_HK * y).flatten();
    }
    const Tensor expected = at::linear(out_SE, of("self_attn.o_proj.weight"), of("self_attn.o_proj.bias"));
    const at::NoGradGuard no_grad;
    EXPECT_LT(relative_error(pair.student->mixer_output(0, x_SD.unsqueeze(0), {}, {.compute_dtype = at::kDouble})[0], expected), 1e-9)
        << taps;
  }
}

// A fresh one is the decaying mean of what its teacher's values are, over as many tokens as the teacher looks back.
TEST(Convert, AnSlstmStartsAsAMeanOverItsTeachersLookBack) {
  for (const auto& [name, config] : families()) {
    SCOPED_TRACE(name);
    const Pair pair = convert(config, {.mixers = {"slstm"}}), cells = convert(config, {.mixers = {"mlstm"}});
    const Tensor tokens = tokens_of(3, 24);
    const auto seen = pair.teacher->forward(tokens, {}, {.collect_attention = true});
    ASSERT_TRUE(pair.student->starts_from_rows());
    const Tensor before = named(*pair.student).at("model.layers.1.mixer.fgate.bias").detach().clone();
    pair.student->start_from_rows(seen.layer_inputs_BSD, {});
    EXPECT_TRUE(at::equal(named(*pair.student).at("model.layers.1.mixer.fgate.bias"), before)) << "without the teacher";
    pair.student->start_from_rows(seen.layer_inputs_BSD, {}, pair.teacher.get());
    cells.student->start_from_rows(seen.layer_inputs_BSD, {}, pair.teacher.get());
    const auto own = named(*pair.student), of_cells = named(*cells.student);
    const int64_t K = config["head_dim"];
    for (int64_t layer = 0; layer < 2; ++layer) {
      const auto bias = fmt::format("model.layers.{}.mixer.fgate.bias", layer);
      EXPECT_TRUE(at::allclose(own.at(bias), of_cells.at(bias).repeat_interleave(K), 1e-9, 1e-9)) << "as a cell behind the same attention";
    }
    const at::NoGradGuard no_grad;
    const Tensor& x_BSD = seen.layer_inputs_BSD[1];
    const auto of = [&](const std::string& part) {
      const auto found = own.find("model.layers.1." + part);
      return found == own.end() ? Tensor() : found->second;
    };
    const Tensor u_BSD = x_BSD / (x_BSD.square().mean(-1, true) + 1e-6).sqrt() * of("input_layernorm.weight");
    const Tensor v_BSE = at::linear(u_BSD, of("self_attn.v_proj.weight"), of("self_attn.v_proj.bias"));
    EXPECT_TRUE(at::allclose(of("mixer.log_range.weight").exp(), 4.0 * v_BSE.square().mean(at::IntArrayRef{0, 1}).sqrt(), 1e-6));
    const Tensor forget_E = of("mixer.fgate.bias").sigmoid();
    Tensor sum = at::zeros_like(v_BSE.select(1, 0)), count = at::zeros_like(sum), mean_BSE = at::zeros_like(v_BSE);
    for (int64_t t = 0; t < 24; ++t) {
      sum = forget_E * sum + v_BSE.select(1, t);
      count = forget_E * count + 1.0;
      mean_BSE.select(1, t).copy_(sum / count);
    }
    const Tensor expected = at::linear(mean_BSE, of("self_attn.o_proj.weight"), of("self_attn.o_proj.bias"));
    // The output gate is open to 0.98, and tanh is straight to a twentieth where values lie.
    EXPECT_LT(relative_error(pair.student->mixer_output(1, x_BSD, {}, {.compute_dtype = at::kDouble}), expected), 0.1);
  }
}

// Students of the large block alone, of every family that it has a place for.
std::vector<Family> large_families() {
  std::vector<Family> families_without_norms = families();
  std::erase_if(families_without_norms, [](const Family& family) { return family.config["model_type"] == "qwen3"; });
  return families_without_norms;
}

// One layer by the formulas of docs/convert.md, a position at a time.
TEST(ConvertLarge, ALayerIsItsDefinition) {
  for (const auto& [name, config] : large_families()) {
    SCOPED_TRACE(name);
    const Pair pair = convert(config, {.mixers = {"xlstm-large"}});
    perturb(*pair.student, 0.3);
    const auto w = named(*pair.student);
    const int64_t S = 13, H = 4, K = 6, I = 20;
    const double eps = teacher::teacher_shape(config).rms_norm_eps;
    const Tensor tokens = tokens_of(1, S);
    const auto of = [&](const std::string& parameter) {
      const auto found = w.find("model.layers.0." + parameter);
      return found == w.end() ? Tensor() : found->second.detach();
    };
    const auto linear = [&](const Tensor& x, const std::string& module) {
      return at::linear(x, of(module + ".weight"), of(module + ".bias"));
    };
    const auto norm = [&](const Tensor& x, const Tensor& weight) { return x / (x.square().mean(-1, true) + eps).sqrt() * weight; };
    const Tensor x_SD = at::embedding(pair.student->embedding_weight(), tokens)[0];
    const Tensor u_SD = norm(x_SD, of("input_layernorm.weight"));
    const auto qkv = linear(u_SD, "self_attn.qkv_proj").view({S, 3, H, K}).unbind(1);
    const Tensor input_SH = 15 * at::tanh(linear(u_SD, "mixer.igate") / 15);
    const Tensor log_forget_SH = at::log_sigmoid(15 * at::tanh(linear(u_SD, "mixer.fgate") / 15));
    Tensor normed_SHK = at::zeros({S, H, K}, at::kDouble);
    for (int64_t t = 0; t < S; ++t) {
      for (int64_t h = 0; h < H; ++h) {
        double sum = 0.0;
        Tensor y_K = at::zeros({K}, at::kDouble);
        for (int64_t j = 0; j <= t; ++j) {
          const double decay = j < t ? log_forget_SH.narrow(0, j + 1, t - j).select(1, h).sum().item<double>() : 0.0;
          const double product = (qkv[0][t][h] * qkv[1][j][h]).sum().item<double>() / std::sqrt(static_cast<double>(K));
          const double weight = product * std::exp(decay + input_SH[j][h].item<double>());
          y_K += weight * qkv[2][j][h];
          sum += weight;
        }
        y_K /= std::max(std::abs(sum), 1.0);
        normed_SHK[t][h] = (y_K - y_K.mean()) / (y_K.var(0, /*unbiased=*/false) + eps).sqrt();
      }
    }
    const Tensor heads_SE = normed_SHK.reshape({S, H * K}) * of("mixer.head_norm.weight");
    Tensor out_SD = x_SD + linear(heads_SE * at::sigmoid(linear(u_SD, "mixer.ogate")), "self_attn.o_proj");
    const Tensor both = linear(norm(out_SD, of("post_attention_layernorm.weight")), "mlp.gate_up_proj");
    out_SD = out_SD + linear(at::silu(both.narrow(1, 0, I)) * both.narrow(1, I, I), "mlp.down_proj");
    const auto got = pair.student->forward(tokens, {}, {.compute_dtype = at::kDouble, .collect_layers = true}, nullptr);
    EXPECT_LT(relative_error(got.layer_outputs_BSD[0][0], out_SD), 1e-5);
  }
}

TEST(ConvertLarge, EveryFormIsOne) {
  for (const at::Device device : devices()) {
    for (const auto& [name, config] : large_families()) {
      SCOPED_TRACE(device.str() + " " + name);
      const Pair pair = convert(config, {.mixers = {"xlstm-large"}}, device);
      perturb(*pair.student, 0.2);
      const at::NoGradGuard no_grad;
      const int64_t S = 19;
      const Tensor tokens = tokens_of(2, S, device), whole = pair.student->forward_hidden(tokens);
      for (const int64_t split : {1, 4, 7}) {
        const auto state = pair.student->new_state(2, S);
        std::vector<Tensor> parts = {pair.student->forward_step(tokens.narrow(1, 0, split), *state)};
        EXPECT_EQ(state->size_bytes(), 2 * 2 * 4 * (6 * 6 + 6 + 1) * 8) << "2 layers, 2 rows, 4 heads";
        for (int64_t t = split; t < S; ++t) parts.push_back(pair.student->forward_step(tokens.narrow(1, t, 1), *state));
        EXPECT_LT(relative_error(at::cat(parts, 1), whole), 1e-6) << split;
      }
    }
  }
}

// Output projections of the identity show the heads: those of the student lie as near the teacher's as a factor can bring them.
TEST(ConvertLarge, HeadsStartNearAttentions) {
  json config = families()[2].config;  // 4 heads of 6 make up the width of 24
  for (const auto init : {config::GateInit::look_back, config::GateInit::spread}) {
    Pair pair = convert(config, {.mixers = {"xlstm-large"}, .gate_init = init});
    {
      const at::NoGradGuard no_grad;
      pair.teacher->for_each_weight([](const std::string& name, const Tensor& tensor) {
        if (name.find("o_proj") != std::string::npos) Tensor(tensor).copy_(at::eye(24));
      });
      for (const auto& [name, tensor] : pair.student->parameters()) {
        if (name.find("o_proj") != std::string::npos) Tensor(tensor).copy_(at::eye(24));
      }
    }
    const Tensor tokens = tokens_of(3, 24);
    const auto seen = pair.teacher->forward(tokens, {}, {.collect_attention = true});
    pair.student->start_from_rows(seen.layer_inputs_BSD, {});
    const auto mlstm = convert(config, {.mixers = {"mlstm"}, .gate_init = init});
    if (init == config::GateInit::look_back) mlstm.student->start_from_rows(seen.layer_inputs_BSD, {});
    const at::NoGradGuard no_grad;
    for (int64_t layer = 0; layer < 2; ++layer) {
      const auto heads = [](const Tensor& x_BSD) { return x_BSD.view({3, 24, 4, 6}); };
      const Tensor attention = heads(seen.attention_outputs_BSD[static_cast<size_t>(layer)]);
      const Tensor student =
          heads(pair.student->mixer_output(layer, seen.layer_inputs_BSD[static_cast<size_t>(layer)], {}, {.compute_dtype = at::kDouble}));
      const auto product_HK = [](const Tensor& x_BSHK, const Tensor& y_BSHK) { return (x_BSHK * y_BSHK).flatten(0, 1).sum(0); };
      EXPECT_TRUE(at::allclose(product_HK(student, attention), product_HK(student, student), 1e-9, 1e-12))
          << layer << ": no factor of a channel is nearer";
      const std::string bias = fmt::format("model.layers.{}.mixer.fgate.bias", layer);
      const Tensor capped = 15 * at::tanh(named(*pair.student).at(bias) / 15);
      if (init == config::GateInit::look_back) {
        EXPECT_TRUE(at::allclose(capped, named(*mlstm.student).at(bias), 1e-9)) << layer;
      }
    }
  }
}

// The names of transformers' class, with idle heads where its state needs them, and back.
TEST(ConvertLarge, TheFormOfTransformersIsReadAgain) {
  for (const auto& [name, config] : large_families()) {
    SCOPED_TRACE(name);
    const Pair pair = convert(config, {.mixers = {"xlstm-large"}}, at::kCPU, at::kFloat);
    perturb(*pair.student, 0.1);
    json stored = pair.shape->to_json(kLargeLayout);
    const PythonForm form = python_form(*pair.shape);
    EXPECT_EQ(form.layout, kLargeLayout);
    stored.update(form.config);
    EXPECT_EQ(stored["num_heads"], 10) << "64 / heads is 6 for no fewer";
    const NamedTensors tensors = pair.student->stored_tensors(kLargeLayout, /*with_frozen=*/true);
    const auto weights = std::make_shared<MemoryWeights>(tensors);
    EXPECT_EQ(weights->tensors_.at("backbone.blocks.1.mlstm_layer.q.weight").size(0), 10 * 6);
    EXPECT_EQ(weights->contains("backbone.blocks.0.norm_ffn.bias"), stored["use_bias"].get<bool>());
    const auto again = load_student(memory_files(stored, weights));
    const at::NoGradGuard no_grad;
    const Tensor tokens = tokens_of(1, 9);
    EXPECT_TRUE(at::equal(again->forward_hidden(tokens), pair.student->forward_hidden(tokens)));
    EXPECT_TRUE(at::equal(again->head_weight(), pair.student->head_weight()));
    // What cannot be this student's is named.
    const auto expect_error = [&](const json& changed_config, const std::string& tensor, const Tensor& value, const std::string& said) {
      const auto changed = std::make_shared<MemoryWeights>(tensors);
      if (!tensor.empty()) changed->tensors_[tensor] = value;
      try {
        (void)load_student(memory_files(changed_config, changed));
        ADD_FAILURE() << "no error that says " << said;
      } catch (const Error& error) {
        EXPECT_THAT(error.what(), ::testing::HasSubstr(said));
      }
    };
    const std::string q = "backbone.blocks.1.mlstm_layer.q.weight";
    const int64_t width = config["hidden_size"];
    expect_error(stored, q, at::ones({}), fmt::format("tensor '{}' is [], config.json asks for [60, {}]", q, width));
    expect_error(stored, q, at::ones({24, width}), fmt::format("tensor '{}' is [24, {}], config.json asks for [60, {}]", q, width, width));
    Tensor busy = weights->tensors_.at(q).clone();
    {
      const at::NoGradGuard change;
      busy[59][0] = 0.5;
    }
    expect_error(stored, q, busy, "holds more than the 4 heads");
    const auto with = [&](const std::string& key, const json& value, bool is_own) {
      json changed = stored;
      (is_own ? changed["distil_xlstm"] : changed)[key] = value;
      return changed;
    };
    expect_error(with("layout", 5, true), "", {}, "layout");
    expect_error(with("layout", "other", true), "", {}, "layout = \"other\" is not known");
    expect_error(with("mixers", {"xlstm-large", "mlstm"}, true), "", {}, "throughout");
    expect_error(with("gate_soft_cap", 30.0, false), "", {}, "gate_soft_cap = 30.0");
    weights->tensors_.erase("backbone.blocks.1.mlstm_layer.v.weight");
    weights->tensors_["backbone.blocks.1.mlstm_layer.w.weight"] = at::ones({1});
    try {
      (void)load_student(memory_files(stored, weights));
      FAIL() << "no error";
    } catch (const DataError& error) {
      EXPECT_THAT(error.what(), ::testing::HasSubstr("mlstm_layer.v.weight"));
      EXPECT_THAT(error.what(), ::testing::HasSubstr("mlstm_layer.w.weight"));
    }
  }
}

// A divisor that the class reads back as the size itself, whatever the sizes.
TEST(ConvertLarge, FactorsGiveBackTheirSizes) {
  for (int64_t hidden = 1; hidden < 400; ++hidden) {
    for (const int64_t intermediate : {hidden + 1, 3 * hidden - 1, 8 * hidden / 3 + 7}) {
      ConvertConfig config;
      config.decoder = {.vocab_size = 3,
                        .hidden_size = hidden,
                        .intermediate_size = intermediate,
                        .num_layers = 1,
                        .num_heads = 3,
                        .num_kv_heads = 1,
                        .head_dim = hidden % 40 + 1};
      config.mixers = {"xlstm-large"};
      const json form = large_python_form(config).config;
      const auto size = [&](const char* factor) {
        return static_cast<int64_t>(std::floor(static_cast<double>(hidden) * form[factor].get<double>()));
      };
      const int64_t heads = form["num_heads"], K = config.decoder.head_dim;
      ASSERT_EQ(size("ffn_proj_factor"), intermediate) << hidden;
      ASSERT_EQ(size("qk_dim_factor"), heads * K) << hidden;
      ASSERT_EQ((heads * K + 63) / 64 * 64 / heads, K) << hidden;
      ASSERT_GE(heads, 3);
    }
  }
}

TEST(ConvertLarge, NormsOnQueriesAndKeysAreRefusedWhereTheFormHasNone) {
  const auto shape = teacher::teacher_shape(families()[3].config);
  try {
    (void)derive_shape({.kind = "convert", .mixers = {"xlstm-large"}}, shape, 8);
    FAIL() << "no error";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("student.mixers = \"xlstm-large\""));
  }
  EXPECT_NO_THROW((void)derive_shape({.kind = "convert", .mixers = {"xlstm-large", "mlstm"}}, shape, 8));
}

}  // namespace
}  // namespace distil_xlstm::student
