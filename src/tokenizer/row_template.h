// Texts made of the rows of a data set: a prompt, its answers. In the dialect of lm-evaluation-harness's task definitions.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/json.h"

namespace distil_xlstm {

// White space around tags stays, a key that the row lacks is an error, `regex_replace(pattern, replacement)` is Python's re.sub. The same
// bounds hold as for chat templates.
class RowTemplate {
 public:
  // `where` names the template in messages. Throws DataError when it does not parse.
  RowTemplate(const std::string& source, std::string where);
  ~RowTemplate();
  RowTemplate(RowTemplate&&) noexcept;
  RowTemplate& operator=(RowTemplate&&) noexcept;

  // The keys of a row that it reads, in alphabetical order.
  [[nodiscard]] const std::vector<std::string>& keys() const;
  // `row` is an object; `place` names it in the DataError ("piqa.jsonl: line 7").
  [[nodiscard]] std::string render(const json& row, const std::string& place) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace distil_xlstm
