#include "data/prepare.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <thread>

#include "base/error.h"
#include "base/log.h"
#include "base/output_lock.h"
#include "base/signals.h"
#include "base/text.h"
#include "data/bounded_queue.h"
#include "data/prepare_directory.h"
#include "data/prepare_journal.h"
#include "data/prepare_settings.h"
#include "data/shard_directory.h"
#include "data/tokenizer_files.h"
#include "tokenizer/vocabulary.h"

namespace distil_xlstm::data {

namespace {

constexpr size_t kMaxBatchDocuments = 4096;
constexpr size_t kQueuedBatches = 2;

struct TextBatch {
  std::vector<Document> documents;
  std::vector<ReaderCounts> counts;  // with each of them
  uint64_t size_bytes = 0;
  ReaderPlace place;           // after it
  ReaderCounts counts_at_end;  // with it and the rows left out behind it
  uint64_t file_bytes_done = 0;
};

struct TokenBatch {
  std::vector<TokenDocument> documents;
  TextBatch text;  // without its documents
  uint64_t refused_conversations = 0;
};

// What an interrupted run left cannot be gone on with.
class CannotResume : public DataError {
  using DataError::DataError;
};

class Preparation {
 public:
  Preparation(const PrepareOptions& options, const TextEncoder& encoder)
      : options_(options),
        reader_(options.reader),
        packer_(encoder, options.document_end, options.reader.bad_rows),
        settings_(describe_settings(options, encoder, reader_)),
        train_(options.output, shard_settings(Split::train, encoder)),
        validation_(options.output, shard_settings(Split::validation, encoder)),
        prefix_(encoder.prefix) {}

  PrepareReport run() {
    started_ = monotonic_seconds();
    if (auto finished = take_up()) return *finished;
    const uint64_t bytes_before = reader_.counts().text_bytes;
    const int64_t tokens_before = num_tokens();
    pump(bytes_before, tokens_before);
    PrepareReport report = finish();
    report.session_bytes = journal_.counts.text_bytes - bytes_before;
    report.session_tokens = num_tokens() - tokens_before;
    report.seconds = monotonic_seconds() - started_;
    return report;
  }

 private:
  [[nodiscard]] ShardSettings shard_settings(Split split, const TextEncoder& encoder) const {
    ShardSettings settings;
    settings.split = split;
    settings.context_length = options_.context_length;
    settings.vocab_size = encoder.vocab_size;
    settings.num_rows = encoder.num_rows;
    settings.tokenizer_fingerprint = encoder.fingerprint;
    const DocumentBorders borders = borders_of(encoder, options_.document_end);
    if (!borders.begin.empty()) settings.bos_id = borders.begin.front();
    if (!borders.end.empty()) settings.document_end_id = borders.end.back();
    settings.shard_bytes = options_.shard_bytes;
    settings.source = {{"inputs", options_.reader.inputs}, {"tokenizer", options_.model}, {"document_end", options_.document_end}};
    settings.source.update(unusual_borders(encoder));
    if (!encoder.chat_template_fingerprint.empty()) settings.source["chat_template"] = encoder.chat_template_fingerprint;
    return settings;
  }

  [[nodiscard]] int64_t num_tokens() const { return train_.num_tokens() + validation_.num_tokens(); }

  // Decides whether the output is new, unfinished (then goes on from its journal) or already what is asked for.
  std::optional<PrepareReport> take_up() {
    const bool replaces_finished = options_.overwrite && fs::exists(index_path(options_.output));
    if (!replaces_finished) {
      try {
        if (auto finished = take_finished()) return finished;
        if (take_unfinished()) return std::nullopt;
        remove_shards(options_.output);  // of a call that was killed before its first journal
        save();
        return std::nullopt;
      } catch (const CannotResume&) {
        throw;
      } catch (const Interrupted&) {
        throw;
      } catch (const Error&) {  // what lies there is other, or damaged
        if (!options_.overwrite && !options_.reuse) throw;
      }
    }
    remove_prepared(options_.output);
    save();
    return std::nullopt;
  }

  // The result of an earlier run of the same settings, if there is an index.
  std::optional<PrepareReport> take_finished() {
    if (!fs::exists(index_path(options_.output))) return std::nullopt;
    const json index = read_json(index_path(options_.output));
    const std::string where = index_path(options_.output).string();
    const std::string difference = first_difference(settings_, require<json>(index, "settings", where));
    if (!difference.empty())
      throw ConfigError("{} holds shards made with other settings: {}; {}", options_.output.string(), difference, kAdvice);
    PrepareReport report = report_of(index, where);
    if (const std::string fault = fault_of_shards(options_.output, report.shards); !fault.empty())
      throw DataError("{}: the shards are not as they were written: {}; {}", where, fault, kAdvice);
    for (const ShardSummary& shard : report.shards) check_begin(shard);
    report.was_complete = true;
    remove_journal(options_.output);
    return report;
  }

