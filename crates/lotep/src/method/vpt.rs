//! Visual prompt tuning (Jia et al., ECCV 2022; `spec/methods.md` 6): tokens of the method's own among those of a ViT, or in
//! every window of a Swin.
//!
//! The shallow form puts them in once, behind the position embedding; the deep one has others for every block, which
//! take the place of what the block before made of its own. With `fourier` some of them are seen through a Fourier
//! transform (VFPT, `spec/methods.md` 8).

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::{Method, Prompts, Site, seeded};
use crate::backbone::Layout;
use crate::params::{Group, Params, uniform};
use crate::{Result, bail};

/// VPT's settings, the same for the shallow and the deep form.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Vpt {
    /// Prompt tokens of a block.
    pub tokens: usize,
    /// Share of them, from the first, that enters as the real part of a Fourier transform over their width and their
    /// number.
    pub fourier: f64,
    /// Share of the tokens' values that is dropped while training; the paper's runs have 0 or 0.1.
    pub dropout: f64,
}

impl Default for Vpt {
    fn default() -> Self {
        Self { tokens: 10, fourier: 0.0, dropout: 0.0 }
    }
}

/// Where tokens are put in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    Shallow,
    Deep,
}

/// VPT in one of its forms, as a method.
pub(super) struct VptMethod<'a>(pub(super) &'a Vpt, pub(super) Depth);

/// More than any sequence that a ViT was trained on.
const MOST: usize = 1000;

impl VptMethod<'_> {
    /// Tokens that enter through a Fourier transform.
    fn transformed(&self) -> usize {
        (self.0.fourier * self.0.tokens as f64 + 1e-9) as usize
    }

    fn blocks(&self, site: &Site<'_>) -> usize {
        match self.1 {
            Depth::Shallow => 1,
            Depth::Deep => site.blocks.len(),
        }
    }
}

/// Check that every block attends to tokens, among which others can stand: a ViT's, or a Swin's within windows.
pub(super) fn needs_tokens(method: &str, site: &Site<'_>, else_: &str) -> Result<()> {
    match site.blocks.iter().find(|b| b.layout != Layout::Tokens && b.heads.is_none()) {
        Some(block) => bail!(
            "{method}: prompt tokens need a ViT or a Swin, whose every block attends to tokens; `{}` has no \
             attention{else_}",
            block.name
        ),
        None => Ok(()),
    }
}

/// Check what is dropped of values while training.
pub(super) fn check_dropout(method: &str, dropout: f64) -> Result<()> {
    if !(0.0..1.0).contains(&dropout) {
        bail!("{method}: dropout {dropout} is out of range; 0 to below 1");
    }
    Ok(())
}

/// The bound of what tokens are drawn from: that of the layer that takes patches to the first block's tokens (Glorot).
pub(super) fn glorot(site: &Site<'_>) -> f64 {
    let Some(block) = site.blocks.first() else { return 0.0 };
    let patch = site.image[0] / block.height.max(1) * (site.image[1] / block.width.max(1));
    (6.0 / (3 * patch + block.channels) as f64).sqrt()
}

impl Method for VptMethod<'_> {
    fn init(&self, site: &Site<'_>, seed: u64) -> Result<Params> {
        let (config, count) = (self.0, self.0.tokens);
        if !(1..=MOST).contains(&count) {
            bail!("vpt: tokens {count} is out of range; 1 to {MOST}");
        }
        if !(0.0..=1.0).contains(&config.fourier) {
            bail!("vpt: fourier {} is out of range; 0 to 1", config.fourier);
        }
        if config.fourier > 0.0 && self.transformed() == 0 {
            bail!("vpt: fourier {} of {count} tokens is none", config.fourier);
        }
        check_dropout("vpt", config.dropout)?;
        needs_tokens("vpt", site, "; vpt-pad and vpt-below are for convolutional networks")?;
        let mut params = Params::default();
        for (l, block) in site.blocks.iter().enumerate().take(self.blocks(site)) {
            let values = uniform(count * block.channels, glorot(site), &mut seeded(seed, l as u64));
            let shape = [count, block.channels];
            params.push(format!("block.{l}.tokens"), &shape, Group::Prompt, values, site.device);
        }
        Ok(params)
    }

    fn prompts(&self, site: &Site<'_>, params: &Params) -> Prompts {
        let transformed = self.transformed();
        // One for each width, of which a ViT has one.
        let mut known: BTreeMap<usize, Fourier> = BTreeMap::new();
        let tokens = |l: usize| {
            let tokens: Tensor<2> = params.get(&format!("block.{l}.tokens"));
            let [count, width] = tokens.dims();
            if transformed == 0 {
                return tokens;
            }
            let made = || Fourier::new(transformed, width, site.device);
            let fourier = known.entry(width).or_insert_with(made);
            let seen = fourier.real_part(tokens.clone().narrow(0, 0, transformed));
            if transformed == count {
                return seen;
            }
            Tensor::cat(vec![seen, tokens.narrow(0, transformed, count - transformed)], 0)
        };
        let tokens = (0..self.blocks(site)).map(tokens).collect();
        Prompts { tokens, token_dropout: self.0.dropout, ..Prompts::default() }
    }
}

