//! One sample's values, added to those of every sample.

/// Values that begin anew after the last: a prompt, which each sample of a batch gets added.
///
/// Where in it an element of the batch falls is asked for every row and panel of a product, so it is found by a
/// multiplication, not by a division.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Repeated<'a> {
    values: &'a [f32],
    /// `⌈2⁶⁴ / length⌉`, a bit too large by less than `length / 2⁶⁴`: for elements and lengths below 2³² the quotient's
    /// error stays under one length's share, so that it is rounded down to the right number.
    inverse: u64,
}

impl<'a> Repeated<'a> {
    /// Of no values, where nothing is to be added.
    pub(crate) const NONE: Self = Self { values: &[], inverse: 0 };

    /// Repeat rows of `columns` values, if there are any.
    ///
    /// # Panics
    /// They are not whole rows, or 2³² values.
    pub(crate) fn rows(values: &'a [f32], columns: usize) -> Self {
        assert!(values.len().is_multiple_of(columns.max(1)), "{} values in rows of {columns}", values.len());
        assert!(u32::try_from(values.len()).is_ok(), "a sample of {} values", values.len());
        let inverse = u64::MAX.checked_div(values.len() as u64).map_or(0, |q| q.wrapping_add(1));
        Self { values, inverse }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    pub(crate) fn values(&self) -> &'a [f32] {
        self.values
    }

    /// Panic unless all elements of a batch of so many are found.
    pub(crate) fn check(&self, batch: usize) {
        assert!(self.is_empty() || u32::try_from(batch).is_ok(), "a batch of {batch} values");
    }

    /// The index of what is added to element `at` of the batch: `at mod length`.
    #[inline(always)]
    pub(crate) fn index(&self, at: usize) -> usize {
        let length = self.values.len();
        // 2⁶⁴ / 1 has no room.
        if length == 1 {
            return 0;
        }
        let quotient = (at as u128 * u128::from(self.inverse)) >> 64;
        at - quotient as usize * length
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_index_is_the_remainder(length in 1_usize..1 << 20, at in 0..u32::MAX as usize) {
            let values = vec![0.0; length];
            prop_assert_eq!(Repeated::rows(&values, 1).index(at), at % length);
        }
    }

    #[test]
    fn the_ends_of_samples_are_exact() {
        for length in [1, 2, 3, 5, 802_816, 1 << 20, (1 << 20) - 1] {
            let values = vec![0.0; length];
            let repeated = Repeated::rows(&values, 1);
            for sample in [1, 2, 7, u32::MAX as usize / length] {
                for at in [sample * length - 1, sample * length, (sample * length + 1).min(u32::MAX as usize)]
                {
                    assert_eq!(repeated.index(at), at % length, "{at} in samples of {length}");
                }
            }
        }
    }
}
