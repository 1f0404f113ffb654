//! Multi-head self-attention over a fused query-key-value projection.

use burn::tensor::{Tensor, activation::softmax};

use super::{Precision, Round};

/// `softmax(q kᵀ / sqrt(d) + bias + mask) v` for every head.
///
/// `qkv` is `[B, N, 3 · C]`, packed `[q | k | v]`, each `heads × d` (timm's ViT order); `bias` is `[heads, N, N]`,
/// `mask` `[windows, N, N]` with B a multiple of the windows; the result is `[B, N, C]`.
pub(crate) fn attention(
    qkv: Tensor<3>,
    heads: usize,
    bias: Option<&Tensor<3>>,
    mask: Option<Tensor<3>>,
    precision: Precision,
) -> Tensor<3> {
    let [b, n, width] = qkv.dims();
    let c = width / 3;
    let d = c / heads;
    // [3, B, heads, N, d]
    let qkv = qkv.reshape([b, n, 3, heads, d]).permute([2, 0, 3, 1, 4]);
    let part = |i: usize| qkv.clone().narrow(0, i, 1).squeeze_dim::<4>(0);
    let q = precision.round(part(0) * (d as f64).powf(-0.5));
    let (k, v) = (precision.round(part(1)), precision.round(part(2)));
    let mut scores = q.matmul(k.transpose());
    if let Some(bias) = bias {
        scores = scores + bias.clone().unsqueeze();
    }
    if let Some(mask) = mask {
        let windows = mask.dims()[0];
        let split = scores.reshape([b / windows, windows, heads, n, n]);
        scores = (split + mask.reshape([1, windows, 1, n, n])).reshape([b, heads, n, n]);
    }
    let weights = precision.round(softmax(scores, 3));
    weights.matmul(v).swap_dims(1, 2).reshape([b, n, c])
}
