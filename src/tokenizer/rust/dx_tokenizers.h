// C interface of the Rust library dx_tokenizers: Hugging Face `tokenizers` and chat templates by minijinja.
// Functions that can fail return false and fill `error`. No panic crosses the boundary. Handles are immutable after
// dx_tokenizer_set_bos_eos and may be shared between threads.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct DxTokenizer DxTokenizer;
typedef struct DxTemplate DxTemplate;

// Borrowed text; data may be null when size is 0.
typedef struct {
  const char* data;
  size_t size;
} DxText;

// Text owned by the library, not terminated by zero: to be freed by dx_string_free.
typedef struct {
  char* data;
  size_t size;
} DxString;

// Ids of num_texts texts one after another: text i ends before ids[ends[i]]. To be freed by dx_encodings_free.
typedef struct {
  int32_t* ids;
  size_t num_ids;
  size_t* ends;
  size_t num_texts;
} DxEncodings;

void dx_string_free(DxString string);
void dx_encodings_free(DxEncodings encodings);

// From the bytes of a tokenizer.json. Truncation and padding written there are ignored.
bool dx_tokenizer_load(DxText json, DxTokenizer** out, DxString* error);
void dx_tokenizer_free(DxTokenizer* tokenizer);

// Replaces the post-processor: `bos` first and `eos` last, each left out when empty. Fails for a piece without an id.
bool dx_tokenizer_set_bos_eos(DxTokenizer* tokenizer, DxText bos, DxText eos, DxString* error);

// parse_special = false leaves special tokens that are written in the text as plain text. Texts must be UTF-8.
bool dx_tokenizer_encode(const DxTokenizer* tokenizer, const DxText* texts, size_t num_texts, bool add_special_tokens, bool parse_special,
                         DxEncodings* out, DxString* error);
// Ids without a piece are skipped.
bool dx_tokenizer_decode(const DxTokenizer* tokenizer, const int32_t* ids, size_t num_ids, bool skip_special_tokens, DxString* out,
                         DxString* error);

int64_t dx_tokenizer_vocab_size(const DxTokenizer* tokenizer);                     // greatest id + 1, added tokens included
int64_t dx_tokenizer_token_id(const DxTokenizer* tokenizer, DxText piece);         // -1: none
bool dx_tokenizer_piece(const DxTokenizer* tokenizer, int32_t id, DxString* out);  // false: none

// A Jinja template in the dialect of `transformers`.
bool dx_template_compile(DxText source, DxTemplate** out, DxString* error);
void dx_template_free(DxTemplate* compiled);
// `context` is a JSON object.
bool dx_template_render(const DxTemplate* compiled, DxText context, DxString* out, DxString* error);

#ifdef __cplusplus
}
#endif
