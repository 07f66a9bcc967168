// HTTP GET by libcurl: redirects that do not carry credentials away, interruption by signals, failures told apart.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace distil_xlstm::io {

struct HttpRequest {
  std::string url;
  std::string token;                 // "Authorization: Bearer" for the origin of `url` alone: no redirect takes it elsewhere
  std::vector<std::string> headers;  // "Name: value"
};

struct HttpResponse {
  int status = 0;
  std::string url;                             // after redirects
  std::map<std::string, std::string> headers;  // names in lower case
};

// The connection failed or broke: trying again may help.
class TransferError : public IoError {
 public:
  TransferError(const std::string& url, const std::string& what);
};

// The server answered something else than 200 or 206.
class HttpError : public IoError {
 public:
  HttpError(const std::string& url, int status, double retry_after_seconds);
  [[nodiscard]] int status() const { return status_; }
  [[nodiscard]] double retry_after_seconds() const { return retry_after_seconds_; }  // as the server asks; 0: it does not
  [[nodiscard]] bool may_pass() const;                                               // 408, 429 and 5xx: trying again may help

 private:
  int status_;
  double retry_after_seconds_;
};

// Follows up to ten redirects, none from https to http. `on_begin` sees status and headers before the first byte of the body
// (also of an empty one), `on_body` every part of it. Throws HttpError, TransferError, Interrupted, IoError for what repeating
// cannot help (a certificate, a malformed URL), and what the callbacks throw.
HttpResponse http_get(const HttpRequest& request, const std::function<void(const HttpResponse&)>& on_begin,
                      const std::function<void(std::string_view)>& on_body);

// The whole body in memory. Throws DataError when it has more than `limit_bytes`.
std::string http_get_text(const HttpRequest& request, size_t limit_bytes = size_t{256} << 20);

// Without what may be secret: user, password, query.
std::string shown_url(const std::string& url);

// `reference` (absolute or relative) as seen from `base`. Throws DataError when it is no http or https URL.
std::string resolve_url(const std::string& base, const std::string& reference);

// Same scheme, host and port.
bool is_same_origin(const std::string& a, const std::string& b);

// Percent-encoded for one segment of a path; `keep` lists characters that stay besides letters, digits and "-._~".
std::string url_encode(std::string_view text, std::string_view keep = "");

}  // namespace distil_xlstm::io
