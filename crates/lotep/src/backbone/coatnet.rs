//! CoAtNet as timm stores it: two stages of inverted bottlenecks, two of transformer blocks over the whole map.
//!
//! A stage's first block halves the map inside itself, so it still sees the stage before.

use std::sync::Arc;

use burn::tensor::{Tensor, TensorData, activation::relu};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::family::{Family, set, set_sides};
use super::positions::{biases, take_size};
use super::preprocess::{HALVES, IMAGENET, MAX_SIDE, MAX_WIDTH, Preprocess};
use super::{Backbone, Hooks, Prompt, Weights, enter_map, inside, leave_map, map, rows};
use crate::data::Interpolation;
use crate::ops::{
    BatchNorm, Compute, ConvNorm, ConvStem, Halving, Inside, LayerNorm, Linear, MbConv, MbConvUpdates,
    MbConvWeights, Nonlinearity, Precision, Scope, Shrink, TransformerBlock, TransformerWeights, mean_pixels,
    relative_bias, token_rows,
};
use crate::{Result, bail};

const BN_EPS: f64 = 1e-5;
const LN_EPS: f64 = 1e-6;
/// Stages of inverted bottlenecks; the others are transformers, but for a first block in some.
const CONVOLUTIONAL: usize = 2;

/// The shape of a CoAtNet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoAtNetConfig {
    /// Image height and width.
    pub image: [usize; 2],
    /// Channels behind the stem's two convolutions.
    pub stem: [usize; 2],
    /// Channels of each stage.
    pub dims: [usize; 4],
    /// Blocks of each stage.
    pub depths: [usize; 4],
    /// Width of an attention head.
    pub head: usize,
    /// Whether transformer blocks scale their branches.
    pub layer_scale: bool,
    /// What else tells one of timm's `rw` networks from another.
    #[serde(default, skip_serializing_if = "is_default")]
    pub variant: Variant,
    /// The image size that the stored position biases are for, if it is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored: Option<[usize; 2]>,
}

/// Differences between timm's `rw` networks; what is not named is CoAtNet-2's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Variant {
    /// Inverted bottlenecks halve the map by means, behind their first norm, not by the depthwise stride.
    pub means: bool,
    /// Their first norm has no activation behind it.
    pub plain_entrance: bool,
    /// Their gate comes before the second norm, not behind it.
    pub early_gate: bool,
    /// The gate's narrow layer has a ReLU behind it, not SiLU.
    pub relu_gate: bool,
    /// The last convolution and the shortcut's have biases.
    pub biases: bool,
    /// The transformers' shortcut has none.
    pub bare_shortcut: bool,
    /// Position biases come from a perceptron with so many hidden units, not from a table.
    pub position_mlp: Option<usize>,
    /// Shortcuts, and transformers altogether, halve the map by the greatest of 3 × 3 pixels, not by means of 2 × 2.
    pub maxima: bool,
    /// Norms in the transformers and behind the last are batch norms, not over channels.
    pub batch_norms: bool,
    /// Stages of transformers begin with an inverted bottleneck, which halves the map.
    pub convolving_entrances: bool,
}

fn is_default(variant: &Variant) -> bool {
    *variant == Variant::default()
}

