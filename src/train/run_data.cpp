#include "train/run_data.h"

#include <algorithm>
#include <map>
#include <optional>

#include "base/error.h"
#include "base/log.h"
#include "base/text.h"
#include "data/prepare.h"
#include "data/prepare_directory.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/vocabulary.h"
#include "train/run_directory.h"

namespace distil_xlstm::train {
namespace {

bool is_shards(const std::string& path) {
  const auto files = expand_paths({path});
  return std::any_of(files.begin(), files.end(), [](const fs::path& file) { return file.extension() == data::kShardExtension; });
}

// Shards as they are; text is prepared into the run's directory first. Shards of the same text and settings that lie there are taken; a
// resumed run takes those that it has, whatever became of the text.
std::string shards_of(const RunPlace& s, const std::string& path, const std::string& name, double validation_fraction,
                      std::vector<std::string>& prepared) {
  const auto use = [&](const std::string& directory) {
    prepared.push_back(directory);
    return (s.run / directory).string();
  };
  if (s.resumes && data::is_prepared(s.run / name)) return use(name);
  if (is_shards(path)) return path;
  data::PrepareOptions options;
  options.reader.inputs = {path};
  options.model = s.config.teacher.model;
  options.context_length = s.config.data.context_length;
  options.document_end = s.config.data.document_end;
  options.validation_fraction = validation_fraction;
  bool lay_there = false;  // something, before the attempt
  const auto prepare = [&](const std::string& directory, bool overwrite) {
    options.output = s.run / directory;
    options.overwrite = overwrite;
    lay_there = fs::exists(options.output);
    if (directory != name) check_makes_way(s.run / name);
    std::optional<BegunRun> begun;
    if (!s.resumes && !s.replaces) begun.emplace(s.run);
    const auto report = data::prepare(options);
    if (!report.was_complete) {
      spdlog::info("prepared {}: {} train and {} validation tokens", path, format_count(static_cast<double>(report.train_tokens)),
                   format_count(static_cast<double>(report.validation_tokens)));
    }
    return use(directory);
  };
  if (s.resumes) return prepare(name, false);
  // Without overwrite other settings, or another text, are a ConfigError.
  std::vector<std::pair<std::string, bool>> attempts = {{name, false}, {name, true}};
  if (s.replaces) attempts = {{name, false}, {name + kNewSuffix, false}, {name + kNewSuffix, true}};
  for (size_t i = 0; i + 1 < attempts.size(); ++i) {
    try {
      return prepare(attempts[i].first, attempts[i].second);
    } catch (const ConfigError& error) {
      spdlog::debug("{}", error.what());
    } catch (const DataError& error) {  // what an earlier run left is damaged, or the text is
      if (!lay_there) throw;
      spdlog::debug("{}", error.what());
    }
  }
  return prepare(attempts.back().first, attempts.back().second);
}

// Header checksums by path: equal ones mean equal content, also of copies.
std::map<uint64_t, fs::path> shards_in(const std::string& path, std::optional<data::Split> split) {
  std::map<uint64_t, fs::path> found;
  for (const auto& file : data::find_shards(path)) {
    const data::TokenShard shard(file, /*verify_content=*/false);
    if (!split || shard.split() == *split) found.emplace(shard.header().checksum, file);
  }
  return found;
}

bool has_validation_split(const std::string& path) {
  return !shards_in(path, data::Split::validation).empty();
}

void check_no_overlap(const std::vector<data::LoaderSource>& training, const std::string& validation) {
  const auto held_out = shards_in(validation, std::nullopt);
  for (const auto& source : training) {
    for (const auto& [checksum, file] : shards_in(source.path, data::Split::train)) {
      if (const auto it = held_out.find(checksum); it != held_out.end()) {
        throw ConfigError(
            "data.validation: {} is also trained on ({}), and {} has no validation split: name other text, or leave data.validation empty "
            "and set data.validation_fraction",
            it->second.string(), file.string(), validation);
      }
    }
  }
}

}  // namespace

void check_texts(const RunPlace& s) {
  const auto& settings = s.config.data;
  for (const auto& source : settings.sources) data::find_shards(source.path);
  const auto check = [&](const std::string& path, const char* name) {
    if (!path.empty() && !(s.resumes && data::is_prepared(s.run / name))) expand_paths({path});
  };
  if (settings.sources.empty()) check(settings.train, kData);
  if (s.config.eval.every_steps > 0) check(settings.validation, kValidationData);
}

RunData open_data(const RunPlace& s, const Tokenizer& tokenizer, int64_t vocab_size) {
  RunData opened;
  data::LoaderOptions options;
  const auto& settings = s.config.data;
  for (const auto& source : settings.sources) options.sources.push_back({source.path, source.weight});
  if (settings.sources.empty()) {
    const double fraction = settings.validation.empty() ? settings.validation_fraction : 0.0;
    options.sources.push_back({shards_of(s, settings.train, kData, fraction, opened.prepared), 1.0});
  }
  options.context_length = settings.context_length;
  options.micro_batch_size = s.config.train.micro_batch_size;
  options.seed = s.config.seed;
  options.document_isolation = settings.document_isolation;
  options.tokenizer_fingerprint = tokenizer.fingerprint();
  options.begin_id = tokenizer.prefix_ids().empty() ? -1 : tokenizer.prefix_ids().front();
  options.chat_template_fingerprint = chat_template_fingerprint(tokenizer.files());
  options.vocab_size = vocab_size;
  options.no_row_message = [&tokenizer, vocab_size](int32_t id, const std::string& where) {
    return no_row_message(id, tokenizer, vocab_size, where);
  };
  opened.train = std::make_unique<data::Loader>(options);

  if (s.config.eval.every_steps == 0) return opened;
  options.shuffle = false;
  options.split = "validation";
  if (!settings.validation.empty()) {
    const auto path = shards_of(s, settings.validation, kValidationData, 0.0, opened.prepared);
    if (!has_validation_split(path)) {
      check_no_overlap(options.sources, path);
      options.split = "any";
    } else if (!shards_in(path, data::Split::train).empty()) {
      spdlog::info("data.validation: of {} the validation split alone is measured", path);
    }
    options.sources = {{path, 1.0}};
  } else {
    std::erase_if(options.sources, [](const data::LoaderSource& source) { return !has_validation_split(source.path); });
    for (auto& source : options.sources) source.weight = 1.0;
  }
  if (options.sources.empty()) {
    spdlog::warn("no validation data: no checkpoint is called best (set data.validation, or data.validation_fraction above 0 for text)");
    return opened;
  }
  opened.validation = std::make_unique<data::Loader>(options);
  return opened;
}

}  // namespace distil_xlstm::train
