//! Which files are images, and listing them in a fixed order.

use std::ffi::OsStr;
use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::{Error, Result, bail};

/// File name endings that are taken for images, in any case.
pub(super) const EXTENSIONS: [&str; 6] = ["jpg", "jpeg", "png", "webp", "bmp", "ppm"];

/// Directories nested deeper than this are a symbolic link that leads back to itself.
const MAX_DEPTH: usize = 32;

/// A directory's visible entries, sorted by name.
pub(super) struct Entries {
    pub(super) dirs: Vec<PathBuf>,
    pub(super) images: Vec<PathBuf>,
    /// Files that are not images by their name.
    pub(super) others: usize,
}

/// List one directory. Symbolic links count as what they lead to.
pub(super) fn entries(dir: &Path) -> Result<Entries> {
    let mut found = Entries { dirs: Vec::new(), images: Vec::new(), others: 0 };
    for entry in fs::read_dir(dir).map_err(Error::io("read", dir))? {
        let entry = entry.map_err(Error::io("read", dir))?;
        let path = entry.path();
        if is_hidden(&entry.file_name()) {
            continue;
        }
        // The kind comes with the listing; only a link costs a look at its target.
        let mut kind = entry.file_type().map_err(Error::io("read", &path))?;
        if kind.is_symlink() {
            kind = fs::metadata(&path).map_err(Error::io("follow the link", &path))?.file_type();
        }
        if kind.is_dir() {
            found.dirs.push(path);
        } else if is_image(&path) {
            found.images.push(path);
        } else {
            found.others += 1;
        }
    }
    found.dirs.sort();
    found.images.sort();
    Ok(found)
}

/// Append every image under `dir`, sorted within each directory, sub-directories after the files beside them.
/// Returns how many other files there were.
pub(super) fn walk(dir: &Path, images: &mut Vec<PathBuf>) -> Result<usize> {
    fn step(dir: &Path, depth: usize, images: &mut Vec<PathBuf>) -> Result<usize> {
        if depth > MAX_DEPTH {
            bail!(
                "{} is nested more than {MAX_DEPTH} deep: does a link lead back to its parent?",
                dir.display()
            );
        }
        let mut found = entries(dir)?;
        images.append(&mut found.images);
        let mut others = found.others;
        for sub in &found.dirs {
            others += step(sub, depth + 1, images)?;
        }
        Ok(others)
    }
    step(dir, 0, images)
}

/// List the images to predict: a file is taken as given, whatever its name; a directory stands for every image under
/// it, in sorted order.
///
/// # Errors
/// Where a path does not exist, or a directory holds no image.
pub fn list_images(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut images = Vec::new();
    for path in paths {
        if !fs::metadata(path).map_err(Error::io("read", path))?.is_dir() {
            images.push(path.clone());
            continue;
        }
        let before = images.len();
        walk(path, &mut images)?;
        if images.len() == before {
            bail!("{} holds no image: looked for files ending in {}", path.display(), EXTENSIONS.join(", "));
        }
    }
    Ok(images)
}

fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

/// The image that a list names, below `root`: never outside of it, and there.
pub(super) fn listed(list: &Path, root: &Path, image: &str) -> Result<PathBuf> {
    let outside = |c: Component<'_>| !matches!(c, Component::Normal(_) | Component::CurDir);
    if image.is_empty() || Path::new(image).components().any(outside) {
        bail!("{} names `{image}`, which is not below the images' directory", list.display());
    }
    let file = root.join(image);
    if !file.is_file() {
        bail!("{} names `{image}`, which is not in {}", list.display(), root.display());
    }
    Ok(file)
}

pub(super) fn is_image(path: &Path) -> bool {
    let extension = path.extension().and_then(OsStr::to_str);
    extension.is_some_and(|e| EXTENSIONS.iter().any(|known| known.eq_ignore_ascii_case(e)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::test_files::{write_bytes, write_image};

    #[test]
    fn a_tree_is_listed_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for file in
            ["b/2.png", "b/10.JPG", "b/sub/x.webp", "a/été 图.jpeg", "z.bmp", ".hidden/1.png", "b/.2.png"]
        {
            write_bytes(root.join(file), b"");
        }
        write_bytes(root.join("notes.txt"), b"");
        write_image(root.join("b/folder.png/in.png"), 1);
        let relative: Vec<String> = list_images(&[root.to_path_buf()])
            .unwrap()
            .iter()
            .map(|p| p.strip_prefix(root).unwrap().to_str().unwrap().to_owned())
            .collect();
        let want = ["z.bmp", "a/été 图.jpeg", "b/10.JPG", "b/2.png", "b/folder.png/in.png", "b/sub/x.webp"];
        assert_eq!(relative, want);
        // Files are kept as given: order, repetition and ending.
        let given = [root.join("notes.txt"), root.join("b/2.png"), root.join("notes.txt")];
        assert_eq!(list_images(&given).unwrap(), given);
    }

    #[test]
    fn what_cannot_be_listed_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing.png");
        let message = list_images(std::slice::from_ref(&missing)).unwrap_err().to_string();
        assert!(message.contains(missing.to_str().unwrap()), "{message}");
        let message = list_images(&[dir.path().to_path_buf()]).unwrap_err().to_string();
        assert!(
            message.ends_with("holds no image: looked for files ending in jpg, jpeg, png, webp, bmp, ppm"),
            "{message}"
        );
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_loops_end() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        write_image(root.join("real/1.png"), 1);
        fs::create_dir(root.join("linked")).unwrap();
        symlink(root.join("real/1.png"), root.join("linked/1.png")).unwrap();
        symlink(root.join("real"), root.join("linked/dir")).unwrap();
        assert_eq!(list_images(&[root.join("linked")]).unwrap().len(), 2);
        symlink(root.join("gone.png"), root.join("linked/2.png")).unwrap();
        let message = list_images(&[root.join("linked")]).unwrap_err().to_string();
        assert!(message.contains("linked/2.png"), "{message}");
        symlink(root.join("real"), root.join("real/loop")).unwrap();
        let message = list_images(&[root.join("real")]).unwrap_err().to_string();
        assert!(message.contains("nested more than 32 deep"), "{message}");
    }
}
