#include "report/figures.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "base/text.h"

namespace distil_xlstm::report {
namespace {

enum class Axis { step, tokens };

struct Quantity {
  const char* key;
  const char* name;  // "" where the figure has one quantity
  bool is_dashed = false;
};

// One curve a run and quantity.
Figure figure(const std::vector<RunMetrics>& runs, const char* title, const std::string& y_label, bool is_validation, Axis axis,
              const std::vector<Quantity>& quantities) {
  Figure result{.title = title, .x_label = axis == Axis::step ? "optimizer step" : "training tokens", .y_label = y_label, .curves = {}};
  for (size_t index = 0; index < runs.size(); ++index) {
    const auto& table = is_validation ? runs[index].validation : runs[index].train;
    for (const auto& quantity : quantities) {
      const auto found = table.find(quantity.key);
      if (found == table.end() || found->second.y.empty()) continue;
      const Series& series = found->second;
      std::string name = runs.size() > 1 || *quantity.name == '\0' ? runs[index].name : "";
      if (*quantity.name != '\0') name += (name.empty() ? "" : " ") + std::string(quantity.name);
      result.curves.push_back(
          {name, axis == Axis::step ? series.step : series.tokens, series.y, static_cast<int>(index), quantity.is_dashed});
    }
  }
  return result;
}

bool has_text(const json& object, const json::json_pointer& place) {
  return object.is_object() && object.contains(place) && object.at(place).is_string();
}

// What the alignment loss measures: the runs' own word for it where they agree.
std::string alignment_label(const std::vector<RunMetrics>& runs) {
  const json::json_pointer place("/settings/distill/alignment/distance");
  std::set<std::string> distances;
  for (const auto& run : runs) {
    if (run.train.contains("alignment_loss"))
      distances.insert(has_text(run.description, place) ? run.description.at(place).get<std::string>() : "frobenius");
  }
  if (distances.size() > 1) return "distance (" + join({distances.begin(), distances.end()}, ", ") + ")";
  return distances.contains("cosine") ? "1 - cosine" : "Frobenius / sqrt(n)";
}

}  // namespace

std::vector<Figure> make_figures(const std::vector<RunMetrics>& runs) {
  std::vector<Figure> figures;
  const auto add = [&](Figure candidate, bool is_smoothed, bool is_log = false) {
    candidate.is_smoothed = is_smoothed;
    candidate.is_log = is_log;
    if (!candidate.curves.empty()) figures.push_back(std::move(candidate));
  };
  add(figure(runs, "Validation perplexity", "perplexity", true, Axis::tokens,
             {{"perplexity", "student"}, {"teacher_perplexity", "teacher", true}}),
      false, true);
  add(figure(runs, "Total loss", "as minimised", false, Axis::step, {{"loss", ""}}), true);
  add(figure(runs, "Cross-entropy", "nats a token", false, Axis::step, {{"ce_loss", "student"}, {"teacher_nll", "teacher", true}}), true);
  add(figure(runs, "Distillation loss (with T squared)", "nats a token", false, Axis::step, {{"kd_loss", ""}}), true);
  add(figure(runs, "KL at T = 1", "nats a token", false, Axis::step, {{"kl_at_1", ""}}), true);
  add(figure(runs, "Gradient norm", "L2 norm before clipping", false, Axis::step, {{"grad_norm", ""}}), true, true);
  add(figure(runs, "Alignment loss", alignment_label(runs), false, Axis::step, {{"alignment_loss", ""}}), true);
  add(figure(runs, "Error of aligned layers", "squared, relative to the attention", false, Axis::step, {{"layer_error", ""}}), true, true);
  add(figure(runs, "Alpha and beta", "weight", false, Axis::step, {{"alpha", "alpha"}, {"beta", "beta", true}}), false);
  add(figure(runs, "Temperature", "T", false, Axis::step, {{"temperature", ""}}), false);
  add(figure(runs, "Agreement of the likeliest token", "share of tokens", false, Axis::step, {{"agreement", ""}}), true);
  add(figure(runs, "Learning rate", "at the step", false, Axis::step, {{"learning_rate", ""}}), false);
  add(figure(runs, "Speed", "tokens/s", false, Axis::step, {{"tokens_per_second", ""}}), true);
  return figures;
}

std::vector<double> smoothed(const std::vector<double>& values) {
  const double window = std::max(1.0, static_cast<double>(values.size()) / 50.0);
  const double keep = 1.0 - 1.0 / window;
  std::vector<double> result;
  result.reserve(values.size());
  double mean = 0, weight = 0;
  for (const double value : values) {
    if (std::isfinite(value)) {
      mean = keep * mean + (1 - keep) * value;
      weight = keep * weight + (1 - keep);
    }
    result.push_back(weight > 0 ? mean / weight : value);
  }
  return result;
}

}  // namespace distil_xlstm::report
