//! CPU kernels for neural networks whose weights never change.
//!
//! Weights are packed once ([`gemm::Matrix`]), activations lie in tiles ([`Tiles`]). Products take bfloat16 or f32
//! operands and sum in f32. What precedes a product (a normalisation, a prompt) is applied while its operand is packed; the
//! windows of a feature map are read where they lie (packed for tile instructions, and of 3 × 3 kernels squares are made of them that
//! need fewer products); what follows (bias, activation, residual)
//! comes while the sums are still in the cache.
//! Backward passes compute the gradient of the input only; where a method learns something within ([`attention::Extra`],
//! [`thin`]), of that as well.
//!
//! The instruction set is chosen at run time ([`Isa`]); every function takes it, so that all of them can be tested
//! on one machine. No framework is in sight: what comes in and goes out of a network are slices of f32, row by row.
//!
//! ```
//! use lotep_kernels::{Isa, gemm::{self, Matrix, Rounded, Store}};
//!
//! // y = x W + b, for 3 rows of 4 values and 2 outputs.
//! let weight = Matrix::<f32>::pack(4, 2, |k, n| if k == n { 1.0 } else { 0.0 });
//! let x: Vec<f32> = (0..12).map(|v| v as f32).collect();
//! let mut y = [0.0; 6];
//! gemm::run(Isa::best(), &Rounded::new(&x, 4), &weight, &Store::new(&mut y, 2).bias(&[0.5, -0.5]));
//! assert_eq!(y, [0.5, 0.5, 4.5, 4.5, 8.5, 8.5]);
//! ```
//!
//! # Checked
//!
//! Every kernel is compared with f64 over awkward shapes, for each instruction set that the machine has. The same tests
//! run under the address sanitiser (`RUSTFLAGS=-Zsanitizer=address cargo +nightly test -p lotep-kernels --lib --target
//! x86_64-unknown-linux-gnu`). Miri, which knows no vector instructions, interprets the portable form
//! (`MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-tree-borrows -Zmiri-ignore-leaks" cargo +nightly miri test -p
//! lotep-kernels --lib`); sizes are smaller there, and it takes hours all the same: name the tests you want.

pub mod attention;
pub mod batch_norm;
pub mod conv;
pub mod correlation;
pub mod depthwise;
pub mod excite;
pub mod gemm;
mod isa;
pub mod memory;
pub mod norm;
mod operand;
mod parallel;
pub mod patches;
#[doc(hidden)]
pub mod peak;
pub mod pool;
mod repeated;
mod scratch;
pub mod simd;
pub mod stem;
pub mod stream;
#[cfg(test)]
mod testing;
pub mod thin;
mod tiles;

pub use half::bf16;
pub use isa::{ISA_VARIABLE, Isa};
pub use operand::Operand;
pub use parallel::SharedMut;
pub use tiles::{RowSums, SharedTiles, Tiles};
