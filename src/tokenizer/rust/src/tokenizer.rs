//! Hugging Face `tokenizers`.

use std::sync::OnceLock;

use rayon::prelude::*;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::Tokenizer;

use crate::ffi::{guard, slice, DxString, DxText};

pub struct DxTokenizer {
    tokenizer: Tokenizer,
    /// The same, leaving special tokens in texts as plain text; made at first use.
    plain: OnceLock<Tokenizer>,
    vocab_size: i64,
}

#[repr(C)]
pub struct DxEncodings {
    ids: *mut i32,
    num_ids: usize,
    ends: *mut usize,
    num_texts: usize,
}

impl DxTokenizer {
    fn load(json: &[u8]) -> Result<Self, String> {
        let mut tokenizer = Tokenizer::from_bytes(json).map_err(|error| error.to_string())?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| error.to_string())?;
        let vocab_size = tokenizer.get_vocab(true).values().max().map_or(0, |&id| i64::from(id) + 1);
        Ok(DxTokenizer { tokenizer, plain: OnceLock::new(), vocab_size })
    }

    fn with_special(&self, parse_special: bool) -> &Tokenizer {
        if parse_special {
            return &self.tokenizer;
        }
        self.plain.get_or_init(|| {
            let mut plain = self.tokenizer.clone();
            plain.set_encode_special_tokens(true);
            plain
        })
    }

    fn set_bos_eos(&mut self, bos: &str, eos: &str) -> Result<(), String> {
        let mut pieces = Vec::new();
        let mut special_tokens = Vec::new();
        for (piece, is_bos) in [(bos, true), (eos, false)] {
            if !is_bos {
                pieces.push("$A:0".to_string());
            }
            if piece.is_empty() {
                continue;
            }
            let id = self.tokenizer.token_to_id(piece).ok_or_else(|| format!("'{piece}' is not in the vocabulary"))?;
            pieces.push(format!("{piece}:0"));
            special_tokens.push((piece.to_string(), id));
        }
        let processor = TemplateProcessing::builder()
            .try_single(pieces)
            .map_err(|error| error.to_string())?
            .special_tokens(special_tokens)
            .build()
            .map_err(|error| error.to_string())?;
        self.tokenizer.with_post_processor(Some(processor));
        self.plain = OnceLock::new();
        Ok(())
    }
}

fn encode(tokenizer: &Tokenizer, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, String> {
    let encoding = tokenizer.encode_fast(text, add_special_tokens).map_err(|error| error.to_string())?;
    Ok(encoding.get_ids().to_vec())
}

fn encode_all(tokenizer: &Tokenizer, texts: &[DxText], add_special_tokens: bool) -> Result<Vec<Vec<u32>>, String> {
    if let [text] = texts {
        return Ok(vec![encode(tokenizer, unsafe { text.text() }?, add_special_tokens)?]);
    }
    let with_index = |index: usize, error: String| format!("text {index}: {error}");
    let mut checked = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        checked.push(unsafe { text.text() }.map_err(|error| with_index(index, error))?);
    }
    checked
        .into_par_iter()
        .enumerate()
        .map(|(index, text)| encode(tokenizer, text, add_special_tokens).map_err(|error| with_index(index, error)))
        .collect()
}

impl DxEncodings {
    fn new(encodings: Vec<Vec<u32>>) -> Self {
        let mut ids = Vec::with_capacity(encodings.iter().map(Vec::len).sum());
        let mut ends = Vec::with_capacity(encodings.len());
        for encoding in encodings {
            ids.extend(encoding.into_iter().map(|id| id as i32));
            ends.push(ids.len());
        }
        let (num_ids, num_texts) = (ids.len(), ends.len());
        DxEncodings {
            ids: Box::into_raw(ids.into_boxed_slice()) as *mut i32,
            num_ids,
            ends: Box::into_raw(ends.into_boxed_slice()) as *mut usize,
            num_texts,
        }
    }
}

#[no_mangle]
pub unsafe extern "C" fn dx_encodings_free(encodings: DxEncodings) {
    if !encodings.ids.is_null() {
        drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(encodings.ids, encodings.num_ids)) });
        drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(encodings.ends, encodings.num_texts)) });
    }
}

#[no_mangle]
pub unsafe extern "C" fn dx_tokenizer_load(json: DxText, out: *mut *mut DxTokenizer, error: *mut DxString) -> bool {
    guard(error, || {
        let tokenizer = DxTokenizer::load(unsafe { json.bytes() })?;
        unsafe { out.write(Box::into_raw(Box::new(tokenizer))) };
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn dx_tokenizer_free(tokenizer: *mut DxTokenizer) {
    if !tokenizer.is_null() {
        drop(unsafe { Box::from_raw(tokenizer) });
    }
}

#[no_mangle]
pub unsafe extern "C" fn dx_tokenizer_set_bos_eos(
    tokenizer: *mut DxTokenizer,
    bos: DxText,
    eos: DxText,
    error: *mut DxString,
) -> bool {
    guard(error, || unsafe { (*tokenizer).set_bos_eos(bos.text()?, eos.text()?) })
}

#[no_mangle]
pub unsafe extern "C" fn dx_tokenizer_encode(
    tokenizer: *const DxTokenizer,
    texts: *const DxText,
    num_texts: usize,
    add_special_tokens: bool,
    parse_special: bool,
    out: *mut DxEncodings,
    error: *mut DxString,
) -> bool {
    guard(error, || {
        let tokenizer = unsafe { &*tokenizer }.with_special(parse_special);
        let encodings = encode_all(tokenizer, unsafe { slice(texts, num_texts) }, add_special_tokens)?;
        unsafe { out.write(DxEncodings::new(encodings)) };
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn dx_tokenizer_decode(
    tokenizer: *const DxTokenizer,
    ids: *const i32,
    num_ids: usize,
    skip_special_tokens: bool,
    out: *mut DxString,
    error: *mut DxString,
) -> bool {
    guard(error, || {
        let ids: Vec<u32> = unsafe { slice(ids, num_ids) }.iter().map(|&id| id as u32).collect();
        let text = unsafe { &*tokenizer }
            .tokenizer
            .decode(&ids, skip_special_tokens)
            .map_err(|error| error.to_string())?;
        unsafe { out.write(DxString::new(text)) };
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn dx_tokenizer_vocab_size(tokenizer: *const DxTokenizer) -> i64 {
    unsafe { (*tokenizer).vocab_size }
}

#[no_mangle]
pub unsafe extern "C" fn dx_tokenizer_token_id(tokenizer: *const DxTokenizer, piece: DxText) -> i64 {
    match unsafe { piece.text() } {
        Ok(piece) => unsafe { &*tokenizer }.tokenizer.token_to_id(piece).map_or(-1, i64::from),
        Err(_) => -1,
    }
}

#[no_mangle]
pub unsafe extern "C" fn dx_tokenizer_piece(tokenizer: *const DxTokenizer, id: i32, out: *mut DxString) -> bool {
    match unsafe { &*tokenizer }.tokenizer.id_to_token(id as u32) {
        Some(piece) => {
            unsafe { out.write(DxString::new(piece)) };
            true
        }
        None => false,
    }
}
