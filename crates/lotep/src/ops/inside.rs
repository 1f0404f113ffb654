//! What a method learns inside a block of linear layers: a transformer's, or a ConvNeXt's.

use burn::tensor::Tensor;

use super::{Dropout, Linear, Precision};

/// A low-rank addition to a frozen layer's weight: `y += (x downᵀ) upᵀ`, with `down` `[r, in]` and `up` `[out, r]`; the
/// scale is in `up`.
#[derive(Clone, Debug)]
pub struct LowRank {
    /// To the rank, `[r, in]`.
    pub down: Tensor<2>,
    /// To the layer's outputs, `[out, r]`.
    pub up: Tensor<2>,
}

/// What is learnt inside one block; by default nothing.
#[derive(Clone, Debug, Default)]
pub struct Inside {
    /// Keys and values `[m, C]`, heads side by side, that stand before the tokens' own for every sample and window.
    /// Neither bias nor mask applies to them.
    pub keys_values: Option<[Tensor<2>; 2]>,
    /// Added to the weight of queries, keys and values.
    pub qkv: Option<LowRank>,
    /// Added to the weight behind the attention.
    pub proj: Option<LowRank>,
    /// Added to the weight of the perceptron's first layer.
    pub fc1: Option<LowRank>,
    /// Added to that of its second.
    pub fc2: Option<LowRank>,
    /// Of what the additions see, each at its own place. The fast forms don't know it: blocks that are to be trained with it
    /// are loaded from weights inside autodiff.
    pub dropout: Option<Dropout>,
}

impl LowRank {
    /// `layer(x)` with this added to its weight, if there is anything, where it sees `x` with values dropped; `x` is
    /// `[B, ..., in]`.
    pub(super) fn add<const D: usize>(
        update: Option<&Self>,
        layer: &Linear,
        x: Tensor<D>,
        precision: Precision,
        dropout: Option<Dropout>,
    ) -> Tensor<D> {
        let Some(Self { down, up }) = update else { return layer.forward(x) };
        let [down, up] = [down, up].map(|w| Linear::new(w.clone(), None, precision));
        let seen = match dropout {
            Some(dropout) => dropout.apply(x.clone()),
            None => x.clone(),
        };
        layer.forward(x) + up.forward(down.forward(seen))
    }
}

impl Inside {
    /// Keys and values, if there are any.
    pub(super) fn before(&self) -> Option<&[Tensor<2>; 2]> {
        self.keys_values.as_ref().filter(|[keys, _]| keys.dims()[0] > 0)
    }

    /// Whether nothing is learnt.
    pub(super) fn is_empty(&self) -> bool {
        let updates = [&self.qkv, &self.proj, &self.fc1, &self.fc2];
        self.before().is_none() && updates.iter().all(|update| update.is_none())
    }

    /// What is dropped of what the addition to a layer sees.
    pub(super) fn dropout_at(&self, layer: &str) -> Option<Dropout> {
        self.dropout.map(|dropout| dropout.at(layer))
    }

    /// How much there is and all of it in a row, as `lotep_frozen` documents; nothing if there is nothing. `norms` are
    /// the scales and shifts of the norms before the attention and before the perceptron.
    ///
    /// In the fused block a norm's scale and shift are in the weight behind it, so what an update gets to see comes
    /// without them: with `x = s · n + t`, `x downᵀ` is `n (s · down)ᵀ + down t`.
    pub(super) fn flat(&self, norms: &[[Tensor<1>; 2]; 2]) -> Option<(lotep_frozen::Inside, Tensor<1>)> {
        let mut inside = lotep_frozen::Inside::default();
        let mut parts = Vec::new();
        if let Some(both) = self.before() {
            inside.keys = both[0].dims()[0];
            parts.extend(both.iter().map(|x| x.clone().flatten::<1>(0, 1)));
        }
        let [first, second] = norms;
        let updates =
            [(&self.qkv, Some(first)), (&self.proj, None), (&self.fc1, Some(second)), (&self.fc2, None)];
        for (rank, (update, norm)) in inside.ranks.iter_mut().zip(updates) {
            let Some(LowRank { down, up }) = update else { continue };
            assert!(self.dropout.is_none(), "blocks with dropout inside are loaded in the portable form");
            *rank = down.dims()[0];
            match norm {
                Some([scale, shift]) => {
                    parts.push((down.clone() * scale.clone().unsqueeze()).flatten(0, 1));
                    parts.push((down.clone() * shift.clone().unsqueeze()).sum_dim(1).flatten(0, 1));
                }
                None => parts.push(down.clone().flatten(0, 1)),
            }
            parts.push(up.clone().transpose().flatten(0, 1));
        }
        (!parts.is_empty()).then(|| (inside, Tensor::cat(parts, 0)))
    }
}
