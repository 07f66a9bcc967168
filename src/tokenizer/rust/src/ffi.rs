//! What crosses the boundary: texts, owned strings, and errors instead of panics.

use std::any::Any;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Once;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct DxText {
    data: *const u8,
    size: usize,
}

#[repr(C)]
pub struct DxString {
    data: *mut u8,
    size: usize,
}

/// Begin and end of ranges, one after the other.
#[repr(C)]
pub struct DxRanges {
    bounds: *mut usize,
    num_bounds: usize,
}

impl DxRanges {
    pub fn new(bounds: Vec<usize>) -> Self {
        let num_bounds = bounds.len();
        DxRanges { bounds: Box::into_raw(bounds.into_boxed_slice()) as *mut usize, num_bounds }
    }
}

impl DxString {
    pub fn new(text: String) -> Self {
        let bytes = text.into_bytes().into_boxed_slice();
        let size = bytes.len();
        DxString { data: Box::into_raw(bytes) as *mut u8, size }
    }
}

impl DxText {
    /// # Safety
    /// `data` points to `size` bytes that outlive the result.
    pub unsafe fn bytes<'a>(self) -> &'a [u8] {
        unsafe { slice(self.data, self.size) }
    }

    /// # Safety
    /// As `bytes`.
    pub unsafe fn text<'a>(self) -> Result<&'a str, String> {
        std::str::from_utf8(unsafe { self.bytes() })
            .map_err(|error| format!("the text is not UTF-8 at byte {}", error.valid_up_to()))
    }
}

/// A slice from C, where an empty one may have a null pointer.
///
/// # Safety
/// `data` points to `size` values that outlive the result, or `size` is 0.
pub unsafe fn slice<'a, T>(data: *const T, size: usize) -> &'a [T] {
    if size == 0 {
        &[]
    } else {
        unsafe { std::slice::from_raw_parts(data, size) }
    }
}

fn panic_message(payload: Box<dyn Any + Send>) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|text| text.to_string())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "internal error".to_string())
}

/// Runs `work`; on an error or a panic fills `error` and returns false.
pub fn guard(error: *mut DxString, work: impl FnOnce() -> Result<(), String>) -> bool {
    static SILENCE: Once = Once::new();
    SILENCE.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    let message = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => return true,
        Ok(Err(message)) => message,
        Err(payload) => panic_message(payload),
    };
    unsafe { error.write(DxString::new(message)) };
    false
}

#[no_mangle]
pub unsafe extern "C" fn dx_string_free(string: DxString) {
    if !string.data.is_null() {
        drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(string.data, string.size)) });
    }
}

#[no_mangle]
pub unsafe extern "C" fn dx_ranges_free(ranges: DxRanges) {
    if !ranges.bounds.is_null() {
        drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(ranges.bounds, ranges.num_bounds)) });
    }
}
