#include "student/registry.h"

#include <map>

#include "base/error.h"
#include "config/names.h"
#include "student/convert/student.h"
#include "student/paper/shape.h"

namespace distil_xlstm::student {
namespace {

std::map<std::string, StudentKind>& kinds() {
  static std::map<std::string, StudentKind> all = {{"convert", convert_kind()}, {"paper", paper_kind()}};
  return all;
}

const StudentKind& find(const std::string& name, const std::string& where) {
  const auto found = kinds().find(name);
  if (found != kinds().end()) return found->second;
  std::vector<std::string> names;
  for (const auto& [known, ignored] : kinds()) names.push_back(known);
  throw config::unknown_name(name, names, where);
}

// Of a config.json; what the package writes names none.
const StudentKind& kind_of(const json& config, const std::string& where) {
  const auto ours = config.find("distil_xlstm");
  if (ours == config.end() || !ours->is_object()) return find("paper", where);
  return find(get_or<std::string>(*ours, "kind", "paper", where), where + ": distil_xlstm.kind");
}

}  // namespace

void add_student_kind(const std::string& name, StudentKind kind) {
  if (!kinds().emplace(name, std::move(kind)).second) throw ValueError("student kind '{}': there is one of this name", name);
}

std::unique_ptr<StudentShape> derive_shape(const config::StudentSettings& settings, const teacher::TeacherShape& teacher,
                                           int64_t context_length) {
  return find(settings.kind, "student.kind").derive(settings, teacher, context_length);
}

std::vector<std::string> ignored_keys(const std::string& kind) {
  return find(kind, "student.kind").ignored_keys;
}

std::unique_ptr<StudentShape> read_shape(const json& config, const std::string& where) {
  return kind_of(config, where).read(config, where);
}

PythonForm python_form(const StudentShape& shape) {
  const StudentKind& kind = find(std::string(shape.kind()), "student.kind");
  return kind.python_form ? kind.python_form(shape) : PythonForm{};
}

std::unique_ptr<Student> load_student(const io::ModelFiles& files, const StudentPlace& place) {
  return kind_of(files.config, files.path.string() + " (configuration)").load(files, place);
}

}  // namespace distil_xlstm::student