/// timm's names, with the channels behind the stem and of the first stage, each stage's blocks and what is different.
fn known(size: &str) -> Option<([usize; 2], [usize; 4], bool, Variant)> {
    let v = Variant::default();
    let gate = Variant { relu_gate: true, ..v };
    let early = Variant { early_gate: true, bare_shortcut: true, ..gate };
    let plain = Variant { plain_entrance: true, biases: true, ..v };
    let mlp = |hidden: usize, v: Variant| Variant { position_mlp: Some(hidden), ..v };
    Some(match size {
        "pico_rw" => ([64, 64], [2, 3, 5, 2], false, plain),
        "nano_rw" => ([64, 64], [3, 4, 6, 3], false, Variant { means: true, ..plain }),
        "nano_cc" => {
            ([64, 64], [3, 4, 6, 3], false, Variant { means: true, convolving_entrances: true, ..gate })
        }
        "bn_0_rw" => ([64, 96], [2, 3, 7, 2], false, Variant { batch_norms: true, ..early }),
        "0_rw" => ([64, 96], [2, 3, 7, 2], false, Variant { means: true, ..early }),
        "1_rw" => ([64, 96], [2, 6, 14, 2], false, early),
        "2_rw" => ([128; 2], [2, 6, 14, 2], false, v),
        "3_rw" => ([192; 2], [2, 6, 14, 2], true, v),
        "rmlp_nano_rw" => ([64, 64], [3, 4, 6, 3], false, mlp(384, plain)),
        "rmlp_0_rw" => ([64, 96], [2, 3, 7, 2], false, mlp(512, gate)),
        "rmlp_1_rw" => {
            let maxima = Variant { means: true, maxima: true, ..early };
            ([64, 96], [2, 6, 14, 2], false, mlp(384, maxima))
        }
        "rmlp_1_rw2" => ([64, 96], [2, 6, 14, 2], false, mlp(512, gate)),
        "rmlp_2_rw" => ([128; 2], [2, 6, 14, 2], true, mlp(512, v)),
        "rmlp_3_rw" => ([192; 2], [2, 6, 14, 2], true, mlp(512, v)),
        _ => return None,
    })
}

impl CoAtNetConfig {
    /// `coatnet_SIZE_IMAGE`.
    pub(super) fn named(name: &str) -> Option<Self> {
        let (size, image) = name.strip_prefix("coatnet_")?.rsplit_once('_')?;
        let image: usize = image.parse().ok()?;
        let ([stem, width], depths, layer_scale, variant) = known(size)?;
        let config = Self {
            image: [image; 2],
            stem: [stem / 2, stem],
            dims: [width, 2 * width, 4 * width, 8 * width],
            depths,
            head: 32,
            layer_scale,
            variant,
            stored: None,
        };
        config.check().ok().map(|()| config)
    }

    /// Whether a block is an inverted bottleneck.
    fn convolves(&self, stage: usize, index: usize) -> bool {
        stage < CONVOLUTIONAL || (index == 0 && self.variant.convolving_entrances)
    }

    /// Height and width of the map behind a stage.
    fn size_behind(&self, stage: usize) -> [usize; 2] {
        self.image.map(|side| side >> (stage + 2))
    }
}

impl Family for CoAtNetConfig {
    fn set(&mut self, key: &str, value: &Value) -> Option<()> {
        match key {
            "img_size" => set_sides(&mut self.image, value),
            "embed_dim" => set(&mut self.dims, value),
            "depths" => set(&mut self.depths, value),
            "stem_width" => set(&mut self.stem, value),
            _ => None,
        }
    }

    fn check(&self) -> Result<()> {
        let fits = |c: &usize| (1..=MAX_WIDTH).contains(c);
        if self.depths.contains(&0) || !self.stem.iter().chain(&self.dims).all(fits) {
            bail!(
                "config.json: depths {:?}, embed_dim {:?} and stem_width {:?} must be positive and within reason",
                self.depths,
                self.dims,
                self.stem
            );
        }
        let attending = &self.dims[CONVOLUTIONAL - 1..];
        if self.head == 0 || attending.iter().any(|c| !c.is_multiple_of(self.head)) {
            bail!("config.json: embed_dim {:?} must be multiples of a head's {}", self.dims, self.head);
        }
        if self.image.iter().any(|s| *s == 0 || s % 32 != 0 || *s > MAX_SIDE) {
            bail!("config.json: img_size {:?} must be a multiple of 32, up to {MAX_SIDE}", self.image);
        }
        Ok(())
    }

    fn args(&self) -> Value {
        json!({
            "img_size": self.image, "embed_dim": self.dims, "depths": self.depths, "stem_width": self.stem,
        })
    }

    fn preprocess(&self, _classes: usize) -> Preprocess {
        // timm's: 1 for the network at 384 pixels, 0.9 for the nano ones, which begin with three blocks, but not for `nano_cc`.
        let crop = match (self.image[0], self.depths[0]) {
            (384.., _) => 1.0,
            (_, 3) if !self.variant.convolving_entrances => 0.9,
            _ => 0.95,
        };
        let pixels = if self.variant.batch_norms { IMAGENET } else { HALVES };
        Preprocess { image: self.image, ..Preprocess::centre(crop, Interpolation::Bicubic, pixels) }
    }

