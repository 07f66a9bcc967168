//! `json.dumps` of Python, for the filter `tojson` as `transformers` defines it.

use serde_json::Value;

pub struct Style {
    pub ensure_ascii: bool,
    /// Text of one level of indentation; none: all on one line.
    pub indent: Option<String>,
    pub item_separator: String,
    pub key_separator: String,
    pub sort_keys: bool,
}

pub fn dumps(value: &Value, style: &Style) -> String {
    let mut out = String::new();
    write_value(&mut out, value, style, 0);
    out
}

fn write_value(out: &mut String, value: &Value, style: &Style, depth: usize) {
    match value {
        Value::String(text) => write_string(out, text, style.ensure_ascii),
        Value::Array(items) => write_items(out, ('[', ']'), items.len(), style, depth, |out, index| {
            write_value(out, &items[index], style, depth + 1);
        }),
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            if style.sort_keys {
                entries.sort_by_key(|(key, _)| key.as_str());
            }
            write_items(out, ('{', '}'), entries.len(), style, depth, |out, index| {
                let (key, item) = entries[index];
                write_string(out, key, style.ensure_ascii);
                out.push_str(&style.key_separator);
                write_value(out, item, style, depth + 1);
            });
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

fn write_items(
    out: &mut String,
    (open, close): (char, char),
    count: usize,
    style: &Style,
    depth: usize,
    write_item: impl Fn(&mut String, usize),
) {
    let new_line = |out: &mut String, depth: usize| {
        if let Some(indent) = &style.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    };
    out.push(open);
    for index in 0..count {
        if index > 0 {
            out.push_str(&style.item_separator);
        }
        new_line(out, depth + 1);
        write_item(out, index);
    }
    if count > 0 {
        new_line(out, depth);
    }
    out.push(close);
}

fn write_string(out: &mut String, text: &str, ensure_ascii: bool) {
    let quoted = Value::from(text).to_string();
    if !ensure_ascii {
        out.push_str(&quoted);
        return;
    }
    for character in quoted.chars() {
        if character.is_ascii() && character != '\u{7f}' {
            out.push(character);
            continue;
        }
        for unit in character.encode_utf16(&mut [0; 2]) {
            out.push_str(&format!("\\u{unit:04x}"));
        }
    }
}
