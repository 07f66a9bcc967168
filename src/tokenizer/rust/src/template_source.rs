//! A template's source before it is compiled: whether it stays within the bounds, and rewritten where minijinja alone would
//! not keep them. Everything is decided on minijinja's own tokens.

use minijinja::machinery::{tokenize, Span, Token};
use minijinja::syntax::SyntaxConfig;

const MAX_SOURCE_BYTES: usize = 1 << 20;
/// Operators, names and brackets of one tag: as many levels its expression may have, and the parser recurses into each.
const MAX_TAG_TOKENS: usize = 1000;
const MAX_ELIFS: usize = 500;

pub struct Checked {
    pub source: String,
    /// Whether `{% generation %}` marks what the assistant writes.
    pub marks_generation: bool,
}

type Spanned<'a> = (Token<'a>, Span);

/// Text in the place of a part of the source.
struct Edit {
    from: usize,
    to: usize,
    text: &'static str,
}

#[derive(Default)]
struct Rewriter {
    edits: Vec<Edit>,
    num_elifs: usize,
    marks_generation: bool,
}

fn begin(token: &Spanned) -> usize {
    token.1.start_offset as usize
}

fn end(token: &Spanned) -> usize {
    token.1.end_offset as usize
}

fn is_name(token: &Token, wanted: &str) -> bool {
    matches!(token, Token::Ident(name) if *name == wanted)
}

/// Whether a bracket behind this token belongs to it (a call, a subscript) and opens no value of its own.
fn ends_operand(token: &Token) -> bool {
    match token {
        Token::Ident(name) => !matches!(*name, "in" | "not" | "and" | "or" | "if" | "else" | "elif" | "is" | "for" | "set" | "with"),
        Token::ParenClose | Token::BracketClose | Token::BraceClose | Token::Str(_) | Token::String(_) => true,
        _ => false,
    }
}

fn is_bare_tuple(tokens: &[Spanned]) -> bool {
    let mut depth = 0_i64;
    tokens.iter().any(|(token, _)| {
        match token {
            Token::BracketOpen | Token::BraceOpen | Token::ParenOpen => depth += 1,
            Token::BracketClose | Token::BraceClose | Token::ParenClose => depth -= 1,
            _ => {}
        }
        depth == 0 && matches!(token, Token::Comma)
    })
}

struct Bracket {
    index: usize,
    is_value: bool,
    has_comma: bool,
    has_name: bool,
}

impl Rewriter {
    fn tag(&mut self, tokens: &[Spanned], is_block: bool) -> Result<(), String> {
        let counts = |token: &Token| {
            !matches!(token, Token::Str(_) | Token::String(_) | Token::Int(_) | Token::Int128(_) | Token::Float(_) | Token::Comma | Token::Colon)
        };
        let line = tokens.first().map_or(0, |token| token.1.start_line);
        if tokens.iter().filter(|(token, _)| counts(token)).count() > MAX_TAG_TOKENS {
            return Err(format!("line {line}: a tag of more than {MAX_TAG_TOKENS} names and operators: the bound of a chat template"));
        }
        let mut values_from = 0;
        if let (true, Some((Token::Ident(keyword), _))) = (is_block, tokens.first()) {
            match (*keyword, tokens.len()) {
                ("generation", 1) => {
                    self.marks_generation = true;
                    self.replace(&tokens[0], "filter __generation %}{% with");
                }
                ("endgeneration", 1) => self.replace(&tokens[0], "endwith %}{% endfilter"),
                ("elif", _) => {
                    self.num_elifs += 1;
                    if self.num_elifs > MAX_ELIFS {
                        return Err(format!("line {line}: more than {MAX_ELIFS} elif: the bound of a chat template"));
                    }
                }
                ("for", _) => {
                    values_from = tokens.iter().position(|(token, _)| is_name(token, "in")).unwrap_or(0);
                    if tokens.last().is_some_and(|(token, _)| is_name(token, "recursive")) {
                        return Err(format!("line {line}: a recursive loop: it is not supported"));
                    }
                }
                ("set", _) => values_from = self.assignment(tokens),
                _ => {}
            }
        }
        self.values(tokens, values_from);
        Ok(())
    }

    /// `{% set namespace.name = value %}`: what a namespace keeps is checked, and `{% set name = a, b %}` is a tuple. Where the
    /// values begin.
    fn assignment(&mut self, tokens: &[Spanned]) -> usize {
        // Not that of an argument, as in `{% set name | indent(first=true) %}`.
        let mut depth = 0_i32;
        let is_outer = |(token, _): &Spanned| {
            match token {
                Token::BracketOpen | Token::BraceOpen | Token::ParenOpen => depth += 1,
                Token::BracketClose | Token::BraceClose | Token::ParenClose => depth -= 1,
                _ => {}
            }
            depth == 0 && matches!(token, Token::Assign)
        };
        let Some(assign) = tokens.iter().position(is_outer) else { return 0 };
        let has_attribute = tokens[..assign].iter().any(|(token, _)| matches!(token, Token::Dot));
        let values = &tokens[assign + 1..];
        if let (true, Some(last)) = (has_attribute || is_bare_tuple(values), values.last()) {
            self.insert(end(&tokens[assign]), "(");
            self.insert(end(last), if has_attribute { ")|__kept" } else { ")|__plain" });
        }
        assign
    }