    fn image(&self) -> Option<[usize; 2]> {
        Some(self.image)
    }

    fn resize(&mut self, image: [usize; 2]) -> Result<()> {
        let [h, w] = image;
        if image.iter().any(|s| s % 32 != 0) {
            bail!("--image-size {h}x{w}: multiples of 32 are expected");
        }
        take_size(&mut self.image, &mut self.stored, image);
        self.check()
    }

    fn classifier(&self) -> &'static str {
        "head.fc"
    }

    fn first_conv(&self) -> &'static str {
        "stem.conv1"
    }

    fn feature_width(&self) -> usize {
        self.dims[3]
    }

    fn size(&self) -> [usize; 2] {
        let [first, second] = self.stem;
        let mut count = 27 * first + 2 * first + 9 * first * second + 2 * self.dims[3];
        let mut c = second;
        for (stage, (&depth, &out)) in self.depths.iter().zip(&self.dims).enumerate() {
            let [h, w] = self.size_behind(stage);
            for index in 0..depth {
                let wide = 4 * c;
                count += if self.convolves(stage, index) {
                    let bias = if self.variant.biases { out } else { 0 };
                    let shortcut = if c == out { 0 } else { c * out + bias };
                    let squeeze = 2 * wide * (wide / 4) + wide / 4 + wide;
                    let reduce = wide * out + bias;
                    2 * c + c * wide + 2 * wide + 9 * wide + 2 * wide + squeeze + reduce + shortcut
                } else {
                    let heads = c / self.head;
                    let biases = match self.variant.position_mlp {
                        Some(hidden) => 3 * hidden + hidden * heads + heads,
                        None => (2 * h - 1) * (2 * w - 1) * heads,
                    };
                    let bias = if self.variant.bare_shortcut { 0 } else { out };
                    let shortcut = if index == 0 && c != out { c * out + bias } else { 0 };
                    let scales = if self.layer_scale { 2 * out } else { 0 };
                    let attention = 2 * c + 3 * c * c + 3 * c + biases + c * out + out;
                    attention + 2 * out + 8 * out * out + 5 * out + shortcut + scales
                };
                c = out;
            }
        }
        [self.depths.iter().sum(), count]
    }

    fn depth_ratio(&self) -> f64 {
        0.2
    }

    fn load(&self, classes: usize, weights: &Weights, compute: Compute) -> Result<Arc<dyn Backbone>> {
        Ok(Arc::new(CoAtNet::load(self, classes, weights, compute)?))
    }
}

/// A CoAtNet.
#[derive(Clone)]
pub struct CoAtNet {
    stem: ConvStem,
    blocks: Vec<(String, Block)>,
    norm: LastNorm,
    head: Option<Linear>,
    width: usize,
}

/// Behind the last block.
#[derive(Clone)]
enum LastNorm {
    Layer(LayerNorm),
    Batch(BatchNorm),
}

impl LastNorm {
    /// Normalise a map, and average it: `[B, C, H, W]` to `[B, C]`.
    fn pooled(&self, x: Tensor<4>) -> Tensor<2> {
        match self {
            Self::Layer(norm) => norm.forward(rows(x)).mean_dim(1).squeeze_dim(1),
            Self::Batch(norm) => mean_pixels(norm.forward(x)),
        }
    }
}

#[derive(Clone)]
enum Block {
    Conv(Convolving),
    Transformer(Attending),
}

#[derive(Clone)]
struct Convolving {
    block: MbConv,
    /// Whether there is a convolution on the shortcut.
    shortcut: bool,
}

impl Convolving {
    /// What the hooks have to be learnt inside the block that the checkpoint calls `name`.
    fn updates(&self, hooks: &dyn Hooks, name: &str) -> MbConvUpdates {
        let update = |leaf| hooks.conv_update(&format!("{name}.{leaf}"));
        MbConvUpdates {
            expand: update("conv1_1x1"),
            reduce: update("conv3_1x1"),
            shortcut: self.shortcut.then(|| update("shortcut.expand")).flatten(),
            dropout: hooks.dropout().map(|dropout| dropout.at(name)),
        }
    }
}

