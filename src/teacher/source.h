// Where a step gets what the teacher says of its rows: the model itself, or what stands for it. Chosen by name (teacher.source).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "nn/device_batch.h"
#include "teacher/teacher.h"

namespace distil_xlstm::teacher {

class TeacherSource {
 public:
  struct Shape {
    int64_t num_layers = 0, hidden_size = 0, vocab_size = 0;
  };

  virtual ~TeacherSource() = default;

  // Of the rows of a batch, which has their ids (DeviceBatch::row_ids); no gradients. On a CPU several threads may ask at once, each for
  // some rows of a batch. Throws ConfigError where it does not have what is wanted, DataError where it does not know a row.
  [[nodiscard]] virtual TeacherOutput signals(const nn::DeviceBatch& batch, const TeacherForwardOptions& wanted) = 0;
  [[nodiscard]] virtual const Tensor& head() const = 0;  // [V, D]: makes logits of last_hidden_BSD
  [[nodiscard]] virtual Shape shape() const = 0;
  [[nodiscard]] virtual at::Device device() const = 0;
  // The model, where there is one, to say in which layer a figure stops being finite.
  [[nodiscard]] virtual nn::LanguageModel* model() { return nullptr; }
  // Whether signals() leaves its work on the current stream of a GPU, so that it may go beside the student's.
  [[nodiscard]] virtual bool works_on_stream() const { return false; }
};

// The model runs for each batch. The teacher must outlive it.
class LiveTeacher final : public TeacherSource {
 public:
  explicit LiveTeacher(Teacher& teacher) : teacher_(teacher) {}

  [[nodiscard]] TeacherOutput signals(const nn::DeviceBatch& batch, const TeacherForwardOptions& wanted) override {
    return teacher_.forward(batch.tokens_BS, batch.is_start_BS, wanted);
  }
  [[nodiscard]] const Tensor& head() const override { return teacher_.head_weight(); }
  [[nodiscard]] Shape shape() const override { return {teacher_.num_layers(), teacher_.hidden_size(), teacher_.vocab_size()}; }
  [[nodiscard]] at::Device device() const override { return teacher_.device(); }
  [[nodiscard]] nn::LanguageModel* model() override { return &teacher_; }
  [[nodiscard]] bool works_on_stream() const override { return teacher_.device().is_cuda(); }

 private:
  Teacher& teacher_;
};

using MakeTeacherSource = std::function<std::unique_ptr<TeacherSource>(Teacher& teacher)>;

// Adds a source beside "live". Throws ValueError when the name is taken.
void add_teacher_source(const std::string& name, MakeTeacherSource make);

// Throws ConfigError that names those there are.
std::unique_ptr<TeacherSource> make_teacher_source(const std::string& name, Teacher& teacher);
// The same without making it.
void check_teacher_source(const std::string& name);

}  // namespace distil_xlstm::teacher
