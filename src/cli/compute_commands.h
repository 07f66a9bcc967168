// The commands that compute with LibTorch. They live in a library of their own, opened when one of them is called: LibTorch takes 0.3 s to
// start, which help, completion, `tokenize` or `prepare` need not wait for; and what its thread pool reads of the environment at its start
// can be set before.
#pragma once

#include <string>

namespace distil_xlstm::cli {

struct BenchOptions;
struct DistillOptions;
struct EvalOptions;
struct ExportOptions;
struct GenerateOptions;
struct PlanOptions;
struct SelfcheckOptions;
struct SynthesizeOptions;

struct ComputeCommands {
  void (*run_bench)(const BenchOptions&) = nullptr;
  void (*run_distill)(const DistillOptions&) = nullptr;
  void (*run_eval)(const EvalOptions&) = nullptr;
  void (*run_export)(const ExportOptions&) = nullptr;
  void (*run_generate)(const GenerateOptions&) = nullptr;
  void (*run_plan)(const PlanOptions&) = nullptr;
  void (*run_selfcheck)(const SelfcheckOptions&) = nullptr;
  void (*run_synthesize)(const SynthesizeOptions&) = nullptr;
  std::string (*system_info)() = nullptr;  // versions, threads, and what was found of CUDA
};

// The library exports a function of this name: `const ComputeCommands* (const char* interface)`, null where it was built from other
// sources.
inline constexpr const char* kComputeCommandsSymbol = "distil_xlstm_compute_commands";
using ComputeCommandsOf = const ComputeCommands* (*)(const char* interface);

// Opens the library on first use. Throws IoError that says what is missing.
const ComputeCommands& compute_commands();

}  // namespace distil_xlstm::cli
