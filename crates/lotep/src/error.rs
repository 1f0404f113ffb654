//! The one error type: what went wrong, with which file or value, and what would be right.

use std::path::{Path, PathBuf};

/// A result whose error is [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The user's input was wrong. The message names the file and the value, and says what would be right.
    #[error("{0}")]
    Input(String),
    /// The operating system refused a file operation.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was being done, as a verb: `read`, `write`, `create`.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A run's loss or parameters became something that is no number. The message says when, and what is kept.
    #[error("{0}")]
    Diverged(String),
    /// The user asked to stop (Ctrl-C); what had been done is saved.
    #[error("{0}")]
    Interrupted(String),
}

impl Error {
    /// Wrap an I/O error with what was being done to which path.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}

/// Make an [`Error::Input`] from a format string.
#[macro_export]
macro_rules! input_error {
    ($($arg:tt)*) => { $crate::Error::Input(format!($($arg)*)) };
}

/// Return early with an [`Error::Input`] made from a format string.
#[macro_export]
macro_rules! bail {
    ($($arg:tt)*) => { return Err($crate::input_error!($($arg)*)) };
}
