// distil-xlstm report: one self-contained HTML page for one run or several.
#include "base/error.h"
#include "base/output_directory.h"
#include "base/output_stream.h"
#include "cli/commands.h"
#include "cli/option_checks.h"
#include "report/figures.h"

namespace distil_xlstm::cli {
namespace {

struct Options {
  std::vector<std::string> runs;
  std::string output, png, title;
};

bool begins_with(const fs::path& file, std::string_view mark) {
  return fs::is_regular_file(file) && read_file(file).starts_with(mark);
}

// Neither file may be one of a run's, nor the other.
void check_outputs(const Options& options) {
  const std::vector<fs::path> runs(options.runs.begin(), options.runs.end());
  check_output_file(options.output, "--output", runs, [](const fs::path& file) { return begins_with(file, "<!doctype html>"); });
  if (options.png.empty()) return;
  check_output_file(options.png, "--png", runs, [](const fs::path& file) { return begins_with(file, "\x89PNG"); });
  if (is_stream(options.png) || is_stream(options.output)) return;
  if (fs::weakly_canonical(fs::absolute(options.png)) == fs::weakly_canonical(fs::absolute(options.output)))
    throw ConfigError("--output and --png name the same file: {}", options.png);
}

void run(Options options) {
  const auto runs = report::read_runs(options.runs);
  if (options.output.empty()) options.output = (fs::path(options.runs.front()) / "report.html").string();
  check_outputs(options);
  if (options.title.empty())
    options.title = runs.size() == 1 ? "distil-xlstm: " + runs.front().name : "distil-xlstm: " + std::to_string(runs.size()) + " runs";
  write_file_atomic(options.output, report::html_page(runs, options.title));
  fmt::print("{}\n", options.output);
  if (!options.png.empty()) {
    report::write_png(options.png, report::make_figures(runs));
    fmt::print("{}\n", options.png);
  }
}

}  // namespace

void add_report_command(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("report", "Write one self-contained HTML page with the figures of one run or several");
  command->add_option("RUN", options->runs, "Run directories")->required();
  command->add_option("--output,-o", options->output, "The page")->check(output_file())->default_str("report.html in the first run");
  command->add_option("--png", options->png, "Also write the figures to this PNG file")->check(output_file());
  command->add_option("--title", options->title, "Heading of the page")->default_str("the run's name");
  command->callback([options] { run(*options); });
}

}  // namespace distil_xlstm::cli
