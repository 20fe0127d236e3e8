//! A folder to the Hub: by a command, or at the end of a run.

use super::RunOptions;
use crate::error::{Error, Result};
use crate::hub::{self, FetchOptions, HubConfig, UploadOptions, UploadPlan, UploadProgress, UploadSummary};
use crate::recipe::Recipe;
use crate::train::{Event, Observer};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// What is to be uploaded, and where to.
#[derive(Debug, Clone)]
pub struct UploadRequest {
    /// The folder: what `train` or `export` wrote.
    pub folder: PathBuf,
    /// The repository, and how.
    pub options: UploadOptions,
    /// Whether the network may not be used.
    pub offline: bool,
}

/// What came of the upload at the end of a run.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Uploaded {
    /// It is there.
    Done(UploadSummary),
    /// The adapter is on the disk alone.
    Failed {
        /// What went wrong.
        message: String,
        /// What to do about it.
        help: Option<String>,
    },
}

/// What an upload would send. It asks nobody, and needs no token.
///
/// # Errors
/// As [`hub::plan()`].
pub fn plan_upload(request: &UploadRequest) -> Result<UploadPlan> {
    hub::plan(&request.folder, &request.options)
}

/// Uploads a folder in one commit.
///
/// # Errors
/// As [`hub::upload()`], and where the network may not be used.
pub fn upload(request: &UploadRequest, observer: &mut dyn Observer) -> Result<UploadSummary> {
    if FetchOptions::from_env(request.offline).offline {
        return Err(Error::invalid("an upload needs the network, and --offline or HF_HUB_OFFLINE forbids it")
            .with_help("leave --offline out, or unset HF_HUB_OFFLINE; --dry-run shows what would be sent"));
    }
    hub::upload(&request.folder, &request.options, &mut |progress| observer.event(&event(progress)))
}

fn event(progress: UploadProgress) -> Event {
    match progress {
        UploadProgress::Phase(name) => Event::Phase(name),
        UploadProgress::Note(text) => Event::Note(text),
        UploadProgress::Bytes { what, done, total } => Event::Bytes { what, done, total },
    }
}

/// Whether the run's adapter will be uploaded. That the token may do so is found out before the first step, not after the
/// last.
pub(super) fn before_training(recipe: &Recipe, options: &RunOptions, observer: &mut dyn Observer) -> Result<bool> {
    let Some(config) = &recipe.hub else { return Ok(false) };
    if FetchOptions::from_env(options.offline).offline {
        let command = upload_command(&recipe.output_dir, config);
        observer.event(&Event::Note(format!("without network the adapter is not uploaded; afterwards: {command}")));
        return Ok(false);
    }
    observer.event(&Event::Phase("asking the Hub about the token".into()));
    hub::check_access(&config.options()).map_err(|error| {
        let help = error.help().unwrap_or_default();
        let help = format!("{help}; or delete the section `hub`, and upload later with `equipoise upload`");
        error.with_help(help)
    })?;
    Ok(true)
}

/// Uploads what the run has written. A failure does not lose the run.
pub(super) fn after_training(recipe: &Recipe, observer: &mut dyn Observer) -> Option<Uploaded> {
    let config = recipe.hub.as_ref()?;
    let request = UploadRequest { folder: recipe.output_dir.clone(), options: config.options(), offline: false };
    Some(match upload(&request, observer) {
        Ok(summary) => Uploaded::Done(summary),
        Err(error) => {
            let command = upload_command(&recipe.output_dir, config);
            let help = error.help().map(|help| format!("{help}\n")).unwrap_or_default();
            Uploaded::Failed {
                message: format!("the adapter is in {}, but was not uploaded: {error}", recipe.output_dir.display()),
                help: Some(format!("{help}to upload it: {command}")),
            }
        }
    })
}

/// The command that uploads a run's adapter as its recipe says.
fn upload_command(folder: &Path, config: &HubConfig) -> String {
    let mut command = format!("equipoise upload {} --repo {}", quoted(&folder.display().to_string()), config.repo);
    let mut add = |flag: &str, value: &Option<String>| {
        if let Some(value) = value {
            let _ = write!(command, " {flag} {}", quoted(value));
        }
    };
    add("--revision", &config.revision);
    add("--base-model", &config.base);
    add("--license", &config.license);
    add("--message", &config.message);
    command += if config.create_pr { " --pr" } else { "" };
    command + if config.private { "" } else { " --public" }
}

/// A word for a shell.
fn quoted(word: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+=,".contains(c);
    if !word.is_empty() && word.chars().all(bare) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_does_what_the_recipe_says() {
        let yaml =
            "{repo: me/mine, private: false, revision: v2, create_pr: true, message: \"It's there\", license: mit}";
        let config: HubConfig = serde_yaml::from_str(yaml).unwrap();
        assert_eq!(
            upload_command(Path::new("out of it"), &config),
            "equipoise upload 'out of it' --repo me/mine --revision v2 --license mit --message 'It'\\''s there' --pr --public"
        );
    }
}
