//! Chat templates: minijinja made to behave as the Jinja environment of `transformers`.

use std::fmt::Write;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value, ValueKind};
use minijinja::{escape_formatter, Environment, Error, ErrorKind, State, UndefinedBehavior};
use regex::{Captures, Regex};

use crate::ffi::{guard, DxRanges, DxString, DxText};
use crate::python_json::{dumps, Style};
use crate::template_source;
use crate::template_values::{self, weigh, FUEL_BYTES};

const NAME: &str = "chat_template";
/// Name under which a render finds the two characters that `{% generation %}` writes around its body.
const MARKS: &str = "__generation_marks";

/// Steps for each MiB of a conversation, begun or whole, and for how many MiB at most. A step is an instruction, or 64 bytes of text.
const FUEL: u64 = 4 << 20;
const MAX_FUEL_PARTS: u64 = 8;
const MAX_INDENT: usize = 100;
const MAX_MESSAGE_BYTES: usize = 1000;

/// Chat templates are rendered as `transformers` does, those over the rows of a data set as lm-evaluation-harness does.
#[derive(Clone, Copy)]
pub(crate) enum Dialect {
    Chat,
    Row,
}

pub struct DxTemplate {
    environment: Environment<'static>,
    pub(crate) marks_generation: bool,
    /// Those that a template over rows reads and does not set itself, in alphabetical order.
    variables: Vec<String>,
}

fn describe(error: &Error) -> String {
    let mut text = describe_whole(error);
    if text.len() > MAX_MESSAGE_BYTES {
        let cut = (0..=MAX_MESSAGE_BYTES).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(cut);
        text.push_str(" ...");
    }
    text
}

fn describe_whole(error: &Error) -> String {
    if error.kind() == ErrorKind::OutOfFuel {
        let line = error.line().map(|line| format!("line {line}: ")).unwrap_or_default();
        return format!("{line}it takes too many steps, or makes too much text: the bound is {} million steps (and 64 bytes each) for a MiB of messages", FUEL >> 20);
    }
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
    let width = usize::try_from(indent)?;
    if width > MAX_INDENT {
        return Err(Error::new(ErrorKind::InvalidOperation, format!("tojson: indent={width}: at most {MAX_INDENT}")));
    }
    Ok(Some(" ".repeat(width)))
}

fn tojson(state: &State, value: &Value, kwargs: Kwargs) -> Result<String, Error> {
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
    weigh(state, value, 0)?;
    let value = serde_json::to_value(value)
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("tojson: {error}")))?;
    let limit = state.fuel_levels().map_or(u64::MAX, |(_, left)| left.saturating_mul(FUEL_BYTES));
    dumps(&value, &style, usize::try_from(limit).unwrap_or(usize::MAX)).ok_or_else(|| Error::from(ErrorKind::OutOfFuel))
}

/// What Python's `re.sub` puts in the place of a match: `\1` to `\9` are its groups.
fn replacement(captures: &Captures, template: &str) -> String {
    let mut text = String::new();
    let mut rest = template.chars();
    while let Some(c) = rest.next() {
        match (c, rest.clone().next().and_then(|next| next.to_digit(10))) {
            ('\\', Some(group)) => {
                text.push_str(captures.get(group as usize).map_or("", |found| found.as_str()));
                rest.next();
            }
            _ => text.push(c),
        }
    }
    text
}

/// `text | regex_replace(pattern, replacement)`, as the templates of evaluation tasks have it.
fn regex_replace(state: &State, text: &str, pattern: &str, template: &str) -> Result<String, Error> {
    state.consume_fuel((text.len() + 16 * pattern.len()) as u64 / FUEL_BYTES + 1)?;
    let regex = Regex::new(pattern)
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("regex_replace: '{pattern}': {error}")))?;
    Ok(regex.replace_all(text, |captures: &Captures| replacement(captures, template)).into_owned())
}

/// The body of `{% generation %}`, between two marks where the parts are asked for.
fn generation(state: &State, body: String) -> String {
    match state.lookup(MARKS).as_ref().and_then(|marks| marks.as_str()) {
        Some(marks) => {
            let open = marks.chars().next().map_or(0, char::len_utf8);
            format!("{}{body}{}", &marks[..open], &marks[open..])
        }
        None => body,
    }
}

/// Two characters for private use that neither text holds.
fn free_marks(context: &str, source: &str) -> Result<(char, char), String> {
    let mut free = ('\u{e000}'..='\u{f8ff}').filter(|&mark| !context.contains(mark) && !source.contains(mark));
    match (free.next(), free.next()) {
        (Some(open), Some(close)) => Ok((open, close)),
        _ => Err("the conversation holds every character for private use: its answers cannot be marked".to_string()),
    }
}

/// Takes the marks out of what was rendered: the text, and begin and end of each part that they enclose.
fn take_out_marks(text: &str, (open, close): (char, char)) -> Result<(String, Vec<usize>), String> {
    let (mut plain, mut bounds) = (String::with_capacity(text.len()), Vec::new());
    let mut depth = 0_usize; // marks within marks are part of the outer ones
    let mut rest = text;
    while let Some(at) = rest.find([open, close]) {
        plain.push_str(&rest[..at]);
        if rest[at..].starts_with(open) {
            depth += 1;
        } else {
            depth = depth.checked_sub(1).ok_or("its generation marks are cut")?;
        }
        if depth == usize::from(bounds.len() % 2 == 0) {
            bounds.push(plain.len());
        }
        rest = &rest[at + open.len_utf8()..];
    }
    plain.push_str(rest);
    if depth != 0 {
        return Err("its generation marks are cut".to_string());
    }
    Ok((plain, bounds))
}

