#include "distill/hidden_term.h"

#include <map>
#include <vector>

#include "base/error.h"
#include "config/names.h"
#include "distill/alignment.h"
#include "distill/layer_error.h"

namespace distil_xlstm::distill {
namespace {

std::map<std::string, MakeHiddenTerm>& kinds() {
  static std::map<std::string, MakeHiddenTerm> all = {
      {"alignment_loss",
       [](const HiddenTermContext& context) -> std::unique_ptr<HiddenTerm> {
         return std::make_unique<Alignment>(context.settings.alignment, context.teacher_layers, context.student_layers);
       }},
      {"layer_error", [](const HiddenTermContext&) -> std::unique_ptr<HiddenTerm> { return std::make_unique<LayerError>(); }},
      {"matrix_error", [](const HiddenTermContext&) -> std::unique_ptr<HiddenTerm> { return std::make_unique<MatrixError>(); }}};
  return all;
}

}  // namespace

Tensor HiddenTerm::loss_sum(const student::StudentOutput& /*student*/, const teacher::TeacherOutput& /*teacher*/,
                            const Tensor& /*mask_BS*/) const {
  throw ConfigError("{}: compares single layers, and this stage runs whole models", name());
}

Tensor HiddenTerm::layer_loss_sum(const Tensor& /*student_BSD*/, const Tensor& /*teacher_BSD*/, const Tensor& /*mask_BS*/) const {
  throw ConfigError("{}: compares whole models, and this stage aligns single layers", name());
}

void add_hidden_term(const std::string& name, MakeHiddenTerm make) {
  if (!kinds().emplace(name, std::move(make)).second) throw ValueError("loss term '{}': there is one of this name", name);
}

std::unique_ptr<HiddenTerm> make_hidden_term(const std::string& name, const HiddenTermContext& context) {
  const auto found = kinds().find(name);
  if (found != kinds().end()) return found->second(context);
  std::vector<std::string> names;
  for (const auto& [known, ignored] : kinds()) names.push_back(known);
  throw config::unknown_name(name, names, "loss term on hidden states");
}

}  // namespace distil_xlstm::distill
