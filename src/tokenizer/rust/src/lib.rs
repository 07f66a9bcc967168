//! C interface of Hugging Face `tokenizers` and of chat templates; `dx_tokenizers.h` describes it.

mod ffi;
mod offsets;
mod python_json;
mod template;
mod template_source;
mod template_values;
mod tokenizer;
