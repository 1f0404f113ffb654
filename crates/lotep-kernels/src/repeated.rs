//! One sample's values, added to those of every sample.

use crate::gemm::TILE_ROWS;

/// What begins anew after so many steps: a place in a batch becomes one in a sample.
///
/// Where in a sample an element of the batch falls is asked for every row and panel of a product, so it is found by a
/// multiplication, not by a division.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Period {
    length: usize,
    /// `⌈2⁶⁴ / length⌉`, a bit too large by less than `length / 2⁶⁴`: for places and lengths below 2³² the quotient's
    /// error stays under one length's share, so that it is rounded down to the right number.
    inverse: u64,
}

impl Period {
    /// Of `length`; there are no places in one of 0.
    ///
    /// # Panics
    /// It is 2³² or more.
    pub(crate) fn new(length: usize) -> Self {
        assert!(u32::try_from(length).is_ok(), "a sample of {length}");
        let inverse = u64::MAX.checked_div(length as u64).map_or(0, |q| q.wrapping_add(1));
        Self { length, inverse }
    }

    /// Panic unless all of a batch's places are found.
    pub(crate) fn check(&self, batch: usize) {
        assert!(self.length == 0 || u32::try_from(batch).is_ok(), "a batch of {batch}");
    }

    /// `at mod length`.
    #[inline(always)]
    pub(crate) fn index(&self, at: usize) -> usize {
        // 2⁶⁴ / 1 has no room.
        if self.length == 1 {
            return 0;
        }
        let quotient = (at as u128 * u128::from(self.inverse)) >> 64;
        at - quotient as usize * self.length
    }

    /// The same for a row of tiles and a length that is not 0, cheaper where rows of one tile follow each other: only its first is
    /// looked for.
    #[inline(always)]
    pub(crate) fn in_tile(&self, row: usize) -> usize {
        let first = row / TILE_ROWS * TILE_ROWS;
        if self.length.is_multiple_of(TILE_ROWS) {
            // The row within its tile stays visible to the compiler. (Measured on Zen 4: a prompt added to a product of 64 values and
            // 256 columns, eight maps of 56 × 56, costs 0.27 ms instead of 0.39; of 128 and 512, 28 × 28, 0.10 instead of 0.13.)
            return self.index(first) / TILE_ROWS * TILE_ROWS + row % TILE_ROWS;
        }
        let mut at = self.index(first) + (row - first);
        while at >= self.length {
            at -= self.length;
        }
        at
    }
}

/// Values that begin anew after the last: a prompt, which each sample of a batch gets added.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Repeated<'a> {
    values: &'a [f32],
    period: Period,
}

impl<'a> Repeated<'a> {
    /// Of no values, where nothing is to be added.
    pub(crate) const NONE: Self = Self { values: &[], period: Period { length: 0, inverse: 0 } };

    /// Repeat rows of `columns` values, if there are any.
    ///
    /// # Panics
    /// They are not whole rows, or 2³² values.
    pub(crate) fn rows(values: &'a [f32], columns: usize) -> Self {
        assert!(values.len().is_multiple_of(columns.max(1)), "{} values in rows of {columns}", values.len());
        Self { values, period: Period::new(values.len()) }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    pub(crate) fn values(&self) -> &'a [f32] {
        self.values
    }

    /// Panic unless all elements of a batch of so many are found.
    pub(crate) fn check(&self, batch: usize) {
        self.period.check(batch);
    }

    /// The index of what is added to element `at` of the batch.
    #[inline(always)]
    pub(crate) fn index(&self, at: usize) -> usize {
        self.period.index(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_index_is_the_remainder(length in 1_usize..1 << 20, at in 0..u32::MAX as usize) {
            prop_assert_eq!(Period::new(length).index(at), at % length);
            prop_assert_eq!(Period::new(length).in_tile(at), at % length);
        }
    }

    #[test]
    fn the_ends_of_samples_are_exact() {
        for length in [1, 2, 3, 5, 16, 802_816, 1 << 20, (1 << 20) - 1] {
            let period = Period::new(length);
            for sample in [1, 2, 7, u32::MAX as usize / length] {
                for at in [sample * length - 1, sample * length, (sample * length + 1).min(u32::MAX as usize)]
                {
                    assert_eq!(period.index(at), at % length, "{at} in samples of {length}");
                    assert_eq!(period.in_tile(at), at % length, "{at} in samples of {length}");
                }
            }
        }
    }
}