  // A version that followed add_bos_token put another id before documents, or none.
  void check_begin(const ShardSummary& shard) const {
    const int32_t found = TokenShard(options_.output / shard.file, /*verify_content=*/false).header().bos_id;
    const int32_t wanted = prefix_.empty() ? -1 : prefix_.front();
    if (found != wanted) {
      throw ConfigError("{} holds shards whose documents begin with id {}, where the tokenizer puts {} (-1: none); {}",
                        options_.output.string(), found, wanted, kAdvice);
    }
  }

  // Goes back to where an interrupted run of the same settings stopped, if there was one.
  bool take_unfinished() {
    auto journal = read_journal(options_.output);
    if (!journal) return false;
    const std::string difference = first_difference(settings_, journal->settings);
    if (!difference.empty()) {
      throw ConfigError("{} holds an unfinished run of other settings: {}; {}", options_.output.string(), difference, kAdvice);
    }
    journal_ = std::move(*journal);
    try {
      reader_.restore(journal_.place, journal_.counts);
      packer_.set_refused_conversations(journal_.refused_conversations);
      train_.restore(journal_.train);
      validation_.restore(journal_.validation);
    } catch (const DataError& error) {
      throw CannotResume("{}", error.what());
    }
    was_resumed_ = true;
    return true;
  }

  void save() {
    journal_.settings = settings_;
    journal_.train = train_.save();
    journal_.validation = validation_.save();
    write_journal(options_.output, journal_);
    saved_ = monotonic_seconds();
  }

  // Reader thread -> encoder thread -> this thread.
  void pump(uint64_t bytes_before, int64_t tokens_before) {
    BoundedQueue<TextBatch> texts(kQueuedBatches);
    BoundedQueue<TokenBatch> tokens(kQueuedBatches);
    std::thread reading([&] { guarded(texts, [&] { read_batches(texts); }); });
    std::thread encoding([&] { guarded(tokens, [&] { encode_batches(texts, tokens); }); });
    const auto end_threads = [&] {
      texts.close();
      tokens.close();
      reading.join();
      encoding.join();
    };
    try {
      ProgressLine progress;
      TokenBatch batch;
      while (!reached_max_tokens_ && tokens.pop(batch)) {
        write(batch);
        if (const int signal = received_signal(); signal != 0 && !reached_max_tokens_) {
          save();
          throw Interrupted(signal, fmt::format("prepare: stopped by signal {} after {} tokens; run the same command again to go on",
                                                signal, format_count(static_cast<double>(num_tokens()))));
        }
        if (monotonic_seconds() - saved_ >= options_.journal_seconds) save();
        if (options_.show_progress && progress.due()) progress.update(progress_text(batch, bytes_before, tokens_before));
      }
    } catch (...) {
      end_threads();
      throw;
    }
    end_threads();
  }

  template <typename Queue, typename Body>
  static void guarded(Queue& queue, Body&& body) {
    try {
      body();
      queue.close();
    } catch (...) {
      queue.close(std::current_exception());
    }
  }

  void read_batches(BoundedQueue<TextBatch>& out) {
    for (bool more = true; more;) {
      TextBatch batch;
      Document document;
      try {
        while (batch.size_bytes < options_.batch_bytes && batch.documents.size() < kMaxBatchDocuments) {
          more = reader_.next(document);
          if (!more) break;
          batch.size_bytes += document.size_bytes();
          batch.documents.push_back(std::move(document));
          batch.counts.push_back(reader_.counts());
        }
      } catch (const Interrupted&) {
        more = false;  // the thread that writes looks at the signal after each batch, saves and ends the run
      }
      batch.place = reader_.place();
      batch.counts_at_end = reader_.counts();
      batch.file_bytes_done = reader_.bytes_done();
      if (!out.push(std::move(batch))) return;
    }
  }

  void encode_batches(BoundedQueue<TextBatch>& in, BoundedQueue<TokenBatch>& out) {
    TextBatch text;
    while (in.pop(text)) {
      TokenBatch batch;
      batch.documents = packer_.encode(text.documents);
      text.documents.clear();
      batch.text = std::move(text);
      batch.refused_conversations = packer_.refused_conversations();
      if (!out.push(std::move(batch))) return;
    }
  }

  void write(const TokenBatch& batch) {
    for (const auto& document : batch.documents) {
      if (document.begins) {
        const double place = static_cast<double>(document.hash >> 11) * 0x1.0p-53;
        journal_.split = static_cast<uint32_t>(place < options_.validation_fraction ? Split::validation : Split::train);
      }
      std::span<const int32_t> ids = document.ids;
      std::span<const uint8_t> counts = document.counts;
      if (options_.max_tokens > 0 && static_cast<int64_t>(ids.size()) >= options_.max_tokens - num_tokens()) {
        ids = ids.first(static_cast<size_t>(options_.max_tokens - num_tokens()));
        counts = counts.first(std::min(counts.size(), ids.size()));
        reached_max_tokens_ = true;
      }
      if (document.repeats_prefix) ++num_repeated_;
      (static_cast<Split>(journal_.split) == Split::train ? train_ : validation_).add(ids, counts, document.begins);
      journal_.targets.add(document, ids.size());
      if (reached_max_tokens_) {
        journal_.counts = batch.text.counts[document.source];
        journal_.refused_conversations = document.refused_conversations;
        return;
      }
    }
    journal_.place = batch.text.place;
    journal_.counts = batch.text.counts_at_end;
    journal_.refused_conversations = batch.refused_conversations;
  }

