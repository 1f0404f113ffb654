//! E²VPT (Han et al., ICCV 2023; `spec/methods.md` 7): prompt tokens among those of every block, as VPT's deep ones, keys
//! and values of the method's own in every attention, and masks over the tokens and their segments, by whose gradients
//! what matters least is pruned (`crate::prune`). What is left is trained anew from where it started.

use burn::tensor::{Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::vpt::{check_dropout, glorot, needs_tokens};
use super::{Method, Prompts, Site, seeded};
use crate::backbone::Layout;
use crate::params::{Group, Params, uniform};
use crate::{Result, bail};

/// Names of the masks in a checkpoint: `[tokens]` and `[tokens, segments]`.
pub(crate) const TOKEN_MASK: &str = "mask.tokens";
pub(crate) const SEGMENT_MASK: &str = "mask.segments";

/// E²VPT's settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct E2vpt {
    /// Prompt tokens of a block; none on networks some of whose blocks have no attention.
    pub tokens: usize,
    /// Keys, and values, of a block's attention.
    pub key_values: usize,
    /// Whether the values are the keys.
    pub share_key_value: bool,
    /// Whether all blocks have the same keys and values.
    pub share_blocks: bool,
    /// Parts of a token that are pruned by themselves.
    pub segments: usize,
    /// Where a token's segments lie: one after the other, as in the paper, or channel by channel in turn, as in the
    /// published code.
    pub layout: SegmentLayout,
    /// Share of the tokens' values that is dropped while training; the published runs have 0.1.
    pub dropout: f64,
    /// Whether the masks are learnt with the rest, as in the training that comes before pruning.
    pub masks: bool,
    /// Tokens that are pruned, by number.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pruned_tokens: Vec<usize>,
    /// Segments that are pruned, of each token; as many of each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pruned_segments: Vec<Vec<usize>>,
    /// Whether pruned tokens stay in the sequence as zeros, which attention still sees, as in the published code; else they
    /// are gone.
    pub keep_pruned: bool,
    /// Another start than the seed's own: the published code draws the prompts anew for each degree of pruning.
    #[serde(skip_serializing_if = "is_zero")]
    pub restart: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero(restart: &u64) -> bool {
    *restart == 0
}

/// Where a token's segments lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SegmentLayout {
    /// Successive channels.
    #[default]
    Contiguous,
    /// Channel `j` belongs to segment `j` modulo their number.
    Tiled,
}

impl Default for E2vpt {
    fn default() -> Self {
        Self {
            tokens: 10,
            key_values: 5,
            share_key_value: true,
            share_blocks: false,
            segments: 16,
            layout: SegmentLayout::Contiguous,
            dropout: 0.0,
            masks: false,
            pruned_tokens: Vec::new(),
            pruned_segments: Vec::new(),
            keep_pruned: true,
            restart: 0,
        }
    }
}

/// More than any sequence that a ViT was trained on.
const MOST: usize = 1000;

/// Whether masks, and so pruning, act on the tokens of block `l`: on all of a ViT's, on the first of a Swin's, where the
/// authors saw deeper ones lose accuracy.
fn is_masked(site: &Site<'_>, l: usize) -> bool {
    l == 0 || site.blocks[l].layout == Layout::Tokens
}

impl E2vpt {
    /// The segment of a channel.
    fn segment(&self, channel: usize, width: usize) -> usize {
        match self.layout {
            SegmentLayout::Contiguous => channel / (width / self.segments),
            SegmentLayout::Tiled => channel % self.segments,
        }
    }

    /// Where in a token's full list of values each of the remaining ones lies, token by token.
    fn kept(&self, width: usize) -> Vec<usize> {
        let gone = |token: usize, channel: usize| {
            let segments = self.pruned_segments.get(token);
            self.pruned_tokens.contains(&token)
                || segments.is_some_and(|s| s.contains(&self.segment(channel, width)))
        };
        let all = (0..self.tokens).flat_map(|t| (0..width).map(move |c| (t, c)));
        all.filter(|(t, c)| !gone(*t, *c)).map(|(t, c)| t * width + c).collect()
    }

    fn is_pruned(&self) -> bool {
        !self.pruned_tokens.is_empty() || !self.pruned_segments.is_empty()
    }

