#include "eval/task_scores.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <numbers>

#include "base/error.h"
#include "eval/means.h"

namespace distil_xlstm::eval {
namespace {

int64_t num_characters(std::string_view text) {
  return std::ranges::count_if(text, [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U; });
}

double divisor(std::string_view metric, const std::string& choice) {
  if (metric == "acc_norm") return static_cast<double>(num_characters(choice));
  if (metric == "acc_bytes") return static_cast<double>(choice.size());
  return 1.0;
}

// The first of the greatest.
size_t prediction(std::string_view metric, const TaskItem& item, const ItemOutcome& outcome) {
  std::vector<double> values = outcome.log_likelihoods;
  for (size_t i = 0; i < item.choices.size(); ++i) values[i] /= divisor(metric, item.choices[i]);
  return static_cast<size_t>(std::ranges::max_element(values) - values.begin());
}

// What the metric is a mean of.
double item_value(std::string_view metric, const TaskItem& item, const ItemOutcome& outcome) {
  if (!is_accuracy(metric)) return outcome.log_likelihoods.front();
  if (item.num_choices() == 1) return outcome.is_greedy ? 1.0 : 0.0;
  return prediction(metric, item, outcome) == static_cast<size_t>(item.answer) ? 1.0 : 0.0;
}

// The means of groups together, each counting the same.
MeanOf mean_of_groups(const std::map<std::string, std::vector<double>>& values) {
  MeanOf all;
  const auto count = static_cast<double>(values.size());
  for (const auto& [group, of_group] : values) {
    const MeanOf one = mean_of(of_group);
    all.mean += one.mean / count;
    all.standard_error += one.standard_error * one.standard_error;
  }
  all.standard_error = std::sqrt(all.standard_error) / count;
  return all;
}

MeanOf mean_over(std::span<const TaskItem> items, const std::function<double(size_t)>& value) {
  std::map<std::string, std::vector<double>> values;
  for (size_t i = 0; i < items.size(); ++i) values[items[i].group].push_back(value(i));
  return mean_of_groups(values);
}

double quotient_metric(std::string_view metric, std::span<const TaskItem> items, std::span<const ItemOutcome> outcomes) {
  double nats = 0.0, count = 0.0;
  for (size_t i = 0; i < items.size(); ++i) {
    nats -= outcomes[i].log_likelihoods.front();
    const int64_t of_item = metric == "word_perplexity"    ? items[i].num_words
                            : metric == "token_perplexity" ? outcomes[i].num_tokens
                                                           : items[i].num_bytes;
    count += static_cast<double>(of_item);
  }
  if (metric == "bits_per_byte") return nats / count / std::numbers::ln2;
  return std::exp(nats / count);
}

json metrics_json(const Task& task, std::span<const TaskItem> items, std::span<const ItemOutcome> outcomes) {
  json values = json::object();
  for (const auto& metric : task.metrics) {
    const MetricValue value = metric_value(metric, items, outcomes);
    values[metric] = value.value;
    if (value.standard_error) values[metric + "_stderr"] = *value.standard_error;
  }
  return values;
}

json comparison_json(const Task& task, std::span<const TaskItem> items, std::span<const ItemOutcome> model,
                     std::span<const ItemOutcome> teacher) {
  json comparison = json::object();
  const double chance = chance_level(task, items);
  for (const auto& metric : task.metrics) {
    const double of_model = metric_value(metric, items, model).value, of_teacher = metric_value(metric, items, teacher).value;
    json& one = comparison[metric];
    if (!is_accuracy(metric)) {
      one["ratio"] = share_json(of_model, of_teacher);
      continue;
    }
    one["kept"] = share_json(of_model, of_teacher);
    one["kept_above_chance"] = share_json(of_model - chance, of_teacher - chance);
    one["difference"] = of_model - of_teacher;
    one["difference_stderr"] = paired_standard_error(metric, items, model, teacher).value_or(0.0);
  }
  return comparison;
}

json sample_json(const Task& task, const TaskItem& item, const ItemOutcome& outcome) {
  json sample = {{"log_likelihoods", outcome.log_likelihoods}};
  for (const auto& metric : task.metrics) {
    if (is_accuracy(metric)) sample[metric] = item_value(metric, item, outcome);
  }
  if (task.output_type == OutputType::loglikelihood_rolling) sample["num_tokens"] = outcome.num_tokens;
  return sample;
}

json samples_json(const Task& task, std::span<const TaskItem> items, std::span<const ItemOutcome> model,
                  std::span<const ItemOutcome> teacher) {
  json samples = json::array();
  for (size_t i = 0; i < items.size(); ++i) {
    json sample = {{"place", items[i].place}};
    if (task.output_type == OutputType::multiple_choice) sample["answer"] = items[i].answer;
    if (!items[i].group.empty()) sample["group"] = items[i].group;
    sample["model"] = sample_json(task, items[i], model[i]);
    if (!teacher.empty()) sample["teacher"] = sample_json(task, items[i], teacher[i]);
    samples.push_back(std::move(sample));
  }
  return samples;
}

// Each group's own figures, by name.
json groups_json(const Task& task, std::span<const TaskItem> items, std::span<const ItemOutcome> model,
                 std::span<const ItemOutcome> teacher) {
  std::map<std::string, std::vector<size_t>> members;
  for (size_t i = 0; i < items.size(); ++i) members[items[i].group].push_back(i);
  json groups = json::object();
  for (const auto& [name, indices] : members) {
    std::vector<TaskItem> of_group;
    std::vector<ItemOutcome> of_model, of_teacher;
    for (const size_t i : indices) {
      of_group.push_back(items[i]);
      of_model.push_back(model[i]);
      if (!teacher.empty()) of_teacher.push_back(teacher[i]);
    }
    groups[name] = {{"num_items", indices.size()}, {"model", metrics_json(task, of_group, of_model)}};
    if (!teacher.empty()) groups[name]["teacher"] = metrics_json(task, of_group, of_teacher);
  }
  return groups;
}

}  // namespace

std::vector<ItemOutcome> gather_outcomes(const Task& task, const EncodedItems& encoded, std::span<const RequestScore> scores) {
  const bool is_rolling = task.output_type == OutputType::loglikelihood_rolling;
  std::vector<ItemOutcome> outcomes;
  size_t begin = 0;
  for (size_t i = 0; i < encoded.ends.size(); ++i) {
    ItemOutcome outcome{.log_likelihoods = {}, .is_greedy = true, .num_tokens = encoded.num_tokens[i]};
    if (is_rolling) outcome.log_likelihoods.push_back(0.0);
    for (const RequestScore& score : scores.subspan(begin, encoded.ends[i] - begin)) {
      if (is_rolling) {
        outcome.log_likelihoods.front() += score.log_likelihood;
      } else {
        outcome.log_likelihoods.push_back(score.log_likelihood);
      }
      outcome.is_greedy = outcome.is_greedy && score.is_greedy;
    }
    begin = encoded.ends[i];
    outcomes.push_back(std::move(outcome));
  }
  return outcomes;
}

MetricValue metric_value(std::string_view metric, std::span<const TaskItem> items, std::span<const ItemOutcome> outcomes) {
  const bool is_mean = is_accuracy(metric) || metric == "perplexity";
  if (!is_mean) return {quotient_metric(metric, items, outcomes), std::nullopt};
  const MeanOf mean = mean_over(items, [&](size_t i) { return item_value(metric, items[i], outcomes[i]); });
  if (metric != "perplexity") return {mean.mean, mean.standard_error};
  const double perplexity = std::exp(-mean.mean);
  return {perplexity, perplexity * mean.standard_error};  // to first order
}

double chance_level(const Task& task, std::span<const TaskItem> items) {
  if (task.output_type != OutputType::multiple_choice) return 0.0;
  return mean_over(items, [&](size_t i) { return 1.0 / static_cast<double>(items[i].num_choices()); }).mean;
}

std::optional<double> paired_standard_error(std::string_view metric, std::span<const TaskItem> items, std::span<const ItemOutcome> model,
                                            std::span<const ItemOutcome> teacher) {
  if (!is_accuracy(metric)) return std::nullopt;
  const auto difference = [&](size_t i) { return item_value(metric, items[i], model[i]) - item_value(metric, items[i], teacher[i]); };
  return mean_over(items, difference).standard_error;
}

json task_json(const Task& task, std::span<const TaskItem> items, std::span<const ItemOutcome> model, std::span<const ItemOutcome> teacher,
               bool with_samples) {
  json result = {{"num_items", items.size()}, {"primary_metric", task.primary_metric()}};
  if (is_accuracy(task.primary_metric())) result["chance"] = chance_level(task, items);
  result["model"] = metrics_json(task, items, model);
  if (!teacher.empty()) {
    result["teacher"] = metrics_json(task, items, teacher);
    result["comparison"] = comparison_json(task, items, model, teacher);
  }
  if (std::ranges::any_of(items, [](const TaskItem& item) { return !item.group.empty(); }))
    result["groups"] = groups_json(task, items, model, teacher);
  if (with_samples) result["samples"] = samples_json(task, items, model, teacher);
  return result;
}

json average_json(const json& tasks) {
  double count = 0.0, chance = 0.0, model = 0.0, teacher = 0.0, model_variance = 0.0, teacher_variance = 0.0, difference_variance = 0.0;
  const auto square = [](double x) { return x * x; };
  bool has_teacher = false;
  for (const auto& task : tasks) {
    const auto metric = task.at("primary_metric").get<std::string>();
    if (!is_accuracy(metric)) continue;
    count += 1.0;
    chance += task.at("chance").get<double>();
    model += task.at("model").at(metric).get<double>();
    model_variance += square(task.at("model").at(metric + "_stderr").get<double>());
    has_teacher = task.contains("teacher");
    if (!has_teacher) continue;
    teacher += task.at("teacher").at(metric).get<double>();
    teacher_variance += square(task.at("teacher").at(metric + "_stderr").get<double>());
    difference_variance += square(task.at("comparison").at(metric).at("difference_stderr").get<double>());
  }
  if (count == 0.0) return nullptr;
  json average = {{"num_tasks", static_cast<int64_t>(count)},
                  {"chance", chance / count},
                  {"model", model / count},
                  {"model_stderr", std::sqrt(model_variance) / count}};
  if (!has_teacher) return average;
  average["teacher"] = teacher / count;
  average["teacher_stderr"] = std::sqrt(teacher_variance) / count;
  average["kept"] = share_json(model, teacher);
  average["kept_above_chance"] = share_json(model - chance, teacher - chance);
  average["difference"] = (model - teacher) / count;
  average["difference_stderr"] = std::sqrt(difference_variance) / count;
  return average;
}

}  // namespace distil_xlstm::eval
