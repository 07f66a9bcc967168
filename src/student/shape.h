// What a student is before it has weights: sizes, costs, and how it is made.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "nn/language_model.h"

namespace distil_xlstm::student {

class Student;

// Values that the backward pass keeps for a token: in the compute type (activations) and in float32 (cells and their states).
struct KeptValues {
  int64_t compute = 0, full = 0;
  [[nodiscard]] int64_t size_bytes(int64_t compute_bytes) const { return compute * compute_bytes + full * 4; }
};

// A trainable tensor, for people.
struct ParameterInfo {
  std::string name;
  std::vector<int64_t> shape;
  std::string group, start;  // ParameterSpec
};

// Where a student is made, and over which frozen weights.
struct StudentPlace {
  at::Device device = at::kCPU;
  at::ScalarType parameter_dtype = at::kFloat;  // or float64, for tests
  Tensor embedding_VD, head_VD;                 // used as they are, never copied; undefined: those that are stored
  // Whose weights a fresh student of some kinds starts from.
  const nn::LanguageModel* teacher = nullptr;
};

class StudentShape {
 public:
  virtual ~StudentShape() = default;

  [[nodiscard]] virtual std::string_view kind() const = 0;
  [[nodiscard]] virtual int64_t num_layers() const = 0;  // whose outputs StudentForwardOptions::collect_layers keeps
  [[nodiscard]] virtual int64_t hidden_size() const = 0;
  [[nodiscard]] virtual int64_t vocab_size() const = 0;
  [[nodiscard]] virtual int64_t num_trainable_parameters() const = 0;
  [[nodiscard]] virtual std::vector<KeptValues> kept_values() const = 0;  // layer by layer
  // Layers that mix tokens by a matrix which is known without them (Student::mixing_error_sum).
  [[nodiscard]] virtual int64_t num_mixing_matrices() const { return 0; }
  // Whether its layers are its teacher's with another mixer in attention's place, so that each may be compared with its own.
  [[nodiscard]] virtual bool keeps_teacher_layers() const { return false; }
  // Of one row's state behind so many tokens, with products of this type; 0 where the kind does not tell.
  [[nodiscard]] virtual int64_t state_bytes(int64_t /*num_tokens*/, at::ScalarType /*compute_dtype*/) const { return 0; }
  // Whether a text's state stays as large as it began, however long the text.
  [[nodiscard]] virtual bool has_constant_state() const { return true; }
  [[nodiscard]] virtual std::vector<ParameterInfo> parameters() const { return {}; }  // all; empty where the kind does not tell
  [[nodiscard]] virtual std::string description() const = 0;                          // "5 blocks (1 sLSTM, 4 mLSTM), ..."

  // config.json of weights in `layout`, one of the kind's own names for how it stores them; "": its usual one.
  [[nodiscard]] virtual json to_json(std::string_view layout) const = 0;
  // What fixes shapes and the function and differs in `found`, a line each; none: weights of one fit the other.
  [[nodiscard]] virtual std::vector<std::string> differences(const StudentShape& found) const = 0;
  // Fresh parameters from `seed`: the same numbers on every device. `place` names both frozen weights. Throws ShapeError where they do
  // not fit.
  [[nodiscard]] virtual std::unique_ptr<Student> fresh(const StudentPlace& place, uint64_t seed) const = 0;
};

}  // namespace distil_xlstm::student