    fn check(&self, site: &Site<'_>) -> Result<()> {
        for (name, value) in [("tokens", self.tokens), ("key_values", self.key_values)] {
            if value > MOST {
                bail!("e2vpt: {name} {value} is out of range; 0 to {MOST}");
            }
        }
        if self.tokens == 0 && self.key_values == 0 {
            bail!("e2vpt: tokens and key_values are both 0: nothing to learn");
        }
        check_dropout("e2vpt", self.dropout)?;
        if self.tokens > 0 {
            needs_tokens("e2vpt", site, " (with --tokens 0 keys and values alone are learnt)")?;
            let width = site.blocks[0].channels;
            let parted = self.masks || !self.pruned_segments.is_empty();
            if self.segments == 0 || parted && !width.is_multiple_of(self.segments) {
                bail!("e2vpt: segments {} does not divide the tokens' width {width}", self.segments);
            }
        }
        if self.key_values > 0 && site.blocks.iter().all(|b| b.heads.is_none()) {
            bail!("e2vpt: no block has an attention, whose keys and values could be learnt");
        }
        if self.share_blocks && site.blocks.iter().any(|b| b.channels != site.blocks[0].channels) {
            bail!("e2vpt: share_blocks needs blocks of one width");
        }
        if let Some(token) = self.pruned_tokens.iter().find(|t| **t >= self.tokens) {
            bail!("e2vpt: pruned_tokens names {token}, there are {}, from 0", self.tokens);
        }
        if !self.pruned_segments.is_empty() && self.pruned_segments.len() != self.tokens {
            bail!(
                "e2vpt: pruned_segments has {} lists for {} tokens",
                self.pruned_segments.len(),
                self.tokens
            );
        }
        if let Some(segment) = self.pruned_segments.iter().flatten().find(|s| **s >= self.segments) {
            bail!("e2vpt: pruned_segments names {segment}, there are {}, from 0", self.segments);
        }
        if self.masks && self.is_pruned() {
            bail!("e2vpt: masks are learnt before anything is pruned, not after");
        }
        if self.tokens > 0 && self.kept(site.blocks[0].channels).is_empty() {
            bail!("e2vpt: everything is pruned");
        }
        Ok(())
    }

    /// What the masks leave of tokens `[P, C]`.
    fn masked(&self, tokens: Tensor<2>, params: &Params) -> Tensor<2> {
        let [count, width] = tokens.dims();
        let segments: Tensor<2> = params.get(SEGMENT_MASK);
        let each = width / self.segments;
        let segments = match self.layout {
            SegmentLayout::Contiguous => {
                segments.reshape([count, self.segments, 1]).expand([count, self.segments, each])
            }
            SegmentLayout::Tiled => {
                segments.reshape([count, 1, self.segments]).expand([count, each, self.segments])
            }
        };
        tokens * segments.reshape([count, width]) * params.get::<1>(TOKEN_MASK).unsqueeze_dim(1)
    }

    /// Tokens `[P, C]` from the values that remain of them, zeros elsewhere; or `[K, C]` without the pruned ones.
    fn spread(&self, values: Tensor<1>, width: usize) -> Tensor<2> {
        let kept = self.kept(width);
        // Behind the values stands a zero.
        let mut places = vec![kept.len() as i64; self.tokens * width];
        for (value, place) in kept.iter().enumerate() {
            places[*place] = value as i64;
        }
        let mut rows = self.tokens;
        if !self.keep_pruned {
            let row = |t: &usize| places[t * width..][..width].to_vec();
            let left: Vec<usize> = (0..self.tokens).filter(|t| !self.pruned_tokens.contains(t)).collect();
            rows = left.len();
            places = left.iter().flat_map(row).collect();
        }
        let device = values.device();
        let zero = Tensor::zeros([1], &device);
        let count = places.len();
        let places =
            Tensor::<1, Int>::from_data(TensorData::new(places, [count]), &device.without_autodiff());
        Tensor::cat(vec![values, zero], 0).select(0, places).reshape([rows, width])
    }

    /// Blocks with keys and values of their own.
    fn attending<'s>(&self, site: &Site<'s>) -> impl Iterator<Item = (usize, &'s crate::backbone::Block)> {
        let most = match (self.key_values, self.share_blocks) {
            (0, _) => 0,
            (_, true) => 1,
            (_, false) => usize::MAX,
        };
        site.blocks.iter().enumerate().filter(|(_, b)| b.heads.is_some()).take(most)
    }

    fn sides(&self) -> &'static [&'static str] {
        if self.share_key_value { &["keys"] } else { &["keys", "values"] }
    }
}

