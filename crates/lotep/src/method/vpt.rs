//! Visual prompt tuning (Jia et al., ECCV 2022; `spec/methods.md` 6): tokens of the method's own among those of a ViT.
//!
//! The shallow form puts them in once, behind the position embedding; the deep one has others for every block, which
//! take the place of what the block before made of its own. With `fourier` some of them are seen through a Fourier
//! transform (VFPT, `spec/methods.md` 8).

use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::{Method, Prompts, Site, seeded};
use crate::backbone::{Block, Layout};
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
}

impl Default for Vpt {
    fn default() -> Self {
        Self { tokens: 10, fourier: 0.0 }
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

/// Check that blocks see a sequence of tokens, among which others can stand.
pub(super) fn needs_tokens(method: &str, site: &Site<'_>, else_: &str) -> Result<()> {
    match site.blocks.iter().find(|b| b.layout != Layout::Tokens) {
        Some(block) => bail!(
            "{method}: prompt tokens need a ViT, whose blocks see a sequence with a class token; `{}` sees a map{else_}",
            block.name
        ),
        None => Ok(()),
    }
}

/// The bound of what tokens are drawn from: that of a first layer that takes patches to tokens (Glorot).
pub(super) fn glorot(site: &Site<'_>, block: &Block) -> f64 {
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
        needs_tokens("vpt", site, "")?;
        let mut params = Params::default();
        for (l, block) in site.blocks.iter().enumerate().take(self.blocks(site)) {
            let values = uniform(count * block.channels, glorot(site, block), &mut seeded(seed, l as u64));
            let shape = [count, block.channels];
            params.push(format!("block.{l}.tokens"), &shape, Group::Prompt, values, site.device);
        }
        Ok(params)
    }

    fn prompts(&self, site: &Site<'_>, params: &Params) -> Prompts {
        let transformed = self.transformed();
        // The same for all blocks.
        let fourier =
            (transformed > 0).then(|| Fourier::new(transformed, site.blocks[0].channels, site.device));
        let tokens = |l: usize| {
            let tokens: Tensor<2> = params.get(&format!("block.{l}.tokens"));
            let [count, _] = tokens.dims();
            let Some(fourier) = &fourier else { return tokens };
            let seen = fourier.real_part(tokens.clone().narrow(0, 0, transformed));
            if transformed == count {
                return seen;
            }
            Tensor::cat(vec![seen, tokens.narrow(0, transformed, count - transformed)], 0)
        };
        Prompts { tokens: (0..self.blocks(site)).map(tokens).collect(), ..Prompts::default() }
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
