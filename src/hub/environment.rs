//! The environment as Hugging Face's libraries read it: `~` and variables in paths, ways to say that there is no network.

use crate::fs::{Variable, expand};

/// Variables that hold a path, or several.
const PATHS: &[&str] = &[
    "XDG_CACHE_HOME",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "HF_TOKEN_PATH",
    "HF_XET_CACHE",
    "EQUIPOISE_CACHE",
    "EQUIPOISE_CUDA_PATH",
];

/// What the process's environment has to become before anything reads it: paths expanded, an address without a slash at its end,
/// and what is empty not set. `None` removes a variable.
///
/// The libraries beneath read the variables themselves, and take them as they stand.
pub fn settled(variable: Variable<'_>) -> Vec<(&'static str, Option<String>)> {
    let change = |name: &'static str, settle: &dyn Fn(&str) -> String| {
        let value = variable(name)?;
        let new = settle(value.trim());
        let new = Some(new).filter(|new| !new.is_empty());
        (new.as_ref() != Some(&value)).then_some((name, new))
    };
    let paths = PATHS.iter().filter_map(|name| change(name, &|path| expand(path, variable)));
    let address = change("HF_ENDPOINT", &|address| address.trim_end_matches('/').to_owned());
    paths.chain(address).collect()
}

/// Whether a variable says yes: `1`, `true`, `yes` or `on`, in any case.
pub(super) fn is_on(value: &str) -> bool {
    ["1", "true", "yes", "on"].contains(&value.trim().to_ascii_lowercase().as_str())
}

/// Whether the environment forbids the network: `HF_HUB_OFFLINE`, and where that is not set `TRANSFORMERS_OFFLINE`.
pub(super) fn is_offline(variable: Variable<'_>) -> bool {
    let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
    set("HF_HUB_OFFLINE").or_else(|| set("TRANSFORMERS_OFFLINE")).is_some_and(|value| is_on(&value))
}

/// As [`is_offline`], for datasets: `HF_DATASETS_OFFLINE` goes before both.
pub(super) fn is_offline_for_data(variable: Variable<'_>) -> bool {
    match variable("HF_DATASETS_OFFLINE").filter(|value| !value.trim().is_empty()) {
        Some(value) => is_on(&value),
        None => is_offline(variable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(set: &'static [(&'static str, &'static str)]) -> impl Fn(&str) -> Option<String> {
        move |name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    }

    #[test]
    fn only_what_differs_is_set_anew() {
        let changes = |set| settled(&of(set));
        assert_eq!(changes(&[("HF_HOME", "/data/hf"), ("HF_ENDPOINT", "https://hub"), ("HOME", "/me")]), []);
        let set = &[
            ("HOME", "/me"),
            ("HF_HOME", "~/hf"),
            ("HF_HUB_CACHE", "${HF_HOME}/x"),
            ("HF_TOKEN_PATH", " "),
            ("HF_ENDPOINT", "https://mirror/"),
            ("XDG_CACHE_HOME", "$HOME/.c"),
        ];
        let new = |text: &str| Some(text.to_owned());
        assert_eq!(
            changes(set),
            [
                ("XDG_CACHE_HOME", new("/me/.c")),
                ("HF_HOME", new("/me/hf")),
                ("HF_HUB_CACHE", new("~/hf/x")),
                ("HF_TOKEN_PATH", None),
                ("HF_ENDPOINT", new("https://mirror")),
            ]
        );
    }

    /// As `huggingface_hub/constants.py` and `datasets/config.py` decide.
    #[test]
    fn there_are_several_ways_to_forbid_the_network() {
        for (set, hub, data) in [
            (&[("HF_HUB_OFFLINE", "ON")][..], true, true),
            (&[("TRANSFORMERS_OFFLINE", "yes")], true, true),
            (&[("TRANSFORMERS_OFFLINE", "1"), ("HF_HUB_OFFLINE", "0")], false, false),
            (&[("TRANSFORMERS_OFFLINE", "True"), ("HF_HUB_OFFLINE", "")], true, true),
            (&[("HF_DATASETS_OFFLINE", "1")], false, true),
            (&[("HF_DATASETS_OFFLINE", "0"), ("HF_HUB_OFFLINE", "1")], true, false),
            (&[("HF_HUB_OFFLINE", "2")], false, false),
        ] {
            let variable =
                move |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
            assert_eq!((is_offline(&variable), is_offline_for_data(&variable)), (hub, data), "{set:?}");
        }
    }
}
