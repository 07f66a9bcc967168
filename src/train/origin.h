// What a run is trained from. A checkpoint holds it as "origin" (trainer.json), and a resumed run must find the same.
#pragma once

#include <string>

#include "base/json.h"
#include "data/loader.h"
#include "io/model_files.h"
#include "tokenizer/tokenizer.h"

namespace distil_xlstm::train {

struct OriginInputs {
  const io::ModelFiles& teacher;
  const Tokenizer& tokenizer;
  std::string teacher_precision, precision;  // that "auto" became
  const data::Loader* validation = nullptr;
};

// The teacher's configuration and a fingerprint of its weights; fingerprints of tokenizer, chat template and validation text.
json describe_origin(const OriginInputs& inputs);

// Throws DataError that says what of it is another. What does not touch the training is only warned about: the chat template (the text is
// prepared), precisions (another device chose others). Warns too where the checkpoint's version recorded nothing. `where` names the
// checkpoint, `teacher` what is there now.
void check_origin(const json& recorded, const json& now, const std::string& where, const std::string& teacher);

}  // namespace distil_xlstm::train
