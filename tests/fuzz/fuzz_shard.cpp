// A token shard, checksums right whatever is in it: {"header": {field: number}, "ids": [...], "borders": [...], "mask": [bytes],
// "metadata", "late_patches": true to break checksums too, "patches", "cut"}. Read whole, row by row, and through the loader.
#include <cstddef>
#include <cstring>

#include "base/hash.h"
#include "data/loader.h"
#include "data/token_shard.h"
#include "fuzz/fuzz_target.h"

namespace distil_xlstm {
namespace {

data::ShardHeader::Section append_section(std::string& content, std::string_view bytes) {
  content.resize(data::align_section(content.size()));
  const uint64_t offset = content.size();
  content += bytes;
  return {offset, bytes.size(), 0};
}

void sum_section(const std::string& content, data::ShardHeader::Section& section) {
  if (section.offset > content.size() || section.size > content.size() - section.offset) return;
  section.checksum = xxh3_64(std::as_bytes(std::span(content).subspan(section.offset, section.size)));
}

template <typename T>
void set(const json& fields, const char* key, T& value) {
  value = static_cast<T>(fuzz::number_or(fields, key, static_cast<uint64_t>(value)));
}

data::ShardHeader header_of(const json& recipe, uint64_t num_ids, uint64_t num_borders, bool has_mask) {
  const json fields = recipe.contains("header") && recipe["header"].is_object() ? recipe["header"] : json::object();
  data::ShardHeader header;
  header.vocab_size = 300;
  set(fields, "vocab_size", header.vocab_size);
  header.id_size = header.vocab_size <= 65536 ? 2 : 4;
  header.context_length = 4;
  set(fields, "context_length", header.context_length);
  header.num_rows = header.context_length == 0 || num_ids == 0 ? 1 : std::max<uint64_t>(1, (num_ids - 1) / header.context_length);
  header.num_tokens = num_ids;
  header.num_borders = num_borders;
  header.flags = has_mask ? data::ShardHeader::kHasLossMask : 0;
  for (const auto& [key, place] :
       {std::pair{"num_rows", &header.num_rows}, {"num_tokens", &header.num_tokens}, {"num_borders", &header.num_borders}})
    set(fields, key, *place);
  set(fields, "flags", header.flags);
  set(fields, "id_size", header.id_size);
  set(fields, "split", header.split);
  set(fields, "bos_id", header.bos_id);
  set(fields, "document_end_id", header.document_end_id);
  set(fields, "index", header.index);
  return header;
}

std::string build(const json& recipe) {
  const json ids = fuzz::list_or_empty(recipe, "ids"), borders = fuzz::list_or_empty(recipe, "borders"),
             mask = fuzz::list_or_empty(recipe, "mask");
  data::ShardHeader header = header_of(recipe, ids.size(), borders.size(), !mask.empty());
  std::string tokens, places, bits, content(sizeof header, '\0');
  const auto whole = [](const json& value) { return value.is_number_integer() ? value.get<uint64_t>() : 0; };
  for (const json& id : ids)
    header.id_size == 2 ? fuzz::append(tokens, static_cast<uint16_t>(whole(id))) : fuzz::append(tokens, static_cast<uint32_t>(whole(id)));
  for (const json& border : borders) fuzz::append(places, whole(border));
  for (const json& byte : mask) bits += static_cast<char>(whole(byte));
  // Padding to whole rows, as the header asks for it.
  if (header.num_rows < 4096 && header.context_length < 4096 && header.id_size <= 8)
    tokens.resize((header.num_rows * header.context_length + 1) * header.id_size);
  const json metadata = recipe.contains("metadata") ? recipe["metadata"] : json::object();
  header.metadata = append_section(
      content, metadata.is_string() ? metadata.get<std::string>() : metadata.dump(-1, ' ', false, json::error_handler_t::replace));
  header.tokens = append_section(content, tokens);
  header.borders = append_section(content, places);
  header.loss_mask = append_section(content, bits);
  std::memcpy(content.data(), &header, sizeof header);
  const bool is_late = recipe.contains("late_patches") && recipe["late_patches"] == true;
  if (!is_late) fuzz::apply_patches(content, recipe);
  if (content.size() >= sizeof header) {
    std::memcpy(&header, content.data(), sizeof header);
    for (auto* section : {&header.metadata, &header.tokens, &header.borders, &header.loss_mask}) sum_section(content, *section);
    header.checksum = xxh3_64(std::as_bytes(std::span(&header, 1)).first(offsetof(data::ShardHeader, checksum)));
    std::memcpy(content.data(), &header, sizeof header);
  }
  if (is_late) fuzz::apply_patches(content, recipe);
  return content;
}

void read_rows(const data::TokenShard& shard) {
  if (shard.context_length() > 1 << 16) return;
  const auto length = static_cast<size_t>(shard.context_length());
  std::vector<int32_t> tokens(length), targets(length);
  std::vector<uint8_t> mask(length), starts(length);
  for (const auto isolation : {data::DocumentIsolation::full, data::DocumentIsolation::loss, data::DocumentIsolation::none}) {
    for (int64_t row = 0; row < std::min<int64_t>(shard.num_rows(), 64); ++row) {
      if (shard.read_row(row, isolation, tokens, targets, mask, starts) != shard.count_targets(row, isolation)) __builtin_trap();
    }
  }
}

}  // namespace
}  // namespace distil_xlstm

DISTIL_XLSTM_RECIPE_MUTATOR({"header", "ids", "borders", "mask", "metadata", "late_patches", "patches", "cut", "vocab_size",
                             "context_length", "num_rows", "num_tokens", "num_borders", "flags", "id_size", "split", "bos_id",
                             "document_end_id", "index"});

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace distil_xlstm;
  static const fuzz::Folder folder;
  const json recipe = fuzz::read_recipe(data, size);
  if (recipe.is_null()) return -1;
  const fs::path path = folder.write("train-00000.dxts", build(recipe));
  fuzz::tolerate([&] { read_rows(data::TokenShard(path)); });
  fuzz::tolerate([&] {
    data::LoaderOptions options;
    options.sources = {{folder.path().string(), 1.0}};
    options.split = "any";
    options.micro_batch_size = 3;
    data::Loader loader(options);
    if (loader.context_length() > 1 << 16) return;
    data::Batch batch;
    loader.begin_epoch(1);
    for (int i = 0; i < 8 && loader.next(batch); ++i) {
    }
    loader.restore(loader.state());
  });
  return 0;
}
