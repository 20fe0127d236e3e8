//! An environment as transformers sets up Jinja2: `ImmutableSandboxedEnvironment` with `trim_blocks`, `lstrip_blocks`, loop
//! controls, `raise_exception`, `strftime_now`, and `tojson` without HTML escapes.

use super::{clock, expressions, filters, functions, json, measure, percent, python, translate};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, UndefinedBehavior, Value};
use minijinja_contrib::globals;

/// Bounds a rendering's time and memory: steps, and 64 bytes each of what is made on the way.
const FUEL: u64 = 20_000_000;

/// The template's name in its environment.
pub const NAME: &str = "chat_template";

/// Stand around what `{% generation %}` blocks wrote; noncharacters, which no text should hold.
pub const MARKS: [char; 2] = ['\u{FDD0}', '\u{FDD1}'];

/// The environment, with the translated template in it. `now` is what `strftime_now` takes for now; `marks` puts [`MARKS`]
/// around answers.
///
/// # Errors
/// When the template is no valid Jinja2.
pub fn environment(translated: String, now: u64, marks: bool) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(python::method);
    environment.set_formatter(functions::print);
    environment.set_fuel(Some(FUEL));
    filters::add(&mut environment);
    environment.add_filter("tojson", json::tojson);
    environment.add_filter("string", functions::string);
    environment.add_filter(expressions::PERCENT, percent::percent);
    environment.add_filter(expressions::MEASURED, measure::measured);
    environment.add_filter(expressions::OF_NAMESPACE, measure::of_namespace);
    environment.add_filter(translate::GENERATION, move |text: String| {
        let [open, close] = MARKS;
        if marks { format!("{open}{text}{close}") } else { text }
    });
    environment.add_test("iterable", python::is_iterable);
    environment.add_test("sequence", python::is_sequence);
    environment.add_test("callable", python::is_callable);
    environment.add_function("raise_exception", functions::raise_exception);
    environment.add_function("strftime_now", move |format: &str| clock::strftime(format, now));
    environment.add_function("dict", functions::dict);
    environment.add_function("namespace", measure::namespace);
    environment.add_function("joiner", |separator: Option<Value>| {
        globals::joiner(Some(separator.unwrap_or_else(|| Value::from(", "))))
    });
    environment.add_function("cycler", |items: minijinja::value::Rest<Value>| globals::cycler(items.0));
    environment.add_function(translate::VARARGS, functions::varargs);
    functions::add(&mut environment, NAME, translated)?;
    Ok(environment)
}
