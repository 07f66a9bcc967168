#include "io/http.h"

#include <curl/curl.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <memory>
#include <optional>

#include "base/signals.h"
#include "base/text.h"

namespace distil_xlstm::io {

namespace {

constexpr int kMaxRedirects = 10;
constexpr long kConnectSeconds = 30;
constexpr long kStalledSeconds = 60;

using CurlHandle = std::unique_ptr<CURL, decltype(&curl_easy_cleanup)>;
using UrlHandle = std::unique_ptr<CURLU, decltype(&curl_url_cleanup)>;
using HeaderList = std::unique_ptr<curl_slist, decltype(&curl_slist_free_all)>;

UrlHandle parse_url(const std::string& url) {
  UrlHandle handle(curl_url(), curl_url_cleanup);
  if (curl_url_set(handle.get(), CURLUPART_URL, url.c_str(), 0) != CURLUE_OK) throw DataError("'{}' is not a URL", url);
  return handle;
}

std::string url_part(const UrlHandle& handle, CURLUPart part, unsigned flags = 0) {
  char* text = nullptr;
  if (curl_url_get(handle.get(), part, &text, flags) != CURLUE_OK) return "";
  std::string result = text;
  curl_free(text);
  return result;
}

// Where certificates come from, as other programs are told on this machine; empty: libcurl's own default.
std::string certificate_file() {
  for (const char* name : {"CURL_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"}) {
    const char* path = std::getenv(name);
    std::error_code ignored;
    if (path != nullptr && std::filesystem::is_regular_file(path, ignored)) return path;
  }
  return "";
}

double retry_after(const HttpResponse& response) {
  const auto it = response.headers.find("retry-after");
  double seconds = 0;
  if (it != response.headers.end()) std::from_chars(it->second.data(), it->second.data() + it->second.size(), seconds);
  return seconds;
}

bool is_redirect(int status) {
  return status == 301 || status == 302 || status == 303 || status == 307 || status == 308;
}

// Failures that come and go: of names, connections and streams. Certificates, URLs and protocols stay as they are.
bool is_transient(CURLcode code) {
  constexpr std::array kCodes = {CURLE_COULDNT_RESOLVE_HOST,
                                 CURLE_COULDNT_RESOLVE_PROXY,
                                 CURLE_COULDNT_CONNECT,
                                 CURLE_PARTIAL_FILE,
                                 CURLE_OPERATION_TIMEDOUT,
                                 CURLE_GOT_NOTHING,
                                 CURLE_SEND_ERROR,
                                 CURLE_RECV_ERROR,
                                 CURLE_HTTP2,
                                 CURLE_HTTP2_STREAM,
                                 CURLE_SSL_CONNECT_ERROR,
                                 CURLE_WEIRD_SERVER_REPLY};
  return std::find(kCodes.begin(), kCodes.end(), code) != kCodes.end();
}

// One exchange with a server, without redirects.
class Exchange {
 public:
  Exchange(const std::function<void(const HttpResponse&)>& on_begin, const std::function<void(std::string_view)>& on_body)
      : on_begin_(on_begin), on_body_(on_body), curl_(curl_easy_init(), curl_easy_cleanup) {}

  HttpResponse run(const std::string& url, const std::vector<std::string>& headers) {
    response_ = {};
    response_.url = url;
    begun_ = false;
    HeaderList list(nullptr, curl_slist_free_all);
    for (const std::string& header : headers) list.reset(curl_slist_append(list.release(), header.c_str()));
    configure(url, list.get());
    const CURLcode code = curl_easy_perform(curl_.get());
    if (failure_) std::rethrow_exception(failure_);
    throw_if_interrupted();
    if (code == CURLE_OK) {
      begin();
      if (failure_) std::rethrow_exception(failure_);
      return response_;
    }
    const std::string what = error_[0] != '\0' ? error_.data() : curl_easy_strerror(code);
    if (is_transient(code)) throw TransferError(url, what);
    throw IoError("{}: {}", shown_url(url), what);
  }

 private:
  void configure(const std::string& url, curl_slist* headers) {
    CURL* curl = curl_.get();
    curl_easy_reset(curl);
    error_[0] = '\0';
    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, error_.data());
    curl_easy_setopt(curl, CURLOPT_URL, url.c_str());
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(curl, CURLOPT_USERAGENT, "distil-xlstm/" DISTIL_XLSTM_VERSION);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT, kConnectSeconds);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, kStalledSeconds);
    curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, &Exchange::take_header);
    curl_easy_setopt(curl, CURLOPT_HEADERDATA, this);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, &Exchange::take_body);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, this);
    curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, &Exchange::stop_on_signal);
    if (const std::string certificates = certificate_file(); !certificates.empty()) {
      curl_easy_setopt(curl, CURLOPT_CAINFO, certificates.c_str());
    }
  }

  // libcurl is C: an exception of a callback is kept until it has returned.
  template <typename Work>
  bool guarded(Work&& work) {
    try {
      work();
      return true;
    } catch (...) {
      failure_ = std::current_exception();
      return false;
    }
  }

  void begin() {
    if (begun_) return;
    begun_ = true;
    long status = 0;
    curl_easy_getinfo(curl_.get(), CURLINFO_RESPONSE_CODE, &status);
    response_.status = static_cast<int>(status);
    if (is_success()) guarded([&] { on_begin_(response_); });
  }

  [[nodiscard]] bool is_success() const { return response_.status == 200 || response_.status == 206; }

  static size_t take_header(char* data, size_t size, size_t count, void* self) {
    auto& exchange = *static_cast<Exchange*>(self);
    const std::string_view line(data, size * count);
    const bool kept = exchange.guarded([&] {
      if (line.starts_with("HTTP/")) exchange.response_.headers.clear();
      const size_t colon = line.find(':');
      if (colon == std::string_view::npos) return;
      std::string_view value = line.substr(colon + 1);
      while (!value.empty() && (value.front() == ' ' || value.front() == '\t')) value.remove_prefix(1);
      while (!value.empty() && (value.back() == '\r' || value.back() == '\n' || value.back() == ' ')) value.remove_suffix(1);
      exchange.response_.headers[to_lower(line.substr(0, colon))] = value;
    });
    return kept ? line.size() : 0;
  }

  static size_t take_body(char* data, size_t size, size_t count, void* self) {
    auto& exchange = *static_cast<Exchange*>(self);
    exchange.begin();
    if (exchange.failure_) return 0;
    const std::string_view part(data, size * count);
    const bool taken = !exchange.is_success() || exchange.guarded([&] { exchange.on_body_(part); });
    return taken ? part.size() : 0;
  }

  static int stop_on_signal(void*, curl_off_t, curl_off_t, curl_off_t, curl_off_t) { return received_signal() != 0 ? 1 : 0; }

  const std::function<void(const HttpResponse&)>& on_begin_;
  const std::function<void(std::string_view)>& on_body_;
  CurlHandle curl_;
  HttpResponse response_;
  std::array<char, CURL_ERROR_SIZE> error_{};
  std::exception_ptr failure_;
  bool begun_ = false;
};