#[derive(Clone)]
struct Attending {
    block: TransformerBlock,
    /// Of the map that comes out.
    size: [usize; 2],
    heads: usize,
    /// In the weights of `proj` and `fc2`, where the network has layer scales.
    gammas: Option<[Tensor<1>; 2]>,
}

impl Attending {
    /// Updates of the checkpoint's weights as updates of ours: `qkv`'s outputs in our order, layer scales inside.
    fn rewritten(&self, mut inside: Inside) -> Inside {
        if let Some(update) = &mut inside.qkv {
            update.up = parts_first(update.up.clone(), self.heads);
        }
        if let Some([first, second]) = &self.gammas {
            for (update, gamma) in [(&mut inside.proj, first), (&mut inside.fc2, second)] {
                if let Some(update) = update {
                    update.up = update.up.clone() * gamma.clone().unsqueeze_dim(1);
                }
            }
        }
        inside
    }
}

/// timm packs each head's queries, keys and values together, `[heads · 3 · d, C]`; ours come first all queries, then
/// keys, then values.
fn parts_first(weight: Tensor<2>, heads: usize) -> Tensor<2> {
    let [rows, columns] = weight.dims();
    let split = weight.reshape([heads, 3, rows / heads / 3, columns]);
    split.swap_dims(0, 1).reshape([rows, columns])
}

impl CoAtNet {
    /// Load from weights named as in timm; `classes` is what the classifier has, 0 for none.
    ///
    /// # Errors
    /// A weight is missing or of another shape.
    pub fn load(
        config: &CoAtNetConfig,
        classes: usize,
        weights: &Weights,
        compute: impl Into<Compute>,
    ) -> Result<Self> {
        let compute = compute.into();
        let [first, second] = config.stem;
        let conv = ConvNorm {
            kernel: weights.take("stem.conv1.weight", [first, 3, 3, 3])?,
            norm: weights.batch_norm("stem.norm1", first, BN_EPS)?,
            stride: 2,
        };
        let stem = ConvStem::new(conv, weights.take("stem.conv2.weight", [second, first, 3, 3])?, compute);
        let mut blocks = Vec::new();
        let mut inputs = second;
        for (stage, &outputs) in config.dims.iter().enumerate() {
            for index in 0..config.depths[stage] {
                let name = format!("stages.{stage}.blocks.{index}");
                let block = if config.convolves(stage, index) {
                    let w = mbconv(&config.variant, weights, &name, [inputs, outputs], index == 0)?;
                    let shortcut = w.shortcut.is_some();
                    Block::Conv(Convolving { block: MbConv::new(w, compute), shortcut })
                } else {
                    let Attention { weights: w, gammas, batch_norms } =
                        transformer(config, weights, &name, [inputs, outputs], stage, index == 0)?;
                    let (heads, size) = (w.heads, config.size_behind(stage));
                    let block = match batch_norms {
                        Some(norms) => TransformerBlock::with_batch_norms(w, norms, compute),
                        None => TransformerBlock::new(w, compute),
                    };
                    Block::Transformer(Attending { block, size, heads, gammas })
                };
                blocks.push((name, block));
                inputs = outputs;
            }
        }
        let norm = if config.variant.batch_norms {
            LastNorm::Batch(weights.batch_norm("norm", inputs, LN_EPS)?)
        } else {
            let [scale, shift] = weights.norm("norm", inputs)?;
            LastNorm::Layer(LayerNorm::new(scale, shift, LN_EPS))
        };
        let head = weights.head("head.fc", classes, inputs)?;
        Ok(Self { stem, blocks, norm, head, width: inputs })
    }
}

