#include "cli/failures.h"

#include <algorithm>
#include <array>
#include <iostream>
#include <new>
#include <string_view>
#include <system_error>

#include "base/error.h"
#include "base/file.h"
#include "base/printable.h"
#include "base/standard_streams.h"

namespace distil_xlstm::cli {
namespace {

// What takes the memory of each command, as the user names it.
constexpr std::array<std::pair<std::string_view, std::string_view>, 8> kMemoryAdvice = {
    {{"distill", "lower train.micro_batch_size or data.context_length, or set train.checkpointing to blocks; `plan` tells what fits"},
     {"eval", "lower --batch-size or --context-length"},
     {"generate", "lower --max-new-tokens, or give a shorter prompt"},
     {"synthesize", "lower --batch-size or --max-document-tokens"},
     {"prepare", "lower --threads or --context-length"},
     {"tokenize", "give less text at a time"},
     {"bench", "lower train.micro_batch_size or data.context_length"},
     {"report", "draw fewer runs at a time"}}};

int fail(std::string_view message, int exit_code = 1) {
  std::cerr << "distil-xlstm: " << printable_message(message) << "\n";
  return exit_code;
}

int fail_for_memory(const std::vector<std::string>& arguments, std::string_view detail) {
  std::string_view advice = "end other programs, or take a machine with more memory";
  for (const auto& [command, text] : kMemoryAdvice) {
    if (std::find(arguments.begin(), arguments.end(), command) != arguments.end()) {
      advice = text;
      break;
    }
  }
  return fail(fmt::format("out of memory{}: {}", detail, advice));
}

// LibTorch says where in its sources an error came from, and memory that ran out it does not throw as bad_alloc.
int fail_elsewhere(const std::vector<std::string>& arguments, std::string_view message) {
  message = message.substr(0, message.find("\nException raised from"));
  for (const auto& [begin, end] : {std::pair{"you tried to allocate", " bytes"}, {"CUDA out of memory. Tried to allocate", "iB"}}) {
    const size_t at = message.find(begin), past = message.find(end, at);
    if (at == std::string_view::npos) continue;
    const auto length = past == std::string_view::npos ? past : past + std::string_view(end).size() - at;
    return fail_for_memory(arguments, fmt::format(" ({})", message.substr(at, length)));
  }
  return fail(message);
}

}  // namespace

int report_failure(const std::vector<std::string>& arguments) {
  try {
    throw;
  } catch (const OutputError&) {
    return 0;  // finish_output tells it and ends with its exit code
  } catch (const Error& error) {
    return fail(error.what(), error.exit_code());
  } catch (const std::bad_alloc&) {
    return fail_for_memory(arguments, "");
  } catch (const fs::filesystem_error& error) {
    const std::string path = error.path1().empty() ? "" : error.path1().string() + ": ";
    return fail(path + error.code().message() + (error.path2().empty() ? "" : fmt::format(" ({})", error.path2().string())));
  } catch (const std::system_error& error) {  // fmt, where it cannot print, for one
    return output_failed() ? 0 : fail(error.what());
  } catch (const std::exception& error) {
    return fail_elsewhere(arguments, error.what());
  }
}

}  // namespace distil_xlstm::cli
