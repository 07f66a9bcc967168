//! Hugging Face `tokenizers`.

use std::collections::HashMap;
use std::sync::OnceLock;

use rayon::prelude::*;
use serde_json::Value;
use tokenizers::{AddedToken, Encoding, PostProcessor, Token, Tokenizer};

use crate::ffi::{guard, slice, DxString, DxText};

pub struct DxTokenizer {
    pub(crate) tokenizer: Tokenizer,
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
    /// Also gives the tokenizer.json that describes it, where `added_tokens` changed something.
    fn load(json: &[u8], added_tokens: &str) -> Result<(Self, Option<String>), String> {
        let mut tokenizer = Tokenizer::from_bytes(json).map_err(|error| error.to_string())?;
        let tokens = tokens_to_add(&tokenizer, added_tokens)?;
        let changed = if tokens.is_empty() {
            None
        } else {
            tokenizer.add_tokens(tokens).map_err(|error| error.to_string())?;
            Some(tokenizer.to_string(false).map_err(|error| error.to_string())?)
        };
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| error.to_string())?;
        let vocab_size = tokenizer.get_vocab(true).values().max().map_or(0, |&id| i64::from(id) + 1);
        Ok((DxTokenizer { tokenizer, plain: OnceLock::new(), vocab_size }, changed))
    }

    /// The ids that the post-processor puts before and after those of a text: a text of one token that no vocabulary has shows it.
    fn affixes(&self) -> Result<Vec<Vec<u32>>, String> {
        const TEXT: u32 = u32::MAX;
        let Some(processor) = self.tokenizer.get_post_processor() else {
            return Ok(vec![Vec::new(), Vec::new()]);
        };
        let text = Encoding::from_tokens(vec![Token::new(TEXT, String::from("a"), (0, 1))], 0);
        let whole = processor.process(text, None, true).map_err(|error| error.to_string())?;
        let parts: Vec<Vec<u32>> = whole.get_ids().split(|&id| id == TEXT).map(<[u32]>::to_vec).collect();
        match parts.len() {
            2 => Ok(parts),
            found => Err(format!("post_processor gives a text back {} times: it must once", found - 1)),
        }
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
}

/// Those of `list` (JSON: [{"token": {content and flags}, "replaces": bool}]) that change the tokenizer. One that replaces nothing is
/// left out where an added token of that content is there already.
fn tokens_to_add(tokenizer: &Tokenizer, list: &str) -> Result<Vec<AddedToken>, String> {
    let list: Vec<Value> = serde_json::from_str(list).map_err(|error| format!("added tokens: {error}"))?;
    let mut there: HashMap<String, AddedToken> =
        tokenizer.get_added_tokens_decoder().into_values().map(|token| (token.content.clone(), token)).collect();
    let mut tokens = Vec::new();
    for entry in list {
        let token: AddedToken = serde_json::from_value(entry["token"].clone()).map_err(|error| format!("added tokens: {error}"))?;
        let changes = match there.get(&token.content) {
            Some(old) => entry["replaces"] == Value::Bool(true) && *old != token,
            None => !token.content.is_empty(),
        };
        if changes {
            there.insert(token.content.clone(), token.clone());
            tokens.push(token);
        }
    }
    Ok(tokens)
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
    pub(crate) fn new(encodings: Vec<Vec<u32>>) -> Self {
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
pub unsafe extern "C" fn dx_tokenizer_load(
    json: DxText,
    added_tokens: DxText,
    out: *mut *mut DxTokenizer,
    changed_json: *mut DxString,
    error: *mut DxString,
) -> bool {
    guard(error, || {
        let (tokenizer, changed) = unsafe { DxTokenizer::load(json.bytes(), added_tokens.text()?) }?;
        unsafe { out.write(Box::into_raw(Box::new(tokenizer))) };
        unsafe { changed_json.write(DxString::new(changed.unwrap_or_default())) };
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
pub unsafe extern "C" fn dx_tokenizer_affixes(
    tokenizer: *const DxTokenizer,
    out: *mut DxEncodings,
    error: *mut DxString,
) -> bool {
    guard(error, || {
        let affixes = unsafe { &*tokenizer }.affixes()?;
        unsafe { out.write(DxEncodings::new(affixes)) };
        Ok(())
    })
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
