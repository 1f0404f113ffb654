//! What users of this crate run, mentioned with both types of operands, so that it is compiled here.
//!
//! At the low optimisation of development, functions that are generic over the operand's type are compiled once, in
//! the first crate that mentions them, and shared with those above it: these take some minutes, and would take them
//! again in every library, test and program. Nothing here is ever called, and what is missing merely costs time. Where
//! the compiler optimises it shares nothing, so that this would only cost time there.

use std::hint::black_box;

use crate::attention::{self, Attention, Extra};
use crate::conv::{Conv, ConvBackward};
use crate::depthwise::{Depthwise, Rows};
use crate::excite::{self, Behind};
use crate::gemm::{self, Activate, Add, Masked, Matrix, Multiply, Plain, Residual, Rounded, Store};
use crate::patches::{self, Grid};
use crate::stem::ImageConv;
use crate::{Isa, Operand, SharedTiles, Tiles, bf16, norm};

/// Never called.
pub fn mentioned() {
    mention::<f32>();
    mention::<bf16>();
}

#[inline(always)]
fn mention<T: Operand>() {
    macro_rules! products {
        ($(($rows:ty, $epilogue:ty)),* $(,)?) => {$(
            black_box(gemm::run::<T, $rows, $epilogue> as fn(Isa, &_, &_, &_));
        )*};
    }
    products!(
        (Tiles<T>, Store<'_, Plain<'_>>),
        (Tiles<T>, Store<'_, SharedTiles<'_, T>>),
        (Tiles<T>, Activate<'_, T>),
        (Tiles<T>, Multiply<'_, T>),
        (Tiles<T>, Residual<'_>),
        (Rounded<'_>, Store<'_, Plain<'_>>),
        (Rounded<'_>, Store<'_, SharedTiles<'_, T>>),
        (Rounded<'_>, Activate<'_, T>),
        (Rounded<'_>, Multiply<'_, T>),
    );
    macro_rules! convolutions {
        ($($epilogue:ty),* $(,)?) => {$(
            black_box(Conv::<T>::run::<$epilogue> as fn(&_, Isa, &_, usize, [usize; 2], &_));
        )*};
    }
    convolutions!(Store<'_, Plain<'_>>, Activate<'_, T>, Residual<'_>);
    macro_rules! gradients {
        ($($epilogue:ty),* $(,)?) => {$(
            black_box(ConvBackward::<T>::run::<$epilogue> as fn(&_, Isa, &_, usize, [usize; 2], bool, &_));
        )*};
    }
    gradients!(Store<'_, Plain<'_>>, Multiply<'_, T>, Masked<'_>, Add<'_>);
    macro_rules! depthwise {
        ($(($run:ident, $pixels:ty, $epilogue:ty)),* $(,)?) => {$(
            black_box(Depthwise::$run::<$pixels, $epilogue> as fn(&_, Isa, &_, usize, [usize; 2], &_));
        )*};
    }
    depthwise!(
        (run, Rows<'_>, Store<'_, Plain<'_>>),
        (run, Rows<'_>, Store<'_, SharedTiles<'_, T>>),
        (run, Rows<'_>, Activate<'_, T>),
        (run, Tiles<T>, Store<'_, SharedTiles<'_, T>>),
        (run, Tiles<T>, Activate<'_, T>),
        (backward, Rows<'_>, Store<'_, Plain<'_>>),
        (backward, Rows<'_>, Residual<'_>),
        (backward, Tiles<T>, Multiply<'_, T>),
        (backward, Tiles<T>, Add<'_>),
        (backward, Tiles<T>, Residual<'_>),
    );
    black_box(attention::forward::<T> as fn(Isa, Attention<'_>, &_, Option<&Extra<'_, T>>, &mut _));
    black_box(
        attention::backward::<T>
            as fn(Isa, Attention<'_>, &_, Option<(&Extra<'_, T>, &mut [f32])>, &_, &mut _),
    );
    black_box(excite::sums::<T> as fn(Isa, &_, Option<Behind<'_, T>>, &mut [f32]));
    black_box(excite::scale::<T> as fn(Isa, &_, &[f32], &[f32], Option<Behind<'_, T>>, &mut _));
    black_box(norm::forward::<T> as fn(Isa, &[f32], &[f32], f32, &mut _, &mut [f32]));
    black_box(
        norm::channels::<T> as fn(Isa, &[f32], [&[f32]; 2], f32, Option<&mut _>, &mut [f32], &mut [f32]),
    );
    black_box(norm::backward::<T> as fn(Isa, &_, &[f32], &[f32], &[f32], &mut [f32]));
    black_box(norm::channels_backward::<T> as fn(Isa, &_, &[f32], &[f32], &[f32], &mut [f32]));
    black_box(patches::embed::<T> as fn(Isa, Grid, &[f32], &[f32], &Matrix<T>, &[f32], &mut [f32]));
    black_box(patches::embed_backward::<T> as fn(Isa, Grid, &[f32], &Matrix<T>, &mut [f32]));
    black_box(Tiles::<T>::rounded as fn(Isa, &[f32], &[f32], &[u16], usize) -> _);
    black_box(ImageConv::<T>::new as fn(_, &[f32]) -> _);
    black_box(
        ImageConv::<T>::forward as fn(&_, Isa, &[f32], [usize; 3], &[f32], &[f32], bool, &mut [f32]) -> _,
    );
    black_box(ImageConv::<T>::backward as fn(&_, Isa, &_, &[f32], [usize; 3], &mut [f32]));
}