  [[nodiscard]] std::string progress_text(const TokenBatch& batch, uint64_t bytes_before, int64_t tokens_before) const {
    const double seconds = monotonic_seconds() - started_;
    const auto tokens = static_cast<double>(num_tokens());
    const double session_tokens = tokens - static_cast<double>(tokens_before);
    const double session_bytes = static_cast<double>(journal_.counts.text_bytes - bytes_before);
    const double of_files = static_cast<double>(batch.text.file_bytes_done) / static_cast<double>(std::max<uint64_t>(1, reader_total_));
    const double of_budget = options_.max_tokens > 0 ? tokens / static_cast<double>(options_.max_tokens) : 0.0;
    const double done = std::min(1.0, std::max(of_files, of_budget));
    // The part done before this session took no time of it.
    const double before = tokens > 0 ? done * static_cast<double>(tokens_before) / tokens : 0.0;
    const double left = done > before ? seconds * (1.0 - done) / (done - before) : 0.0;
    return fmt::format("prepare: {:3.0f} %  {} tokens  {:.1f} MB/s  {} tokens/s  {} left", 100 * done, format_count(tokens),
                       session_bytes / seconds / 1e6, format_count(session_tokens / seconds), format_duration(left));
  }

  PrepareReport finish() {
    if (num_tokens() == 0) {
      throw DataError("{}: not a single document to prepare ({} empty, {} malformed, {} not UTF-8, {} refused by the chat template)",
                      options_.reader.inputs.front(), journal_.counts.empty_documents, journal_.counts.malformed_rows,
                      journal_.counts.invalid_utf8, journal_.refused_conversations);
    }
    const auto& inputs = options_.reader.inputs;
    warn_of_repeated_prefix(inputs.size() == 1 ? inputs.front() : options_.output.string(), prefix_, num_repeated_);
    train_.finish();
    validation_.finish();
    PrepareReport report;
    report.counts = journal_.counts;
    report.refused_conversations = journal_.refused_conversations;
    report.targets = journal_.targets;
    report.train_tokens = train_.num_tokens();
    report.validation_tokens = validation_.num_tokens();
    report.reached_max_tokens = reached_max_tokens_;
    report.was_resumed = was_resumed_;
    for (const auto* writer : {&train_, &validation_})
      report.shards.insert(report.shards.end(), writer->shards().begin(), writer->shards().end());
    write_index(options_.output, settings_, report);
    remove_journal(options_.output);
    return report;
  }

  static constexpr const char* kAdvice = "use another --output, or --overwrite";

  const PrepareOptions& options_;
  TextReader reader_;
  Packer packer_;
  json settings_;
  ShardWriter train_;
  ShardWriter validation_;
  PrepareJournal journal_;
  uint64_t reader_total_ = reader_.total_bytes();
  std::vector<int32_t> prefix_;
  uint64_t num_repeated_ = 0;  // documents of this call that begin with the prefix twice
  bool was_resumed_ = false;
  bool reached_max_tokens_ = false;
  double started_ = 0.0;
  double saved_ = 0.0;
};

PrepareReport run(const PrepareOptions& options, const TextEncoder& encoder) {
  try {
    return Preparation(options, encoder).run();
  } catch (const CannotResume& error) {
    if (!options.overwrite && !options.reuse) throw;
    spdlog::warn("{}; beginning anew", error.what());
  }
  remove_prepared(options.output);
  return Preparation(options, encoder).run();
}

}  // namespace

PrepareReport prepare(const PrepareOptions& options, const TextEncoder& encoder) {
  check_options(options);
  check_output(options);
  const OutputLock lock(options.output);
  check_output(options);  // another process may have written before the lock was ours
  PrepareReport report = run(options, encoder);
  warn_of_no_answers(report.targets, options.output);
  return report;
}

PrepareReport prepare(const PrepareOptions& options) {
  check_options(options);
  check_output(options);
  // Read by the encoder's thread pool when it starts.
  if (options.num_threads > 0) ::setenv("RAYON_NUM_THREADS", std::to_string(options.num_threads).c_str(), 1);
  const Tokenizer tokenizer(open_tokenizer_files(options.model));
  TextEncoder encoder = make_encoder(tokenizer);
  encoder.num_rows = num_model_rows(options.model);
  try {
    return prepare(options, encoder);
  } catch (const NoRow& error) {
    throw DataError("{}", no_row_message(error.id(), tokenizer, encoder.num_rows, options.model));
  }
}

}  // namespace distil_xlstm::data
