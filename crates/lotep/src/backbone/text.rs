//! CLIP's text tower (`spec/backbones.md` 8): a causal transformer over tokens, read where the text ends.

use std::collections::BTreeMap;

use burn::tensor::{Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::preprocess::MAX_WIDTH;
use super::{Hooks, Weights};
use crate::ops::{
    Compute, Inside, LayerNorm, Linear, Nonlinearity, Precision, Scope, TransformerBlock, TransformerWeights,
};
use crate::{Result, bail};

/// What in front of a weight's name says that it is the text tower's.
pub(crate) const PREFIX: &str = "text.";
/// Added to scores of tokens that come later: far below any score, and finite.
const LATER: f32 = -1e4;
/// CLIP's own; a longer context than any published one is a damaged file.
const MOST_TOKENS: usize = 1 << 14;

/// What a text tower's weights do not say of its shape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TextHints {
    /// Attention heads; one for 64 channels where it is not given, as in all of OpenAI's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
    /// What the perceptrons have inside; the image tower's where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonlinearity: Option<Nonlinearity>,
}

/// The shape of a text tower.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextConfig {
    /// Tokens that are known.
    pub vocabulary: usize,
    /// Most tokens of a text.
    pub context: usize,
    /// Width of a token.
    pub width: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of the features, the image tower's.
    pub features: usize,
    /// What the perceptrons have inside.
    pub nonlinearity: Nonlinearity,
}

impl TextConfig {
    /// OpenAI's tower for features of this width.
    pub fn openai(features: usize, nonlinearity: Nonlinearity) -> Self {
        let width = features.max(64);
        Self { vocabulary: 49408, context: 77, width, depth: 12, heads: width / 64, features, nonlinearity }
    }

    /// The shape of the tower in a checkpoint with these weights; `None` if it has no text tower.
    ///
    /// # Errors
    /// There is one, but a weight is missing or of another shape.
    pub(super) fn find(
        shapes: &BTreeMap<String, Vec<usize>>,
        hints: TextHints,
        features: usize,
        nonlinearity: Nonlinearity,
    ) -> Result<Option<Self>> {
        let Some(tokens) = shapes.get("text.token_embedding.weight") else { return Ok(None) };
        let matrix = |name: &str| match shapes.get(name).map(Vec::as_slice) {
            Some(&[rows, columns]) => Ok([rows, columns]),
            Some(other) => bail!("the text tower's `{name}` has shape {other:?}, a matrix is expected"),
            None => bail!("the text tower has no `{name}`"),
        };
        let [vocabulary, width] = matrix("text.token_embedding.weight")?;
        let [context, _] = matrix("text.pos_embed")?;
        let block = |i: usize| shapes.contains_key(&format!("text.blocks.{i}.norm1.weight"));
        let depth = (0..shapes.len()).take_while(|i| block(*i)).count();
        let heads = hints.heads.unwrap_or((width / 64).max(1));
        if !(1..=MAX_WIDTH).contains(&width) || heads == 0 || !width.is_multiple_of(heads) {
            bail!(
                "the text tower's width {width} ({tokens:?}) must be a multiple of its number of heads, {heads}"
            );
        }
        if !(3..=MOST_TOKENS).contains(&context) || vocabulary < 3 || depth == 0 {
            bail!("a text tower of {depth} blocks for {context} of {vocabulary} tokens makes no sense");
        }
        let nonlinearity = hints.nonlinearity.unwrap_or(nonlinearity);
        let config = Self { vocabulary, context, width, depth, heads, features, nonlinearity };
        for (name, shape) in config.names() {
            match shapes.get(&name) {
                Some(found) if *found == shape => {}
                Some(found) => bail!("weight `{name}` has shape {found:?}, this text tower needs {shape:?}"),
                None => bail!("there is no weight `{name}` {shape:?}, which this text tower needs"),
            }
        }
        Ok(Some(config))
    }