fn mbconv(
    variant: &Variant,
    weights: &Weights,
    name: &str,
    [inputs, outputs]: [usize; 2],
    halves: bool,
) -> Result<MbConvWeights> {
    let wide = 4 * inputs;
    let norm = |leaf: &str, width: usize| weights.batch_norm(&format!("{name}.{leaf}"), width, BN_EPS);
    let kernel = |leaf: &str, shape: [usize; 4]| weights.take::<4>(&format!("{name}.{leaf}.weight"), shape);
    let layer = |leaf: &str, rows: usize, columns: usize| -> Result<(Tensor<2>, Option<Tensor<1>>)> {
        if variant.biases {
            let (weight, bias) = weights.pointwise(&format!("{name}.{leaf}"), rows, columns)?;
            return Ok((weight, Some(bias)));
        }
        Ok((kernel(leaf, [rows, columns, 1, 1])?.reshape([rows, columns]), None))
    };
    let gate = if variant.early_gate { "se_early" } else { "se" };
    let halving = if variant.means { Halving::Means } else { Halving::Stride };
    Ok(MbConvWeights {
        pre_norm: norm("pre_norm", inputs)?,
        expand: (kernel("conv1_1x1", [wide, inputs, 1, 1])?, norm("norm1", wide)?),
        depthwise: (kernel("conv2_kxk", [wide, 1, 3, 3])?, norm("norm2", wide)?),
        halved: halves.then_some(halving),
        maxima: variant.maxima,
        entrance: if variant.plain_entrance { Nonlinearity::Identity } else { Nonlinearity::Silu },
        early: variant.early_gate,
        middle: if variant.relu_gate { Nonlinearity::Relu } else { Nonlinearity::Silu },
        squeeze: weights.pointwise(&format!("{name}.{gate}.fc1"), wide / 4, wide)?,
        excite: weights.pointwise(&format!("{name}.{gate}.fc2"), wide, wide / 4)?,
        reduce: layer("conv3_1x1", outputs, wide)?,
        shortcut: (inputs != outputs).then(|| layer("shortcut.expand", outputs, inputs)).transpose()?,
    })
}

/// What a transformer block is made of.
struct Attention {
    weights: TransformerWeights,
    /// The layer scales in them.
    gammas: Option<[Tensor<1>; 2]>,
    /// In the places of their norms.
    batch_norms: Option<[BatchNorm; 2]>,
}

fn transformer(
    config: &CoAtNetConfig,
    weights: &Weights,
    name: &str,
    [inputs, outputs]: [usize; 2],
    stage: usize,
    halves: bool,
) -> Result<Attention> {
    let (window, head) = (config.size_behind(stage), config.head);
    let heads = inputs / head;
    let learnt = config.stored.unwrap_or(config.image);
    let learnt = CoAtNetConfig { image: learnt, ..config.clone() }.size_behind(stage);
    let linear =
        |leaf: &str, rows: usize, columns: usize| weights.pointwise(&format!("{name}.{leaf}"), rows, columns);
    let (weight, bias) = linear("attn.qkv", 3 * inputs, inputs)?;
    let weight = parts_first(weight, heads);
    let bias = parts_first(bias.unsqueeze_dim(1), heads).squeeze_dim(1);
    let position = format!("{name}.attn.rel_pos");
    let bias_of_scores = match config.variant.position_mlp {
        Some(hidden) => relative_bias(position_mlp(weights, &position, window, hidden, heads)?, window),
        None => {
            biases(weights, &format!("{position}.relative_position_bias_table"), heads, [learnt, window])?
        }
    };
    let gamma = |leaf: &str| weights.take::<1>(&format!("{name}.{leaf}.gamma"), [outputs]);
    let gammas = config.layer_scale.then(|| Ok([gamma("ls1")?, gamma("ls2")?])).transpose()?;
    let scaled = |(weight, bias): (Tensor<2>, Tensor<1>), i: usize| match &gammas {
        Some(gammas) => {
            let gamma = gammas[i].clone();
            (weight * gamma.clone().unsqueeze_dim(1), bias * gamma)
        }
        None => (weight, bias),
    };
    let names = [format!("{name}.norm1{}", if halves { ".norm" } else { "" }), format!("{name}.norm2")];
    let (norms, batch_norms) = if config.variant.batch_norms {
        // The norms' own eps, not the convolutions'.
        let norm = |i: usize, width| weights.batch_norm(&names[i], width, LN_EPS);
        let both = [norm(0, inputs)?, norm(1, outputs)?];
        (both.clone().map(|norm| [norm.weight, norm.bias]), Some(both))
    } else {
        ([weights.norm(&names[0], inputs)?, weights.norm(&names[1], outputs)?], None)
    };
    let [norm1, norm2] = norms;
    let weights = TransformerWeights {
        heads,
        eps: LN_EPS,
        nonlinearity: Nonlinearity::Gelu,
        scope: Scope { bias: Some(bias_of_scores), windows: None },
        norm1,
        qkv: (weight, Some(bias)),
        proj: scaled(linear("attn.proj", outputs, inputs)?, 0),
        norm2,
        fc1: linear("mlp.fc1", 4 * outputs, outputs)?,
        fc2: scaled(linear("mlp.fc2", outputs, 4 * outputs)?, 1),
        shrink: halves
            .then(|| -> Result<Shrink> {
                let expand = if config.variant.bare_shortcut {
                    let weight = weights
                        .take::<4>(&format!("{name}.shortcut.expand.weight"), [outputs, inputs, 1, 1])?;
                    let zeros = Tensor::zeros([outputs], &weight.device().without_autodiff());
                    (weight.reshape([outputs, inputs]), zeros)
                } else {
                    linear("shortcut.expand", outputs, inputs)?
                };
                Ok(Shrink { maxima: config.variant.maxima, size: config.size_behind(stage - 1), expand })
            })
            .transpose()?,
        drop_path: None,
    };
    Ok(Attention { weights, gammas, batch_norms })
}

