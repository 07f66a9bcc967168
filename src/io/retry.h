// Trying again after failures that may pass.
#pragma once

#include <string>

#include "io/http.h"

namespace distil_xlstm::io {

// The pause doubles with each failure in a row, up to a minute; a server's Retry-After is kept up to that.
struct RetryPolicy {
  int max_attempts = 6;
  double first_pause_seconds = 1.0;
};

// Counts failures in a row. To be used in a handler: `failed` throws on when there were enough of them, or when the failure is one
// that stays; else it warns, waits and returns. Throws Interrupted when a signal comes while waiting.
class Retries {
 public:
  explicit Retries(const RetryPolicy& policy) : policy_(policy) {}
  void failed(const HttpError& error);
  void failed(const TransferError& error);
  void progressed() { failures_ = 0; }

 private:
  void wait(const std::string& what, double least_seconds);

  RetryPolicy policy_;
  int failures_ = 0;
};

// http_get_text, tried again.
std::string get_text(const HttpRequest& request, const RetryPolicy& policy);

}  // namespace distil_xlstm::io
