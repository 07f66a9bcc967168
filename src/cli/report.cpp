// distil-xlstm report: one self-contained HTML page for one run or several.
#include "base/error.h"
#include "cli/commands.h"
#include "report/figures.h"

namespace distil_xlstm::cli {
namespace {

struct Options {
  std::vector<std::string> runs;
  std::string output, png, title;
};

void run(Options options) {
  const auto runs = report::read_runs(options.runs);
  if (options.output.empty()) options.output = (fs::path(options.runs.front()) / "report.html").string();
  if (options.title.empty())
    options.title = runs.size() == 1 ? "distil-xlstm: " + runs.front().name : "distil-xlstm: " + std::to_string(runs.size()) + " runs";
  for (const std::string& path : {options.output, options.png}) {
    if (const auto folder = fs::path(path).parent_path(); !folder.empty()) fs::create_directories(folder);
  }
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
  command->add_option("--output,-o", options->output, "The page")->default_str("report.html in the first run");
  command->add_option("--png", options->png, "Also write the figures to this PNG file");
  command->add_option("--title", options->title, "Heading of the page")->default_str("the run's name");
  command->callback([options] { run(*options); });
}

}  // namespace distil_xlstm::cli
