#include "io/weights.h"

#include "base/error.h"

namespace distil_xlstm::io {

int64_t TensorView::num_elements() const {
  int64_t elements = 1;
  for (const int64_t dimension : shape) elements *= dimension;
  return elements;
}

int64_t TensorView::row_elements() const {
  const auto block = static_cast<int64_t>(traits(dtype).block_elements);
  return shape.size() < 2 ? block : shape.back();
}

void read_rows(const TensorView& tensor, int64_t begin, int64_t end, float* out, std::string_view where) {
  const int64_t row = tensor.row_elements();
  if (begin < 0 || end < begin || end > tensor.num_elements() || (row > 0 && (begin % row != 0 || end % row != 0))) {
    throw ValueError("{}: elements [{}, {}) of '{}': the tensor has {} in rows of {}", where, begin, end, tensor.name,
                     tensor.num_elements(), row);
  }
  const size_t first = storage_bytes(tensor.dtype, static_cast<size_t>(begin));
  const size_t size = storage_bytes(tensor.dtype, static_cast<size_t>(end - begin));
  to_float(tensor.dtype, tensor.bytes.subspan(first, size), out);
}

}  // namespace distil_xlstm::io
