//! A network's stored weights: one file or several, of either kind, under timm's names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::layout::{Recipe, Turn, recipes};
use crate::safetensors::TensorFile;
use crate::torch::TorchFile;
use crate::{Error, Result, bail, input_error};

/// One file.
#[derive(Debug)]
enum Stored {
    Safetensors(TensorFile),
    Torch(TorchFile),
}

impl Stored {
    fn open(path: &Path) -> Result<Self> {
        let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        match ending {
            "pth" | "pt" | "bin" | "tar" => TorchFile::open(path).map(Self::Torch),
            _ => TensorFile::open(path).map(Self::Safetensors),
        }
    }

    fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        match self {
            Self::Safetensors(file) => file.shapes(),
            Self::Torch(file) => file.shapes(),
        }
    }

    fn read(&self, name: &str) -> Result<Vec<f32>> {
        Ok(match self {
            Self::Safetensors(file) => file.read(name)?.0,
            Self::Torch(file) => file.read(name)?.0,
        })
    }
}

/// A network's stored weights.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    paths: Vec<PathBuf>,
    files: Vec<Stored>,
    /// The file of each stored tensor.
    home: BTreeMap<String, usize>,
    recipes: BTreeMap<String, Recipe>,
}

/// What Hugging Face's libraries write beside weights in several files.
#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Index {
    /// The files' names, each once, sorted.
    fn parts(&self) -> Vec<String> {
        self.weight_map.values().cloned().collect::<BTreeSet<_>>().into_iter().collect()
    }
}

impl Checkpoint {
    /// Open a `.safetensors` file, PyTorch's `.pth`, `.pt` or `.bin`, or a `.index.json` that names several files.
    ///
    /// # Errors
    /// A file can't be read, is damaged, or lacks what the index says.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let index = is_index(&path).then(|| read_index(&path)).transpose()?;
        let paths = match &index {
            Some(index) => {
                let dir = path.parent().unwrap_or(Path::new(""));
                index.parts().into_iter().map(|name| dir.join(name)).collect()
            }
            None => vec![path.clone()],
        };
        let files = paths.iter().map(|path| Stored::open(path)).collect::<Result<Vec<_>>>()?;
        let (mut home, mut stored) = (BTreeMap::new(), BTreeMap::new());
        for (i, file) in files.iter().enumerate() {
            for (name, shape) in file.shapes() {
                if home.insert(name.clone(), i).is_some() {
                    bail!("{}: tensor `{name}` is in two files", paths[i].display());
                }
                stored.insert(name, shape);
            }
        }
        if let Some(name) =
            index.iter().flat_map(|i| i.weight_map.keys()).find(|name| !home.contains_key(*name))
        {
            bail!("{} names a tensor `{name}` that is in none of its files", path.display());
        }
        let recipes = recipes(&stored).map_err(|e| input_error!("{}: {e}", path.display()))?;
        Ok(Self { path, paths, files, home, recipes })
    }

    /// What was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files with weights.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// timm's names, and shapes.
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.recipes.iter().map(|(name, recipe)| (name.clone(), recipe.shape.clone())).collect()
    }

    /// The shape of timm's `name`.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.recipes.get(name).map(|recipe| recipe.shape.as_slice())
    }

    /// The values of timm's `name` as f32.
    ///
    /// # Errors
    /// It is absent, not of floats, or can't be read.
    pub fn read(&self, name: &str) -> Result<Vec<f32>> {
        let Some(recipe) = self.recipes.get(name) else {
            bail!("{} has no tensor `{name}`", self.path.display());
        };
        if recipe.turn == Turn::Zeros {
            return Ok(vec![0.0; recipe.shape.iter().product()]);
        }
        let mut values = Vec::new();
        for part in &recipe.parts {
            let read = self.files[self.home[part]].read(part)?;
            // One part, the usual case, is not copied.
            if values.is_empty() { values = read } else { values.extend(read) }
        }
        if recipe.turn == Turn::Transpose {
            let [rows, columns] = recipe.shape[..] else { unreachable!("only matrices are turned") };
            return Ok((0..rows * columns).map(|i| values[i % columns * rows + i / columns]).collect());
        }
        Ok(values)
    }
}

fn read_index(path: &Path) -> Result<Index> {
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    let index: Index = serde_json::from_str(&text)
        .map_err(|e| input_error!("{} is not an index of weight files: {e}", path.display()))?;
    // An index names its neighbours, not files elsewhere.
    let outside =
        |name: &&String| Path::new(name.as_str()).components().count() != 1 || name.starts_with('.');
    if let Some(name) = index.weight_map.values().find(outside) {
        bail!("{} names `{name}`, which is not a file beside it", path.display());
    }
    if index.weight_map.is_empty() {
        bail!("{} names no weights", path.display());
    }
    Ok(index)
}