impl Method for E2vpt {
    fn init(&self, site: &Site<'_>, seed: u64) -> Result<Params> {
        self.check(site)?;
        let seed = seed ^ self.restart.rotate_left(32);
        let mut params = Params::default();
        for (l, block) in
            site.blocks.iter().enumerate().take(if self.tokens > 0 { site.blocks.len() } else { 0 })
        {
            let width = block.channels;
            let all = uniform(self.tokens * width, glorot(site), &mut seeded(seed, l as u64));
            let name = format!("block.{l}.tokens");
            if self.is_pruned() && is_masked(site, l) {
                // The values that remain are the ones that a training without pruning begins with.
                let kept: Vec<f32> = self.kept(width).into_iter().map(|i| all[i]).collect();
                params.push(name, &[kept.len()], Group::Prompt, kept, site.device);
            } else {
                params.push(name, &[self.tokens, width], Group::Prompt, all, site.device);
            }
        }
        let streams = site.blocks.len() as u64;
        for (l, block) in self.attending(site) {
            let head = block.channels / block.heads.unwrap_or(1);
            // Kaiming's bound for a tensor `[heads, m, d]`.
            let bound = (6.0 / (self.key_values * head) as f64).sqrt();
            for (side, name) in (0..).zip(self.sides()) {
                let mut rng = seeded(seed, streams * (1 + side) + l as u64);
                let values = uniform(self.key_values * block.channels, bound, &mut rng);
                let shape = [self.key_values, block.channels];
                params.push(format!("block.{l}.{name}"), &shape, Group::Prompt, values, site.device);
            }
        }
        if self.masks && self.tokens > 0 {
            let (tokens, segments) = (self.tokens, self.segments);
            params.push(TOKEN_MASK, &[tokens], Group::Prompt, vec![1.0; tokens], site.device);
            let ones = vec![1.0; tokens * segments];
            params.push(SEGMENT_MASK, &[tokens, segments], Group::Prompt, ones, site.device);
        }
        Ok(params)
    }

    fn prompts(&self, site: &Site<'_>, params: &Params) -> Prompts {
        let tokens = |(l, block): (usize, &crate::backbone::Block)| {
            let name = format!("block.{l}.tokens");
            if self.is_pruned() && is_masked(site, l) {
                return self.spread(params.get(&name), block.channels);
            }
            let tokens = params.get(&name);
            if self.masks && is_masked(site, l) { self.masked(tokens, params) } else { tokens }
        };
        let mut prompts = Prompts { token_dropout: self.dropout, ..Prompts::default() };
        if self.tokens > 0 {
            prompts.tokens = site.blocks.iter().enumerate().map(tokens).collect();
        }
        let mut keys_values = vec![None; site.blocks.len()];
        for (l, _) in self.attending(site) {
            let both = ["keys", self.sides()[self.sides().len() - 1]];
            keys_values[l] = Some(both.map(|side| params.get::<2>(&format!("block.{l}.{side}"))));
        }
        if self.share_blocks {
            let first = keys_values.iter().flatten().next().cloned();
            for (own, _) in keys_values.iter_mut().zip(site.blocks).filter(|(_, b)| b.heads.is_some()) {
                own.clone_from(&first);
            }
        }
        prompts.keys_values = keys_values;
        prompts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backbone::made_up;
    use crate::backbone::parity::architecture;

    fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
        x.into_data().iter::<f32>().collect()
    }

    /// Masks of ones change nothing; a mask with zeros is what pruning the same gives, in both layouts.
    #[test]
    fn pruning_is_what_masks_of_zeros_do() {
        let loaded = made_up(architecture("vit_b16"), [48, 64]);
        let site = Site::of(&loaded);
        for layout in [SegmentLayout::Contiguous, SegmentLayout::Tiled] {
            let plain = E2vpt { tokens: 3, segments: 4, layout, ..E2vpt::default() };
            let masked = E2vpt { masks: true, ..plain.clone() };
            let [without, mut with] = [&plain, &masked].map(|m| m.init(&site, 5).unwrap());
            let tokens = |m: &E2vpt, params: &Params| -> Vec<Vec<f32>> {
                m.prompts(&site, params).tokens.into_iter().map(values).collect()
            };
            assert_eq!(tokens(&plain, &without), tokens(&masked, &with));
            for param in with.iter_mut() {
                let zeros: &[usize] = match param.name.as_str() {
                    TOKEN_MASK => &[1],
                    SEGMENT_MASK => &[0, 3, 5, 6, 10, 11],
                    _ => continue,
                };
                let mut ones = vec![1.0_f32; param.value.dims()[0]];
                for i in zeros {
                    ones[*i] = 0.0;
                }
                let n = ones.len();
                param.value = Tensor::from_data(TensorData::new(ones, [n]), site.device);
            }
            let pruned = E2vpt {
                pruned_tokens: vec![1],
                pruned_segments: vec![vec![0, 3], vec![1, 2], vec![2, 3]],
                ..plain.clone()
            };
            let params = pruned.init(&site, 5).unwrap();
            assert_eq!(tokens(&pruned, &params), tokens(&masked, &with));
            let removed = E2vpt { keep_pruned: false, ..pruned.clone() };
            let without: Vec<Vec<f32>> =
                tokens(&pruned, &params).into_iter().map(|t| [&t[..32], &t[64..]].concat()).collect();
            assert_eq!(tokens(&removed, &params), without);
            // Three blocks, two tokens of two segments of eight, and keys.
            assert_eq!(params.count(Group::Prompt), 3 * (2 * 2 * 8 + 5 * 32));
        }
    }

