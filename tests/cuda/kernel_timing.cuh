// What the kernels' timings have in common: normal inputs drawn on the GPU, and launches timed without what the host needs between them.
#pragma once

#include <algorithm>
#include <functional>
#include <vector>

#include "cuda_testing.h"

namespace distil_xlstm::kernels::cuda {

// Normal values of this scale, from a hash of place and seed.
template <typename T>
__global__ void fill_normal(T* x, int64_t count, float scale, uint64_t seed) {
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += int64_t(gridDim.x) * blockDim.x) {
    uint64_t h = (uint64_t(i) + seed * 0x9E3779B97F4A7C15ull) * 0xBF58476D1CE4E5B9ull;
    h = (h ^ (h >> 31)) * 0x94D049BB133111EBull;
    h ^= h >> 29;
    const float u = (float(unsigned(h)) + 1.0f) * 2.3283064e-10f, v = float(unsigned(h >> 32)) * 1.4629181e-9f;
    x[i] = from_float<T>(scale * sqrtf(-2.0f * logf(u)) * cosf(v));
  }
}

// Median microseconds of one of `launches` runs that follow one another in a graph, over `repeats` of it.
inline double graph_microseconds(int launches, int repeats, const std::function<cudaError_t(int, cudaStream_t)>& run) {
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  cudaEvent_t begin, end;
  CHECK_CUDA(cudaDeviceSynchronize());
  CHECK_CUDA(cudaStreamCreate(&stream));
  CHECK_CUDA(run(0, stream));
  CHECK_CUDA(cudaStreamSynchronize(stream));
  CHECK_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  for (int i = 0; i < launches; ++i) CHECK_CUDA(run(i, stream));
  CHECK_CUDA(cudaStreamEndCapture(stream, &graph));
  CHECK_CUDA(cudaGraphInstantiate(&exec, graph, 0));
  CHECK_CUDA(cudaEventCreate(&begin));
  CHECK_CUDA(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = -3; i < repeats; ++i) {
    CHECK_CUDA(cudaEventRecord(begin, stream));
    CHECK_CUDA(cudaGraphLaunch(exec, stream));
    CHECK_CUDA(cudaEventRecord(end, stream));
    CHECK_CUDA(cudaEventSynchronize(end));
    float ms = 0;
    CHECK_CUDA(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 0) times.push_back(ms);
  }
  CHECK_CUDA(cudaEventDestroy(begin));
  CHECK_CUDA(cudaEventDestroy(end));
  CHECK_CUDA(cudaGraphExecDestroy(exec));
  CHECK_CUDA(cudaGraphDestroy(graph));
  CHECK_CUDA(cudaStreamDestroy(stream));
  std::sort(times.begin(), times.end());
  return 1e3 * double(times[times.size() / 2]) / launches;
}

}  // namespace distil_xlstm::kernels::cuda
