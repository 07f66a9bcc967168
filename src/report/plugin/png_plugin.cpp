#include "report/plugin/png_plugin.h"

#include <cairo.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "report/plugin/ticks.h"

namespace distil_xlstm::report {
namespace {

constexpr double kWidth = 460, kHeight = 300, kLeft = 62, kRight = 14, kTop = 30, kBottom = 62, kLegendLine = 14;
constexpr double kPlotWidth = kWidth - kLeft - kRight, kPlotHeight = kHeight - kTop - kBottom;
constexpr int kColumns = 3;
struct Color {
  double red, green, blue;
};
constexpr std::array<Color, 8> kPalette = {{{.09, .41, .78},
                                            {.82, .29, .36},
                                            {.16, .62, .29},
                                            {.61, .36, .90},
                                            {.88, .56, .04},
                                            {.04, .58, .59},
                                            {.55, .39, .27},
                                            {.42, .46, .49}}};

struct Range {
  double low = std::numeric_limits<double>::infinity(), high = -std::numeric_limits<double>::infinity();
  void add(double value) {
    if (!std::isfinite(value)) return;
    low = std::min(low, value);
    high = std::max(high, value);
  }
};

double text_width(cairo_t* cairo, const std::string& text) {
  cairo_text_extents_t extents;
  cairo_text_extents(cairo, text.c_str(), &extents);
  return extents.x_advance;
}

// The end of a name, where runs differ, cut at a character so that it fits.
std::string shortened(cairo_t* cairo, const std::string& name, double width) {
  if (text_width(cairo, name) <= width) return name;
  for (size_t begin = 1; begin < name.size(); ++begin) {
    if ((static_cast<unsigned char>(name[begin]) & 0xC0U) == 0x80) continue;
    if (std::string cut = "…" + name.substr(begin); text_width(cairo, cut) <= width) return cut;
  }
  return "…";
}

struct LegendEntry {
  const PlotCurve* curve;
  std::string name;
  double x;
  int line;
};

// Curves' names in as many lines as they need below the plot.
std::vector<LegendEntry> legend_of(cairo_t* cairo, const PlotFigure& figure) {
  cairo_select_font_face(cairo, "sans-serif", CAIRO_FONT_SLANT_NORMAL, CAIRO_FONT_WEIGHT_NORMAL);
  cairo_set_font_size(cairo, 10);
  std::vector<LegendEntry> entries;
  double x = 0;
  int line = 0;
  for (int i = 0; i < figure.num_curves; ++i) {
    const std::string name = shortened(cairo, figure.curves[i].name, kPlotWidth - 20);
    const double width = 20 + text_width(cairo, name);
    if (x > 0 && x + width > kPlotWidth) {
      x = 0;
      ++line;
    }
    entries.push_back({&figure.curves[i], name, x, line});
    x += width + 14;
  }
  return entries;
}

// One figure's frame: data coordinates to pixels.
class Frame {
 public:
  Frame(const PlotFigure& figure, double left, double top) : figure_(figure), left_(left + kLeft), top_(top + kTop) {
    Range x, y;
    bool is_positive = true;
    for (int i = 0; i < figure.num_curves; ++i) {
      const PlotCurve& curve = figure.curves[i];
      const double* shown = curve.smooth != nullptr ? curve.smooth : curve.y;
      for (int at = 0; at < curve.count; ++at) {
        x.add(curve.x[at]);
        y.add(shown[at]);
        is_positive = is_positive && (!std::isfinite(shown[at]) || shown[at] > 0);
      }
    }
    is_log_ = figure.is_log != 0 && is_positive;
    if (x.low > x.high) x = {0, 1};  // nothing finite
    if (y.low > y.high) y = {0, 1};
    const bool is_single = !(x.high > x.low);
    const Interval x_range = is_single ? padded({x.low, x.high}, 0) : Interval{x.low, x.high};
    x_ = {x_range.low, x_range.high};
    if (is_log_ && y.high / y.low > 1 + 1e-9) {
      const Interval range = padded({std::log10(y.low), std::log10(y.high)}, 0.06);
      y_ = {range.low, range.high};
    } else {
      is_log_ = false;
      const Interval range = padded({y.low, y.high}, 0.06);
      y_ = {range.low, range.high};
    }
  }