    /// Lists, tuples and dicts that are written out: their size and depth is checked where they are made.
    fn values(&mut self, tokens: &[Spanned], from: usize) {
        let mut open: Vec<Bracket> = Vec::new();
        for index in from..tokens.len() {
            let token = &tokens[index].0;
            match token {
                Token::BracketOpen | Token::BraceOpen | Token::ParenOpen => {
                    let follows_operand = index > 0 && ends_operand(&tokens[index - 1].0);
                    open.push(Bracket { index, is_value: !follows_operand, has_comma: false, has_name: false });
                }
                Token::BracketClose | Token::BraceClose | Token::ParenClose => {
                    let Some(bracket) = open.pop() else { continue };
                    if let Some(outer) = open.last_mut() {
                        outer.has_name |= bracket.has_name;
                    }
                    let is_tuple = matches!(token, Token::ParenClose);
                    let is_target = matches!(tokens.get(index + 1), Some((Token::Assign, _)));
                    if bracket.is_value && bracket.has_name && !is_target && (!is_tuple || bracket.has_comma) {
                        self.insert(begin(&tokens[bracket.index]), "(");
                        self.insert(end(&tokens[index]), "|__plain)");
                    }
                }
                Token::Comma => {
                    if let Some(bracket) = open.last_mut() {
                        bracket.has_comma = true;
                    }
                }
                Token::Ident(_) => {
                    if let Some(bracket) = open.last_mut() {
                        bracket.has_name = true;
                    }
                }
                _ => {}
            }
        }
    }

    fn insert(&mut self, offset: usize, text: &'static str) {
        self.edits.push(Edit { from: offset, to: offset, text });
    }

    fn replace(&mut self, token: &Spanned, text: &'static str) {
        self.edits.push(Edit { from: begin(token), to: end(token), text });
    }

    fn apply(mut self, source: &str) -> String {
        self.edits.sort_by_key(|edit| edit.from);
        let mut out = String::with_capacity(source.len() + 16 * self.edits.len());
        let mut at = 0;
        for edit in &self.edits {
            out.push_str(&source[at..edit.from]);
            out.push_str(edit.text);
            at = edit.to;
        }
        out.push_str(&source[at..]);
        out
    }
}

pub fn check(source: &str, syntax: &SyntaxConfig) -> Result<Checked, String> {
    if source.len() > MAX_SOURCE_BYTES {
        return Err(format!("a template of {} bytes: the bound is {MAX_SOURCE_BYTES}", source.len()));
    }
    let mut rewriter = Rewriter::default();
    let mut tag: Vec<Spanned> = Vec::new();
    // What is no template is told by the compiler, in better words.
    for spanned in tokenize(source, false, syntax.clone()).map_while(Result::ok) {
        match spanned.0 {
            Token::VariableStart | Token::BlockStart => tag.clear(),
            Token::VariableEnd => rewriter.tag(&tag, false)?,
            Token::BlockEnd => rewriter.tag(&tag, true)?,
            Token::TemplateData(_) => {}
            _ => tag.push(spanned),
        }
    }
    let marks_generation = rewriter.marks_generation;
    Ok(Checked { source: rewriter.apply(source), marks_generation })
}

/// The source with `value[a:b]` as `value.slice(a, b)`. minijinja's list of a template's variables passes over a value that is cut.
pub fn with_slices_as_calls(source: &str, syntax: &SyntaxConfig) -> String {
    let mut rewriter = Rewriter::default();
    let tokens: Vec<Spanned> = tokenize(source, false, syntax.clone()).map_while(Result::ok).collect();
    let mut open: Vec<(usize, Vec<usize>)> = Vec::new();
    for (index, (token, _)) in tokens.iter().enumerate() {
        match token {
            Token::BracketOpen | Token::BraceOpen | Token::ParenOpen => open.push((index, Vec::new())),
            Token::Colon => open.last_mut().into_iter().for_each(|bracket| bracket.1.push(index)),
            Token::BraceClose | Token::ParenClose => drop(open.pop()),
            Token::BracketClose => {
                let Some((first, colons)) = open.pop() else { continue };
                if colons.is_empty() {
                    continue;
                }
                rewriter.replace(&tokens[first], ".slice(");
                for colon in colons {
                    let is_first = colon == first + 1 || matches!(tokens[colon - 1].0, Token::Colon);
                    let is_last = colon + 1 == index;
                    rewriter.replace(&tokens[colon], match (is_first, is_last) {
                        (true, true) => "0, 0",
                        (true, false) => "0, ",
                        (false, true) => ", 0",
                        (false, false) => ", ",
                    });
                }
                rewriter.replace(&tokens[index], ")");
            }
            _ => {}
        }
    }
    rewriter.apply(source)
}
