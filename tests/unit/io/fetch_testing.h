// A server on the loopback that behaves like the hub, with its second host for large files and all that can go wrong.
#pragma once

#include <gtest/gtest.h>
#include <httplib.h>
#include <unistd.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"

namespace distil_xlstm::io {

inline std::string sha256_of(const std::string& content) {
  Sha256 digest;
  digest.update(std::as_bytes(std::span(content)));
  return digest.hex_digest();
}

inline std::string git_id_of(const std::string& content) {
  Sha1 digest;
  const std::string header = fmt::format("blob {}", content.size()) + '\0';
  digest.update(std::as_bytes(std::span(header)));
  digest.update(std::as_bytes(std::span(content)));
  return digest.hex_digest();
}

// Bytes that differ from place to place, so that a part in the wrong place is found.
inline std::string sample_content(size_t size) {
  std::string content(size, '\0');
  uint32_t state = 12345;
  for (char& byte : content) byte = static_cast<char>((state = state * 1664525u + 1013904223u) >> 24);
  return content;
}

template <typename Function>
std::string failure_of(Function&& function) {
  try {
    function();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

// An HTTP server of one test, in a thread of its own.
class LocalServer {
 public:
  using Handler = std::function<void(const httplib::Request&, httplib::Response&)>;

  explicit LocalServer(Handler handler) {
    server_.Get(".*", [this, handler](const httplib::Request& request, httplib::Response& response) {
      {
        const std::lock_guard lock(mutex_);
        requests_.push_back(request);
      }
      handler(request, response);
    });
    port_ = server_.bind_to_any_port("127.0.0.1");
    thread_ = std::thread([this] { server_.listen_after_bind(); });
    while (!server_.is_running()) std::this_thread::yield();
  }
  ~LocalServer() {
    server_.stop();
    thread_.join();
  }
  LocalServer(const LocalServer&) = delete;
  LocalServer& operator=(const LocalServer&) = delete;

  [[nodiscard]] std::string url() const { return fmt::format("http://127.0.0.1:{}", port_); }

  // What came since the last call.
  std::vector<httplib::Request> take_requests() {
    const std::lock_guard lock(mutex_);
    return std::exchange(requests_, {});
  }

 private:
  httplib::Server server_;
  std::mutex mutex_;
  std::vector<httplib::Request> requests_;
  std::thread thread_;
  int port_ = 0;
};

inline std::vector<std::string> paths_of(const std::vector<httplib::Request>& requests) {
  std::vector<std::string> paths;
  for (const httplib::Request& request : requests) paths.push_back(request.path);
  return paths;
}

// How the second host treats the next requests.
struct Mischief {
  int cuts = 0;                 // the connection breaks after half of what is left
  int failures = 0;             // status 503
  bool ignores_ranges = false;  // always begins anew
  bool corrupts = false;        // flips the last byte
};

// Repositories by "models/org/name@revision" or "datasets/...".
class FakeHub {
 public:
  struct Repository {
    std::string commit = "0123456789abcdef0123456789abcdef01234567";
    std::map<std::string, std::string> files;
    std::vector<std::string> large;  // stored on the second host, listed with sha256
    json listing_override;
  };

  FakeHub()
      : storage([this](const httplib::Request& request, httplib::Response& response) { store(request, response); }),
        hub([this](const httplib::Request& request, httplib::Response& response) { answer(request, response); }) {}

  std::map<std::string, Repository> repositories;
  std::map<std::string, int> status_of_path;  // answered instead of the content
  Mischief mischief;
  LocalServer storage, hub;

 private:
  static json listing_of(const Repository& repository) {
    if (!repository.listing_override.is_null()) return repository.listing_override;
    json siblings = json::array();
    for (const auto& [name, content] : repository.files) {
      json file = {{"rfilename", name}, {"size", content.size()}, {"blobId", git_id_of(content)}};
      if (std::ranges::find(repository.large, name) != repository.large.end()) {
        file["blobId"] = git_id_of("version https://git-lfs");
        file["lfs"] = {{"sha256", sha256_of(content)}, {"size", content.size()}, {"pointerSize", 134}};
      }
      siblings.push_back(file);
    }
    return {{"sha", repository.commit}, {"siblings", siblings}};
  }

  void answer(const httplib::Request& request, httplib::Response& response) {
    if (const auto it = status_of_path.find(request.path); it != status_of_path.end()) {
      response.status = it->second;
      return;
    }
    for (const auto& [key, repository] : repositories) {
      const std::string name = key.substr(0, key.find('@'));
      if (request.path == "/api/" + name + "/revision/" + key.substr(key.find('@') + 1) && request.get_param_value("blobs") == "true") {
        response.set_content(listing_of(repository).dump(), "application/json");
        return;
      }
      const std::string place = name.starts_with("models/") ? name.substr(7) : name;
      const std::string prefix = "/" + place + "/resolve/" + repository.commit + "/";
      if (!request.path.starts_with(prefix)) continue;
      const std::string file = request.path.substr(prefix.size());
      if (!repository.files.contains(file)) break;
      if (std::ranges::find(repository.large, file) == repository.large.end()) {
        response.set_content(repository.files.at(file), "application/octet-stream");
      } else {
        response.set_redirect(storage.url() + "/stored/" + place + "/" + file + "?signature=secret");
      }
      return;
    }
    response.status = 404;
  }

  void store(const httplib::Request& request, httplib::Response& response) {
    if (mischief.failures > 0) {
      --mischief.failures;
      response.status = 503;
      return;
    }
    std::string content;
    for (const auto& [key, repository] : repositories) {
      const std::string name = key.substr(0, key.find('@'));
      const std::string prefix = "/stored/" + (name.starts_with("models/") ? name.substr(7) : name) + "/";
      if (request.path.starts_with(prefix)) content = repository.files.at(request.path.substr(prefix.size()));
    }
    if (mischief.corrupts) content.back() = static_cast<char>(content.back() ^ 1);
    const size_t begin = request.ranges.empty() || mischief.ignores_ranges ? 0 : static_cast<size_t>(request.ranges[0].first);
    if (mischief.ignores_ranges) const_cast<httplib::Request&>(request).ranges.clear();
    const size_t end = mischief.cuts > 0 ? begin + (content.size() - begin) / 2 : content.size();
    if (mischief.cuts > 0) --mischief.cuts;
    response.set_content_provider(content.size(), "application/octet-stream",
                                  [content, end](size_t offset, size_t length, httplib::DataSink& sink) {
                                    if (offset >= end) return false;  // breaks the connection
                                    return sink.write(content.data() + offset, std::min(length, end - offset));
                                  });
  }
};

// Sets an environment variable for one test.
class WithVariable {
 public:
  WithVariable(const char* name, const std::optional<std::string>& value) : name_(name) {
    if (const char* old = std::getenv(name)) old_ = old;
    set(value);
  }
  ~WithVariable() { set(old_); }
  WithVariable(const WithVariable&) = delete;
  WithVariable& operator=(const WithVariable&) = delete;

 private:
  void set(const std::optional<std::string>& value) const {
    if (value) {
      ::setenv(name_, value->c_str(), 1);
    } else {
      ::unsetenv(name_);
    }
  }
  const char* name_;
  std::optional<std::string> old_;
};

// An empty folder that is the cache.
class FetchTest : public ::testing::Test {
 protected:
  fs::path folder_ = fs::temp_directory_path() / fmt::format("distil_xlstm_fetch_test_{}", ::getpid());
  WithVariable cache_{"DISTIL_XLSTM_CACHE", (folder_ / "cache").string()};
  void SetUp() override {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
};

}  // namespace distil_xlstm::io
