//! Write a file so that a reader sees either the old content or the new one, never a part.
//!
//! Checkpoints, adapters and result records are written while the user may press Ctrl-C or the machine may
//! lose power; a half-written file under its final name would be worse than none.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use serde::Serialize;

use crate::{Error, Result, input_error};

/// Replace the file at `path` by `bytes`, entirely or not at all.
///
/// # Errors
///
/// As [`write_atomic_with`].
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic_with(path, |file| file.write_all(bytes))
}

/// Replace the file at `path` by what `write` writes, entirely or not at all.
///
/// The content goes to a hidden temporary file in the same directory (made if it is missing), reaches the
/// disk, and takes the name only then. A symbolic link at `path` is replaced, not followed.
///
/// # Errors
///
/// [`Error::Io`] where the directory or the file cannot be written, or with the error of `write`. The old
/// file is then untouched and the temporary one removed.
pub fn write_atomic_with(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&File>) -> std::io::Result<()>,
) -> Result<()> {
    // A bare file name has the parent "", which no system call accepts.
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(directory).map_err(Error::io("create", directory))?;

    // A device or a pipe can't be replaced, only written to.
    if let Ok(found) = std::fs::metadata(path)
        && !found.is_file()
        && !found.is_dir()
    {
        let file = std::fs::OpenOptions::new().write(true).open(path).map_err(Error::io("open", path))?;
        let mut buffer = BufWriter::new(&file);
        return write(&mut buffer).and_then(|()| buffer.flush()).map_err(Error::io("write", path));
    }
    let temporary = new_file(directory).map_err(Error::io("write", path))?;
    let mut buffer = BufWriter::new(temporary.as_file());
    write(&mut buffer)
        .and_then(|()| buffer.flush())
        .and_then(|()| temporary.as_file().sync_all())
        .map_err(Error::io("write", path))?;
    drop(buffer);
    temporary.persist(path).map_err(|refused| Error::io("write", path)(refused.error))?;
    sync_directory(directory);
    Ok(())
}

/// Remove what a killed process left half-written in `directory`.
pub(crate) fn remove_leftovers(directory: &Path) {
    let names = std::fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in names.filter(|e| e.file_name().to_string_lossy().starts_with(PREFIX)) {
        // One that can't be removed is litter, not an error.
        let _ = std::fs::remove_file(entry.path());
    }
}

/// How temporary files' names begin.
const PREFIX: &str = ".lotep-";

fn new_file(directory: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(PREFIX);
    // Temporary files are private by default; this one becomes an ordinary file, so it asks for an
    // ordinary file's permissions, and the system takes the user's umask off them.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(directory)
}

/// Make the new name itself survive a power failure.
///
/// The file is complete and in place whether or not this works, and some network file systems refuse it,
/// so a refusal is not the user's problem.
fn sync_directory(directory: &Path) {
    if cfg!(unix) {
        let _ = File::open(directory).and_then(|opened| opened.sync_all());
    }
}

/// Write a value as JSON to `path`, or leave what is there.
pub(crate) fn write_json(value: &impl Serialize, path: &Path) -> Result<()> {
    let json = serde_json::to_vec_pretty(value)
        .map_err(|e| input_error!("cannot describe what belongs to {}: {e}", path.display()))?;
    write_atomic(path, &json)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn makes_directories_and_replaces_content() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b/file.json");
        write_atomic(&path, b"a first, longer content").unwrap();
        write_atomic(&path, b"second").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"second");
        assert_eq!(names(path.parent().unwrap()), ["file.json"]);
    }

    #[test]
    fn failure_keeps_the_old_file_and_leaves_no_litter() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("weights.bin");
        write_atomic(&path, b"old").unwrap();
        let error = write_atomic_with(&path, |file| {
            // More than the buffer holds, so that a part has reached the temporary file.
            file.write_all(&vec![7; 100_000])?;
            Err(std::io::Error::other("disk full"))
        })
        .unwrap_err();
        assert!(error.to_string().ends_with("weights.bin: disk full"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(names(root.path()), ["weights.bin"]);
    }

    #[test]
    fn a_directory_in_the_way_is_an_error_without_litter() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("taken");
        std::fs::create_dir(&path).unwrap();
        assert!(matches!(write_atomic(&path, b"x"), Err(Error::Io { action: "write", .. })));
        assert_eq!(names(root.path()), ["taken"]);
    }

    #[cfg(unix)]
    #[test]
    fn permissions_are_those_of_an_ordinary_new_file() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        let (ours, ordinary) = (root.path().join("ours"), root.path().join("ordinary"));
        write_atomic(&ours, b"x").unwrap();
        std::fs::write(&ordinary, b"x").unwrap();
        let mode = |path| std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&ordinary));
    }
}