/// The Fourier transform of matrices along both axes: cosines and sines of `2π i j / length` for rows and columns.
struct Fourier {
    rows: [Tensor<2>; 2],
    columns: [Tensor<2>; 2],
}

impl Fourier {
    fn new(rows: usize, columns: usize, device: &Device) -> Self {
        Self { rows: waves(rows, device), columns: waves(columns, device) }
    }

    /// Its real part, `C X C − S X S`.
    fn real_part(&self, x: Tensor<2>) -> Tensor<2> {
        let ([row_cos, row_sin], [column_cos, column_sin]) = (self.rows.clone(), self.columns.clone());
        row_cos.matmul(x.clone()).matmul(column_cos) - row_sin.matmul(x).matmul(column_sin)
    }
}

fn waves(length: usize, device: &Device) -> [Tensor<2>; 2] {
    let table = |wave: fn(f64) -> f64| {
        let turns = |i: usize| std::f64::consts::TAU * i as f64 / length as f64;
        let one: Vec<f32> = (0..length).map(|i| wave(turns(i)) as f32).collect();
        let at = |i: usize| one[i / length * (i % length) % length];
        let values: Vec<f32> = (0..length * length).map(at).collect();
        Tensor::from_data(TensorData::new(values, [length, length]), &device.clone().without_autodiff())
    };
    [table(f64::cos), table(f64::sin)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backbone::{Architecture, Backbone, SwinConfig, Weights};
    use crate::fixtures::assert_close;
    use crate::ops::{Compute, Precision};

    /// Features of the second image, and the gradients of the first four values of each block's first token, as
    /// `benches/peers/vpt_swin.py` has them.
    const SHALLOW: [&str; 2] = [
        "-1.0143169 2.8269012e-1 3.3553147e-1 -7.1202260e-1 8.2173012e-1 -3.5228920e-1 -2.2589204e-1 \
        6.0308902e-1 -5.1195977e-1 2.6038829e-1 3.1702182e-1 -5.6829050e-1 4.9879500e-1 \
        -5.6172635e-2 -4.5468695e-1 7.9135351e-1",
        "5.6004234e-3 5.0895069e-3 -7.7294329e-3 7.4838749e-3",
    ];
    const DEEP: [&str; 2] = [
        "-4.7626839e-1 6.6897951e-1 -8.1423202e-1 3.3412630e-1 2.1752340e-1 -5.6184809e-1 \
        6.0232359e-1 -5.5679867e-1 6.9532259e-2 3.6178436e-1 -4.6791752e-1 4.0728217e-1 \
        -2.3970600e-1 -1.0356673e-1 3.3244911e-1 -2.2367674e-1",
        "-6.9778043e-6 -7.1590913e-4 8.7859567e-4 -8.1717107e-4 5.5996940e-5 -3.8217079e-5 \
        -5.7198369e-6 2.3327795e-5 9.8930823e-4 -3.6746152e-3 6.9716741e-3 -7.1697679e-3 \
        2.0362548e-3 -1.9006076e-3 5.6442047e-4 2.6081902e-4",
    ];

    /// That script's values of order `scale`, other ones for every name.
    fn formula(name: &str, count: usize, scale: f32) -> Vec<f32> {
        let begin = name.bytes().map(usize::from).sum::<usize>() % 97;
        (0..count).map(|i| (((i * 7 + begin * 13) as f64 * 0.37).sin() as f32) * scale).collect()
    }

    /// Tokens in the windows of a Swin, against the definition written out in PyTorch with timm's weights: shifted windows
    /// with their masks and biases, the average over windows, the merge of prompts, in both forms.
    #[test]
    fn tokens_in_windows_agree_with_pytorch() {
        let config = SwinConfig {
            image: [24; 2],
            patch: 4,
            width: 8,
            depths: vec![2, 2],
            heads: vec![2, 4],
            window: 3,
            stored: None,
        };
        let architecture = Architecture::Swin(config);
        let device = Device::flex().autodiff();
        let asked = Weights::random(0, &device);
        architecture.load(0, &asked, Compute::default()).unwrap();
        let tensor = |(name, shape): (&String, &Vec<usize>)| {
            let count = shape.iter().product();
            let flat = shape.len() == 1;
            let mut values = formula(name, count, if flat { 0.1 } else { 0.4 });
            if flat && name.ends_with("weight") {
                for value in &mut values {
                    *value += 1.0;
                }
            }
            (name.clone(), Tensor::from_data(TensorData::new(values, [count]), &Device::flex()))
        };
        let tensors: BTreeMap<_, _> = asked.taken().iter().map(tensor).collect();
        let image = formula("image", 2 * 3 * 24 * 24, 1.0);
        let image = Tensor::<4>::from_data(TensorData::new(image, [2, 3, 24, 24]), &device);
        for (portable, recompute) in [(true, false), (false, false), (false, true)] {
            let compute = Compute { precision: Precision::F32, portable, recompute };
            let weights = Weights::from_tensors(tensors.clone(), &device);
            let net: std::sync::Arc<dyn Backbone> = architecture.load(0, &weights, compute).unwrap();
            for expected in [SHALLOW, DEEP] {
                let [expected, gradients] = expected
                    .map(|text| text.split_whitespace().map(|v| v.parse().unwrap()).collect::<Vec<f32>>());
                let gradients: Vec<&[f32]> = gradients.chunks(4).collect();
                let leaf = |l: usize| {
                    let width = if l < 2 { 8 } else { 16 };
                    let values = formula(&format!("tokens {l}"), 2 * width, 1.0);
                    Tensor::<2>::from_data(TensorData::new(values, [2, width]), &device).require_grad()
                };
                let leaves: Vec<_> = (0..gradients.len()).map(leaf).collect();
                let prompts = Prompts { tokens: leaves.clone(), ..Prompts::default() };
                let features = net.features(image.clone(), &prompts);
                let found: Vec<f32> =
                    features.clone().without_autodiff().into_data().iter::<f32>().skip(16).collect();
                assert_close(&found, &expected, 1e-5, &format!("{compute:?} features"));
                let weigh: Vec<f32> = (0..32).map(|i| (i as f32).cos()).collect();
                let weigh = Tensor::<2>::from_data(TensorData::new(weigh, [2, 16]), &device);
                let tape = (features * weigh).sum().backward();
                for (l, (leaf, expected)) in leaves.iter().zip(gradients).enumerate() {
                    let grad: Vec<f32> =
                        leaf.grad(&tape).unwrap().into_data().iter::<f32>().take(4).collect();
                    assert_close(&grad, expected, 5e-5, &format!("{compute:?} tokens of block {l}"));
                }
            }
        }
    }

    #[test]
    fn the_fourier_transform_is_the_definition() {
        let (rows, columns) = (3, 5);
        let at = |r: usize, c: usize| ((r * columns + c) as f64).sin();
        let values: Vec<f32> = (0..rows * columns).map(|i| at(i / columns, i % columns) as f32).collect();
        let x = Tensor::<2>::from_data(TensorData::new(values, [rows, columns]), &Device::flex());
        let fourier = Fourier::new(rows, columns, &Device::flex());
        let found: Vec<f32> = fourier.real_part(x).into_data().iter::<f32>().collect();
        for (i, found) in found.into_iter().enumerate() {
            let (k, l) = (i / columns, i % columns);
            let mut expected = 0.0;
            for (r, c) in (0..rows * columns).map(|i| (i / columns, i % columns)) {
                let turn = (k * r) as f64 / rows as f64 + (l * c) as f64 / columns as f64;
                expected += at(r, c) * (std::f64::consts::TAU * turn).cos();
            }
            assert!((f64::from(found) - expected).abs() < 1e-5, "{i}: {found} {expected}");
        }
    }
}
