//! C interface of Hugging Face `tokenizers` and of chat templates; `dx_tokenizers.h` describes it.

mod ffi;
mod python_json;
mod template;
mod tokenizer;
