// The kinds of students by name: `student.kind` of a run file, `distil_xlstm.kind` of a config.json.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "config/run_config.h"
#include "io/model_files.h"
#include "student/student.h"
#include "teacher/teacher.h"

namespace distil_xlstm::student {

// What an export has beside weights and tokenizer, so that Python opens it.
struct PythonForm {
  std::vector<std::string> files;  // of share/export, copied
  json config = json::object();    // keys of its config.json beside StudentShape::to_json's; `model_type` where it is a library's own
  std::string layout;              // of weights and config.json (StudentShape::to_json); "": what `export --layout` says
  std::string library;             // that opens it: "transformers"
  std::string opening, example;    // a line with {} for its directory; lines of Python for the model card
  std::string limits;              // for the card: what the library does otherwise
};

struct StudentKind {
  // The shape from the user's settings and the teacher. Throws ConfigError that names keys.
  std::function<std::unique_ptr<StudentShape>(const config::StudentSettings& settings, const teacher::TeacherShape& teacher,
                                              int64_t context_length)>
      derive;
  // The shape that a config.json describes. Throws ConfigError that names unknown keys.
  std::function<std::unique_ptr<StudentShape>(const json& config, const std::string& where)> read;
  // A stored student; frozen weights that `place` leaves out are the stored ones. Throws DataError that names tensors.
  std::function<std::unique_ptr<Student>(const io::ModelFiles& files, const StudentPlace& place)> load;
  std::vector<std::string> ignored_keys;                               // under [student], which `derive` does not read: "num_blocks"
  std::function<PythonForm(const StudentShape& shape)> python_form{};  // empty: exports are for this program alone
};

// Adds a kind beside "paper" and "convert". Throws ValueError when the name is taken. Not while students are made on other threads.
void add_student_kind(const std::string& name, StudentKind kind);

// Each looks the kind up and calls it; one that is not known is a ConfigError which names those that are.
std::unique_ptr<StudentShape> derive_shape(const config::StudentSettings& settings, const teacher::TeacherShape& teacher,
                                           int64_t context_length);
std::vector<std::string> ignored_keys(const std::string& kind);
std::unique_ptr<StudentShape> read_shape(const json& config, const std::string& where);
PythonForm python_form(const StudentShape& shape);
std::unique_ptr<Student> load_student(const io::ModelFiles& files, const StudentPlace& place = {});

}  // namespace distil_xlstm::student
