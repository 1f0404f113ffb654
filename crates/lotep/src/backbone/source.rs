//! Where a backbone's files are: a directory, a weight file, or a repository of the hub.

use std::path::{Path, PathBuf};

use super::checkpoint::{USUAL_NAMES, in_directory, parts};
use super::{Architecture, PUBLISHED};
use crate::hub::{Hub, Lookup, Repo, Watch};
use crate::{Result, bail};

/// What a directory's configuration is called.
const CONFIGS: [&str; 2] = ["config.json", "open_clip_config.json"];

/// How a repository of any owner is written, as timm does.
const HUB: &str = "hf-hub:";

/// A backbone's files.
#[derive(Debug)]
pub(super) struct Place {
    /// `config.json`, unless it is a bare weight file.
    pub(super) config: Option<PathBuf>,
    /// The weights, or their index.
    pub(super) weights: PathBuf,
    /// The architecture where the name says it better than the repository's configuration.
    pub(super) arch: Option<String>,
    /// The name by which they can be found again: of a repository, with its commit.
    pub(super) source: String,
}

/// Find what the user calls `name`; files of the hub are downloaded where the cache has not got them.
///
/// # Errors
/// There is nothing of that name, or it can't be downloaded.
pub(super) fn find(name: &str, watch: &mut dyn Watch) -> Result<Place> {
    let path = Path::new(name);
    if path.is_dir() {
        let weights = in_directory(path).unwrap_or_else(|| path.join(USUAL_NAMES[0]));
        let config = CONFIGS.map(|name| path.join(name));
        let config = config.iter().find(|path| path.is_file()).unwrap_or(&config[0]).clone();
        return Ok(Place { config: Some(config), weights, arch: None, source: name.into() });
    }
    if path.is_file() {
        return Ok(Place { config: None, weights: path.into(), arch: None, source: name.into() });
    }
    Ok(Place { arch: quick(name), ..download(&repository(name)?, watch)? })
}

/// Check that `name` is a file or a directory, or a name by which weights can be downloaded; nothing is.
///
/// # Errors
/// It is neither.
pub fn check(name: &str) -> Result<()> {
    if Path::new(name).exists() { Ok(()) } else { repository(name).map(|_| ()) }
}

/// What says in timm's names which nonlinearity a CLIP has. The two share a repository, which names the other one.
const QUICK: &str = "_clip_quickgelu_";

/// The architecture of such a name.
fn quick(name: &str) -> Option<String> {
    let bare = name.split(['.', '@']).next().unwrap_or(name);
    bare.contains(QUICK).then(|| bare.to_owned())
}

/// The repository that `name` means.
fn repository(name: &str) -> Result<Repo> {
    if let Some(repo) = name.strip_prefix(HUB) {
        return Repo::parse(repo);
    }
    let (model, revision) = name.split_once('@').map_or((name, String::new()), |(m, r)| (m, format!("@{r}")));
    let bare = model.split('.').next().unwrap_or(model);
    let tag = model.strip_prefix(bare).unwrap_or_default();
    let file = [".safetensors", ".pth", ".pt", ".bin", ".tar", ".json"].iter().any(|end| tag.ends_with(end));
    if file || Architecture::named(bare).is_err() {
        bail!(
            "no backbone at `{name}`: there is no such file or directory, and it is no network that lotep knows \
             (`lotep backbones` lists them; a repository of the hub is written {HUB}owner/name)"
        );
    }
    let shared = |model: &str| model.replace(QUICK, "_clip_");
    if bare != model {
        return Repo::parse(&format!("timm/{}{revision}", shared(model)));
    }
    match PUBLISHED.iter().find(|p| p.name == bare) {
        Some(p) => Repo::parse(&format!("timm/{}.{}{revision}", shared(bare), p.tag)),
        None => bail!(
            "`{name}` is an architecture lotep knows, but not one weights: give a tag, as in {bare}.TAG, or a \
             directory or weight file"
        ),
    }
}

fn download(repo: &Repo, watch: &mut dyn Watch) -> Result<Place> {
    let hub = Hub::from_env()?;
    let config = match hub.get(repo, "config.json", watch)? {
        Lookup::Found(config) => config,
        Lookup::Absent => bail!("{repo} has no config.json: is it a model of timm's?"),
        Lookup::Unknown(why) => bail!("{why}"),
    };
    // All files are of the commit that the first one is from, whatever happens to the branch meanwhile.
    let pinned = Repo { revision: config.commit, ..repo.clone() };
    let dir = config.path.parent().map(Path::to_path_buf).unwrap_or_default();
    let mut weights = None;
    for name in USUAL_NAMES {
        match hub.get(&pinned, name, watch)? {
            Lookup::Found(found) => weights = Some(found.path),
            Lookup::Absent => continue,
            // Which is the best can't be known; what is there is what was used before.
            Lookup::Unknown(why) => match in_directory(&dir) {
                Some(path) => weights = Some(path),
                None => bail!("{why}"),
            },
        }
        break;
    }
    let Some(weights) = weights else {
        bail!("{pinned} has no weights that lotep reads: {} are looked for", USUAL_NAMES.join(", "));
    };
    for part in parts(&weights)? {
        match hub.get(&pinned, &part, watch)? {
            Lookup::Found(_) => {}
            Lookup::Absent => bail!("{pinned} has no `{part}`, which its {} names", weights.display()),
            Lookup::Unknown(why) => bail!("{why}"),
        }
    }
    vocabulary(&hub, &pinned, &config.path, watch)?;
    Ok(Place { config: Some(config.path), weights, arch: None, source: format!("{HUB}{pinned}") })
}

/// Get a CLIP's words too, where they are there: without them it still sees.
fn vocabulary(hub: &Hub, repo: &Repo, config: &Path, watch: &mut dyn Watch) -> Result<()> {
    if !std::fs::read_to_string(config).unwrap_or_default().contains("clip") {
        return Ok(());
    }
    for names in [["vocab.json", "merges.txt"].as_slice(), &["tokenizer.json"]] {
        let mut found = true;
        for name in names {
            found &= matches!(hub.get(repo, name, watch)?, Lookup::Found(_));
        }
        if found {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_mean_repositories() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        for (name, repo) in [
            ("resnet18.a1_in1k", "timm/resnet18.a1_in1k@main"),
            ("resnet18", "timm/resnet18.tv_in1k@main"),
            ("swin_tiny_patch4_window7_224@v1", "timm/swin_tiny_patch4_window7_224.ms_in22k@v1"),
            ("vit_base_patch16_clip_quickgelu_224", "timm/vit_base_patch16_clip_224.openai@main"),
            ("vit_base_patch32_clip_quickgelu_224.openai", "timm/vit_base_patch32_clip_224.openai@main"),
            ("hf-hub:openai/clip-vit-base-patch16", "openai/clip-vit-base-patch16@main"),
            (&format!("hf-hub:a/b@{commit}"), &format!("a/b@{commit}")),
        ] {
            assert_eq!(repository(name).unwrap().to_string(), repo);
        }
        for (name, why) in [
            ("models/resnet18", "hf-hub:owner/name"),
            ("resnet19", "lotep backbones"),
            ("resnet18.pth", "no such file"),
            ("resnet18.a1_in1k.safetensors", "no such file"),
            ("vit_large_patch32_224", "give a tag"),
            ("hf-hub:resnet18", "owner/name is expected"),
            ("resnet18@", "is not a revision"),
        ] {
            let error = repository(name).unwrap_err().to_string();
            assert!(error.contains(why), "{name}: {error}");
        }
    }
}
