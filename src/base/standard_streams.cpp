#include "base/standard_streams.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>
#include <ext/stdio_sync_filebuf.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <system_error>

namespace distil_xlstm {
namespace {

std::atomic<int> g_error = 0;  // errno of the first write that failed

// The C library drops what it could not write and forgets why; this remembers.
ssize_t write_output(void*, const char* data, size_t size) {
  size_t done = 0;
  while (done < size && g_error == 0) {
    const ssize_t written = ::write(STDOUT_FILENO, data + done, size - done);
    if (written >= 0) {
      done += static_cast<size_t>(written);
    } else if (errno == EAGAIN) {  // a pipe that does not wait for its reader
      pollfd wait{.fd = STDOUT_FILENO, .events = POLLOUT, .revents = 0};
      ::poll(&wait, 1, -1);
    } else if (errno != EINTR) {
      g_error = errno;
    }
  }
  return static_cast<ssize_t>(done);
}

// Lets everything that prints, through either library, end in write_output().
void watch_output() {
  FILE* stream = ::fopencookie(nullptr, "w", {.read = nullptr, .write = write_output, .seek = nullptr, .close = nullptr});
  if (stream == nullptr) return;
  static_cast<void>(std::setvbuf(stream, nullptr, ::isatty(STDOUT_FILENO) == 1 ? _IOLBF : _IOFBF, BUFSIZ));
  stdout = stream;
  std::cout.rdbuf(new __gnu_cxx::stdio_sync_filebuf<char>(stream));  // never freed: std::cout is flushed after all else
}

std::string reason() {
  return fmt::format("cannot write standard output: {}",
                     std::error_code(g_error == 0 ? EIO : g_error.load(), std::generic_category()).message());
}

}  // namespace

void prepare_standard_streams() {
  for (const int descriptor : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    // open() takes the lowest number that is free: this one.
    if (::fcntl(descriptor, F_GETFD) == -1 && errno == EBADF) static_cast<void>(::open("/dev/null", O_RDWR));
  }
  for (const int signal : {SIGPIPE, SIGXFSZ}) static_cast<void>(std::signal(signal, SIG_IGN));
  watch_output();
}

bool output_failed() {
  std::cout.flush();
  static_cast<void>(std::fflush(stdout));
  return std::ferror(stdout) != 0;  // of the process: the libraries that the program opens have a g_error of their own
}

void check_output() {
  if (output_failed()) throw OutputError(reason());
}

int finish_output(int exit_code) {
  if (!output_failed()) return exit_code;
  if (g_error == EPIPE) return exit_code != 0 ? exit_code : 128 + SIGPIPE;
  std::cerr << "distil-xlstm: " << reason() << "\n";
  return exit_code != 0 ? exit_code : 1;
}

}  // namespace distil_xlstm
