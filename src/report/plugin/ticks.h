// Where an axis has its ticks, and what stands beside them.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

namespace distil_xlstm::report {

struct Tick {
  double value = 0;
  std::string label;
};

// As many digits as tell values `step` apart, which has one significant digit; 1 M and 10 k have units.
inline std::string tick_label(double value, double step) {
  const double magnitude = std::abs(value);
  const auto [unit, suffix] = magnitude >= 1e6   ? std::pair<double, const char*>(1e6, " M")
                              : magnitude >= 1e4 ? std::pair<double, const char*>(1e3, " k")
                                                 : std::pair<double, const char*>(1.0, "");
  const double exponent = std::floor(std::log10(step / unit) + 1e-9);
  std::array<char, 64> text{};
  if (magnitude > 0 && magnitude < 1e-3) {
    const int digits = static_cast<int>(std::clamp(std::floor(std::log10(magnitude) + 1e-9) - exponent, 0.0, 15.0));
    std::snprintf(text.data(), text.size(), "%.*e", digits, value);
  } else {
    std::snprintf(text.data(), text.size(), "%.*f%s", static_cast<int>(std::clamp(-exponent, 0.0, 15.0)), value / unit, suffix);
  }
  return text.data();
}

// Steps of 1, 2 or 5 times a power of ten: about `count` of them over [low, high].
inline std::vector<Tick> linear_ticks(double low, double high, int count) {
  // No finer than doubles can tell apart.
  const double rough = std::max({(high - low) / count, 1e-14 * std::max(std::abs(low), std::abs(high)), 1e-300});
  const double power = std::pow(10.0, std::floor(std::log10(rough)));
  const double step = power * (rough / power <= 1.5 ? 1 : rough / power <= 3.5 ? 2 : rough / power <= 7.5 ? 5 : 10);
  std::vector<Tick> ticks;
  for (int index = 0; index < 2 * count + 2; ++index) {
    const double value = (std::ceil(low / step - 1e-9) + index) * step;
    if (value > high + step * 1e-9) break;
    const double clean = std::abs(value) < step * 1e-9 ? 0.0 : value;
    ticks.push_back({clean, tick_label(clean, step)});
  }
  return ticks;
}

// On a logarithmic axis over [low, high] > 0: powers of ten, or 1, 2 and 5 times them; over less than a factor of five, linear ones.
inline std::vector<Tick> log_ticks(double low, double high) {
  const double decades = std::log10(high / low);
  if (decades < 0.7) return linear_ticks(low, high, 5);
  const std::vector<int> factors = decades > 3 ? std::vector<int>{1} : std::vector<int>{1, 2, 5};
  const int stride = std::max(1, static_cast<int>(std::ceil(decades / 7)));
  std::vector<Tick> ticks;
  const int first = static_cast<int>(std::floor(std::log10(low)));
  for (int exponent = first; exponent <= first + static_cast<int>(decades) + 2; ++exponent) {
    if (exponent % stride != 0) continue;
    for (const int factor : factors) {
      const double step = std::pow(10.0, exponent), value = factor * step;
      if (value >= low * (1 - 1e-9) && value <= high * (1 + 1e-9)) ticks.push_back({value, tick_label(value, step)});
    }
  }
  return ticks;
}

struct Interval {
  double low = 0, high = 0;
};

// The data's range with a margin; one value alone lies in the middle of a range of its own size.
inline Interval padded(Interval data, double margin) {
  const double size = data.high - data.low;
  const double scale = std::max(std::abs(data.low), std::abs(data.high));
  if (!(size > 1e-12 * scale)) {
    const double half = scale > 0 ? scale / 2 : 1;
    return {data.low - half, data.high + half};
  }
  return {data.low - margin * size, data.high + margin * size};
}

}  // namespace distil_xlstm::report