    #[test]
    fn keys_and_values_may_be_apart_and_shared() {
        let loaded = made_up(architecture("vit_b16"), [48, 64]);
        let site = Site::of(&loaded);
        let build = |m: E2vpt| m.prompts(&site, &m.init(&site, 1).unwrap()).keys_values;
        let plain = E2vpt { tokens: 0, ..E2vpt::default() };
        let shared: Vec<_> = build(plain.clone()).into_iter().flatten().map(|kv| kv.map(values)).collect();
        assert!(shared.len() == 3 && shared.iter().all(|[k, v]| k == v) && shared[0] != shared[1]);
        let apart: Vec<_> = build(E2vpt { share_key_value: false, ..plain.clone() });
        assert!(apart.into_iter().flatten().all(|[k, v]| values(k) != values(v)));
        let one: Vec<_> = build(E2vpt { share_blocks: true, ..plain });
        let one: Vec<_> = one.into_iter().flatten().map(|kv| kv.map(values)).collect();
        assert!(one.len() == 3 && one[0] == one[2]);
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let loaded = made_up(architecture("vit_b16"), [48, 64]);
        let refused = |m: E2vpt| m.init(&Site::of(&loaded), 0).unwrap_err().to_string();
        let plain = E2vpt::default;
        assert!(refused(E2vpt { tokens: 0, key_values: 0, ..plain() }).contains("nothing to learn"));
        assert!(refused(E2vpt { segments: 5, masks: true, ..plain() }).contains("segments 5"));
        assert!(refused(E2vpt { segments: 0, ..plain() }).contains("segments 0"));
        assert!(
            refused(E2vpt { tokens: 2, pruned_tokens: vec![2], ..plain() }).contains("pruned_tokens names 2")
        );
        assert!(refused(E2vpt { tokens: 2, pruned_tokens: vec![0, 1], ..plain() }).contains("everything"));
        assert!(refused(E2vpt { pruned_segments: vec![vec![1]], ..plain() }).contains("1 lists for 10"));
        assert!(refused(E2vpt { masks: true, pruned_tokens: vec![1], ..plain() }).contains("before"));
        let coatnet = made_up(architecture("coatnet2"), [64, 96]);
        let refused = plain().init(&Site::of(&coatnet), 0).unwrap_err().to_string();
        assert!(refused.contains("--tokens 0"), "{refused}");
        assert!(E2vpt { tokens: 0, ..plain() }.init(&Site::of(&coatnet), 0).is_ok());
    }

    /// On a Swin the masks, and what is pruned, are the first block's alone.
    #[test]
    fn deep_tokens_of_a_swin_are_not_masked() {
        let loaded = made_up(architecture("swin"), [48, 48]);
        let site = Site::of(&loaded);
        let plain = E2vpt { tokens: 2, segments: 2, key_values: 0, ..E2vpt::default() };
        let all = |m: &E2vpt| m.prompts(&site, &m.init(&site, 5).unwrap()).tokens;
        let pruned = E2vpt { pruned_tokens: vec![0], ..plain.clone() };
        for (l, (pruned, plain)) in all(&pruned).into_iter().zip(all(&plain)).enumerate() {
            let width = site.blocks[l].channels;
            let (pruned, plain) = (values(pruned), values(plain));
            assert_eq!(pruned[width..], plain[width..]);
            assert_eq!(pruned[..width].iter().all(|v| *v == 0.0), l == 0, "block {l}");
        }
        let widths: usize = site.blocks.iter().map(|b| b.channels).sum();
        let params = pruned.init(&site, 5).unwrap();
        assert_eq!(params.count(Group::Prompt), 2 * widths - site.blocks[0].channels);
    }
}
