// C interface of the Rust library dx_tokenizers: Hugging Face `tokenizers` and chat templates by minijinja.
// Functions that can fail return false and fill `error`. No panic crosses the boundary. Handles are immutable and
// may be shared between threads.
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

// Begin and end of ranges of a text, in bytes, one after the other. To be freed by dx_ranges_free.
typedef struct {
  size_t* bounds;
  size_t num_bounds;
} DxRanges;

void dx_string_free(DxString string);
void dx_encodings_free(DxEncodings encodings);
void dx_ranges_free(DxRanges ranges);

// From the bytes of a tokenizer.json. Truncation and padding written there are ignored. `added_tokens` is a JSON list of what to add to
// it: [{"token": {content, single_word, lstrip, rstrip, normalized, special}, "replaces": whether an added token of the same content
// gives way}]. `changed_json` becomes the tokenizer.json with those tokens, empty where they change nothing.
bool dx_tokenizer_load(DxText json, DxText added_tokens, DxTokenizer** out, DxString* changed_json, DxString* error);
void dx_tokenizer_free(DxTokenizer* tokenizer);

// What the post-processor puts around the ids of a text, as two texts: before, after.
bool dx_tokenizer_affixes(const DxTokenizer* tokenizer, DxEncodings* out, DxString* error);

// parse_special = false leaves special tokens that are written in the text as plain text. Texts must be UTF-8.
bool dx_tokenizer_encode(const DxTokenizer* tokenizer, const DxText* texts, size_t num_texts, bool add_special_tokens, bool parse_special,
                         DxEncodings* out, DxString* error);
// No special tokens added, those in a text parsed; with the range of its text that each id stands for.
bool dx_tokenizer_encode_offsets(const DxTokenizer* tokenizer, const DxText* texts, size_t num_texts, DxEncodings* out, DxRanges* ranges,
                                 DxString* error);
// Ids without a piece are skipped.
bool dx_tokenizer_decode(const DxTokenizer* tokenizer, const int32_t* ids, size_t num_ids, bool skip_special_tokens, DxString* out,
                         DxString* error);

int64_t dx_tokenizer_vocab_size(const DxTokenizer* tokenizer);                     // greatest id + 1, added tokens included
int64_t dx_tokenizer_token_id(const DxTokenizer* tokenizer, DxText piece);         // -1: none
bool dx_tokenizer_piece(const DxTokenizer* tokenizer, int32_t id, DxString* out);  // false: none

// A Jinja template in the dialect of `transformers`. It is a program of strangers: source, steps, values and texts have bounds
// (template.rs, template_source.rs, template_values.rs), and one that passes them is an error.
bool dx_template_compile(DxText source, DxTemplate** out, DxString* error);
// One over the rows of a data set, in the dialect of lm-evaluation-harness: white space stays, what is undefined is an error,
// `regex_replace` is Python's re.sub.
bool dx_row_template_compile(DxText source, DxTemplate** out, DxString* error);
void dx_template_free(DxTemplate* compiled);
// The variables that it reads and does not set, as a JSON list.
bool dx_template_variables(const DxTemplate* compiled, DxString* out, DxString* error);
// `context` is a JSON object.
bool dx_template_render(const DxTemplate* compiled, DxText context, DxString* out, DxString* error);
// Whether `{% generation %}` stands in the template; the same text with the ranges that it marks.
bool dx_template_marks_generation(const DxTemplate* compiled);
bool dx_template_render_marked(const DxTemplate* compiled, DxText context, DxString* out, DxRanges* generated, DxString* error);

#ifdef __cplusplus
}
#endif
