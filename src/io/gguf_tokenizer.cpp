#include "io/gguf_tokenizer.h"

#include <algorithm>
#include <array>
#include <unordered_map>

#include "base/text.h"
#include "base/warn_once.h"

namespace distil_xlstm::io {
namespace {

using Json = nlohmann::json;  // its objects are trees: an ordered one would look through all keys at each of 150 000 insertions

// llama.cpp's numbers in tokenizer.ggml.token_type.
enum TokenType : int64_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

struct Vocabulary {
  const std::vector<std::string>& pieces;
  std::vector<int64_t> types;
  std::unordered_map<std::string_view, int64_t> ids;  // without unused pieces
  std::string file;
};

Vocabulary read_vocabulary(const GgufFile& file) {
  const std::string name = file.path().string();
  Vocabulary vocabulary{.pieces = file.require<std::vector<std::string>>("tokenizer.ggml.tokens"), .file = name};
  const size_t count = vocabulary.pieces.size();
  vocabulary.types = file.get_or("tokenizer.ggml.token_type", std::vector<int64_t>(count, kNormal));
  if (vocabulary.types.size() != count) {
    throw DataError("{}: tokenizer.ggml.token_type has {} entries, tokenizer.ggml.tokens {}", name, vocabulary.types.size(), count);
  }
  for (size_t id = 0; id < count; ++id) {
    const std::string& piece = vocabulary.pieces[id];
    if (vocabulary.types[id] == kUnused) continue;
    if (valid_utf8_prefix(piece) != piece.size()) throw DataError("{}: tokenizer.ggml.tokens[{}] is not UTF-8", name, id);
    const auto [first, is_new] = vocabulary.ids.emplace(piece, static_cast<int64_t>(id));
    if (!is_new) throw DataError("{}: tokenizer.ggml.tokens[{}] and [{}] are both '{}'", name, first->second, id, piece);
  }
  return vocabulary;
}

// Id and text of a special token that the metadata name; nullopt when they do not.
struct SpecialToken {
  int64_t id;
  std::string text;
};
std::optional<SpecialToken> special_token(const GgufFile& file, const Vocabulary& vocabulary, const char* which) {
  const std::string key = fmt::format("tokenizer.ggml.{}_token_id", which);
  const int64_t* id = file.get<int64_t>(key);
  if (id == nullptr) return std::nullopt;
  if (*id < 0 || static_cast<size_t>(*id) >= vocabulary.pieces.size()) {
    throw DataError("{}: {} is {}, the vocabulary has {} tokens", vocabulary.file, key, *id, vocabulary.pieces.size());
  }
  const std::string& piece = vocabulary.pieces[static_cast<size_t>(*id)];
  // Not checked yet where the piece is marked as unused.
  if (valid_utf8_prefix(piece) != piece.size()) throw DataError("{}: tokenizer.ggml.tokens[{}] is not UTF-8", vocabulary.file, *id);
  return SpecialToken{*id, piece};
}

Json vocabulary_object(const Vocabulary& vocabulary) {
  Json object = Json::object();
  for (const auto& [piece, id] : vocabulary.ids) object[std::string(piece)] = id;
  return object;
}

Json added_tokens(const Vocabulary& vocabulary) {
  Json tokens = Json::array();
  for (size_t id = 0; id < vocabulary.pieces.size(); ++id) {
    const int64_t type = vocabulary.types[id];
    if (type != kUnknown && type != kControl && type != kUserDefined) continue;
    tokens.push_back({{"id", id},
                      {"content", vocabulary.pieces[id]},
                      {"single_word", false},
                      {"lstrip", false},
                      {"rstrip", false},
                      {"normalized", false},
                      {"special", type != kUserDefined}});
  }
  return tokens;
}

// [BOS] A [EOS], and for pairs the same of B after it.
Json template_processing(const std::optional<SpecialToken>& bos, const std::optional<SpecialToken>& eos) {
  Json single = Json::array(), pair = Json::array(), special = Json::object();
  for (const int type_id : {0, 1}) {
    Json part = Json::array();
    if (bos) part.push_back({{"SpecialToken", {{"id", bos->text}, {"type_id", type_id}}}});
    part.push_back({{"Sequence", {{"id", type_id == 0 ? "A" : "B"}, {"type_id", type_id}}}});
    if (eos) part.push_back({{"SpecialToken", {{"id", eos->text}, {"type_id", type_id}}}});
    if (type_id == 0) single = part;
    pair.insert(pair.end(), part.begin(), part.end());
  }
  for (const std::optional<SpecialToken>& token : {bos, eos}) {
    if (token) special[token->text] = {{"id", token->text}, {"ids", Json::array({token->id})}, {"tokens", Json::array({token->text})}};
  }
  return {{"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", special}};
}

Json byte_level(bool use_regex) {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", use_regex}};
}

Json split(std::string_view regex) {
  return {{"type", "Split"}, {"pattern", {{"Regex", regex}}}, {"behavior", "Isolated"}, {"invert", false}};
}

Json in_sequence(std::vector<Json> parts) {
  return {{"type", "Sequence"}, {"pretokenizers", std::move(parts)}};
}

// How Llama 3 and Qwen2 cut text; they differ in how many digits stay together.
std::string modern_regex(std::string_view digits) {
  return fmt::format(
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)", digits);
}

struct PreTokenizer {
  Json normalizer;  // null: none
  Json pre_tokenizer;
  bool ignore_merges = false;
  bool adds_bos = false;  // where the metadata do not say
};

PreTokenizer pre_tokenizer(const std::string& name, const std::string& file) {
  constexpr const char* kGpt2Regex = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S))";
  PreTokenizer result;
  if (name == "gpt-2") {
    result.pre_tokenizer = byte_level(true);
  } else if (name == "smollm") {
    result.pre_tokenizer = in_sequence({{{"type", "Digits"}, {"individual_digits", true}}, byte_level(true)});
  } else if (name == "qwen2") {
    result.normalizer = {{"type", "NFC"}};
    result.pre_tokenizer = in_sequence({split(modern_regex(R"(\p{N})")), byte_level(false)});
  } else if (name == "llama-bpe") {
    result.pre_tokenizer = in_sequence({split(modern_regex(R"(\p{N}{1,3})")), byte_level(false)});
    result.ignore_merges = true;
    result.adds_bos = true;
  } else if (name == "default") {
    result.pre_tokenizer =
        in_sequence({split(R"([\p{P}\$\+<=>\^~\|]+)"), split(kGpt2Regex), split(R"(\p{N}+)"), split("[0-9][0-9][0-9]"), byte_level(false)});
  } else {
    throw DataError("{}: tokenizer.ggml.pre = '{}' is not supported: smollm, qwen2, llama-bpe, gpt-2 and default are", file, name);
  }
  return result;
}

