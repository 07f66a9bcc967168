// Of the mLSTM's readout (docs/mathematics.md 3), the same in all its forms: plain, CPU, CUDA.
#pragma once

namespace distil_xlstm::kernels {

inline constexpr double kMlstmEps = 1e-6;          // added to the divisor
inline constexpr double kMinReadoutFrame = -10.0;  // exp(-frame) must stay finite; any frame gives the same output

}  // namespace distil_xlstm::kernels
