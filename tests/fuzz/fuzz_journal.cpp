// What an interrupted `prepare` or `synthesize` left: {"journal": its content, "partial_bytes": size of the shard that was open}. In the
// content a list under "borders" or "mask_bits" stands for bytes. As CBOR, its checksum right; then the shard writer takes it up.
#include "base/hash.h"
#include "data/prepare_journal.h"
#include "data/shard_writer.h"
#include "fuzz/fuzz_target.h"

namespace distil_xlstm {
namespace {

void make_binary(json& node) {
  if (!node.is_structured()) return;
  for (const auto& [key, value] : node.items()) {
    if (value.is_array() && (key == "borders" || key == "mask_bits")) {
      std::vector<uint8_t> bytes;
      for (const json& byte : value) bytes.push_back(static_cast<uint8_t>(byte.is_number_integer() ? byte.get<uint64_t>() : 0));
      value = json::binary(bytes);
    } else {
      make_binary(value);
    }
  }
}

data::ShardSettings settings() {
  data::ShardSettings settings;
  settings.context_length = 8;
  settings.vocab_size = 300;
  settings.shard_bytes = 64;
  return settings;
}

void take_up(const fuzz::Folder& folder, const json& state) {
  data::ShardWriter writer(folder.path(), settings());
  writer.restore(state);
  const std::vector<int32_t> ids(40, 7);
  const std::vector<uint8_t> counts(40, 0);
  writer.add(ids);
  writer.add(ids, counts);
  writer.finish();
}

}  // namespace
}  // namespace distil_xlstm

DISTIL_XLSTM_RECIPE_MUTATOR({"journal",       "partial_bytes",  "patches",     "cut",        "settings",          "file",
                             "row",           "piece",          "counts",      "documents",  "text_bytes",        "refused_conversations",
                             "split",         "train",          "validation",  "index",      "total_tokens",      "total_documents",
                             "last_id",       "last_is_border", "last_counts", "shards",     "num_rows",          "num_tokens",
                             "num_documents", "checksum",       "open",        "num_stored", "num_own_documents", "masked",
                             "borders",       "mask_bits"});

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace distil_xlstm;
  static const fuzz::Folder folder;
  const json recipe = fuzz::read_recipe(data, size);
  if (recipe.is_null() || !recipe.contains("journal")) return -1;
  json content = recipe["journal"];
  make_binary(content);
  std::string body;
  json::to_cbor(content, body);
  fuzz::apply_patches(body, recipe);
  std::string journal = "DXJOURN1";
  fuzz::append(journal, xxh3_64(std::as_bytes(std::span(body))));
  folder.clear();
  folder.write("prepare.journal", journal + body);
  folder.write("train-00000.dxts.partial", std::string(std::min<uint64_t>(fuzz::number_or(recipe, "partial_bytes", 0), 1 << 16), '\0'));
  fuzz::tolerate([&] { (void)parse_cbor(body); });
  fuzz::tolerate([&] {
    if (const auto found = data::read_journal(folder.path())) take_up(folder, found->train);
  });
  return 0;
}
