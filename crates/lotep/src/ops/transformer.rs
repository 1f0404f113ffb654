//! A pre-norm transformer block.

use std::sync::Arc;

use burn::tensor::{Tensor, activation::gelu};
use lotep_kernels::{Operand, bf16};

use super::fast::{self, FrozenLinear, FrozenOp};
use super::{Compute, LayerNorm, Linear, Precision, attention, host};

/// The weights of a block: each norm's scale and shift `[C]`, each layer's weight `[out, in]` and bias `[out]`.
pub struct TransformerWeights {
    /// Attention heads.
    pub heads: usize,
    /// Added to the norms' variances.
    pub eps: f64,
    /// Norm before the attention.
    pub norm1: [Tensor<1>; 2],
    /// Queries, keys and values.
    pub qkv: (Tensor<2>, Option<Tensor<1>>),
    /// Behind the attention.
    pub proj: (Tensor<2>, Tensor<1>),
    /// Norm before the perceptron.
    pub norm2: [Tensor<1>; 2],
    /// The perceptron's first layer.
    pub fc1: (Tensor<2>, Tensor<1>),
    /// Its second.
    pub fc2: (Tensor<2>, Tensor<1>),
}

/// `x' = x + P`, `y = x' + proj(attention(qkv(LN(x'))))`, `y + fc2(GELU(fc1(LN(y))))`.
#[derive(Clone)]
pub struct TransformerBlock(Form);

#[derive(Clone)]
enum Form {
    Portable(Box<Portable>),
    Fast(Fast),
}

#[derive(Clone)]
struct Fast {
    block: Arc<dyn FrozenOp>,
    class_token: Arc<dyn FrozenOp>,
    recompute: bool,
}

#[derive(Clone)]
struct Portable {
    heads: usize,
    precision: Precision,
    norm1: LayerNorm,
    qkv: Linear,
    proj: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl TransformerBlock {
    /// Take the weights.
    pub fn new(w: TransformerWeights, compute: Compute) -> Self {
        if compute.is_fast(&w.qkv.0) {
            return Self(Form::Fast(match compute.precision {
                Precision::F32 => packed::<f32>(w, compute.recompute),
                Precision::Bf16 => packed::<bf16>(w, compute.recompute),
            }));
        }
        let norm = |[scale, shift]: [Tensor<1>; 2]| LayerNorm::new(scale, shift, w.eps);
        let linear = |weight, bias| Linear::new(weight, bias, compute.precision);
        Self(Form::Portable(Box::new(Portable {
            heads: w.heads,
            precision: compute.precision,
            norm1: norm(w.norm1),
            qkv: linear(w.qkv.0, w.qkv.1),
            proj: linear(w.proj.0, Some(w.proj.1)),
            norm2: norm(w.norm2),
            fc1: linear(w.fc1.0, Some(w.fc1.1)),
            fc2: linear(w.fc2.0, Some(w.fc2.1)),
        })))
    }

    /// Tokens `[B, N, C]` to the same shape, `prompt` `[N, C]` added to each sample as it enters.
    pub fn forward(&self, x: Tensor<3>, prompt: Option<Tensor<2>>) -> Tensor<3> {
        let block = match &self.0 {
            Form::Fast(f) => return fast::apply(&f.block, f.recompute, x, prompt),
            Form::Portable(block) => block,
        };
        let x = match prompt {
            Some(prompt) => x + prompt.unsqueeze(),
            None => x,
        };
        let qkv = block.qkv.forward(block.norm1.forward(x.clone()));
        let y = x + block.proj.forward(attention(qkv, block.heads, block.precision));
        let hidden = gelu(block.fc1.forward(block.norm2.forward(y.clone())));
        y + block.fc2.forward(hidden)
    }

    /// The first token alone of what [`forward`](Self::forward) gives, `[B, 1, C]`.
    pub fn class_token(&self, x: Tensor<3>, prompt: Option<Tensor<2>>) -> Tensor<3> {
        match &self.0 {
            Form::Fast(f) => fast::apply(&f.class_token, f.recompute, x, prompt),
            Form::Portable(_) => self.forward(x, prompt).narrow(1, 0, 1),
        }
    }
}

fn packed<T: Operand>(w: TransformerWeights, recompute: bool) -> Fast {
    let behind = |[scale, shift]: [Tensor<1>; 2], weight: Tensor<2>, bias: Option<Tensor<1>>| {
        let outputs = weight.dims()[0];
        let bias = bias.map(host).unwrap_or_default();
        FrozenLinear::<T>::behind_norm(&host(weight), &bias, outputs, &host(scale), &host(shift))
    };
    let linear = |(weight, bias): (Tensor<2>, Tensor<1>)| {
        let outputs = weight.dims()[0];
        FrozenLinear::<T>::new(&host(weight), host(bias), outputs)
    };
    let block = Arc::new(fast::Transformer {
        heads: w.heads,
        eps: w.eps as f32,
        qkv: behind(w.norm1, w.qkv.0, w.qkv.1),
        proj: linear(w.proj),
        fc1: behind(w.norm2, w.fc1.0, Some(w.fc1.1)),
        fc2: linear(w.fc2),
    });
    Fast { class_token: Arc::new(fast::ClassToken(block.clone())), block, recompute }
}
