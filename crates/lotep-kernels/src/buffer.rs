//! Intermediate results in f32.

use std::ops::{Deref, DerefMut};

use crate::memory::uncleared;

/// Values that are arbitrary until they are written, so that nobody spends time on clearing what is overwritten whole.
#[derive(Debug)]
pub struct Buffer(Vec<f32>);

impl Buffer {
    /// So many values.
    pub fn new(len: usize) -> Self {
        Self(uncleared(len))
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.0
    }
}