// "a b" -> ["a", "b"]; both and their union must be tokens.
Json merge_pairs(const GgufFile& file, const Vocabulary& vocabulary) {
  const auto& merges = file.require<std::vector<std::string>>("tokenizer.ggml.merges");
  Json pairs = Json::array();
  for (size_t i = 0; i < merges.size(); ++i) {
    const std::string& merge = merges[i];
    const size_t space = merge.find(' ', 1);
    const std::string left = merge.substr(0, space);
    const std::string right = space == std::string::npos ? "" : merge.substr(space + 1);
    if (!vocabulary.ids.contains(left) || !vocabulary.ids.contains(right) || !vocabulary.ids.contains(left + right)) {
      throw DataError("{}: tokenizer.ggml.merges[{}] is '{}': it must be two tokens that make a third", vocabulary.file, i,
                      replace_invalid_utf8(merge));
    }
    pairs.push_back(Json::array({left, right}));
  }
  return pairs;
}

Json bpe_model(const Vocabulary& vocabulary, Json merges) {
  return {{"type", "BPE"},
          {"dropout", nullptr},
          {"unk_token", nullptr},
          {"continuing_subword_prefix", nullptr},
          {"end_of_word_suffix", nullptr},
          {"fuse_unk", false},
          {"byte_fallback", false},
          {"ignore_merges", false},
          {"vocab", vocabulary_object(vocabulary)},
          {"merges", std::move(merges)}};
}

