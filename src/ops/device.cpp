#include "ops/device.h"

#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/cpu/Utils.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <mutex>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "ops/cuda_backend.h"
#include "ops/cuda_targets.h"

namespace distil_xlstm::ops {
namespace {

// Devices that the driver shows and the first one's name, asked of the driver itself: opening LibTorch's CUDA part takes a second.
int count_driver_devices(std::string& problem, std::string& first_name) {
  void* driver = ::dlopen("libcuda.so.1", RTLD_NOW);
  if (driver == nullptr) {
    problem = "no NVIDIA driver (libcuda.so.1)";
    return 0;
  }
  using Init = int (*)(unsigned int);
  using Count = int (*)(int*);
  const auto init = reinterpret_cast<Init>(::dlsym(driver, "cuInit"));
  const auto count = reinterpret_cast<Count>(::dlsym(driver, "cuDeviceGetCount"));
  int devices = 0;
  if (init == nullptr || count == nullptr || init(0) != 0 || count(&devices) != 0 || devices == 0) {
    problem = "the NVIDIA driver shows no GPU";
    return 0;
  }
  using Get = int (*)(int*, int);
  using Name = int (*)(char*, int, int);
  const auto get = reinterpret_cast<Get>(::dlsym(driver, "cuDeviceGet"));
  const auto name = reinterpret_cast<Name>(::dlsym(driver, "cuDeviceGetName"));
  std::array<char, 256> text{};
  int first = 0;
  if (get != nullptr && name != nullptr && get(&first, 0) == 0 && name(text.data(), static_cast<int>(text.size()) - 1, first) == 0)
    first_name = text.data();
  return devices;
}

// "fast" (or nothing): our kernels; "plain": tensor operations alone.
std::string_view kernels_variable() {
  const char* value = std::getenv("DISTIL_XLSTM_KERNELS");
  return value == nullptr || *value == '\0' ? "fast" : value;
}

// Opens the CUDA library and takes its kernels into the table of the process; why it could not, empty where it did.
std::string open_kernels() {
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error).parent_path();
  for (const fs::path& folder : {program, program / "..", program / ".." / "lib"}) {
    const fs::path library = folder / "libdistil_xlstm_cuda.so";
    if (!fs::exists(library)) continue;
    void* handle = ::dlopen(library.c_str(), RTLD_NOW);
    const auto register_kernels = handle == nullptr ? nullptr : reinterpret_cast<CudaRegister>(::dlsym(handle, kCudaRegisterSymbol));
    if (register_kernels == nullptr) return ::dlerror();
    const auto targets = reinterpret_cast<const char*>(::dlsym(handle, kCudaTargetsSymbol));
    if (targets == nullptr || !register_kernels(&cuda_backend(), DX_CUDA_INTERFACE))
      return fmt::format("{}: built from other sources than the program: run 'make cuda'", library.filename().string());
    cuda_backend().targets = targets;
    return {};
  }
  return "libdistil_xlstm_cuda.so is not beside the program";
}

// Of each GPU, why our kernels do not serve it; empty where they do.
std::vector<std::string> find_devices_without_kernels(int devices) {
  const std::string problem = open_kernels();
  std::vector<std::string> problems(static_cast<size_t>(devices), problem);
  if (!problem.empty()) return problems;
  CudaBackend& backend = cuda_backend();
  constexpr int kMaxDevices = 64;  // bits of CudaBackend::devices
  for (int index = 0; index < std::min(devices, kMaxDevices); ++index) {
    const int capability = compute_capability({at::kCUDA, static_cast<c10::DeviceIndex>(index)});
    if (capability == 0 || cuda_targets_cover(backend.targets, capability)) {
      backend.devices |= uint64_t{1} << index;
    } else {
      problems[static_cast<size_t>(index)] = no_code_message(backend.targets, capability);
    }
  }
  return problems;
}

// ", our kernels" and of which GPUs they are not.
std::string kernels_text(const std::vector<std::string>& no_kernels) {
  const auto is_served = [](const std::string& problem) { return problem.empty(); };
  if (std::none_of(no_kernels.begin(), no_kernels.end(), is_served)) return fmt::format(", without our kernels ({})", no_kernels.front());
  std::string text = ", our kernels";
  for (size_t index = 0; index < no_kernels.size(); ++index) {
    if (!is_served(no_kernels[index])) text += fmt::format(" (not on cuda:{}: {})", index, no_kernels[index]);
  }
  return text;
}

CudaReport open_cuda() {
  CudaReport report;
  if (const char* off = std::getenv("DISTIL_XLSTM_NO_CUDA"); off != nullptr && std::string_view(off) == "1") {
    report.detail = "left out by DISTIL_XLSTM_NO_CUDA=1";
    return report;
  }
  std::string name;
  const int devices = count_driver_devices(report.detail, name);
  if (devices == 0) return report;

  Dl_info libtorch{};
  ::dladdr(reinterpret_cast<void*>(&at::globalContext), &libtorch);
  const fs::path torch_folder = fs::path(libtorch.dli_fname).parent_path();
  if (::dlopen((torch_folder / "libtorch_cuda.so").c_str(), RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    report.detail = fmt::format("a GPU is there, but CUDA's LibTorch is not ({}): run 'CUDA=1 tools/setup'", ::dlerror());
    return report;
  }
  if (!at::hasCUDA()) {
    report.detail = "LibTorch finds no usable GPU";
    return report;
  }
  report.is_available = true;
  report.detail = fmt::format("{} device{}{}{}", devices, devices == 1 ? "" : "s", name.empty() ? "" : ", ", name);
  if (kernels_variable() == "plain") {
    report.detail += ", without our kernels (DISTIL_XLSTM_KERNELS=plain)";
    return report;
  }
  report.no_kernels = find_devices_without_kernels(devices);
  report.detail += kernels_text(report.no_kernels);
  return report;
}

// Hardware bf16 begins with compute capability 8.0.
bool has_bf16(at::Device device) {
  const int capability = compute_capability(device);
  return capability == 0 || capability >= 80;
}

c10::DeviceIndex index_of(at::Device device) {
  return device.has_index() ? device.index() : static_cast<c10::DeviceIndex>(0);
}

// MKL picks the kernel of each of its vector functions at the first call. When that call comes from several threads at once, one of them
// can get a kernel of low accuracy (errors of 1e-4) for its share of that call (pytorch/pytorch issue 188792; seen here in 1 of 60
// processes on two busy cores). So the first calls are made here, by one thread.
void resolve_vector_functions() {
  const at::NoGradGuard no_grad;
  for (const auto dtype : {at::kFloat, at::kDouble}) {
    const Tensor one = at::ones({1}, dtype);
    for (const auto function : {at::exp, at::expm1, at::log, at::log1p, at::log2, at::log10, at::sqrt, at::rsqrt, at::sin, at::cos, at::tan,
                                at::tanh, at::sinh, at::cosh, at::erf, at::erfc, at::sigmoid, at::trunc}) {
      function(one);
    }
  }
}

// Who does not know would train for hours at a fraction of the speed. Once a process.
void warn_of_plain_operations(const CudaReport& cuda, size_t index) {
  if (index >= cuda.no_kernels.size() || cuda.no_kernels[index].empty()) return;
  static std::once_flag is_told;
  std::call_once(is_told, [&] {
    spdlog::warn("cuda:{}: plain tensor operations, many times slower, run in place of our kernels: {}", index, cuda.no_kernels[index]);
  });
}

// Once a process.
void warn_of_emulation(std::string_view precision) {
  static std::once_flag is_told;
  std::call_once(is_told, [&] {
    spdlog::warn("precision = {0}: this CPU has no instructions for products in {0}: they are emulated, slower than in fp32", precision);
  });
}

// What comes next on stream `later` waits for what is on stream `earlier` now; the host waits for neither.
void order_streams(const c10::Stream& earlier, const c10::Stream& later) {
  c10::Event event(earlier.device_type());
  event.record(earlier);
  event.block(later);
}

}  // namespace

const CudaReport& load_cuda() {
  static const CudaReport report = [] {
    CudaReport opened = open_cuda();
    resolve_vector_functions();
    return opened;
  }();
  return report;
}

at::Device parse_device(std::string_view name) {
  if (const std::string_view kernels = kernels_variable(); kernels != "fast" && kernels != "plain") {
    throw ConfigError("DISTIL_XLSTM_KERNELS = {}: must be 'fast' or 'plain'", kernels);
  }
  const CudaReport& cuda = load_cuda();
  if (name == "cpu" || (name == "auto" && !cuda.is_available)) return at::Device(at::kCPU);
  if (name == "auto") name = "cuda:0";
  if (name == "cuda" || name.starts_with("cuda:")) {
    if (!cuda.is_available) throw DeviceError("device = {}: {}", name, cuda.detail);
    int64_t index = 0;
    if (name != "cuda") {
      try {
        size_t used = 0;
        index = std::stol(std::string(name.substr(5)), &used);
        if (used != name.size() - 5) index = -1;
      } catch (const std::exception&) {
        index = -1;
      }
    }
    const int64_t count = static_cast<int64_t>(at::accelerator::deviceCount());
    if (index < 0 || index >= count) throw ConfigError("device = {}: there are {} CUDA devices, numbered from 0", name, count);
    warn_of_plain_operations(cuda, static_cast<size_t>(index));
    return {at::kCUDA, static_cast<c10::DeviceIndex>(index)};
  }
  throw ConfigError("device = {}: must be 'auto', 'cpu', 'cuda' or 'cuda:N'", name);
}

int compute_capability(at::Device device) {
  if (!device.is_cuda()) return 0;
  // cudaDeviceGetAttribute of the runtime that LibTorch opened.
  using Attribute = int (*)(int*, int, int);
  const auto attribute = reinterpret_cast<Attribute>(::dlsym(RTLD_DEFAULT, "cudaDeviceGetAttribute"));
  constexpr int kComputeCapabilityMajor = 75, kComputeCapabilityMinor = 76;
  const int index = device.has_index() ? device.index() : 0;
  int major = 0, minor = 0;
  if (attribute == nullptr || attribute(&major, kComputeCapabilityMajor, index) != 0 ||
      attribute(&minor, kComputeCapabilityMinor, index) != 0)
    return 0;
  return 10 * major + minor;
}

bool has_products(at::ScalarType dtype, at::Device device) {
  if (!device.is_cpu() || (dtype != at::kBFloat16 && dtype != at::kHalf)) return true;
  const auto capabilities = at::cpu::get_cpu_capabilities();
  const auto has = [&](const char* name) {
    const auto found = capabilities.find(name);
    return found != capabilities.end() && found->second.isBool() && found->second.toBool();
  };
  const auto architecture = capabilities.find("architecture");
  if (architecture == capabilities.end() || !architecture->second.isString() || architecture->second.toStringRef() != "x86_64") return true;
  return dtype == at::kBFloat16 ? has("avx512_bf16") || has("amx_bf16") : has("avx512_fp16") || has("amx_fp16");
}

at::ScalarType parse_precision(std::string_view name, at::Device device) {
  if (name == "fp32") return at::kFloat;
  if (name == "bf16" || name == "fp16") {
    const at::ScalarType dtype = name == "bf16" ? at::kBFloat16 : at::kHalf;
    if (!has_products(dtype, device)) warn_of_emulation(name);
    return dtype;
  }
  if (name == "fp64") return at::kDouble;
  if (name == "auto") return device.is_cpu() ? at::kFloat : has_bf16(device) ? at::kBFloat16 : at::kHalf;
  throw ConfigError("precision = {}: must be 'auto', 'fp32', 'bf16' or 'fp16'", name);
}

std::string precision_name(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return "fp32";
    case at::kBFloat16:
      return "bf16";
    case at::kHalf:
      return "fp16";
    case at::kDouble:
      return "fp64";
    default:
      return at::toString(dtype);
  }
}

PriorityStream::PriorityStream(at::Device device) {
  if (!device.is_cuda()) return;
  const c10::impl::VirtualGuardImpl streams(device.type());
  const c10::Stream stream = streams.getStreamFromGlobalPool(device, /*isHighPriority=*/true);
  order_streams(streams.getStream(device), stream);
  guard_.emplace(stream);
}

PriorityStream::~PriorityStream() {
  if (!guard_) return;
  try {
    order_streams(guard_->current_stream(), guard_->original_stream());
  } catch (const std::exception& error) {  // of a device that has failed: who works on it next will hear of it
    spdlog::debug("leaving a stream: {}", error.what());
  }
}

void synchronize(at::Device device) {
  if (!device.is_cpu()) at::accelerator::synchronizeDevice(index_of(device));
}

int64_t peak_memory_bytes(at::Device device) {
  if (device.is_cpu()) return 0;
  const auto stats = at::accelerator::getDeviceStats(index_of(device));
  return stats.allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)].peak;
}

int64_t reset_peak_memory(at::Device device) {
  if (device.is_cpu()) return 0;
  at::accelerator::resetPeakStats(index_of(device));
  return peak_memory_bytes(device);
}

}  // namespace distil_xlstm::ops
