//! Ids with the places in the text that they stand for.

use rayon::prelude::*;

use crate::ffi::{guard, slice, DxRanges, DxString, DxText};
use crate::tokenizer::{DxEncodings, DxTokenizer};

#[no_mangle]
pub unsafe extern "C" fn dx_tokenizer_encode_offsets(
    tokenizer: *const DxTokenizer,
    texts: *const DxText,
    num_texts: usize,
    out: *mut DxEncodings,
    ranges: *mut DxRanges,
    error: *mut DxString,
) -> bool {
    guard(error, || {
        let tokenizer = &unsafe { &*tokenizer }.tokenizer;
        let texts: Vec<&str> =
            unsafe { slice(texts, num_texts) }.iter().map(|text| unsafe { text.text() }).collect::<Result<_, _>>()?;
        let encodings: Vec<_> = texts
            .into_par_iter()
            .map(|text| tokenizer.encode(text, false).map_err(|error| error.to_string()))
            .collect::<Result<_, _>>()?;
        let bounds = encodings.iter().flat_map(|encoding| encoding.get_offsets()).flat_map(|&(begin, end)| [begin, end]).collect();
        unsafe { out.write(DxEncodings::new(encodings.iter().map(|encoding| encoding.get_ids().to_vec()).collect())) };
        unsafe { ranges.write(DxRanges::new(bounds)) };
        Ok(())
    })
}