    /// Names and shapes of the tower's weights.
    fn names(&self) -> Vec<(String, Vec<usize>)> {
        let c = self.width;
        let mut names = vec![
            ("text.token_embedding.weight".to_owned(), vec![self.vocabulary, c]),
            ("text.pos_embed".into(), vec![self.context, c]),
            ("text.norm.weight".into(), vec![c]),
            ("text.norm.bias".into(), vec![c]),
            ("text.head.weight".into(), vec![self.features, c]),
        ];
        for block in (0..self.depth).map(|i| format!("text.blocks.{i}")) {
            for (leaf, outputs, inputs) in [
                ("norm1", c, None),
                ("attn.qkv", 3 * c, Some(c)),
                ("attn.proj", c, Some(c)),
                ("norm2", c, None),
                ("mlp.fc1", 4 * c, Some(c)),
                ("mlp.fc2", c, Some(4 * c)),
            ] {
                let weight = [outputs].into_iter().chain(inputs).collect();
                names.push((format!("{block}.{leaf}.weight"), weight));
                names.push((format!("{block}.{leaf}.bias"), vec![outputs]));
            }
        }
        names
    }

    /// Number of parameters.
    pub fn parameters(&self) -> usize {
        self.names().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }
}

/// A frozen text tower for texts of up to `length` tokens: what stands behind a text's end changes nothing, so that
/// short texts need no long tower.
#[derive(Clone)]
pub struct TextTower {
    config: TextConfig,
    /// `[vocabulary, C]`
    words: Tensor<2>,
    /// `[length, C]`
    positions: Tensor<2>,
    blocks: Vec<TransformerBlock>,
    norm: LayerNorm,
    projection: Linear,
}

impl TextTower {
    /// Build it from weights.
    ///
    /// # Errors
    /// A weight is missing or of another shape, or `length` is more than the tower's context.
    pub fn load(
        config: &TextConfig,
        length: usize,
        weights: &Weights,
        compute: impl Into<Compute>,
    ) -> Result<Self> {
        let (compute, c) = (compute.into(), config.width);
        if !(1..=config.context).contains(&length) {
            bail!("texts of {length} tokens: this text tower takes {} at most", config.context);
        }
        let words = weights.take("text.token_embedding.weight", [config.vocabulary, c])?;
        let positions: Tensor<2> = weights.take("text.pos_embed", [config.context, c])?;
        let bias = causal(config.heads, length);
        let bias = Tensor::from_data(bias, &words.device().without_autodiff());
        let blocks = (0..config.depth)
            .map(|i| {
                let name = format!("text.blocks.{i}");
                let (qkv, qkv_bias) = weights.linear(&format!("{name}.attn.qkv"), 3 * c, c)?;
                let block = TransformerWeights {
                    heads: config.heads,
                    eps: 1e-5,
                    nonlinearity: config.nonlinearity,
                    scope: Scope { bias: Some(bias.clone()), windows: None },
                    norm1: weights.norm(&format!("{name}.norm1"), c)?,
                    qkv: (qkv, Some(qkv_bias)),
                    proj: weights.linear(&format!("{name}.attn.proj"), c, c)?,
                    norm2: weights.norm(&format!("{name}.norm2"), c)?,
                    fc1: weights.linear(&format!("{name}.mlp.fc1"), 4 * c, c)?,
                    fc2: weights.linear(&format!("{name}.mlp.fc2"), c, 4 * c)?,
                    shrink: None,
                    drop_path: None,
                };
                Ok(TransformerBlock::new(block, compute))
            })
            .collect::<Result<_>>()?;
        let [scale, shift] = weights.norm("text.norm", c)?;
        let projection = weights.take("text.head.weight", [config.features, c])?;
        Ok(Self {
            words,
            positions: positions.narrow(0, 0, length),
            blocks,
            norm: LayerNorm::new(scale, shift, 1e-5),
            // As the image tower's: f32, like all that a score is made of.
            projection: Linear::new(projection, None, Precision::F32),
            config: config.clone(),
        })
    }

    /// Its shape.
    pub fn config(&self) -> &TextConfig {
        &self.config
    }

    /// Most tokens of a text.
    pub fn length(&self) -> usize {
        self.positions.dims()[0]
    }

    /// The embeddings `[K, length, C]` of texts' tokens, positions not yet added. Shorter texts are filled up.
    pub fn embed(&self, texts: &[Vec<u32>]) -> Tensor<3> {
        let (length, width) = (self.length(), self.config.width);
        let fill =
            |text: &Vec<u32>| (0..length).map(|i| i64::from(text.get(i).copied().unwrap_or(0))).collect();
        let tokens: Vec<i64> = texts.iter().flat_map(|text| -> Vec<i64> { fill(text) }).collect();
        let count = tokens.len();
        let tokens = Tensor::<1, Int>::from_data(
            TensorData::new(tokens, [count]),
            &self.words.device().without_autodiff(),
        );
        self.words.clone().select(0, tokens).reshape([texts.len(), length, width])
    }

