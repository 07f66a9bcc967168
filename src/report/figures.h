// The figures of a report: the paper's Figures 2 to 5 for one run or for several side by side, and what else tells how a run went.
#pragma once

#include <string>
#include <vector>

#include "report/run_metrics.h"

namespace distil_xlstm::report {

struct Curve {
  std::string name;
  std::vector<double> x, y;
  int run = 0;             // which run's colour
  bool is_dashed = false;  // the teacher's
};

struct Figure {
  std::string title, x_label, y_label;
  std::vector<Curve> curves;
  bool is_smoothed = false;  // noisy: drawn as a moving mean over the raw points
  bool is_log = false;
};

// Figures with at least one point, in the order of the page.
std::vector<Figure> make_figures(const std::vector<RunMetrics>& runs);

// Exponential moving mean with a window of about count/50 points, at least 1.
std::vector<double> smoothed(const std::vector<double>& values);

// One self-contained page: figures, a table of results, the settings of every run. Needs share/report (uPlot and the page's own parts).
std::string html_page(const std::vector<RunMetrics>& runs, const std::string& title);

// The same figures as one PNG. Drawn by Cairo in a library of its own that is opened here; throws IoError where that is missing.
void write_png(const fs::path& path, const std::vector<Figure>& figures);

}  // namespace distil_xlstm::report
