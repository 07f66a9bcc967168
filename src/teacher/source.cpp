#include "teacher/source.h"

#include <map>

#include "base/error.h"
#include "config/names.h"

namespace distil_xlstm::teacher {
namespace {

std::map<std::string, MakeTeacherSource>& sources() {
  static std::map<std::string, MakeTeacherSource> all = {
      {"live", [](Teacher& teacher) -> std::unique_ptr<TeacherSource> { return std::make_unique<LiveTeacher>(teacher); }}};
  return all;
}

const MakeTeacherSource& find(const std::string& name) {
  const auto found = sources().find(name);
  if (found != sources().end()) return found->second;
  std::vector<std::string> names;
  for (const auto& [known, ignored] : sources()) names.push_back(known);
  throw config::unknown_name(name, names, "teacher.source");
}

}  // namespace

void add_teacher_source(const std::string& name, MakeTeacherSource make) {
  if (!sources().emplace(name, std::move(make)).second) throw ValueError("teacher source '{}': there is one of this name", name);
}

std::unique_ptr<TeacherSource> make_teacher_source(const std::string& name, Teacher& teacher) {
  return find(name)(teacher);
}

void check_teacher_source(const std::string& name) {
  (void)find(name);
}

}  // namespace distil_xlstm::teacher
