// What libdistil_xlstm_png.so exports: drawing with Cairo stays in a library of its own, opened on first use.
#pragma once

namespace distil_xlstm::report {

struct PlotCurve {
  const char* name;
  const double* x;
  const double* y;       // NaN: a gap
  const double* smooth;  // null: y is drawn as it is
  int count;
  int color;  // index into the palette
  int is_dashed;
};

struct PlotFigure {
  const char* title;
  const char* x_label;
  const char* y_label;
  const PlotCurve* curves;
  int num_curves;
  int is_log;
};

// Draws the figures in a grid of three columns. Returns null, or a message.
using DrawPng = const char* (*)(const char* path, const PlotFigure* figures, int num_figures);
inline constexpr const char* kDrawPngSymbol = "distil_xlstm_draw_png";

}  // namespace distil_xlstm::report