impl DxTemplate {
    pub(crate) fn compile(source: &str, dialect: Dialect) -> Result<Self, String> {
        let mut environment = Environment::new();
        let is_chat = matches!(dialect, Dialect::Chat);
        let syntax = SyntaxConfig::builder().trim_blocks(is_chat).lstrip_blocks(is_chat).keep_trailing_newline(!is_chat).build();
        let syntax = syntax.map_err(|error| describe(&error))?;
        let checked = template_source::check(source, &syntax)?;
        environment.set_syntax(syntax.clone());
        environment.set_fuel(Some(FUEL));
        environment.set_debug(false);
        template_values::add_to(&mut environment);
        environment.set_formatter(|out, state, value| match value.kind() {
            ValueKind::None => out.write_str("None").map_err(Error::from),
            ValueKind::Bool => out.write_str(if value.is_true() { "True" } else { "False" }).map_err(Error::from),
            _ => escape_formatter(out, state, value),
        });
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", tojson);
        environment.add_filter("__generation", generation);
        if matches!(dialect, Dialect::Row) {
            environment.set_undefined_behavior(UndefinedBehavior::Strict);
            environment.add_filter("regex_replace", regex_replace);
        }
        environment.add_template_owned(NAME, checked.source).map_err(|error| describe(&error))?;
        let variables = if is_chat { Vec::new() } else { Self::find_variables(source, syntax, &environment)? };
        Ok(DxTemplate { environment, marks_generation: checked.marks_generation, variables })
    }

    fn find_variables(source: &str, syntax: SyntaxConfig, environment: &Environment) -> Result<Vec<String>, String> {
        let source = template_source::with_slices_as_calls(source, &syntax);
        let mut parsed = Environment::new();
        parsed.set_syntax(syntax);
        let template = parsed.template_from_str(&source).map_err(|error| describe(&error))?;
        let is_global = |name: &str| environment.globals().any(|(global, _)| global == name);
        let mut names: Vec<_> = template.undeclared_variables(false).into_iter().filter(|name| !is_global(name)).collect();
        names.sort();
        Ok(names)
    }

    fn render_value(&self, context: serde_json::Value, size: usize) -> Result<String, String> {
        let parts = (size as u64 >> 20).saturating_add(1).min(MAX_FUEL_PARTS);
        let with_more = (parts > 1).then(|| {
            let mut environment = self.environment.clone();
            environment.set_fuel(Some(FUEL * parts));
            environment
        });
        let environment = with_more.as_ref().unwrap_or(&self.environment);
        let template = environment.get_template(NAME).map_err(|error| describe(&error))?;
        template.render(Value::from(Serde(context))).map_err(|error| describe(&error))
    }

    pub(crate) fn render(&self, context: &str) -> Result<String, String> {
        let value = serde_json::from_str(context).map_err(|error| error.to_string())?;
        self.render_value(value, context.len())
    }

    pub(crate) fn render_marked(&self, context: &str) -> Result<(String, Vec<usize>), String> {
        let mut value: serde_json::Value = serde_json::from_str(context).map_err(|error| error.to_string())?;
        let template = self.environment.get_template(NAME).map_err(|error| describe(&error))?;
        let marks = free_marks(context, template.source())?;
        value[MARKS] = format!("{}{}", marks.0, marks.1).into();
        take_out_marks(&self.render_value(value, context.len())?, marks)
    }
}

#[no_mangle]
pub unsafe extern "C" fn dx_template_compile(source: DxText, out: *mut *mut DxTemplate, error: *mut DxString) -> bool {
    guard(error, || {
        let compiled = DxTemplate::compile(unsafe { source.text() }?, Dialect::Chat)?;
        unsafe { out.write(Box::into_raw(Box::new(compiled))) };
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn dx_row_template_compile(source: DxText, out: *mut *mut DxTemplate, error: *mut DxString) -> bool {
    guard(error, || {
        let compiled = DxTemplate::compile(unsafe { source.text() }?, Dialect::Row)?;
        unsafe { out.write(Box::into_raw(Box::new(compiled))) };
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn dx_template_variables(compiled: *const DxTemplate, out: *mut DxString, error: *mut DxString) -> bool {
    guard(error, || {
        let names = serde_json::to_string(&unsafe { &*compiled }.variables).map_err(|error| error.to_string())?;
        unsafe { out.write(DxString::new(names)) };
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
pub unsafe extern "C" fn dx_template_marks_generation(compiled: *const DxTemplate) -> bool {
    unsafe { &*compiled }.marks_generation
}

#[no_mangle]
pub unsafe extern "C" fn dx_template_render(
    compiled: *const DxTemplate,
    context: DxText,
    out: *mut DxString,
    error: *mut DxString,
) -> bool {
    guard(error, || {
        let text = unsafe { &*compiled }.render(unsafe { context.text() }?)?;
        unsafe { out.write(DxString::new(text)) };
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn dx_template_render_marked(
    compiled: *const DxTemplate,
    context: DxText,
    out: *mut DxString,
    generated: *mut DxRanges,
    error: *mut DxString,
) -> bool {
    guard(error, || {
        let (text, places) = unsafe { &*compiled }.render_marked(unsafe { context.text() }?)?;
        unsafe { out.write(DxString::new(text)) };
        unsafe { generated.write(DxRanges::new(places)) };
        Ok(())
    })
}
