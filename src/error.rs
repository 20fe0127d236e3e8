//! The one error type of the library, and the pieces it is made of.
//!
//! A message names the file, the key or the tensor, says what was expected and what was found, and what to do.
//! It does not own rendering: the binary draws [`Located`] errors with the offending line.

use std::fmt;
use std::path::{Path, PathBuf};

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, sorted by what a user has to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A mistake at a known place of a text file: a recipe or a row of data.
    #[error("{0}")]
    Located(Box<Located>),
    /// A file is there but cannot be used: cut short, of another format, or with impossible contents.
    #[error("{}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
        /// What to do about it.
        help: Option<String>,
    },
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// A verb: `read`, `write`, `create`, `rename`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A setting that no file line can be blamed for, or that only fails against the model or the data.
    #[error("{message}")]
    Invalid {
        /// What is wrong, naming the key, the tensor or the value.
        message: String,
        /// What to do about it.
        help: Option<String>,
    },
    /// Tensors whose shapes do not fit the configuration, all of them in one report.
    #[error("{}", display_shapes(path, mismatches))]
    Shapes {
        /// The file or folder that holds the tensors.
        path: PathBuf,
        /// One entry a tensor.
        mismatches: Vec<ShapeMismatch>,
    },
    /// The Hub, or the network on the way to it.
    #[error("{message}")]
    Hub {
        /// What was asked for and what came back.
        message: String,
        /// What to do about it.
        help: Option<String>,
    },
    /// Training cannot go on, though its input was fine: the loss stays non-finite.
    #[error("{message}")]
    Diverged {
        /// What happened.
        message: String,
        /// What to do about it.
        help: Option<String>,
    },
    /// Somebody asked to stop before there was anything to save.
    #[error("stopped before it was done; nothing half-written is left")]
    Interrupted,
    /// candle refused an operation. Reaching a user with this is a bug of ours.
    #[error("internal: {0}")]
    Candle(#[from] candle_core::Error),
}

/// A mistake at a place in a text file.
#[derive(Debug)]
pub struct Located {
    /// The file as the user named it, or `--set` for an override on the command line.
    pub path: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// The column of the first offending character, from 1.
    pub column: usize,
    /// How many characters offend; at least 1.
    pub width: usize,
    /// The offending line as it stands in the file, cut by [`Located::excerpt`].
    pub text: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
}

impl Located {
    /// The most characters of a line that a report holds.
    pub const EXCERPT: usize = 400;

    /// What a report holds of `line`: its first 400 characters, or 400 around a `column` beyond them.
    pub fn excerpt(line: &str, column: usize) -> String {
        line.chars().skip(excerpt_start(column)).take(Self::EXCERPT).collect()
    }

    /// The column within `text`, from 1; it differs from `column` where the line was cut at its front.
    pub fn text_column(&self) -> usize {
        self.column - excerpt_start(self.column)
    }
}

/// How many characters [`Located::excerpt`] leaves out at the front of a line.
const fn excerpt_start(column: usize) -> usize {
    if column <= Located::EXCERPT { 0 } else { column - Located::EXCERPT / 2 }
}

impl fmt::Display for Located {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.path.display(), self.line, self.column, self.message)
    }
}

/// One tensor whose shape is not what the configuration asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShapeMismatch {
    /// The tensor's name as the file has it.
    pub tensor: String,
    /// The shape that the configuration asks for.
    pub expected: Vec<usize>,
    /// The shape in the file; `None` when the tensor is missing.
    pub got: Option<Vec<usize>>,
}

fn display_shapes(path: &Path, mismatches: &[ShapeMismatch]) -> String {
    use fmt::Write as _;
    let mut text = format!("{}: {} tensor(s) do not fit the configuration:", path.display(), mismatches.len());
    for mismatch in mismatches.iter().take(20) {
        let _ = match &mismatch.got {
            Some(got) => write!(text, "\n  {}: expected {:?}, got {got:?}", mismatch.tensor, mismatch.expected),
            None => write!(text, "\n  {}: expected {:?}, missing", mismatch.tensor, mismatch.expected),
        };
    }
    if mismatches.len() > 20 {
        let _ = write!(text, "\n  and {} more", mismatches.len() - 20);
    }
    text
}

impl Error {
    /// An [`Error::Invalid`] without help.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid { message: message.into(), help: None }
    }

    /// An [`Error::File`] without help.
    pub fn file(path: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        Self::File { path: path.into(), message: message.into(), help: None }
    }

    /// An adapter for `map_err` that wraps an [`std::io::Error`] with what was tried on which path.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// The same error with a line of help, where its kind has room for one.
    #[must_use]
    pub fn with_help(mut self, text: impl Into<String>) -> Self {
        match &mut self {
            Self::File { help, .. }
            | Self::Invalid { help, .. }
            | Self::Hub { help, .. }
            | Self::Diverged { help, .. } => {
                *help = Some(text.into());
            }
            Self::Located(located) => located.help = Some(text.into()),
            Self::Io { .. } | Self::Shapes { .. } | Self::Interrupted | Self::Candle(_) => {}
        }
        self
    }

    /// What to do about it, if anything is known.
    pub fn help(&self) -> Option<&str> {
        match self {
            Self::File { help, .. }
            | Self::Invalid { help, .. }
            | Self::Hub { help, .. }
            | Self::Diverged { help, .. } => help.as_deref(),
            Self::Located(located) => located.help.as_deref(),
            Self::Io { .. } | Self::Shapes { .. } | Self::Interrupted | Self::Candle(_) => None,
        }
    }

    /// The process's exit code: 2 for input that the user can fix, 130 after an interrupt, 1 for everything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Interrupted => 130,
            Self::Candle(_) | Self::Diverged { .. } | Self::Hub { .. } => 1,
            Self::Located(_) | Self::File { .. } | Self::Io { .. } | Self::Invalid { .. } | Self::Shapes { .. } => 2,
        }
    }
}
