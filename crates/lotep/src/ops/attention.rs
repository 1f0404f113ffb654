//! Multi-head self-attention over a fused query-key-value projection.

use burn::tensor::{Tensor, activation::softmax};

use super::{Precision, Round};

/// `softmax(q kᵀ / sqrt(d) + bias + mask) v` for every head.
///
/// `qkv` is `[B, N, 3 · C]`, packed `[q | k | v]`, each `heads × d` (timm's ViT order); `bias` is `[heads, N, N]`,
/// `mask` `[windows, N, N]` with B a multiple of the windows; the result is `[B, N, C]`. `before` are keys and values
/// `[m, C]` that stand before those of every sample, with neither bias nor mask.
pub(crate) fn attention(
    qkv: Tensor<3>,
    heads: usize,
    bias: Option<&Tensor<3>>,
    mask: Option<Tensor<3>>,
    before: Option<&[Tensor<2>; 2]>,
    precision: Precision,
) -> Tensor<3> {
    let [b, n, width] = qkv.dims();
    let c = width / 3;
    let d = c / heads;
    // [3, B, heads, N, d]
    let qkv = qkv.reshape([b, n, 3, heads, d]).permute([2, 0, 3, 1, 4]);
    let part = |i: usize| qkv.clone().narrow(0, i, 1).squeeze_dim::<4>(0);
    let q = precision.round(part(0) * (d as f64).powf(-0.5));
    let (k, mut v) = (precision.round(part(1)), precision.round(part(2)));
    let mut scores = precision.widen(q.clone().matmul(k.transpose()));
    if let Some(bias) = bias {
        scores = scores + bias.clone().unsqueeze();
    }
    if let Some(mask) = mask {
        let windows = mask.dims()[0];
        let split = scores.reshape([b / windows, windows, heads, n, n]);
        scores = (split + mask.reshape([1, windows, 1, n, n])).reshape([b, heads, n, n]);
    }
    if let Some([keys, values]) = before {
        // [B, heads, m, d]
        let heads_of = |x: &Tensor<2>| {
            let m = x.dims()[0];
            let x = precision.round(x.clone()).reshape([1, m, heads, d]).swap_dims(1, 2);
            x.expand([b, heads, m, d])
        };
        scores = Tensor::cat(vec![precision.widen(q.matmul(heads_of(keys).transpose())), scores], 3);
        v = Tensor::cat(vec![heads_of(values), v], 2);
    }
    let weights = precision.round(softmax(scores, 3));
    precision.widen(weights.matmul(v)).swap_dims(1, 2).reshape([b, n, c])
}