struct BosEos {
  std::optional<SpecialToken> bos, eos;  // set when texts begin or end with them
};

BosEos bos_and_eos(const GgufFile& file, const Vocabulary& vocabulary, bool adds_bos_by_default) {
  BosEos result;
  if (file.get_or("tokenizer.ggml.add_bos_token", adds_bos_by_default)) result.bos = special_token(file, vocabulary, "bos");
  if (file.get_or("tokenizer.ggml.add_eos_token", false)) result.eos = special_token(file, vocabulary, "eos");
  return result;
}

struct Built {
  Json tokenizer;
  BosEos added;
};

Json tokenizer_object(const Vocabulary& vocabulary, Json model, const BosEos& added) {
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", added_tokens(vocabulary)},
          {"post_processor", template_processing(added.bos, added.eos)},
          {"model", std::move(model)}};
}

// As llama.cpp, which warns too where none is named.
std::string pre_tokenizer_name(const GgufFile& file) {
  constexpr const char* kKey = "tokenizer.ggml.pre";
  auto name = file.get_or<std::string>(kKey, "");
  if (!name.empty() && name != "default") return name;
  warn_once(fmt::format(
      "{}: {} {}: how the text was cut in training is not known, and llama.cpp's default may cut it otherwise, which makes every result "
      "worse: take a file that names its pre-tokenizer (smollm, qwen2, llama-bpe or gpt-2)",
      file.path().string(), kKey, name.empty() ? (file.get<std::string>(kKey) == nullptr ? "is missing" : "is empty") : "is \"default\""));
  return "default";
}

Built build_byte_level(const GgufFile& file, const Vocabulary& vocabulary) {
  const PreTokenizer pre = pre_tokenizer(pre_tokenizer_name(file), vocabulary.file);
  Json model = bpe_model(vocabulary, merge_pairs(file, vocabulary));
  model["ignore_merges"] = pre.ignore_merges;
  const BosEos added = bos_and_eos(file, vocabulary, pre.adds_bos);
  Json tokenizer = tokenizer_object(vocabulary, std::move(model), added);
  tokenizer["normalizer"] = pre.normalizer;
  tokenizer["pre_tokenizer"] = pre.pre_tokenizer;
  tokenizer["decoder"] = byte_level(true);
  return {std::move(tokenizer), added};
}

bool begins_character(char c) {
  return (static_cast<uint8_t>(c) & 0xc0U) != 0x80U;
}  // not inside of a UTF-8 sequence

size_t count_characters(std::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), begins_character));
}

// SentencePiece joins the neighbours whose union has the best score. As ranked pairs: every way to cut a piece into two pieces,
// by the piece's score; cuts of one piece with the longer left part first.
Json merges_from_scores(const GgufFile& file, const Vocabulary& vocabulary) {
  const auto& scores = file.require<std::vector<double>>("tokenizer.ggml.scores");
  if (scores.size() != vocabulary.pieces.size()) {
    throw DataError("{}: tokenizer.ggml.scores has {} entries, tokenizer.ggml.tokens {}", vocabulary.file, scores.size(),
                    vocabulary.pieces.size());
  }
  struct Merge {
    std::string_view left, right;
    double score;
    size_t left_characters;
  };
  std::vector<Merge> merges;
  for (size_t id = 0; id < vocabulary.pieces.size(); ++id) {
    if (vocabulary.types[id] != kNormal) continue;
    const std::string_view piece = vocabulary.pieces[id];
    for (size_t cut = 1; cut < piece.size(); ++cut) {
      const std::string_view left = piece.substr(0, cut), right = piece.substr(cut);
      if (!begins_character(right.front()) || !vocabulary.ids.contains(left) || !vocabulary.ids.contains(right)) continue;
      merges.push_back({left, right, scores[id], count_characters(left)});
    }
  }
  std::stable_sort(merges.begin(), merges.end(), [](const Merge& a, const Merge& b) {
    return a.score != b.score ? a.score > b.score : a.left_characters > b.left_characters;
  });
  Json pairs = Json::array();
  for (const Merge& merge : merges) pairs.push_back(Json::array({merge.left, merge.right}));
  return pairs;
}

