#include "commands/left_out_rows.h"

#include "base/log.h"
#include "config/choices.h"
#include "tokenizer/vocabulary.h"

namespace distil_xlstm::commands {

std::vector<int32_t> choose_left_out_rows(const load::LoadedModel& model, const Tokenizer& tokenizer, const std::string& name,
                                          const std::string& vocabulary) {
  const int64_t num_rows = model.model->vocab_size();
  auto without_token = rows_without_token(tokenizer, num_rows);
  if (without_token.empty()) return {};
  const bool leaves_out = config::parse_name<config::LossVocabulary>(vocabulary, "--vocabulary") == config::LossVocabulary::tokenizer;
  spdlog::info("{}: rows without a token: {} of {}: the figures {} (--vocabulary {})", name, without_token.size(), num_rows,
               leaves_out ? "leave them out" : "run over them too", vocabulary);
  if (!leaves_out) without_token.clear();
  return without_token;
}

}  // namespace distil_xlstm::commands
