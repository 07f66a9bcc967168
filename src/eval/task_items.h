// The rows of a task's data as items: texts that a model is to score.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "eval/loglikelihood.h"
#include "eval/task.h"
#include "tokenizer/tokenizer.h"

namespace distil_xlstm::eval {

struct TextRequest {
  std::string context, continuation;  // rolling: no context
};

struct TaskItem {
  std::string place;                     // file and row, for messages
  std::vector<TextRequest> requests;     // one for each choice; else one
  std::vector<std::string> choices;      // without the delimiter; empty where they are contexts
  int64_t answer = 0;                    // multiple_choice: index
  int64_t num_words = 0, num_bytes = 0;  // rolling: of the text that counts
  std::string group;

  [[nodiscard]] size_t num_choices() const { return requests.size(); }
};

// The first `limit` items (0: all) of the files, one after the other. Throws DataError that names file, row and key.
std::vector<TaskItem> read_items(const Task& task, const std::vector<fs::path>& files, int64_t limit);

// The requests of all items, encoded as lm-evaluation-harness does. Those of item i end before ends[i].
struct EncodedItems {
  std::vector<Request> requests;
  std::vector<size_t> ends;
  std::vector<int64_t> num_tokens;  // of each item's continuations
};

// `max_length` bounds the windows of a rolling request. Throws DataError that names the row.
EncodedItems encode_items(const Task& task, std::span<const TaskItem> items, const Tokenizer& tokenizer, int64_t num_rows,
                          int64_t max_length);

// The pages of a text of WikiText: a line that is a heading of the first level ("= Title =") begins one.
std::vector<std::string> split_pages(std::string_view text);

}  // namespace distil_xlstm::eval
