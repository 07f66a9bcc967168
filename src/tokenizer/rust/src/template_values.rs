//! What a template makes while it runs, kept within bounds: minijinja's fuel pays for steps and texts; here are the values that
//! it does not pay for, and those that would be too deep, or refer to themselves.

use minijinja::value::{ObjectRepr, Rest, Value, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State};
use minijinja_contrib::pycompat;

const MAX_DEPTH: usize = 100;
/// As many bytes as a unit of minijinja's fuel pays for.
pub const FUEL_BYTES: u64 = 64;

fn refuse(what: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.to_string())
}

/// Pays for all that a value holds, shared parts as often as they occur in it. Fails where it is too deep.
pub fn weigh(state: &State, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(refuse("a value of more than 100 levels: the bound of a chat template"));
    }
    match value.kind() {
        ValueKind::String | ValueKind::Bytes => state.consume_fuel(value.len().unwrap_or(0) as u64 / FUEL_BYTES),
        ValueKind::Seq | ValueKind::Iterable => {
            for item in value.try_iter()?.checked() {
                state.consume_fuel(1)?;
                weigh(state, &item?, depth + 1)?;
            }
            Ok(())
        }
        ValueKind::Map => {
            let Some(pairs) = value.as_object().and_then(|object| object.try_iter_pairs()) else { return Ok(()) };
            for (key, item) in pairs {
                state.consume_fuel(1)?;
                weigh(state, &key, depth + 1)?;
                weigh(state, &item, depth + 1)?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// A list, tuple or dict that is written out in a template.
fn plain(state: &State, value: Value) -> Result<Value, Error> {
    weigh(state, &value, 0)?;
    Ok(value)
}

/// Whether a value could refer to a namespace that it is put into.
fn has_code(value: &Value) -> Result<bool, Error> {
    let Some(object) = value.as_object() else { return Ok(false) };
    let name = object.type_name();
    if name.ends_with("::Namespace") || name.contains("::vm::") {
        return Ok(true);
    }
    match object.repr() {
        ObjectRepr::Plain => return Ok(true),
        ObjectRepr::Map => {
            for (_, item) in object.try_iter_pairs().into_iter().flatten() {
                if has_code(&item)? {
                    return Ok(true);
                }
            }
        }
        _ => {
            for item in value.try_iter()?.checked() {
                if has_code(&item?)? {
                    return Ok(true);
                }
            }
        }
    }
    Ok(false)
}

/// What a namespace is to keep: data alone, so that no value can hold itself; what is only made when it is looked at is made now.
fn kept(state: &State, value: Value) -> Result<Value, Error> {
    weigh(state, &value, 0)?;
    if has_code(&value)? {
        return Err(refuse("a namespace that keeps a namespace, a macro or a function: it is not supported"));
    }
    if value.kind() == ValueKind::Iterable {
        return value.try_iter()?.checked().collect::<Result<Vec<_>, _>>().map(Value::from);
    }
    Ok(value)
}

/// A function of minijinja that puts its arguments into a new value.
fn weighed(original: Value) -> impl Fn(&mut State, Rest<ValueOrKwargs>) -> Result<Value, Error> + Send + Sync + 'static {
    move |state: &mut State, arguments: Rest<ValueOrKwargs>| {
        let arguments = arguments.into_values();
        for argument in &arguments {
            weigh(state, argument, 0)?;
        }
        let value = original.call(state, &arguments)?;
        weigh(state, &value, 0)?;
        Ok(value)
    }
}

/// The greatest number that is written out in a text: a width of `str.format`.
fn greatest_number(text: &str) -> u64 {
    text.split(|c: char| !c.is_ascii_digit()).map(|digits| digits.parse().unwrap_or(if digits.is_empty() { 0 } else { u64::MAX })).max().unwrap_or(0)
}

/// Python's methods; those whose result may be larger than all that goes into them are paid for before they run.
fn call_method(state: &mut State, value: &Value, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    match (method, value.as_str(), arguments) {
        ("replace", Some(_), [_, _] | [_, _, _]) => {
            let mut all = vec![value.clone()];
            all.extend_from_slice(arguments);
            state.apply_filter("replace", &all)
        }
        ("join", Some(_), [items]) => {
            weigh(state, items, 0)?;
            state.apply_filter("join", &[items.clone(), value.clone()])
        }
        ("format", Some(text), _) => {
            let fields = text.matches('{').count() as u64;
            for argument in arguments {
                weigh(state, argument, 0)?;
            }
            let longest = arguments.iter().map(|argument| argument.to_string().len() as u64).max().unwrap_or(0);
            state.consume_fuel(fields.saturating_mul(longest.saturating_add(greatest_number(text))) / FUEL_BYTES)?;
            pycompat::unknown_method_callback(state, value, method, arguments)
        }
        _ => pycompat::unknown_method_callback(state, value, method, arguments),
    }
}

pub fn add_to(environment: &mut Environment) {
    environment.set_unknown_method_callback(call_method);
    environment.add_filter("__plain", plain);
    environment.add_filter("__kept", kept);
    environment.add_filter("groupby", weighed(Value::from_function(minijinja::filters::groupby)));
    environment.add_function("dict", weighed(Value::from_function(minijinja::functions::dict)));
    environment.add_function("namespace", weighed(Value::from_function(minijinja::functions::namespace)));
    // Jinja has neither; both put a value into another without a word in the source.
    environment.remove_filter("zip");
    environment.remove_filter("chain");
}
