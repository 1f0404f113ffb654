//! Stretches of frozen vision networks on the CPU: forwards, and backwards to their input.
//!
//! A [`FrozenOp`] is a stretch of a network, as long as no method has a hook inside it, from one residual stream to
//! the next: a transformer block, a stem. It takes and gives slices of f32 and knows of no framework. What methods learn
//! inside one of them is a further input of a [`LearningOp`]. Residual blocks of convolutions make a [`Chain`], where a
//! method's prompts enter between them. Weights are described by plain data ([`Transformer`], [`ResidualBlock`], …) and
//! packed once for a [`Precision`].
//!
//! Everything that is generic over the operands' type ends here: users see trait objects, so that the kernels are
//! compiled in this crate and not again whenever something above it changes.

mod chain;
mod conv;
mod convnext;
mod factors;
mod inside;
mod learnt;
mod linear;
mod mbconv;
mod normalise;
mod patch_merge;
mod patches;
mod prompted;
mod residual;
mod stem;
mod thin;
mod transformer;
mod updated;
mod windows;

use std::any::Any;
use std::fmt::Debug;
use std::sync::{Arc, OnceLock};

use lotep_kernels::Isa;
use serde::{Deserialize, Serialize};

pub use chain::{Chain, Keep, Prepared, Prompt, chain};
pub use conv::Kernel;
pub use convnext::{ConvNext, NormDown, PackedConvNext};
pub use factors::{Pairs, PairsGradients};
pub use inside::Inside;
pub use learnt::{LearntResidual, LearntStem, Normalising, NormedConv};
pub use linear::Dense;
pub use mbconv::{ConvStem, Halving, MbConv, PackedMbConv};
pub use normalise::Normalise;
pub use patch_merge::PatchMerge;
pub use patches::{PatchEmbedding, PatchStem};
pub use residual::{Link, PackedResidual, ResidualBlock};
pub use stem::Stem;
pub use thin::ThinProduct;
pub use transformer::{PackedTransformer, Shrink, Transformer, Windowed};
pub use updated::{Convolution, UpdateForm};
pub use windows::{Windows, beside};

/// What the operands of matrix products are rounded to. Everything else (norms, softmax, loss, prompts, and but for a
/// [`Chain`]'s the residual stream) is f32 in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Full single precision.
    #[default]
    F32,
    /// Operands rounded to bfloat16, products accumulated in f32.
    Bf16,
}

/// What an operation keeps for its backward pass.
pub type Kept = Box<dyn Any + Send>;

/// A stretch of a frozen network.
pub trait FrozenOp: Debug + Send + Sync {
    /// The shape that it makes of its input's.
    fn output_shape(&self, input: &[usize]) -> Vec<usize>;

    /// Compute from `x`, of `shape`, with `prompt` (one sample, or empty) added to each sample; with `keep`, give
    /// what `backward` will need.
    fn forward(&self, x: &[f32], shape: &[usize], prompt: &[f32], keep: bool) -> (Vec<f32>, Option<Kept>);

    /// The gradient of `x + prompt`, of the input's `shape`.
    fn backward(&self, kept: Kept, shape: &[usize], grad: &[f32]) -> Vec<f32>;
}

/// A stretch of a frozen network with something to learn inside, which comes as one flat slice.
pub trait LearningOp: Debug + Send + Sync {
    /// The shape that it makes of its input's.
    fn output_shape(&self, input: &[usize]) -> Vec<usize>;

    /// As [`FrozenOp::forward`], with the values of what is learnt.
    fn forward(
        &self,
        x: &[f32],
        shape: &[usize],
        prompt: &[f32],
        learnt: &[f32],
        keep: bool,
    ) -> (Vec<f32>, Option<Kept>);

    /// The gradient of `x + prompt`, of the input's `shape`, and that of `learnt`; what is not wanted is empty.
    fn backward(
        &self,
        kept: Kept,
        shape: &[usize],
        learnt: &[f32],
        grad: &[f32],
        wanted: Wanted,
    ) -> (Vec<f32>, Vec<f32>);
}

/// The gradients that a backward pass is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// That of the stream as it enters.
    pub stream: bool,
    /// That of what is learnt inside.
    pub learnt: bool,
}

/// The case of nothing learnt.
#[derive(Debug)]
pub struct NothingLearnt(pub Arc<dyn FrozenOp>);

impl LearningOp for NothingLearnt {
    fn output_shape(&self, input: &[usize]) -> Vec<usize> {
        self.0.output_shape(input)
    }

    fn forward(
        &self,
        x: &[f32],
        shape: &[usize],
        prompt: &[f32],
        _learnt: &[f32],
        keep: bool,
    ) -> (Vec<f32>, Option<Kept>) {
        self.0.forward(x, shape, prompt, keep)
    }

    fn backward(
        &self,
        kept: Kept,
        shape: &[usize],
        _learnt: &[f32],
        grad: &[f32],
        _wanted: Wanted,
    ) -> (Vec<f32>, Vec<f32>) {
        (self.0.backward(kept, shape, grad), Vec::new())
    }
}

/// The entrance of a network of tokens: a linear part, which a constant image can be folded into.
pub trait Entrance: FrozenOp {
    /// What the linear part makes of one image, of `shape`.
    fn linear_part(&self, image: &[f32], shape: &[usize]) -> Vec<f32>;

    /// The same entrance with other constants added behind its linear part, one sample of them; each type says what
    /// else they have to contain. The packed weights are shared.
    fn with_offset(&self, offset: Vec<f32>) -> Arc<dyn Entrance>;
}

/// The instruction set to compute with: what the environment forces, else the best. A network's loader
/// has checked what is forced ([`Isa::from_environment`]).
pub fn isa() -> Isa {
    static ISA: OnceLock<Isa> = OnceLock::new();
    *ISA.get_or_init(|| Isa::from_environment().unwrap_or_else(|_| Isa::best()))
}

/// Pack `$weights` by its generic `packed` for the precision.
macro_rules! packed {
    ($weights:expr, $precision:expr) => {
        match $precision {
            $crate::Precision::F32 => $weights.packed::<f32>(),
            $crate::Precision::Bf16 => $weights.packed::<lotep_kernels::bf16>(),
        }
    };
}
use packed;