/// What weights are called in a directory, the best first.
pub(super) const USUAL_NAMES: [&str; 6] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
];

/// The weights in a directory: a file of one of the usual names, which may be an index.
pub(super) fn in_directory(dir: &Path) -> Option<PathBuf> {
    USUAL_NAMES.iter().map(|name| dir.join(name)).find(|path| path.is_file())
}

/// The names of the files that an index at `path` speaks of, sorted; none if it is no index.
pub(super) fn parts(path: &Path) -> Result<Vec<String>> {
    if is_index(path) { Ok(read_index(path)?.parts()) } else { Ok(Vec::new()) }
}

fn is_index(path: &Path) -> bool {
    path.to_string_lossy().ends_with(".index.json")
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::backbone::parity::architecture;
    use crate::backbone::{NoHooks, Weights};
    use crate::fixtures::{self, Fixture};
    use crate::ops::Compute;
    use crate::safetensors::{NamedTensor, serialize};

    /// The fixture's weights, without its answers.
    fn weights(f: &Fixture) -> Vec<NamedTensor> {
        let names = f.0.shapes().into_iter().filter(|(name, _)| !name.starts_with("_fx."));
        names.map(|(name, shape)| NamedTensor { values: f.values(&name), name, shape }).collect()
    }

    fn check(f: &Fixture, name: &str, path: &Path, answer: &str) {
        let device = Device::flex();
        let weights = Weights::from_file(Checkpoint::open(path).unwrap(), &device);
        let classes = if name.starts_with("clip") { 20 } else { 7 };
        let net = architecture(name).load(classes, &weights, Compute::default()).unwrap();
        weights.finish().unwrap();
        let features = net.features(f.tensor("_fx.input", &device), &NoHooks);
        f.assert_close(&net.head().unwrap().forward(features), answer, 1e-5);
    }

    #[test]
    fn clip_under_other_names() {
        for name in ["clip_openai", "clip_hf"] {
            let Some(f) = fixtures::open(&format!("{name}.safetensors")) else { return };
            check(&f, "clip_visual_timm", f.0.path(), "_fx.image_features");
        }
    }

    #[test]
    fn swin_and_convnext_under_their_old_names() {
        let swin = |name: &str| match name.strip_prefix("layers.").and_then(|n| n.split_once(".downsample."))
        {
            Some((stage, leaf)) => {
                format!("layers.{}.downsample.{leaf}", stage.parse::<usize>().unwrap() - 1)
            }
            None => name.replace("head.fc.", "head."),
        };
        let convnext = |name: &str| {
            let name = name.replace("stem.", "downsample_layers.0.").replace("head.norm.", "norm.");
            let name =
                name.replace("head.fc.", "head.").replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv");
            match name.strip_prefix("stages.").and_then(|n| n.split_once(".downsample.")) {
                Some((stage, leaf)) => format!("downsample_layers.{stage}.{leaf}"),
                None => name.replace(".blocks.", "."),
            }
        };
        let dir = tempfile::tempdir().unwrap();
        for name in ["swin", "convnext"] {
            let Some(f) = fixtures::open(&format!("{name}.safetensors")) else { return };
            let mut tensors = weights(&f);
            for t in &mut tensors {
                t.name = if name == "swin" { swin(&t.name) } else { convnext(&t.name) };
            }
            let path = dir.path().join(format!("{name}.safetensors"));
            std::fs::write(&path, serialize(&tensors, None).unwrap()).unwrap();
            check(&f, name, &path, "_fx.logits");
        }
    }

    #[test]
    fn weights_in_several_files() {
        let Some(f) = fixtures::open("vit_b32.safetensors") else { return };
        let dir = tempfile::tempdir().unwrap();
        let tensors = weights(&f);
        let mut map = serde_json::Map::new();
        for (i, part) in tensors.chunks(tensors.len() / 2 + 1).enumerate() {
            let name = format!("model-{i}.safetensors");
            std::fs::write(dir.path().join(&name), serialize(part, None).unwrap()).unwrap();
            map.extend(part.iter().map(|t| (t.name.clone(), name.clone().into())));
        }
        let index = dir.path().join("model.safetensors.index.json");
        let write = |map: &serde_json::Map<String, serde_json::Value>| {
            std::fs::write(&index, serde_json::json!({ "weight_map": map }).to_string()).unwrap();
        };
        write(&map);
        assert_eq!(in_directory(dir.path()).as_ref(), Some(&index));
        check(&f, "vit_b32", &index, "_fx.logits");
        for (name, file) in [("extra", "model-0.safetensors"), ("head.bias", "../model-0.safetensors")] {
            let mut wrong = map.clone();
            wrong.insert(name.into(), file.into());
            write(&wrong);
            let error = Checkpoint::open(&index).unwrap_err().to_string();
            assert!(error.contains(if name == "extra" { "`extra`" } else { "beside it" }), "{error}");
        }
    }
}
