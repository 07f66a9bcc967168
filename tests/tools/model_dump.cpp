// Writes what a model computes, for comparison with other implementations:
//   model_dump MODEL TOKENS.json OUT.safetensors [--hidden] [--attention] [--greedy N]
// TOKENS.json: {"tokens": [[...]], "is_start": [[...]], "targets": [[...]]}, the last two optional.
// OUT: last_hidden [B, S, D]; logits [B, S, V], or nll [B, S] when there are targets (the logits then never exist whole);
// --hidden, --attention: hidden.N, attention.N [B, S, D] of every layer; --greedy N: greedy [B, N], written with the decoding state.
// Students of kind "paper" take more options: see student_dump.cpp.
#include <cstdio>
#include <span>

#include "ops/device.h"
#include "student/registry.h"
#include "teacher/teacher.h"
#include "tools/model_dump.h"

namespace distil_xlstm {
namespace {

Request parse_arguments(std::span<char*> arguments) {
  Request request;
  std::vector<std::string> positional;
  for (size_t i = 1; i < arguments.size(); ++i) {
    const std::string argument = arguments[i];
    if (argument == "--hidden") {
      request.with_hidden = true;
    } else if (argument == "--attention") {
      request.with_attention = true;
    } else if (argument == "--greedy" && i + 1 < arguments.size()) {
      request.num_greedy = std::stoll(arguments[++i]);
    } else if (kStudentOptions.contains(argument) && i + 1 < arguments.size()) {
      request.student_options[argument] = arguments[++i];
    } else {
      positional.push_back(argument);
    }
  }
  if (positional.size() != 3)
    throw ConfigError("usage: model_dump MODEL TOKENS.json OUT.safetensors [--hidden] [--attention] [--greedy N] [student options]");
  request.model = positional[0];
  request.tokens_path = positional[1];
  request.out_path = positional[2];
  return request;
}

Tensor read_matrix(const json& object, const char* key) {
  if (!object.contains(key)) return {};
  const auto rows = object.at(key).get<std::vector<std::vector<int64_t>>>();
  std::vector<Tensor> tensors;
  for (const auto& row : rows) tensors.push_back(at::tensor(row, at::kLong));
  return at::stack(tensors);
}

Input read_input(const fs::path& path) {
  const json object = read_json(path);
  Input input = {read_matrix(object, "tokens"), read_matrix(object, "is_start"), read_matrix(object, "targets")};
  if (input.is_start_BS.defined()) input.is_start_BS = input.is_start_BS.to(at::kByte);
  return input;
}

Tensor negative_log_likelihood(nn::LanguageModel& model, const Tensor& hidden_BSD, const Tensor& targets_BS) {
  constexpr int64_t kTile = 64;
  Tensor nll_BS = at::empty(targets_BS.sizes(), at::kFloat);
  for (int64_t b = 0; b < targets_BS.size(0); ++b) {
    for (int64_t s = 0; s < targets_BS.size(1); s += kTile) {
      const int64_t count = std::min(kTile, targets_BS.size(1) - s);
      const Tensor log_probabilities = model.logits(hidden_BSD[b].narrow(0, s, count)).log_softmax(-1).cpu();
      nll_BS[b].narrow(0, s, count).copy_(-log_probabilities.gather(1, targets_BS[b].narrow(0, s, count).unsqueeze(1)).squeeze(1));
    }
  }
  return nll_BS;
}

Tensor greedy_tokens(nn::LanguageModel& model, const Tensor& tokens_BS, int64_t count) {
  const auto state = model.new_state(tokens_BS.size(0), tokens_BS.size(1) + count);
  Tensor hidden_BSD = model.forward_step(tokens_BS, *state);
  std::vector<Tensor> tokens;
  for (int64_t step = 0; step < count; ++step) {
    tokens.push_back(model.logits(hidden_BSD.select(1, -1)).argmax(-1, true));
    hidden_BSD = model.forward_step(tokens.back(), *state);
  }
  return at::cat(tokens, 1);
}

// What every language model has.
void dump_outputs(nn::LanguageModel& model, const Input& input, const Request& request, NamedTensors& out) {
  const Tensor hidden_BSD = model.forward_hidden(input.tokens_BS, input.is_start_BS);
  out.emplace_back("last_hidden", hidden_BSD);
  if (input.targets_BS.defined()) {
    out.emplace_back("nll", negative_log_likelihood(model, hidden_BSD, input.targets_BS));
  } else {
    out.emplace_back("logits", model.logits(hidden_BSD));
  }
  if (request.num_greedy > 0) out.emplace_back("greedy", greedy_tokens(model, input.tokens_BS, request.num_greedy));
}

void dump_layers(teacher::Teacher& teacher, const Input& input, config::LayerState target, std::string_view prefix, NamedTensors& out) {
  teacher::TeacherForwardOptions options;
  options.target = target;
  options.collect_all = true;
  const auto output = teacher.forward(input.tokens_BS, input.is_start_BS, options);
  for (size_t layer = 0; layer < output.hidden_BSD.size(); ++layer) {
    out.emplace_back(fmt::format("{}.{}", prefix, layer), output.hidden_BSD[layer]);
  }
}

void dump_teacher(const io::ModelFiles& files, const Input& input, const Request& request, NamedTensors& out) {
  const auto teacher = teacher::load_teacher(files, at::kCPU, at::kFloat);
  dump_outputs(*teacher, input, request, out);
  if (request.with_hidden) dump_layers(*teacher, input, config::LayerState::block_output, "hidden", out);
  if (request.with_attention) dump_layers(*teacher, input, config::LayerState::attention_output, "attention", out);
}

void run(const Request& request) {
  const io::ModelFiles files = io::open_model(request.model);
  NamedTensors out;
  const Input input = read_input(request.tokens_path);
  if (files.kind == io::ModelKind::student && student::read_shape(files.config, files.path.string())->kind() == "paper") {
    dump_student(files, input, request, out);
  } else if (files.kind == io::ModelKind::student) {
    dump_outputs(*student::load_student(files), input, request, out);
  } else {
    dump_teacher(files, input, request, out);
  }
  write_tensors(request.out_path, out);
}

}  // namespace

void write_tensors(const fs::path& path, const NamedTensors& tensors) {
  std::vector<Tensor> kept;
  std::vector<io::TensorView> views;
  for (const auto& [name, tensor] : tensors) {
    const Tensor& stored = kept.emplace_back(tensor.to(at::kCPU).contiguous());
    const io::DType dtype = stored.scalar_type() == at::kLong     ? io::DType::i64
                            : stored.scalar_type() == at::kDouble ? io::DType::f64
                                                                  : io::DType::f32;
    views.push_back({name, dtype, stored.sizes().vec(), {static_cast<const std::byte*>(stored.const_data_ptr()), stored.nbytes()}});
  }
  io::write_safetensors(path, views);
}

}  // namespace distil_xlstm

int main(int argc, char** argv) {
  try {
    distil_xlstm::ops::load_cuda();
    distil_xlstm::run(distil_xlstm::parse_arguments({argv, static_cast<size_t>(argc)}));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
  return 0;
}
