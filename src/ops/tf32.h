// Float32 products on a GPU's tensor cores, with 11 bits of each factor: enough where the factors were bfloat16 a moment ago.
#pragma once

#include <ATen/Context.h>

namespace distil_xlstm::ops {

// While it lives, and `is_on`. The switch is the process's: not where products of others run on other host threads meanwhile.
class Tf32Products {
 public:
  explicit Tf32Products(bool is_on) : is_on_(is_on), before_(at::globalContext().allowTF32CuBLAS()) {
    if (is_on_) at::globalContext().setAllowTF32CuBLAS(true);
  }
  ~Tf32Products() {
    if (is_on_) at::globalContext().setAllowTF32CuBLAS(before_);
  }
  Tf32Products(const Tf32Products&) = delete;
  Tf32Products& operator=(const Tf32Products&) = delete;

 private:
  bool is_on_, before_;
};

}  // namespace distil_xlstm::ops
