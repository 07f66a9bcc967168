// Tokenizer files: {"tokenizer": tokenizer.json, "config": tokenizer_config.json, "texts": [...]}. Through the Rust crate, there and back.
#include "fuzz/fuzz_target.h"
#include "io/added_tokens.h"
#include "tokenizer/tokenizer.h"

DISTIL_XLSTM_RECIPE_MUTATOR({"tokenizer",
                             "config",
                             "texts",
                             "version",
                             "added_tokens",
                             "normalizer",
                             "pre_tokenizer",
                             "post_processor",
                             "decoder",
                             "model",
                             "type",
                             "BPE",
                             "Unigram",
                             "WordPiece",
                             "WordLevel",
                             "vocab",
                             "merges",
                             "unk_token",
                             "unk_id",
                             "byte_fallback",
                             "ignore_merges",
                             "fuse_unk",
                             "id",
                             "content",
                             "special",
                             "single_word",
                             "lstrip",
                             "rstrip",
                             "normalized",
                             "ByteLevel",
                             "Sequence",
                             "Split",
                             "pattern",
                             "Regex",
                             "String",
                             "behavior",
                             "Isolated",
                             "invert",
                             "Digits",
                             "individual_digits",
                             "Prepend",
                             "prepend",
                             "Replace",
                             "NFC",
                             "NFKC",
                             "Lowercase",
                             "Strip",
                             "TemplateProcessing",
                             "single",
                             "pair",
                             "special_tokens",
                             "SpecialToken",
                             "tokens",
                             "ids",
                             "type_id",
                             "Metaspace",
                             "replacement",
                             "ByteFallback",
                             "Fuse",
                             "bos_token",
                             "eos_token",
                             "add_bos_token",
                             "add_eos_token",
                             "added_tokens_decoder",
                             "additional_special_tokens",
                             "extra_special_tokens",
                             "added",
                             "chat_template",
                             "truncation",
                             "padding",
                             "max_length",
                             "<s>",
                             "</s>",
                             "<unk>",
                             "a b",
                             "\xe2\x96\x81",
                             "<0x0A>",
                             "\\p{L}+",
                             "(a|b)*",
                             " ?\\p{N}{1,3}"});

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace distil_xlstm;
  const json recipe = fuzz::read_recipe(data, size);
  if (recipe.is_null() || !recipe.contains("tokenizer")) return -1;
  const json config = recipe.contains("config") && recipe["config"].is_object() ? recipe["config"] : json::object();
  fuzz::tolerate([&] {
    io::TokenizerFiles files{.tokenizer_json = recipe["tokenizer"].dump(-1, ' ', false, json::error_handler_t::replace),
                             .tokenizer_config = config,
                             .origin = "fuzz"};
    files.added_tokens = io::added_tokens(config, "config", recipe.contains("added") ? recipe["added"] : json::object(), "added");
    const Tokenizer tokenizer(files);
    for (const json& text : fuzz::list_or_empty(recipe, "texts")) {
      if (!text.is_string()) continue;
      for (const bool special : {false, true}) {
        fuzz::tolerate([&] {
          const std::vector<int32_t> ids = tokenizer.encode(text.get<std::string>(), special, special);
          (void)tokenizer.decode(ids, special);
          StreamDecoder decoder(tokenizer);
          for (const int32_t id : ids) (void)decoder.push(id);
          (void)decoder.finish();
        });
      }
    }
    for (const int32_t id : {0, 1, -1, 1 << 30}) (void)tokenizer.piece(id);
  });
  return 0;
}