  [[nodiscard]] double px(double x) const { return left_ + (x - x_.low) / (x_.high - x_.low) * kPlotWidth; }
  [[nodiscard]] double py(double y) const {
    const double value = is_log_ ? std::log10(y) : y;
    return top_ + (y_.high - value) / (y_.high - y_.low) * kPlotHeight;
  }

  void draw(cairo_t* cairo) const {
    draw_axes(cairo);
    for (int i = 0; i < figure_.num_curves; ++i) {
      const PlotCurve& curve = figure_.curves[i];
      if (curve.smooth != nullptr) draw_line(cairo, curve, curve.y, 0.2, 0.8);
      draw_line(cairo, curve, curve.smooth != nullptr ? curve.smooth : curve.y, 1.0, 1.7);
    }
    draw_legend(cairo);
  }

 private:
  static void text(cairo_t* cairo, const std::string& content, double x, double y, double align) {
    cairo_text_extents_t extents;
    cairo_text_extents(cairo, content.c_str(), &extents);
    cairo_move_to(cairo, x - align * extents.x_advance, y);
    cairo_show_text(cairo, content.c_str());
  }

  void draw_axes(cairo_t* cairo) const {
    const double right = left_ + kPlotWidth, bottom = top_ + kPlotHeight;
    cairo_set_source_rgb(cairo, .11, .12, .14);
    cairo_select_font_face(cairo, "sans-serif", CAIRO_FONT_SLANT_NORMAL, CAIRO_FONT_WEIGHT_BOLD);
    cairo_set_font_size(cairo, 13);
    text(cairo, figure_.title, left_, top_ - 12, 0);
    cairo_select_font_face(cairo, "sans-serif", CAIRO_FONT_SLANT_NORMAL, CAIRO_FONT_WEIGHT_NORMAL);
    cairo_set_font_size(cairo, 10);
    cairo_set_line_width(cairo, 1);
    for (const auto& [value, name] : linear_ticks(x_.low, x_.high, 5)) {
      cairo_set_source_rgb(cairo, .91, .93, .94);
      cairo_move_to(cairo, px(value), top_);
      cairo_line_to(cairo, px(value), bottom);
      cairo_stroke(cairo);
      cairo_set_source_rgb(cairo, .36, .39, .44);
      text(cairo, name, px(value), bottom + 14, 0.5);
    }
    const auto y_ticks = is_log_ ? log_ticks(std::pow(10.0, y_.low), std::pow(10.0, y_.high)) : linear_ticks(y_.low, y_.high, 5);
    for (const auto& [value, name] : y_ticks) {
      cairo_set_source_rgb(cairo, .91, .93, .94);
      cairo_move_to(cairo, left_, py(value));
      cairo_line_to(cairo, right, py(value));
      cairo_stroke(cairo);
      cairo_set_source_rgb(cairo, .36, .39, .44);
      text(cairo, name, left_ - 5, py(value) + 3.5, 1);
    }
    text(cairo, figure_.x_label, right, bottom + 28, 1);
    text(cairo, figure_.y_label, right, top_ - 12, 1);
  }

