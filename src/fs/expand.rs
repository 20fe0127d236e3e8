//! `~` and variables in paths, for those that no shell has expanded: of `.env` files, Dockerfiles, systemd units and recipes.

/// The value of a variable of the environment.
pub type Variable<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A path with `~` at its front, `$NAME` and `${NAME}` replaced, as Python's `os.path.expanduser` and `expandvars` do. What is not
/// set stays as it is, and so do other people's homes (`~anna`).
pub fn expand(path: &str, variable: Variable<'_>) -> String {
    let home = || variable("HOME").filter(|home| !home.is_empty());
    let path = match path.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => match home() {
            Some(home) => format!("{}{rest}", home.trim_end_matches('/')),
            None => path.to_owned(),
        },
        _ => path.to_owned(),
    };
    let (mut out, mut rest) = (String::with_capacity(path.len()), path.as_str());
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let (whole, name) = reference(&rest[at..]);
        match name.and_then(variable) {
            Some(value) => out.push_str(&value),
            None => out.push_str(whole),
        }
        rest = &rest[at + whole.len()..];
    }
    out + rest
}

/// The first variable that a path names and that is not set.
pub fn unset(path: &str, variable: Variable<'_>) -> Option<String> {
    let places = path.match_indices('$').map(|(at, _)| &path[at..]);
    places.filter_map(|rest| reference(rest).1).find(|name| variable(name).is_none()).map(str::to_owned)
}

/// A `$` at the front of a text with what belongs to it, and the name, if it is one.
fn reference(text: &str) -> (&str, Option<&str>) {
    let is_name = |name: &str| {
        !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    if let Some((name, _)) = text.strip_prefix("${").and_then(|rest| rest.split_once('}')) {
        return (&text[..name.len() + 3], Some(name).filter(|name| is_name(name)));
    }
    let end = text[1..].find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).map_or(text.len(), |end| end + 1);
    (&text[..end], Some(&text[1..end]).filter(|name| is_name(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected by Python: `os.path.expandvars(os.path.expanduser(path))` with `HOME=/home/me`, `D=/data`, `E=`.
    #[test]
    fn paths_are_those_of_python() {
        let variable = |name: &str| match name {
            "HOME" => Some("/home/me".to_owned()),
            "D" => Some("/data".to_owned()),
            "E" => Some(String::new()),
            _ => None,
        };
        for (path, expected) in [
            ("~/hf", "/home/me/hf"),
            ("~", "/home/me"),
            ("~anna/hf", "~anna/hf"),
            ("a/~/b", "a/~/b"),
            ("$HOME/hf", "/home/me/hf"),
            ("${D}x/$D/y", "/datax//data/y"),
            ("$NONE/$", "$NONE/$"),
            ("${NONE}/${D", "${NONE}/${D"),
            ("$Dx/$E/é$D", "$Dx//é/data"),
            ("a$5b", "a$5b"),
        ] {
            assert_eq!(expand(path, &variable), expected, "{path}");
        }
        assert_eq!(unset("$D/${NONE}/x", &variable).as_deref(), Some("NONE"));
        assert_eq!(unset("a$5b$", &variable), None);
    }
}
