// Standard input, output and error as the program finds and leaves them.
#pragma once

#include "base/error.h"

namespace distil_xlstm {

// What was printed on standard output could not be written. finish_output() says so; main prints nothing more.
class OutputError : public Error {
 public:
  explicit OutputError(const std::string& message) : Error(message) {}
};

// First thing in main: descriptors 0, 1 and 2 that are closed are opened on /dev/null, so that no data file gets their number and with it
// the log; what is printed on standard output is watched. A closed pipe and a file that may not grow further (ulimit -f) are errors of the
// write then, no signals (SIGPIPE, SIGXFSZ).
void prepare_standard_streams();

// Whether something that was printed on standard output could not be written.
bool output_failed();

// Throws OutputError("cannot write standard output: ...") if so: for work that goes on for long after a print.
void check_output();

// Last thing in main: writes out what is held back. Returns `exit_code`; where that is 0 and standard output could not be written, 1 after
// a message, or, where the reader of a pipe is gone, 128 + SIGPIPE without one, as other programs end then.
int finish_output(int exit_code);

}  // namespace distil_xlstm