  void draw_line(cairo_t* cairo, const PlotCurve& curve, const double* values, double opacity, double width) const {
    const Color& color = kPalette[static_cast<size_t>(curve.color) % kPalette.size()];
    cairo_save(cairo);
    cairo_rectangle(cairo, left_, top_, kPlotWidth, kPlotHeight);
    cairo_clip(cairo);
    cairo_set_source_rgba(cairo, color.red, color.green, color.blue, opacity);
    cairo_set_line_width(cairo, width);
    const std::array<double, 2> dash = {5, 3};
    if (curve.is_dashed != 0) cairo_set_dash(cairo, dash.data(), 2, 0);
    int num_points = 0;
    double last_x = 0, last_y = 0;
    for (int at = 0; at < curve.count; ++at) {
      if (!std::isfinite(values[at]) || (is_log_ && values[at] <= 0)) continue;
      last_x = px(curve.x[at]);
      last_y = py(values[at]);
      if (num_points++ > 0) {
        cairo_line_to(cairo, last_x, last_y);
      } else {
        cairo_move_to(cairo, last_x, last_y);
      }
    }
    cairo_stroke(cairo);
    if (num_points == 1) {
      cairo_arc(cairo, last_x, last_y, 3, 0, 6.2832);
      cairo_fill(cairo);
    }
    cairo_restore(cairo);
  }

  void draw_legend(cairo_t* cairo) const {
    for (const auto& entry : legend_of(cairo, figure_)) {
      const PlotCurve& curve = *entry.curve;
      const double x = left_ + entry.x, y = top_ + kPlotHeight + 42 + entry.line * kLegendLine;
      const Color& color = kPalette[static_cast<size_t>(curve.color) % kPalette.size()];
      cairo_set_source_rgb(cairo, color.red, color.green, color.blue);
      cairo_set_line_width(cairo, 2);
      const std::array<double, 2> dash = {4, 2};
      if (curve.is_dashed != 0) cairo_set_dash(cairo, dash.data(), 2, 0);
      cairo_move_to(cairo, x, y - 3);
      cairo_line_to(cairo, x + 16, y - 3);
      cairo_stroke(cairo);
      cairo_set_dash(cairo, nullptr, 0, 0);
      cairo_set_source_rgb(cairo, .25, .27, .30);
      text(cairo, entry.name, x + 20, y, 0);
    }
  }

  const PlotFigure& figure_;
  double left_, top_;
  Range x_, y_;
  bool is_log_ = false;
};

}  // namespace
}  // namespace distil_xlstm::report

extern "C" const char* distil_xlstm_draw_png(const char* path, const distil_xlstm::report::PlotFigure* figures, int num_figures) {
  using namespace distil_xlstm::report;
  constexpr double kScale = 1.5;  // sharp on dense screens
  const auto open_surface = [](double width, double height) {
    return cairo_image_surface_create(CAIRO_FORMAT_RGB24, static_cast<int>(width * kScale), static_cast<int>(height * kScale));
  };
  // Rows are as high as their longest legend.
  const int rows = std::max((num_figures + kColumns - 1) / kColumns, 1);
  std::vector<double> tops(static_cast<size_t>(rows) + 1, 0.0);
  cairo_surface_t* scratch = open_surface(1, 1);
  cairo_t* measure = cairo_create(scratch);
  for (int row = 0; row < rows; ++row) {
    int lines = 0;
    for (int i = row * kColumns; i < std::min((row + 1) * kColumns, num_figures); ++i) {
      const auto legend = legend_of(measure, figures[i]);
      if (!legend.empty()) lines = std::max(lines, legend.back().line);
    }
    tops[static_cast<size_t>(row) + 1] = tops[static_cast<size_t>(row)] + kHeight + lines * kLegendLine;
  }
  cairo_destroy(measure);
  cairo_surface_destroy(scratch);

  cairo_surface_t* surface = open_surface(kColumns * kWidth, tops.back());
  cairo_t* cairo = cairo_create(surface);
  cairo_scale(cairo, kScale, kScale);
  cairo_set_source_rgb(cairo, 1, 1, 1);
  cairo_paint(cairo);
  for (int i = 0; i < num_figures; ++i) {
    Frame(figures[i], i % kColumns * kWidth, tops[static_cast<size_t>(i / kColumns)]).draw(cairo);
  }
  const cairo_status_t status = cairo_surface_write_to_png(surface, path);
  cairo_destroy(cairo);
  cairo_surface_destroy(surface);
  return status == CAIRO_STATUS_SUCCESS ? nullptr : cairo_status_to_string(status);
}
