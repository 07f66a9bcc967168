// Named tensors of a model on disk, whatever the container: mapped, not copied, until someone converts them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/dtype.h"

namespace distil_xlstm::io {

// A view of stored elements, row-major. `bytes` lives as long as the WeightSource that gave it.
struct TensorView {
  std::string name;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;

  [[nodiscard]] int64_t num_elements() const;
  [[nodiscard]] int64_t row_elements() const;  // length of a row: the last dimension; of a vector 1, or its block where quantised
};

// Elements [begin, end) of a stored tensor as float; both at a row's border, else ValueError that names `where`.
void read_rows(const TensorView& tensor, int64_t begin, int64_t end, float* out, std::string_view where);

// All tensors of one model under Hugging Face names (`model.layers.0.self_attn.q_proj.weight`).
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  [[nodiscard]] virtual std::vector<std::string> names() const = 0;
  [[nodiscard]] virtual bool contains(std::string_view name) const = 0;
  // Throws DataError that names the file and the tensor when it is missing.
  [[nodiscard]] virtual TensorView view(std::string_view name) const = 0;
  // Elements [begin, end) of a tensor as float (dequantised, and reordered where the container stores another row order
  // than Hugging Face, as GGUF does for Llama's q and k). `begin` and `end` must be multiples of TensorView::row_elements().
  virtual void read_float(std::string_view name, int64_t begin, int64_t end, float* out) const = 0;
  // Whether view(name).bytes are the values of read_float as they stand (no dequantisation, no reordering). They need not be aligned
  // to the element size: copy them with memcpy.
  [[nodiscard]] virtual bool is_plain(std::string_view name) const = 0;
  // For messages: the file or directory.
  [[nodiscard]] virtual std::string origin() const = 0;
};

}  // namespace distil_xlstm::io