Built build_sentencepiece(const GgufFile& file, const Vocabulary& vocabulary) {
  constexpr const char* kSpace = "\xe2\x96\x81";  // U+2581 stands for a space
  if (file.get_or("tokenizer.ggml.remove_extra_whitespaces", false)) {
    throw DataError("{}: tokenizer.ggml.remove_extra_whitespaces is not supported", vocabulary.file);
  }
  const bool adds_space = file.get_or("tokenizer.ggml.add_space_prefix", true);
  const std::optional<SpecialToken> unknown = special_token(file, vocabulary, "unknown");
  Json model = bpe_model(vocabulary, merges_from_scores(file, vocabulary));
  model["byte_fallback"] = std::count(vocabulary.types.begin(), vocabulary.types.end(), kByte) == 256;
  model["fuse_unk"] = true;
  if (unknown) model["unk_token"] = unknown->text;

  const BosEos added = bos_and_eos(file, vocabulary, true);
  Json tokenizer = tokenizer_object(vocabulary, std::move(model), added);
  std::vector<Json> normalizers, decoders;
  if (adds_space) normalizers.push_back({{"type", "Prepend"}, {"prepend", kSpace}});
  normalizers.push_back({{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kSpace}});
  decoders.push_back({{"type", "Replace"}, {"pattern", {{"String", kSpace}}}, {"content", " "}});
  decoders.push_back({{"type", "ByteFallback"}});
  decoders.push_back({{"type", "Fuse"}});
  if (adds_space) decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  tokenizer["normalizer"] = {{"type", "Sequence"}, {"normalizers", normalizers}};
  tokenizer["pre_tokenizer"] = nullptr;
  tokenizer["decoder"] = {{"type", "Sequence"}, {"decoders", decoders}};
  return {std::move(tokenizer), added};
}

json tokenizer_config(const GgufFile& file, const Vocabulary& vocabulary, const BosEos& added) {
  json config = {
      {"tokenizer_class", "PreTrainedTokenizerFast"}, {"add_bos_token", added.bos.has_value()}, {"add_eos_token", added.eos.has_value()}};
  constexpr std::array<std::pair<const char*, const char*>, 4> kTokens = {
      {{"bos_token", "bos"}, {"eos_token", "eos"}, {"unk_token", "unknown"}, {"pad_token", "padding"}}};
  for (const auto& [key, which] : kTokens) {
    if (const std::optional<SpecialToken> token = special_token(file, vocabulary, which)) config[key] = token->text;
  }
  const auto chat_template = [&](const std::string& key) {
    const std::string* text = file.get<std::string>(key);
    if (text != nullptr && valid_utf8_prefix(*text) != text->size()) throw DataError("{}: {} is not UTF-8", vocabulary.file, key);
    return text;
  };
  const std::string* plain = chat_template("tokenizer.chat_template");
  const std::string* with_tools = chat_template("tokenizer.chat_template.tool_use");
  if (plain != nullptr) config["chat_template"] = *plain;
  if (plain != nullptr && with_tools != nullptr) {
    config["chat_template"] = {{{"name", "default"}, {"template", *plain}}, {{"name", "tool_use"}, {"template", *with_tools}}};
  }
  return config;
}

}  // namespace

std::optional<TokenizerFiles> gguf_tokenizer(const GgufFile& file) {
  const std::string* model = file.get<std::string>("tokenizer.ggml.model");
  if (model == nullptr || *model == "no_vocab") return std::nullopt;
  if (*model != "gpt2" && *model != "llama") {
    throw DataError("{}: tokenizer.ggml.model = '{}' is not supported: gpt2 (byte-level BPE) and llama (SentencePiece BPE) are",
                    file.path().string(), replace_invalid_utf8(*model));
  }
  const Vocabulary vocabulary = read_vocabulary(file);
  const Built built = *model == "gpt2" ? build_byte_level(file, vocabulary) : build_sentencepiece(file, vocabulary);
  return TokenizerFiles{.tokenizer_json = built.tokenizer.dump(),
                        .tokenizer_config = tokenizer_config(file, vocabulary, built.added),
                        .origin = vocabulary.file};
}

}  // namespace distil_xlstm::io
