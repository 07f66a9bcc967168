#include "report/plugin/png_plugin.h"

#include <cairo.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

namespace distil_xlstm::report {
namespace {

constexpr double kWidth = 460, kHeight = 300, kLeft = 62, kRight = 14, kTop = 30, kBottom = 62;
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

// Round steps of 1, 2 or 5 times a power of ten: about `count` of them over [low, high].
std::vector<double> ticks(double low, double high, int count) {
  const double rough = std::max(high - low, 1e-300) / count;
  const double power = std::pow(10.0, std::floor(std::log10(rough)));
  const double step = power * (rough / power <= 1.5 ? 1 : rough / power <= 3.5 ? 2 : rough / power <= 7.5 ? 5 : 10);
  std::vector<double> result;
  for (int index = 0; index < 2 * count + 2; ++index) {
    const double value = (std::ceil(low / step - 1e-9) + index) * step;
    if (value > high + step * 1e-9) break;
    result.push_back(std::abs(value) < step * 1e-9 ? 0.0 : value);
  }
  return result;
}

std::string label(double value) {
  std::array<char, 32> text{};
  const double magnitude = std::abs(value);
  if (magnitude >= 1e6) {
    std::snprintf(text.data(), text.size(), "%.4g M", value / 1e6);
  } else if (magnitude >= 1e4) {
    std::snprintf(text.data(), text.size(), "%.4g k", value / 1e3);
  } else {
    std::snprintf(text.data(), text.size(), "%.4g", value);
  }
  return text.data();
}

struct Range {
  double low = std::numeric_limits<double>::infinity(), high = -std::numeric_limits<double>::infinity();
  void add(double value) {
    if (!std::isfinite(value)) return;
    low = std::min(low, value);
    high = std::max(high, value);
  }
};

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
    x_ = x;
    y_ = is_log_ ? Range{std::log10(y.low), std::log10(y.high)} : y;
    const double margin = std::max((y_.high - y_.low) * 0.06, 1e-9 * std::max(1.0, std::abs(y_.high)));
    y_.low -= margin;
    y_.high += margin;
    if (x_.high <= x_.low) x_.high = x_.low + 1;
  }

  [[nodiscard]] double px(double x) const { return left_ + (x - x_.low) / (x_.high - x_.low) * (kWidth - kLeft - kRight); }
  [[nodiscard]] double py(double y) const {
    const double value = is_log_ ? std::log10(y) : y;
    return top_ + (y_.high - value) / (y_.high - y_.low) * (kHeight - kTop - kBottom);
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
    const double right = left_ + kWidth - kLeft - kRight, bottom = top_ + kHeight - kTop - kBottom;
    cairo_set_source_rgb(cairo, .11, .12, .14);
    cairo_select_font_face(cairo, "sans-serif", CAIRO_FONT_SLANT_NORMAL, CAIRO_FONT_WEIGHT_BOLD);
    cairo_set_font_size(cairo, 13);
    text(cairo, figure_.title, left_, top_ - 12, 0);
    cairo_select_font_face(cairo, "sans-serif", CAIRO_FONT_SLANT_NORMAL, CAIRO_FONT_WEIGHT_NORMAL);
    cairo_set_font_size(cairo, 10);
    cairo_set_line_width(cairo, 1);
    for (const double value : ticks(x_.low, x_.high, 5)) {
      cairo_set_source_rgb(cairo, .91, .93, .94);
      cairo_move_to(cairo, px(value), top_);
      cairo_line_to(cairo, px(value), bottom);
      cairo_stroke(cairo);
      cairo_set_source_rgb(cairo, .36, .39, .44);
      text(cairo, label(value), px(value), bottom + 14, 0.5);
    }
    for (const double tick : ticks(y_.low, y_.high, 5)) {
      const double value = is_log_ ? std::pow(10.0, tick) : tick;
      cairo_set_source_rgb(cairo, .91, .93, .94);
      cairo_move_to(cairo, left_, py(value));
      cairo_line_to(cairo, right, py(value));
      cairo_stroke(cairo);
      cairo_set_source_rgb(cairo, .36, .39, .44);
      text(cairo, label(value), left_ - 5, py(value) + 3.5, 1);
    }
    text(cairo, figure_.x_label, right, bottom + 28, 1);
    text(cairo, figure_.y_label, right, top_ - 12, 1);
  }

  void draw_line(cairo_t* cairo, const PlotCurve& curve, const double* values, double opacity, double width) const {
    const Color& color = kPalette[static_cast<size_t>(curve.color) % kPalette.size()];
    cairo_save(cairo);
    cairo_rectangle(cairo, left_, top_, kWidth - kLeft - kRight, kHeight - kTop - kBottom);
    cairo_clip(cairo);
    cairo_set_source_rgba(cairo, color.red, color.green, color.blue, opacity);
    cairo_set_line_width(cairo, width);
    const std::array<double, 2> dash = {5, 3};
    if (curve.is_dashed != 0) cairo_set_dash(cairo, dash.data(), 2, 0);
    bool is_open = false;
    for (int at = 0; at < curve.count; ++at) {
      if (!std::isfinite(values[at]) || (is_log_ && values[at] <= 0)) continue;
      if (is_open) {
        cairo_line_to(cairo, px(curve.x[at]), py(values[at]));
      } else {
        cairo_move_to(cairo, px(curve.x[at]), py(values[at]));
      }
      is_open = true;
    }
    cairo_stroke(cairo);
    cairo_restore(cairo);
  }

  void draw_legend(cairo_t* cairo) const {
    double x = left_;
    const double y = top_ + kHeight - kTop - kBottom + 42;
    cairo_set_font_size(cairo, 10);
    for (int i = 0; i < figure_.num_curves; ++i) {
      const PlotCurve& curve = figure_.curves[i];
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
      cairo_text_extents_t extents;
      cairo_text_extents(cairo, curve.name, &extents);
      text(cairo, curve.name, x + 20, y, 0);
      x += 34 + extents.x_advance;
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
  const int rows = (num_figures + kColumns - 1) / kColumns;
  constexpr double kScale = 1.5;  // sharp on dense screens
  cairo_surface_t* surface = cairo_image_surface_create(CAIRO_FORMAT_RGB24, static_cast<int>(kColumns * kWidth * kScale),
                                                        static_cast<int>(std::max(rows, 1) * kHeight * kScale));
  cairo_t* cairo = cairo_create(surface);
  cairo_scale(cairo, kScale, kScale);
  cairo_set_source_rgb(cairo, 1, 1, 1);
  cairo_paint(cairo);
  for (int i = 0; i < num_figures; ++i) {
    const int column = i % kColumns, row = i / kColumns;
    Frame(figures[i], column * kWidth, row * kHeight).draw(cairo);
  }
  const cairo_status_t status = cairo_surface_write_to_png(surface, path);
  cairo_destroy(cairo);
  cairo_surface_destroy(surface);
  return status == CAIRO_STATUS_SUCCESS ? nullptr : cairo_status_to_string(status);
}
