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

/// None when the text would be longer than `limit` bytes.
pub fn dumps(value: &Value, style: &Style, limit: usize) -> Option<String> {
    let mut writer = Writer { out: String::new(), style, limit };
    writer.value(value, 0)?;
    Some(writer.out)
}

struct Writer<'a> {
    out: String,
    style: &'a Style,
    limit: usize,
}

impl Writer<'_> {
    fn push(&mut self, text: &str) -> Option<()> {
        if self.out.len().saturating_add(text.len()) > self.limit {
            return None;
        }
        self.out.push_str(text);
        Some(())
    }

    fn value(&mut self, value: &Value, depth: usize) -> Option<()> {
        match value {
            Value::String(text) => self.string(text),
            Value::Array(items) => self.items(("[", "]"), items.len(), depth, |writer, index| writer.value(&items[index], depth + 1)),
            Value::Object(map) => {
                let mut entries: Vec<_> = map.iter().collect();
                if self.style.sort_keys {
                    entries.sort_by_key(|(key, _)| key.as_str());
                }
                self.items(("{", "}"), entries.len(), depth, |writer, index| {
                    let (key, item) = entries[index];
                    writer.string(key)?;
                    writer.push(&writer.style.key_separator)?;
                    writer.value(item, depth + 1)
                })
            }
            scalar => self.push(&scalar.to_string()),
        }
    }

    fn new_line(&mut self, depth: usize) -> Option<()> {
        if let Some(indent) = &self.style.indent {
            self.push("\n")?;
            for _ in 0..depth {
                self.push(indent)?;
            }
        }
        Some(())
    }

    fn items(
        &mut self,
        (open, close): (&str, &str),
        count: usize,
        depth: usize,
        write_item: impl Fn(&mut Self, usize) -> Option<()>,
    ) -> Option<()> {
        self.push(open)?;
        for index in 0..count {
            if index > 0 {
                self.push(&self.style.item_separator)?;
            }
            self.new_line(depth + 1)?;
            write_item(self, index)?;
        }
        if count > 0 {
            self.new_line(depth)?;
        }
        self.push(close)
    }

    fn string(&mut self, text: &str) -> Option<()> {
        let quoted = Value::from(text).to_string();
        if !self.style.ensure_ascii {
            return self.push(&quoted);
        }
        let mut ascii = String::with_capacity(quoted.len());
        for character in quoted.chars() {
            if character.is_ascii() && character != '\u{7f}' {
                ascii.push(character);
                continue;
            }
            for unit in character.encode_utf16(&mut [0; 2]) {
                ascii.push_str(&format!("\\u{unit:04x}"));
            }
        }
        self.push(&ascii)
    }
}
