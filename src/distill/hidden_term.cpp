#include "distill/hidden_term.h"

#include <map>
#include <vector>

#include "base/error.h"
#include "config/names.h"
#include "distill/alignment.h"

namespace distil_xlstm::distill {
namespace {

std::map<std::string, MakeHiddenTerm>& kinds() {
  static std::map<std::string, MakeHiddenTerm> all = {
      {"alignment_loss", [](const HiddenTermContext& context) -> std::unique_ptr<HiddenTerm> {
         return std::make_unique<Alignment>(context.settings.alignment, context.teacher_layers, context.student_layers);
       }}};
  return all;
}

}  // namespace

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
