// Rows of JSONL: {"rows": [objects, or texts that are taken as they stand], "text_key", "messages_key", "prompt_key", "answer_key",
// "policy", "kind", "piece", "newlines", "strip"}. Also as plain text, whole and taken up again from every place.
#include "data/text_reader.h"
#include "fuzz/fuzz_target.h"

namespace distil_xlstm {
namespace {

data::ReaderOptions options_of(const json& recipe, const fs::path& path) {
  data::ReaderOptions options;
  options.inputs = {path.string()};
  options.text_key = fuzz::text_or(recipe, "text_key", "text");
  options.messages_key = fuzz::text_or(recipe, "messages_key", "messages");
  options.prompt_key = fuzz::text_or(recipe, "prompt_key", "");
  options.answer_key = fuzz::text_or(recipe, "answer_key", "");
  options.bad_rows = static_cast<data::BadRowPolicy>(fuzz::number_or(recipe, "policy", 0) % 3);
  options.rows = static_cast<data::RowKind>(fuzz::number_or(recipe, "kind", 0) % 3);
  options.max_piece_bytes = 4 + fuzz::number_or(recipe, "piece", 60) % 256;
  options.normalize_newlines = fuzz::number_or(recipe, "newlines", 0) % 2 == 1;
  options.strip = fuzz::number_or(recipe, "strip", 0) % 2 == 1;
  return options;
}

// All documents, and again from the middle: the same must come.
void read_all(const data::ReaderOptions& options) {
  data::TextReader reader(options);
  std::vector<std::string> texts;
  std::vector<std::pair<data::ReaderPlace, data::ReaderCounts>> places = {{reader.place(), reader.counts()}};
  for (data::Document document; texts.size() < 256 && reader.next(document);) {
    texts.push_back(document.text);
    places.emplace_back(reader.place(), reader.counts());
  }
  const size_t middle = texts.size() / 2;
  data::TextReader again(options);
  again.restore(places[middle].first, places[middle].second);
  data::Document document;
  for (size_t i = middle; i < texts.size(); ++i) {
    if (!again.next(document) || document.text != texts[i]) __builtin_trap();
  }
}

}  // namespace
}  // namespace distil_xlstm

DISTIL_XLSTM_RECIPE_MUTATOR({"rows",
                             "text",
                             "messages",
                             "role",
                             "content",
                             "user",
                             "assistant",
                             "system",
                             "prompt",
                             "response",
                             "instruction",
                             "output",
                             "input",
                             "question",
                             "answer",
                             "tools",
                             "tool_calls",
                             "text_key",
                             "messages_key",
                             "prompt_key",
                             "answer_key",
                             "policy",
                             "kind",
                             "piece",
                             "newlines",
                             "strip",
                             "\n",
                             "\r\n",
                             "\n\n\n",
                             " ",
                             "NaN",
                             "[1e999]",
                             "{\"text\": \"a\"}",
                             "{\"text\": \"\\ud800\"}",
                             "{\"text\": \"a\", \"n\": -Infinity}",
                             "\xc3\xbc",
                             "\xef\xbb\xbf"});

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace distil_xlstm;
  static const fuzz::Folder folder;
  const json recipe = fuzz::read_recipe(data, size);
  if (recipe.is_null()) return -1;
  std::string content;
  for (const json& row : fuzz::list_or_empty(recipe, "rows")) {
    content += row.is_string() ? row.get<std::string>() : row.dump(-1, ' ', false, json::error_handler_t::replace);
    content += '\n';
  }
  fuzz::apply_patches(content, recipe);
  for (const char* name : {"rows.jsonl", "rows.txt"}) {
    const fs::path path = folder.write(name, content);
    fuzz::tolerate([&] { read_all(options_of(recipe, path)); });
    fs::remove(path);
  }
  return 0;
}
