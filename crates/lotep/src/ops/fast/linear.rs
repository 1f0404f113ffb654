//! A frozen fully connected layer, packed for either direction.

use std::sync::OnceLock;

use lotep_kernels::Operand;
use lotep_kernels::gemm::{self, Epilogue, Matrix, Source};

use super::isa;

/// `y = x Wᵀ + b` as a product with a packed matrix; the matrix of the backward direction is packed at the first
/// backward pass.
#[derive(Debug)]
pub(crate) struct FrozenLinear<T> {
    forward: Matrix<T>,
    backward: OnceLock<Matrix<T>>,
    bias: Vec<f32>,
}

impl<T: Operand> FrozenLinear<T> {
    /// Take a weight `[out, in]`, row by row, and a bias, which may be empty.
    pub(crate) fn new(weight: &[f32], bias: Vec<f32>, outputs: usize) -> Self {
        let inputs = weight.len() / outputs;
        let forward = Matrix::pack(inputs, outputs, |k, n| weight[n * inputs + k]);
        Self { forward, backward: OnceLock::new(), bias }
    }

    /// The same behind a normalisation with `scale` and `shift`, `[in]` each: `W (s · x + t) + b`.
    pub(crate) fn behind_norm(
        weight: &[f32],
        bias: &[f32],
        outputs: usize,
        scale: &[f32],
        shift: &[f32],
    ) -> Self {
        let inputs = scale.len();
        let shifted = |n: usize| -> f32 {
            let row = &weight[n * inputs..(n + 1) * inputs];
            let sum: f64 = row.iter().zip(shift).map(|(w, t)| f64::from(*w) * f64::from(*t)).sum();
            bias.get(n).copied().unwrap_or(0.0) + sum as f32
        };
        let bias = (0..outputs).map(shifted).collect();
        let forward = Matrix::pack(inputs, outputs, |k, n| weight[n * inputs + k] * scale[k]);
        Self { forward, backward: OnceLock::new(), bias }
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
