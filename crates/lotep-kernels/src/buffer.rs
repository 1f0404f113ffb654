//! Intermediate results in f32.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

/// Values whose memory served another buffer before: arbitrary until they are written, so that nobody spends time on
/// clearing what is overwritten whole.
#[derive(Debug)]
pub struct Buffer(Vec<f32>);

/// Memory of dropped buffers; a step has a few at once.
static FREE: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());
const REMEMBERED: usize = 8;

impl Buffer {
    /// So many values.
    pub fn new(len: usize) -> Self {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let found = free.iter().rposition(|v| v.len() == len).map(|i| free.swap_remove(i));
        drop(free);
        Self(found.unwrap_or_else(|| vec![0.0; len]))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() >= REMEMBERED {
            free.remove(0);
        }
        free.push(std::mem::take(&mut self.0));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_have_the_length_asked_for() {
        for len in [3, 0, 3, 7, 3] {
            let mut buffer = Buffer::new(len);
            assert_eq!(buffer.len(), len);
            buffer.fill(1.0);
        }
    }
}