/// The entries `[(2h - 1)(2w - 1), heads]` that a perceptron gives the distances `d` between two tokens of a window,
/// as `sign(d) log(1 + |d|)` along each axis.
fn position_mlp(
    weights: &Weights,
    name: &str,
    [h, w]: [usize; 2],
    hidden: usize,
    heads: usize,
) -> Result<Tensor<2>> {
    let place = |i: usize, side: usize| {
        let d = i as f64 + 1.0 - side as f64;
        (d.signum() * d.abs().ln_1p()) as f32
    };
    let rows = (0..2 * h - 1).flat_map(|y| (0..2 * w - 1).flat_map(move |x| [place(y, h), place(x, w)]));
    let values: Vec<f32> = rows.collect();
    let leaf = |leaf: &str| format!("{name}.mlp.{leaf}");
    let layer = |fc: &str, outputs: usize, inputs: usize| -> Result<Linear> {
        let weight = weights.take(&leaf(&format!("{fc}.weight")), [outputs, inputs])?;
        Ok(Linear::new(weight, Some(weights.take(&leaf(&format!("{fc}.bias")), [outputs])?), Precision::F32))
    };
    let count = values.len() / 2;
    let (first, second) = (layer("fc1", hidden, 2)?, layer("fc2", heads, hidden)?);
    let places = Tensor::<2>::from_data(TensorData::new(values, [count, 2]), &first.device());
    Ok(second.forward(relu(first.forward(places))))
}

impl Backbone for CoAtNet {
    fn features(&self, x: Tensor<4>, hooks: &dyn Hooks) -> Tensor<2> {
        let mut x = self.stem.forward(x);
        for (l, (name, block)) in self.blocks.iter().enumerate() {
            let entered = enter_map(hooks, l, x);
            let prompt = hooks.prompt(l).map(Prompt::whole);
            x = match block {
                Block::Conv(convolving) => {
                    convolving.block.forward(entered, prompt, &convolving.updates(hooks, name))
                }
                Block::Transformer(attending) => {
                    let [_, _, h, w] = entered.dims();
                    let prompt = prompt.map(|prompt| token_rows(prompt, h * w));
                    let inside = attending.rewritten(inside(hooks, l, name));
                    map(attending.block.forward(rows(entered), prompt, &inside), attending.size)
                }
            };
            leave_map(hooks, l, &x);
        }
        self.norm.pooled(x)
    }

    fn block_names(&self) -> Vec<String> {
        self.blocks.iter().map(|b| b.0.clone()).collect()
    }

    fn feature_width(&self) -> usize {
        self.width
    }

    fn heads(&self, block: usize) -> Option<usize> {
        match &self.blocks[block].1 {
            Block::Conv(_) => None,
            Block::Transformer(attending) => Some(attending.heads),
        }
    }

    fn head(&self) -> Option<&Linear> {
        self.head.as_ref()
    }
}
