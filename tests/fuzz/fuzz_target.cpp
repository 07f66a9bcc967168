#include "fuzz/fuzz_target.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "base/text.h"

namespace distil_xlstm::fuzz {
namespace {

using Generator = std::minstd_rand;

size_t below(Generator& random, size_t end) {
  return end == 0 ? 0 : random() % end;
}

void collect(json& node, std::vector<json*>& nodes) {
  constexpr size_t kMost = 4096;
  if (nodes.size() >= kMost) return;
  nodes.push_back(&node);
  if (node.is_structured()) {
    for (json& child : node) collect(child, nodes);
  }
}

json interesting_number(Generator& random) {
  static const std::vector<json> numbers = {0,
                                            1,
                                            -1,
                                            2,
                                            3,
                                            7,
                                            8,
                                            31,
                                            32,
                                            64,
                                            127,
                                            255,
                                            256,
                                            65535,
                                            65536,
                                            0x7fffffff,
                                            0x80000000U,
                                            0xffffffffU,
                                            0x100000000LL,
                                            (1LL << 53) + 1,
                                            std::numeric_limits<int64_t>::max(),
                                            std::numeric_limits<int64_t>::min(),
                                            std::numeric_limits<uint64_t>::max(),
                                            std::numeric_limits<uint64_t>::max() - 63,
                                            0.5,
                                            -0.0,
                                            1e-300,
                                            1e300,
                                            1e19};
  return numbers[below(random, numbers.size())];
}

json scalar(Generator& random, const std::vector<std::string>& words) {
  switch (below(random, 6)) {
    case 0:
      return nullptr;
    case 1:
      return below(random, 2) == 0;
    case 2:
      return json::array();
    case 3:
      return json::object();
    case 4:
      return words.empty() ? json("") : json(words[below(random, words.size())]);
    default:
      return interesting_number(random);
  }
}

void mutate_text(json& node, Generator& random, const std::vector<std::string>& words) {
  std::string text = node.get<std::string>();
  if (!words.empty() && below(random, 2) == 0) {
    const std::string& word = words[below(random, words.size())];
    const size_t place = below(random, text.size() + 1);
    text.replace(place, below(random, 2) == 0 ? 0 : below(random, text.size() - place + 1), word);
  } else {
    const size_t size = text.size();
    text.resize(size + 16);
    text.resize(LLVMFuzzerMutate(reinterpret_cast<uint8_t*>(text.data()), size, text.size()));
  }
  node = replace_invalid_utf8(text);
}

void mutate_number(json& node, Generator& random) {
  if (below(random, 2) == 0 || !node.is_number_integer()) {
    node = interesting_number(random);
  } else {
    node = static_cast<int64_t>(static_cast<uint64_t>(node.get<int64_t>()) + below(random, 9) - 4);
  }
}

void mutate_children(json& node, const std::vector<json*>& nodes, Generator& random, const std::vector<std::string>& words) {
  const json other = below(random, 2) == 0 ? scalar(random, words) : *nodes[below(random, nodes.size())];
  const size_t place = below(random, node.size() + 1);
  if (node.is_array()) {
    if (!node.empty() && below(random, 2) == 0) {
      node.erase(std::min(place, node.size() - 1));
    } else {
      node.insert(node.begin() + static_cast<ptrdiff_t>(place), other);
    }
    return;
  }
  if (!node.empty() && below(random, 2) == 0) {
    node.erase(std::next(node.begin(), static_cast<ptrdiff_t>(std::min(place, node.size() - 1))));
  } else if (!words.empty()) {
    node[words[below(random, words.size())]] = other;
  }
}

void mutate_node(json& recipe, Generator& random, const std::vector<std::string>& words) {
  std::vector<json*> nodes;
  collect(recipe, nodes);
  json& node = *nodes[below(random, nodes.size())];
  switch (below(random, 8)) {
    case 0:
      node = scalar(random, words);
      return;
    case 1: {
      const json copy = *nodes[below(random, nodes.size())];
      node = copy;
      return;
    }
    case 2: {
      json wrapped = node;
      for (size_t levels = 1 + below(random, below(random, 8) == 0 ? 120 : 3); levels > 0; --levels) wrapped = json::array({wrapped});
      node = wrapped;
      return;
    }
    default:
      if (node.is_structured()) return mutate_children(node, nodes, random, words);
      if (node.is_string()) return mutate_text(node, random, words);
      if (node.is_number()) return mutate_number(node, random);
      node = scalar(random, words);
  }
}

}  // namespace

json read_recipe(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (size > 1 << 20 || json_too_deep_at(text)) return nullptr;
  json recipe = json::parse(text, nullptr, false);
  return recipe.is_object() ? recipe : json(nullptr);
}

uint64_t number_or(const json& recipe, const char* key, uint64_t fallback) {
  const auto it = recipe.find(key);
  return it != recipe.end() && it->is_number_integer() ? it->get<uint64_t>() : fallback;
}

std::string text_or(const json& recipe, const char* key, const std::string& fallback) {
  const auto it = recipe.find(key);
  return it != recipe.end() && it->is_string() ? it->get<std::string>() : fallback;
}

json list_or_empty(const json& recipe, const char* key) {
  const auto it = recipe.find(key);
  return it != recipe.end() && it->is_array() ? *it : json::array();
}

void apply_patches(std::string& content, const json& recipe) {
  for (const json& patch : list_or_empty(recipe, "patches")) {
    if (content.empty() || !patch.is_array() || patch.size() != 2 || !patch[0].is_number_integer() || !patch[1].is_number_integer())
      continue;
    content[patch[0].get<uint64_t>() % content.size()] = static_cast<char>(patch[1].get<uint64_t>());
  }
  if (const uint64_t cut = number_or(recipe, "cut", 0); cut > 0) content.resize(content.size() - std::min<uint64_t>(cut, content.size()));
}

size_t mutate_recipe(uint8_t* data, size_t size, size_t max_size, unsigned seed, const std::vector<std::string>& words) {
  Generator random(seed);
  json recipe = read_recipe(data, size);
  if (recipe.is_null()) return LLVMFuzzerMutate(data, size, max_size);
  for (size_t count = 1 + below(random, 4); count > 0; --count) mutate_node(recipe, random, words);
  const std::string text = recipe.is_object() ? recipe.dump(-1, ' ', false, json::error_handler_t::replace) : "{}";
  if (text.size() > max_size) return size;
  std::memcpy(data, text.data(), text.size());
  return text.size();
}

}  // namespace distil_xlstm::fuzz

// Warnings about rows and keys would be most of what a target does.
extern "C" int LLVMFuzzerInitialize(int*, char***) {
  spdlog::set_level(spdlog::level::off);
  return 0;
}
