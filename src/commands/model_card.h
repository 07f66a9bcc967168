// README.md of an export: what the model is, how to open it, how it was made, and what it reached.
#pragma once

#include <string>

#include "base/file.h"
#include "io/model_files.h"
#include "student/registry.h"

namespace distil_xlstm::commands {

// The card of the run that the student is a checkpoint of, as far as its files tell. One that was exported before keeps its card.
std::string model_card(const io::ModelFiles& student, const student::StudentShape& shape, const student::PythonForm& form);

// Whether a README.md is a card that nobody took over: it says itself which line to delete to that end.
bool is_own_card(const fs::path& path);

}  // namespace distil_xlstm::commands
