//! Chat templates: minijinja made to behave as the Jinja environment of `transformers`.

use std::fmt::Write;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value, ValueKind};
use minijinja::{escape_formatter, Environment, Error, ErrorKind};

use crate::ffi::{guard, DxString, DxText};
use crate::python_json::{dumps, Style};

const NAME: &str = "chat_template";

pub struct DxTemplate {
    environment: Environment<'static>,
}

fn describe(error: &Error) -> String {
    let what = match error.detail() {
        Some(detail) if error.kind() == ErrorKind::InvalidOperation => detail.to_string(),
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    match error.line() {
        Some(line) => format!("line {line}: {what}"),
        None => what,
    }
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

fn strftime_now(format: String) -> Result<String, Error> {
    let mut text = String::new();
    write!(text, "{}", chrono::Local::now().format(&format))
        .map_err(|_| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: '{format}' is not a date format")))?;
    Ok(text)
}

fn indent_text(indent: Value) -> Result<Option<String>, Error> {
    if indent.is_none() {
        return Ok(None);
    }
    if let Some(text) = indent.as_str() {
        return Ok(Some(text.to_string()));
    }
    Ok(Some(" ".repeat(usize::try_from(indent)?)))
}

fn tojson(value: &Value, kwargs: Kwargs) -> Result<String, Error> {
    let indent = indent_text(kwargs.get::<Option<Value>>("indent")?.unwrap_or(Value::from(())))?;
    let (item_separator, key_separator) = match kwargs.get::<Option<Vec<String>>>("separators")? {
        Some(pair) if pair.len() == 2 => (pair[0].clone(), pair[1].clone()),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "tojson: separators takes two texts")),
        None if indent.is_some() => (",".to_string(), ": ".to_string()),
        None => (", ".to_string(), ": ".to_string()),
    };
    let style = Style {
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        indent,
        item_separator,
        key_separator,
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    let value = serde_json::to_value(value)
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("tojson: {error}")))?;
    Ok(dumps(&value, &style))
}

/// `{% generation %}` marks the assistant's part for training; here it only opens a scope, as a Jinja call block does.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        let Some(end) = tag.find("%}") else { break };
        out.push_str(before);
        let body = &tag[2..end];
        let replaced = match body.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+') {
            "generation" => body.replace("generation", "with"),
            "endgeneration" => body.replace("endgeneration", "endwith"),
            _ => body.to_string(),
        };
        out.push_str("{%");
        out.push_str(&replaced);
        out.push_str("%}");
        rest = &tag[end + 2..];
    }
    out.push_str(rest);
    out
}

impl DxTemplate {
    fn compile(source: &str) -> Result<Self, String> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| describe(&error))?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(|out, state, value| match value.kind() {
            ValueKind::None => out.write_str("None").map_err(Error::from),
            ValueKind::Bool => out.write_str(if value.is_true() { "True" } else { "False" }).map_err(Error::from),
            _ => escape_formatter(out, state, value),
        });
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", tojson);
        environment
            .add_template_owned(NAME, without_generation_tags(source))
            .map_err(|error| describe(&error))?;
        Ok(DxTemplate { environment })
    }

    fn render(&self, context: &[u8]) -> Result<String, String> {
        let context: serde_json::Value = serde_json::from_slice(context).map_err(|error| error.to_string())?;
        let template = self.environment.get_template(NAME).map_err(|error| describe(&error))?;
        template.render(Value::from(Serde(context))).map_err(|error| describe(&error))
    }
}

#[no_mangle]
pub unsafe extern "C" fn dx_template_compile(source: DxText, out: *mut *mut DxTemplate, error: *mut DxString) -> bool {
    guard(error, || {
        let compiled = DxTemplate::compile(unsafe { source.text() }?)?;
        unsafe { out.write(Box::into_raw(Box::new(compiled))) };
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn dx_template_free(compiled: *mut DxTemplate) {
    if !compiled.is_null() {
        drop(unsafe { Box::from_raw(compiled) });
    }
}

#[no_mangle]
pub unsafe extern "C" fn dx_template_render(
    compiled: *const DxTemplate,
    context: DxText,
    out: *mut DxString,
    error: *mut DxString,
) -> bool {
    guard(error, || {
        let text = unsafe { &*compiled }.render(unsafe { context.bytes() })?;
        unsafe { out.write(DxString::new(text)) };
        Ok(())
    })
}
