// The report's page: share/report's parts with the data inside.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/text.h"
#include "report/figures.h"

namespace distil_xlstm::report {
namespace {

std::string escaped(std::string_view text) {
  std::string safe;
  for (const char c : text) {
    switch (c) {
      case '&':
        safe += "&amp;";
        break;
      case '<':
        safe += "&lt;";
        break;
      case '>':
        safe += "&gt;";
        break;
      case '"':
        safe += "&quot;";
        break;
      default:
        safe += c;
    }
  }
  return safe;
}

// JSON inside a <script>: no "</script>" can appear.
std::string embedded(const json& value) {
  std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  for (size_t at = text.find("</"); at != std::string::npos; at = text.find("</", at + 3)) text.replace(at, 2, "<\\/");
  return text;
}

json numbers(const std::vector<double>& values) {
  json array = json::array();
  for (const double value : values) {
    // Six digits are more than a pixel.
    array.push_back(std::isfinite(value) ? json(std::stod(fmt::format("{:.6g}", value))) : json(nullptr));
  }
  return array;
}

json to_json(const std::vector<Figure>& figures) {
  json list = json::array();
  for (const auto& figure : figures) {
    json curves = json::array();
    for (const auto& curve : figure.curves) {
      json item = {{"name", curve.name}, {"run", curve.run}, {"dashed", curve.is_dashed}, {"x", numbers(curve.x)}, {"y", numbers(curve.y)}};
      if (figure.is_smoothed) item["smooth"] = numbers(smoothed(curve.y));
      curves.push_back(std::move(item));
    }
    list.push_back({{"title", figure.title}, {"x", figure.x_label}, {"y", figure.y_label}, {"log", figure.is_log}, {"curves", curves}});
  }
  return list;
}

// Last value of a series, or "-".
std::string last(const std::map<std::string, Series>& table, const char* key, int digits) {
  const auto found = table.find(key);
  if (found == table.end() || found->second.y.empty()) return "-";
  return fmt::format("{:.{}f}", found->second.y.back(), digits);
}

std::string best(const std::map<std::string, Series>& table, const char* key, int digits) {
  const auto found = table.find(key);
  if (found == table.end() || found->second.y.empty()) return "-";
  return fmt::format("{:.{}f}", *std::min_element(found->second.y.begin(), found->second.y.end()), digits);
}

std::string setting(const json& description, const char* pointer) {
  const json::json_pointer path(pointer);
  if (!description.is_object() || !description.contains(path)) return "-";
  const json& value = description.at(path);
  return value.is_string() ? value.get<std::string>() : value.dump();
}

std::string results_table(const std::vector<RunMetrics>& runs) {
  std::string rows;
  for (const auto& run : runs) {
    const auto& loss = run.train.find("loss");
    const double tokens = loss == run.train.end() || loss->second.tokens.empty() ? 0 : loss->second.tokens.back();
    rows += "<tr>";
    for (const std::string& cell :
         {run.name, setting(run.description, "/settings/teacher/model"), setting(run.description, "/settings/distill/method"),
          format_count(tokens), best(run.validation, "perplexity", 3), last(run.validation, "teacher_perplexity", 3),
          best(run.validation, "perplexity_ratio", 4), last(run.validation, "agreement", 4), last(run.train, "tokens_per_second", 0),
          std::to_string(run.num_skipped)}) {
      rows += "<td>" + escaped(cell) + "</td>";
    }
    rows += "</tr>\n";
  }
  return rows;
}

std::string settings_sections(const std::vector<RunMetrics>& runs) {
  std::string sections;
  for (const auto& run : runs) {
    std::string text = run.description.dump(2);
    if (fs::exists(run.path / "settings.toml")) text = read_file(run.path / "settings.toml");
    sections += fmt::format("<details><summary>Settings of {}</summary><pre>{}</pre></details>\n", escaped(run.name), escaped(text));
  }
  return sections;
}

void replace(std::string& page, const std::string& mark, const std::string& content) {
  const size_t at = page.find(mark);
  if (at == std::string::npos) throw DataError("share/report/page.html: {} is missing", mark);
  page.replace(at, mark.size(), content);
}

}  // namespace

std::string html_page(const std::vector<RunMetrics>& runs, const std::string& title) {
  const fs::path parts = share_directory() / "report";
  std::string page = read_file(parts / "page.html");
  replace(page, "{{title}}", escaped(title));
  replace(page, "{{heading}}", escaped(title));
  replace(page, "{{style}}", read_file(parts / "uPlot.min.css") + read_file(parts / "page.css"));
  replace(page, "{{results}}", results_table(runs));
  replace(page, "{{settings}}", settings_sections(runs));
  replace(page, "{{data}}", embedded(to_json(make_figures(runs))));
  replace(page, "{{script}}", read_file(parts / "uPlot.iife.min.js") + "\n" + read_file(parts / "page.js"));
  return page;
}

}  // namespace distil_xlstm::report
