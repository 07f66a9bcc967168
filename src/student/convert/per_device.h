// What a layer needs on each device that its student may be on.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "ops/tensor.h"

namespace distil_xlstm::student {

// One T a device, made when the first asks. Several threads may ask at once.
template <typename T>
class PerDevice {
 public:
  using Make = std::function<std::unique_ptr<const T>(at::Device)>;
  explicit PerDevice(Make make) : make_(std::move(make)) {}

  const T& on(at::Device device) {
    const std::scoped_lock lock(mutex_);
    auto& made = by_device_[device.str()];
    if (!made) made = make_(device);
    return *made;
  }

 private:
  Make make_;
  std::mutex mutex_;
  std::map<std::string, std::unique_ptr<const T>> by_device_;
};

}  // namespace distil_xlstm::student