std::string redirect_target(const HttpResponse& response) {
  const auto location = response.headers.find("location");
  if (location == response.headers.end()) throw IoError("{}: a redirect ({}) without a target", shown_url(response.url), response.status);
  std::string target = resolve_url(response.url, location->second);
  if (response.url.starts_with("https:") && !target.starts_with("https:")) {
    throw IoError("{}: refused to be redirected from https to {}", shown_url(response.url), shown_url(target));
  }
  return target;
}

}  // namespace

TransferError::TransferError(const std::string& url, const std::string& what) : IoError("{}: {}", shown_url(url), what) {}

HttpError::HttpError(const std::string& url, int status, double retry_after_seconds)
    : IoError("{}: the server answers {}", shown_url(url), status), status_(status), retry_after_seconds_(retry_after_seconds) {}

bool HttpError::may_pass() const {
  return status_ == 408 || status_ == 429 || (status_ >= 500 && status_ != 501);
}

HttpResponse http_get(const HttpRequest& request, const std::function<void(const HttpResponse&)>& on_begin,
                      const std::function<void(std::string_view)>& on_body) {
  static const CURLcode initialised = curl_global_init(CURL_GLOBAL_DEFAULT);
  if (initialised != CURLE_OK) throw IoError("libcurl cannot be started: {}", curl_easy_strerror(initialised));
  Exchange exchange(on_begin, on_body);
  std::string url = request.url;
  for (int redirects = 0; redirects <= kMaxRedirects; ++redirects) {
    std::vector<std::string> headers = request.headers;
    if (!request.token.empty() && is_same_origin(request.url, url)) headers.push_back("Authorization: Bearer " + request.token);
    HttpResponse response = exchange.run(url, headers);
    if (response.status == 200 || response.status == 206) return response;
    if (!is_redirect(response.status)) throw HttpError(url, response.status, retry_after(response));
    url = redirect_target(response);
  }
  throw IoError("{}: more than {} redirects", shown_url(request.url), kMaxRedirects);
}

std::string http_get_text(const HttpRequest& request, size_t limit_bytes) {
  std::string text;
  http_get(
      request, [](const HttpResponse&) {},
      [&](std::string_view part) {
        if (part.size() > limit_bytes - text.size())
          throw DataError("{}: the answer has more than {} bytes", shown_url(request.url), limit_bytes);
        text += part;
      });
  return text;
}

std::string shown_url(const std::string& url) {
  UrlHandle handle(curl_url(), curl_url_cleanup);
  if (curl_url_set(handle.get(), CURLUPART_URL, url.c_str(), 0) != CURLUE_OK) return "a malformed URL";
  for (const CURLUPart part : {CURLUPART_USER, CURLUPART_PASSWORD, CURLUPART_QUERY, CURLUPART_FRAGMENT}) {
    curl_url_set(handle.get(), part, nullptr, 0);
  }
  return url_part(handle, CURLUPART_URL);
}

std::string resolve_url(const std::string& base, const std::string& reference) {
  const UrlHandle handle = parse_url(base);
  if (curl_url_set(handle.get(), CURLUPART_URL, reference.c_str(), 0) != CURLUE_OK) {
    throw DataError("{}: it refers to '{}', which is not a URL", shown_url(base), reference);
  }
  const std::string scheme = url_part(handle, CURLUPART_SCHEME);
  if (scheme != "http" && scheme != "https")
    throw DataError("{}: it refers to '{}': only http and https are followed", shown_url(base), reference);
  return url_part(handle, CURLUPART_URL);
}

bool is_same_origin(const std::string& a, const std::string& b) {
  const UrlHandle first = parse_url(a);
  const UrlHandle second = parse_url(b);
  const auto origin = [](const UrlHandle& handle) {
    return to_lower(url_part(handle, CURLUPART_SCHEME)) + "://" + to_lower(url_part(handle, CURLUPART_HOST)) + ":" +
           url_part(handle, CURLUPART_PORT, CURLU_DEFAULT_PORT);
  };
  return origin(first) == origin(second);
}

std::string url_encode(std::string_view text, std::string_view keep) {
  std::string encoded;
  for (const char c : text) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                       std::string_view("-._~").find(c) != std::string_view::npos;
    if (plain || keep.find(c) != std::string_view::npos) {
      encoded += c;
    } else {
      encoded += fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
  }
  return encoded;
}

}  // namespace distil_xlstm::io
