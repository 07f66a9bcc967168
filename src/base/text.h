// Numbers and names as people read and write them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace distil_xlstm {

std::string format_count(double count);       // 1234567 -> "1.23 M"
std::string format_bytes(double size_bytes);  // 1610612736 -> "1.5 GiB"
std::string format_duration(double seconds);  // 3725 -> "1 h 02 min"
std::string format_parameters(double count);  // 551107656 -> "551.1 M"
std::string to_lower(std::string_view text);

// "512M", "1.5k", "2G", "4096": decimal powers (k, M, G or B, T). Throws ValueError that names `what`.
int64_t parse_count(std::string_view text, std::string_view what);

// The candidate with the least edit distance, if near enough to be a typing mistake.
std::optional<std::string> nearest_name(std::string_view name, const std::vector<std::string>& candidates);

// " (did you mean 'x'?)" or "".
std::string did_you_mean(std::string_view name, const std::vector<std::string>& candidates);

// Joins with a separator.
std::string join(const std::vector<std::string>& parts, std::string_view separator);

// Length of the longest valid UTF-8 prefix; == text.size() when all is valid (no surrogates, no overlong forms).
size_t valid_utf8_prefix(std::string_view text);

// Replaces each maximal invalid part by U+FFFD.
std::string replace_invalid_utf8(std::string_view text);

}  // namespace distil_xlstm