    /// Features `[K, F]`, not normalised, of embedded texts `[K, length, C]` whose last tokens stand at `ends`.
    pub fn features(&self, x: Tensor<3>, ends: &[usize], hooks: &dyn Hooks) -> Tensor<2> {
        let mut x = put(x, hooks.words(0)) + self.positions.clone().unsqueeze();
        for (l, block) in self.blocks.iter().enumerate() {
            if l > 0 {
                x = put(x, hooks.words(l));
            }
            x = block.forward(x, None, &learnt(hooks, l));
        }
        let [texts, length, width] = x.dims();
        let rows: Vec<i64> = ends.iter().enumerate().map(|(k, end)| (k * length + end) as i64).collect();
        let rows =
            Tensor::<1, Int>::from_data(TensorData::new(rows, [texts]), &x.device().without_autodiff());
        let last = x.reshape([texts * length, width]).select(0, rows);
        self.projection.forward(self.norm.forward(last))
    }
}

/// What is learnt inside block `l`.
fn learnt(hooks: &dyn Hooks, l: usize) -> Inside {
    let name = format!("text.blocks.{l}");
    let low_rank = |leaf| hooks.low_rank(&format!("{name}.{leaf}"));
    Inside {
        keys_values: None,
        dropout: hooks.dropout().map(|dropout| dropout.at(&name)),
        qkv: low_rank("attn.qkv"),
        proj: low_rank("attn.proj"),
        fc1: low_rank("mlp.fc1"),
        fc2: low_rank("mlp.fc2"),
    }
}

/// Put `words` `[n, C]`, or `[K, n, C]` of each text's own, in the place of what stands behind each text's start.
fn put(x: Tensor<3>, words: Option<Tensor<3>>) -> Tensor<3> {
    let Some(words) = words else { return x };
    let ([texts, length, width], [_, count, _]) = (x.dims(), words.dims());
    let words = words.expand([texts, count, width]);
    let (start, rest) = (x.clone().narrow(1, 0, 1), x.narrow(1, 1 + count, length - 1 - count));
    Tensor::cat(vec![start, words, rest], 1)
}

