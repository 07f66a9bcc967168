// How fast a device is, and how long something takes on it.
#pragma once

#include <functional>

#include "ops/tensor.h"

namespace distil_xlstm::measure {

// FLOP/s of matrix products of a size that keeps the device busy, in about half a second.
double product_flops(at::Device device, at::ScalarType dtype);

// The same of ops::fp8_linear with bfloat16 results.
double fp8_product_flops(at::Device device);

// Bytes/s of a copy that no cache holds: read and written bytes together.
double copy_bytes_per_second(at::Device device);

// Median seconds of one call, after two to warm up: calls one after the other without waiting for the device between them, in blocks of
// at least 20 ms, up to nine blocks or about three seconds.
double median_seconds(const std::function<void()>& call, at::Device device);

}  // namespace distil_xlstm::measure
