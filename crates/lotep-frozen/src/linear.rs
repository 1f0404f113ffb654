//! A frozen fully connected layer, packed for either direction.

use std::sync::OnceLock;

use lotep_kernels::Operand;
use lotep_kernels::gemm::{self, Epilogue, Matrix, Source};

use crate::isa;

/// A fully connected layer's weights as they come.
#[derive(Clone, Debug)]
pub struct Dense {
    /// `[outputs, inputs]`, row by row.
    pub weight: Vec<f32>,
    /// `[outputs]`; may be empty.
    pub bias: Vec<f32>,
    /// Number of outputs.
    pub outputs: usize,
}

impl Dense {
    /// The same behind a normalisation with `scale` and `shift`, `[inputs]` each: `W (s · x + t) + b`.
    #[must_use]
    pub fn behind_norm(mut self, scale: &[f32], shift: &[f32]) -> Self {
        self.bias.resize(self.outputs, 0.0);
        for (row, bias) in self.weight.chunks_mut(scale.len()).zip(&mut self.bias) {
            let sum: f64 = row.iter().zip(shift).map(|(w, t)| f64::from(*w) * f64::from(*t)).sum();
            *bias += sum as f32;
            for (w, s) in row.iter_mut().zip(scale) {
                *w *= s;
            }
        }
        self
    }
}

/// `y = x Wᵀ + b` as a product with a packed matrix; the matrix of the backward direction is packed at the first
/// backward pass.
#[derive(Debug)]
pub(crate) struct FrozenLinear<T> {
    forward: Matrix<T>,
    backward: OnceLock<Matrix<T>>,
    bias: Vec<f32>,
}

impl<T: Operand> FrozenLinear<T> {
    pub(crate) fn new(dense: Dense) -> Self {
        let Dense { weight, bias, outputs } = dense;
        let inputs = weight.len() / outputs;
        let forward = Matrix::of_weight(isa(), &weight, inputs);
        Self { forward, backward: OnceLock::new(), bias }
    }

    pub(crate) fn inputs(&self) -> usize {
        self.forward.depth()
    }

    pub(crate) fn outputs(&self) -> usize {
        self.forward.columns()
    }

    pub(crate) fn bias(&self) -> &[f32] {
        &self.bias
    }

    /// `Wᵀ` `[in, out]`.
    pub(crate) fn matrix(&self) -> &Matrix<T> {
        &self.forward
    }

    /// `W` `[out, in]`.
    pub(crate) fn transposed(&self) -> &Matrix<T> {
        self.backward.get_or_init(|| self.forward.transposed())
    }

    /// `x Wᵀ` to an epilogue.
    pub(crate) fn forward<A: Source<T>, E: Epilogue>(&self, x: &A, epilogue: &E) {
        gemm::run(isa(), x, &self.forward, epilogue);
    }

    /// `g W` to an epilogue.
    pub(crate) fn backward<A: Source<T>, E: Epilogue>(&self, grad: &A, epilogue: &E) {
        gemm::run(isa(), grad, self.transposed(), epilogue);
    }
}
