#include "base/mapping_guard.h"

#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <string>

namespace distil_xlstm {
namespace {

// A handler may not lock, so the list only grows: places are used again, never freed. `begin` is written last and read first.
struct Mapping {
  std::atomic<uintptr_t> begin = 0;  // 0: free
  std::atomic<uintptr_t> end = 0;
  std::atomic<const std::string*> path = nullptr;
  Mapping* next = nullptr;
};

std::atomic<Mapping*> g_mappings = nullptr;
std::mutex g_mutex;  // of those who write
struct sigaction g_previous{};

const std::string* path_at(uintptr_t address) {
  for (const Mapping* mapping = g_mappings; mapping != nullptr; mapping = mapping->next) {
    const uintptr_t begin = mapping->begin;
    if (begin != 0 && address >= begin && address < mapping->end) return mapping->path;
  }
  return nullptr;
}

void say(const char* text, size_t size) {
  while (size > 0) {
    const ssize_t written = ::write(STDERR_FILENO, text, size);
    if (written <= 0) return;
    text += written;
    size -= static_cast<size_t>(written);
  }
}

// Calls nothing that is not async-signal-safe.
void on_bus_error(int signal, siginfo_t* info, void* context) {
  if (const std::string* path = path_at(reinterpret_cast<uintptr_t>(info->si_addr))) {
    constexpr char kBefore[] = "\ndistil-xlstm: ";
    constexpr char kAfter[] =
        ": can no longer be read: it was cut short or overwritten while it was in use, or its disk failed. Bring the whole file back and "
        "run "
        "the command again; training goes on from its last checkpoint with --resume\n";
    say(kBefore, sizeof kBefore - 1);
    say(path->data(), path->size());
    say(kAfter, sizeof kAfter - 1);
    ::_exit(1);
  }
  if ((g_previous.sa_flags & SA_SIGINFO) != 0 && g_previous.sa_sigaction != nullptr) {
    g_previous.sa_sigaction(signal, info, context);
    return;
  }
  ::sigaction(SIGBUS, &g_previous, nullptr);  // the access is made again, and ends the process as it would have
}

Mapping& free_place() {
  for (Mapping* mapping = g_mappings; mapping != nullptr; mapping = mapping->next) {
    if (mapping->begin == 0) return *mapping;
  }
  auto* mapping = new Mapping;
  mapping->next = g_mappings;
  g_mappings = mapping;
  return *mapping;
}

}  // namespace

void guard_mapping(const std::byte* data, size_t size, const std::filesystem::path& path) {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action{};
    action.sa_sigaction = on_bus_error;
    action.sa_flags = SA_SIGINFO;
    sigemptyset(&action.sa_mask);
    ::sigaction(SIGBUS, &action, &g_previous);
  });
  const std::lock_guard lock(g_mutex);
  Mapping& place = free_place();
  delete place.path.exchange(new std::string(path.string()));
  place.end = reinterpret_cast<uintptr_t>(data) + size;
  place.begin = reinterpret_cast<uintptr_t>(data);
}

void release_mapping(const std::byte* data) noexcept {
  const std::lock_guard lock(g_mutex);
  for (Mapping* mapping = g_mappings; mapping != nullptr; mapping = mapping->next) {
    if (mapping->begin == reinterpret_cast<uintptr_t>(data)) mapping->begin = 0;
  }
}

}  // namespace distil_xlstm
