//! Tiny networks: a ResNet, a ViT and a Swin with weights made up here, in timm's layout.

use serde_json::{Value, json};

use crate::files::Tensor;

/// A tiny network.
#[allow(clippy::enum_variant_names, reason = "networks have their own names")]
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Net {
    ResNet,
    Vit,
    Swin,
}

/// Classes of a tiny network's own classifier.
pub(crate) const OWN_CLASSES: usize = 12;

impl Net {
    pub(crate) const BOTH: [Self; 2] = [Self::ResNet, Self::Vit];

    /// Width of the features.
    pub(crate) fn width(self) -> usize {
        if self == Self::ResNet { 8 } else { 16 }
    }

    /// timm's `config.json`.
    pub(crate) fn config(self) -> Value {
        let (architecture, args) = match self {
            Self::ResNet => ("resnet18", json!({ "layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8] })),
            Self::Swin => (
                "swin_tiny_patch4_window7_224",
                json!({
                    "img_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 1], "num_heads": [2, 4],
                    "window_size": 4,
                }),
            ),
            Self::Vit => (
                "vit_tiny_patch16_224",
                json!({ "img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2 }),
            ),
        };
        json!({
            "architecture": architecture, "num_classes": OWN_CLASSES, "model_args": args,
            "pretrained_cfg": { "input_size": [3, 32, 32], "mean": [0.5, 0.45, 0.4], "std": [0.25, 0.25, 0.2] },
        })
    }

    /// Names and shapes of the weights.
    pub(crate) fn shapes(self) -> Vec<(String, Vec<usize>)> {
        let mut shapes: Vec<(String, Vec<usize>)> = Vec::new();
        let mut add = |name: String, shape: &[usize]| shapes.push((name, shape.to_vec()));
        let (width, classes) = (self.width(), OWN_CLASSES);
        if self == Self::ResNet {
            let mut conv = |conv: &str, norm: &str, shape: [usize; 4]| {
                add(format!("{conv}.weight"), &shape);
                for leaf in ["weight", "bias", "running_mean", "running_var"] {
                    add(format!("{norm}.{leaf}"), &shape[..1]);
                }
            };
            conv("conv1", "bn1", [64, 3, 7, 7]);
            for (stage, input) in [(1, 64), (2, 8), (3, 8), (4, 8)] {
                let block = format!("layer{stage}.0");
                conv(&format!("{block}.conv1"), &format!("{block}.bn1"), [8, input, 3, 3]);
                conv(&format!("{block}.conv2"), &format!("{block}.bn2"), [8, 8, 3, 3]);
                conv(&format!("{block}.downsample.0"), &format!("{block}.downsample.1"), [8, input, 1, 1]);
            }
            add("fc.weight".into(), &[classes, width]);
            add("fc.bias".into(), &[classes]);
            return shapes;
        }
        if self == Self::Swin {
            return Self::swin();
        }
        add("cls_token".into(), &[1, 1, width]);
        add("pos_embed".into(), &[1, 5, width]);
        add("patch_embed.proj.weight".into(), &[width, 3, 16, 16]);
        add("patch_embed.proj.bias".into(), &[width]);
        let mut linear = |name: String, output: usize, input: Option<usize>| {
            let shape: Vec<usize> = [Some(output), input].into_iter().flatten().collect();
            add(format!("{name}.weight"), &shape);
            add(format!("{name}.bias"), &[output]);
        };
        for block in (0..2).map(|i| format!("blocks.{i}")) {
            linear(format!("{block}.norm1"), width, None);
            linear(format!("{block}.attn.qkv"), 3 * width, Some(width));
            linear(format!("{block}.attn.proj"), width, Some(width));
            linear(format!("{block}.norm2"), width, None);
            linear(format!("{block}.mlp.fc1"), 4 * width, Some(width));
            linear(format!("{block}.mlp.fc2"), width, Some(4 * width));
        }
        linear("norm".into(), width, None);
        linear("head".into(), classes, Some(width));
        shapes
    }

    /// The Swin's.
    fn swin() -> Vec<(String, Vec<usize>)> {
        let mut shapes: Vec<(String, Vec<usize>)> =
            vec![("patch_embed.proj.weight".into(), vec![8, 3, 4, 4])];
        let mut linear = |name: &str, output: usize, input: Option<usize>, bias: bool| {
            if name != "patch_embed.proj" {
                let shape = [Some(output), input].into_iter().flatten().collect();
                shapes.push((format!("{name}.weight"), shape));
            }
            if bias {
                shapes.push((format!("{name}.bias"), vec![output]));
            }
        };
        linear("patch_embed.proj", 8, None, true);
        linear("patch_embed.norm", 8, None, true);
        linear("layers.1.downsample.norm", 32, None, true);
        linear("layers.1.downsample.reduction", 16, Some(32), false);
        for (stage, blocks, width) in [(0, 2, 8), (1, 1, 16)] {
            for block in (0..blocks).map(|i| format!("layers.{stage}.blocks.{i}")) {
                linear(&format!("{block}.norm1"), width, None, true);
                linear(&format!("{block}.attn.qkv"), 3 * width, Some(width), true);
                linear(&format!("{block}.attn.proj"), width, Some(width), true);
                linear(&format!("{block}.norm2"), width, None, true);
                linear(&format!("{block}.mlp.fc1"), 4 * width, Some(width), true);
                linear(&format!("{block}.mlp.fc2"), width, Some(4 * width), true);
            }
        }
        linear("norm", 16, None, true);
        linear("head.fc", OWN_CLASSES, Some(16), true);
        for (stage, blocks, heads) in [(0, 2, 2), (1, 1, 4)] {
            for i in 0..blocks {
                let table = format!("layers.{stage}.blocks.{i}.attn.relative_position_bias_table");
                shapes.push((table, vec![7 * 7, heads]));
            }
        }
        shapes
    }

    /// Weights that keep activations of order one, different for every seed.
    pub(crate) fn weights(self, seed: u64) -> Vec<Tensor> {
        let mut dice = Dice(seed);
        let value = |name: &str, shape: &[usize], dice: &mut Dice| {
            let noise = dice.normal();
            match shape.len() {
                1 if name.ends_with("weight") || name.ends_with("running_var") => 1.0 + 0.1 * noise.abs(),
                1 => 0.1 * noise,
                _ => noise * (2.0 / shape[1..].iter().product::<usize>() as f32).sqrt(),
            }
        };
        let tensor = |(name, shape): (String, Vec<usize>)| {
            let count = shape.iter().product();
            let values = (0..count).map(|_| value(&name, &shape, &mut dice)).collect();
            Tensor { name, shape, values }
        };
        self.shapes().into_iter().map(tensor).collect()
    }
}

/// Random numbers that need no crate: SplitMix64.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1).
    pub(crate) fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1_u64 << 24) as f32
    }

    /// Near enough to a standard normal: twelve uniform numbers have variance one.
    fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.uniform()).sum::<f32>() - 6.0
    }
}