/// What keeps tokens from seeing later ones, `[heads, length, length]`.
fn causal(heads: usize, length: usize) -> TensorData {
    let of = |i: usize| if i % length > i / length % length { LATER } else { 0.0 };
    TensorData::new((0..heads * length * length).map(of).collect(), [heads, length, length])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use burn::tensor::Device;

    use super::*;
    use crate::backbone::parity::architecture;
    use crate::backbone::{Checkpoint, NoHooks};
    use crate::fixtures::{self, Fixture, assert_close};
    use crate::ops::LowRank;
    use crate::train::loss::cross_entropy_sum;

    const FORWARD: f64 = 1e-5;
    const GRADIENT: f64 = 5e-5;

    fn config(f: &Fixture, nonlinearity: Nonlinearity) -> TextConfig {
        let file = Checkpoint::open(f.0.path()).unwrap();
        let hints = TextHints { heads: Some(3), nonlinearity: Some(nonlinearity) };
        TextConfig::find(&file.shapes(), hints, 20, Nonlinearity::Gelu).unwrap().unwrap()
    }

    fn texts(f: &Fixture) -> (Vec<Vec<u32>>, Vec<usize>) {
        let rows: Vec<Vec<u32>> =
            f.values("_fx.tokens").chunks(11).map(|row| row.iter().map(|v| *v as u32).collect()).collect();
        let end = |row: &Vec<u32>| row.iter().position(|t| *t == 47).unwrap();
        let ends = rows.iter().map(end).collect();
        (rows, ends)
    }

    fn weights(f: &Fixture, device: &Device) -> Weights {
        Weights::from_file(Checkpoint::open(f.0.path()).unwrap(), device)
    }

    fn unit(x: Tensor<2>) -> Tensor<2> {
        x.clone() / x.square().sum_dim(1).sqrt()
    }

    /// Both layouts, both forms, towers of the whole context and of the longest text.
    #[test]
    fn features_and_logits_agree_with_open_clip_and_transformers() {
        for name in ["clip_openai", "clip_hf"] {
            let Some(f) = fixtures::open(&format!("{name}.safetensors")) else { return };
            let device = Device::flex();
            let config = config(&f, Nonlinearity::QuickGelu);
            assert_eq!((config.vocabulary, config.context, config.width, config.depth), (48, 11, 24, 2));
            let (rows, ends) = texts(&f);
            let longest = ends.iter().max().unwrap() + 1;
            for (portable, length) in [(true, 11), (false, 11), (true, longest), (false, longest)] {
                let compute = Compute { portable, ..Compute::default() };
                let tower = TextTower::load(&config, length, &weights(&f, &device), compute).unwrap();
                let text = tower.features(tower.embed(&rows), &ends, &NoHooks);
                f.assert_close(&text, "_fx.text_features", FORWARD);
                let vit = architecture("clip_visual_timm").load(20, &weights(&f, &device), compute).unwrap();
                let image = vit.features(f.tensor("_fx.input", &device), &NoHooks);
                let image = vit.head().unwrap().forward(image);
                f.assert_close(&image, "_fx.image_features", FORWARD);
                let scale = Checkpoint::open(f.0.path()).unwrap().read("logit_scale").unwrap()[0].exp();
                let logits = unit(image).matmul(unit(text).transpose()) * scale;
                f.assert_close(&logits, "_fx.logits", FORWARD);
            }
            // The exact GELU is another model, by about a hundredth.
            let config = self::config(&f, Nonlinearity::Gelu);
            let tower = TextTower::load(&config, 11, &weights(&f, &device), Precision::F32).unwrap();
            let text: Vec<f32> =
                tower.features(tower.embed(&rows), &ends, &NoHooks).into_data().iter::<f32>().collect();
            let far = text
                .iter()
                .zip(f.values("_fx.text_features"))
                .fold(0.0_f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(far > 1e-3, "{far}");
        }
    }

    /// The gradient of the loss of all logits, in every weight of the text tower.
    #[test]
    fn gradients_agree_with_open_clip() {
        let Some(f) = fixtures::open("clip_openai.safetensors") else { return };
        let device = Device::flex().autodiff();
        let (rows, ends) = texts(&f);
        let own = weights(&f, &device).tracked();
        let tower =
            TextTower::load(&config(&f, Nonlinearity::QuickGelu), 11, &own, Compute::default()).unwrap();
        let text = tower.features(tower.embed(&rows), &ends, &NoHooks);
        let image: Tensor<2> = f.tensor("_fx.image_features", &device);
        let scale = f.values("logit_scale")[0].exp();
        let logits = unit(image).matmul(unit(text).transpose()) * scale;
        let labels: Vec<usize> = f.values("_fx.target").iter().map(|v| *v as usize).collect();
        let loss = cross_entropy_sum(logits, &labels) / labels.len() as f64;
        f.assert_close(&loss, "_fx.loss", FORWARD);
        let grads = loss.backward();
        let theirs = |name: &str| {
            let name = name.strip_prefix(PREFIX).unwrap();
            let pairs = [
                ("pos_embed", "positional_embedding"),
                ("head.weight", "text_projection"),
                ("norm.", "ln_final."),
                ("token_embedding", "token_embedding"),
            ];
            if let Some((ours, theirs)) = pairs.iter().find(|(ours, _)| name.starts_with(ours)) {
                return name.replacen(ours, theirs, 1);
            }
            let pairs = [
                ("blocks", "transformer.resblocks"),
                ("norm1", "ln_1"),
                ("norm2", "ln_2"),
                ("attn.qkv.", "attn.in_proj_"),
                ("attn.proj", "attn.out_proj"),
                ("mlp.fc1", "mlp.c_fc"),
                ("mlp.fc2", "mlp.c_proj"),
            ];
            pairs.iter().fold(name.to_owned(), |name, (ours, theirs)| name.replace(ours, theirs))
        };
        let mut compared = 0;
        for (name, leaf) in own.leaves() {
            let mut grad: Vec<f32> = leaf.grad(&grads).unwrap().into_data().iter::<f32>().collect();
            let expected = f.values(&format!("_fx.grad_param.{}", theirs(&name)));
            if name == "text.head.weight" {
                grad = (0..24 * 20).map(|i| grad[i % 20 * 24 + i / 20]).collect();
            }
            if name.ends_with("qkv.bias") {
                let scale = expected.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
                assert!(grad.iter().zip(&expected).all(|(a, e)| (a - e).abs() <= 5e-5 * scale), "{name}");
            } else {
                assert_close(&grad, &expected, GRADIENT, &name);
            }
            compared += 1;
        }
        assert_eq!(compared, 2 + 2 + 1 + 2 * 12);
    }

    /// Both forms give the same gradients of words and of updates, causally.
    #[test]
    fn what_is_learnt_inside_has_its_gradients() {
        struct Learnt(Vec<Tensor<3>>, LowRank);
        impl Hooks for Learnt {
            fn words(&self, block: usize) -> Option<Tensor<3>> {
                self.0.get(block).cloned()
            }
            fn low_rank(&self, name: &str) -> Option<LowRank> {
                (name == "text.blocks.1.attn.qkv").then(|| self.1.clone())
            }
        }
        let config = TextConfig {
            vocabulary: 30,
            context: 12,
            width: 16,
            depth: 2,
            heads: 2,
            features: 8,
            nonlinearity: Nonlinearity::QuickGelu,
        };
        let device = Device::flex();
        let wave = |n: usize, f: f32| (0..n).map(|i| (i as f32 * f).sin() * 0.3).collect::<Vec<_>>();
        let run = |portable: bool| {
            let weights = Weights::random(3, &device);
            let compute = Compute { portable, ..Compute::default() };
            let tower = TextTower::load(&config, 9, &weights, compute).unwrap();
            let on = device.clone().autodiff();
            let tracked3 = |n: usize, f| {
                Tensor::<3>::from_data(TensorData::new(wave(n * 16, f), [1, n, 16]), &on).require_grad()
            };
            let tracked2 = |shape: [usize; 2], f| {
                Tensor::<2>::from_data(TensorData::new(wave(shape[0] * shape[1], f), shape), &on)
                    .require_grad()
            };
            let (a, b) = (tracked3(2, 0.7), tracked3(2, 1.3));
            let (down, up) = (tracked2([3, 16], 0.4), tracked2([48, 3], 0.9));
            let hooks = Learnt(vec![a.clone(), b.clone()], LowRank { down: down.clone(), up: up.clone() });
            let rows = vec![vec![28, 1, 2, 5, 6, 29], vec![28, 1, 2, 29]];
            let out = tower.features(tower.embed(&rows), &[5, 3], &hooks);
            let values: Vec<f32> = out.clone().without_autodiff().into_data().iter::<f32>().collect();
            let mut grads = (out.clone() * out).sum().backward();
            let mut found = vec![("out", values)];
            for (name, x) in [("a", a), ("b", b)] {
                found.push((name, x.grad_remove(&mut grads).unwrap().into_data().iter::<f32>().collect()));
            }
            for (name, x) in [("down", down), ("up", up)] {
                found.push((name, x.grad_remove(&mut grads).unwrap().into_data().iter::<f32>().collect()));
            }
            found
        };
        for ((name, portable), (_, fast)) in run(true).into_iter().zip(run(false)) {
            assert_close(&fast, &portable, GRADIENT, name);
        }
    }

    #[test]
    fn a_damaged_tower_is_named() {
        let device = Device::flex();
        let config = TextConfig::openai(512, Nonlinearity::QuickGelu);
        assert_eq!(config.parameters(), 63_428_096);
        let mut shapes: BTreeMap<_, _> = config.names().into_iter().collect();
        let find = |shapes: &BTreeMap<_, _>, heads| {
            let hints = TextHints { heads, nonlinearity: None };
            TextConfig::find(shapes, hints, 512, Nonlinearity::QuickGelu)
        };
        assert_eq!(find(&shapes, None).unwrap(), Some(config.clone()));
        assert!(find(&shapes, Some(7)).unwrap_err().to_string().contains("number of heads, 7"));
        shapes.insert("text.blocks.3.mlp.fc1.bias".into(), vec![5]);
        assert!(find(&shapes, None).unwrap_err().to_string().contains("blocks.3.mlp.fc1.bias"));
        shapes.remove("text.blocks.3.mlp.fc1.bias");
        assert!(find(&shapes, None).unwrap_err().to_string().contains("there is no weight"));
        shapes.remove("text.token_embedding.weight");
        assert_eq!(find(&shapes, None).unwrap(), None);
        let long = TextTower::load(&config, 78, &Weights::random(0, &device), Precision::F32);
        assert!(long.err().unwrap().to_string().contains("77 at most"));
    }
}
