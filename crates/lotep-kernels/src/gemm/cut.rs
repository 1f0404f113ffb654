//! How a product is shared out among threads.

use std::ops::Range;

use rayon::prelude::*;

/// Bytes of a block's rows to keep in the second-level cache, which `W`'s panels pass through as well.
const BLOCK_BYTES: usize = 1 << 20;
/// Bytes of rows that may stay there if they are all there are: an image's tokens with four times their width.
const WHOLE_BYTES: usize = 3 << 19;

/// A product's rows in blocks of whole pairs of tiles, each with shares of the panels.
pub(crate) struct Cut {
    tiles: usize,
    blocks: usize,
    panels: usize,
    shares: usize,
}

impl Cut {
    /// For the threads that there are: `tiles` of rows, each reading `tile_bytes` (not 0), of which all are `there` or must be
    /// packed first, with `panels`.
    pub(crate) fn new(tiles: usize, tile_bytes: usize, there: bool, panels: usize) -> Self {
        let threads = rayon::current_num_threads();
        let pairs = tiles.div_ceil(2);
        // As large as the cache allows, a multiple of the threads in number where there are enough.
        let mut blocks = pairs.div_ceil((BLOCK_BYTES / 2 / tile_bytes).max(1));
        // Unless panels leave threads idle that rows would not.
        let even =
            panels.is_multiple_of(threads) || panels >= 2 * threads || (pairs < threads && panels > pairs);
        if there && even && tiles * tile_bytes <= WHOLE_BYTES {
            // Few rows: each thread then reads all of them and a part of `W`.
            blocks = 1;
        } else if pairs >= threads {
            blocks = blocks.next_multiple_of(threads).min(pairs);
        }
        // Too few of them: share out the columns as well.
        let shares =
            if blocks.is_multiple_of(threads) { 1 } else { (2 * threads).div_ceil(blocks).min(panels) };
        Self { tiles, blocks, panels, shares }
    }

    /// Shares of the panels.
    pub(crate) fn shares(&self) -> usize {
        self.shares
    }

    /// Run all tasks, given their tiles and panels; a single one on the calling thread.
    pub(crate) fn run(&self, run: impl Fn(Range<usize>, Range<usize>) + Sync) {
        let run = |i: usize| {
            let (tiles, panels) = self.task(i);
            run(tiles, panels);
        };
        if self.tasks() == 1 {
            run(0);
        } else {
            (0..self.tasks()).into_par_iter().with_max_len(1).for_each(run);
        }
    }

    /// Number of tasks.
    fn tasks(&self) -> usize {
        self.blocks * self.shares
    }

    /// Tiles and panels of a task.
    fn task(&self, i: usize) -> (Range<usize>, Range<usize>) {
        let part = |all: usize, i: usize, of: usize| i * all / of..(i + 1) * all / of;
        let pairs = part(self.tiles.div_ceil(2), i / self.shares, self.blocks);
        let tiles = 2 * pairs.start..(2 * pairs.end).min(self.tiles);
        (tiles, part(self.panels, i % self.shares, self.shares))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks differ by a pair of tiles at most, all tiles and panels come once, and no thread is idle while there are rows enough.
    #[test]
    fn tasks_are_of_equal_size_and_miss_nothing() {
        for threads in [1, 2, 3, 7] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for tiles in [1, 2, 3, 25, 99, 1568] {
                for (bytes, there, panels) in [
                    (64, false, 1),
                    (2048, true, 2),
                    (24 << 10, false, 24),
                    (98_304, true, 3),
                    (4 << 20, true, 5),
                ] {
                    let cut = pool.install(|| Cut::new(tiles, bytes, there, panels));
                    let mut seen = vec![0; tiles * panels];
                    let mut sizes = Vec::new();
                    for (rows, columns) in (0..cut.tasks()).map(|i| cut.task(i)) {
                        assert!(rows.start % 2 == 0 && !rows.is_empty() && !columns.is_empty());
                        sizes.push(rows.len().div_ceil(2));
                        for (tile, panel) in rows.flat_map(|t| columns.clone().map(move |p| (t, p))) {
                            seen[tile * panels + panel] += 1;
                        }
                    }
                    let what = format!("{threads} threads, {tiles} tiles of {bytes}, {panels} panels");
                    assert!(seen.iter().all(|seen| *seen == 1), "{what}");
                    let enough = tiles.div_ceil(2) >= threads;
                    assert!(!enough || cut.tasks() >= threads, "{what}: {} tasks", cut.tasks());
                    assert!(
                        sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1,
                        "{what}: {sizes:?}"
                    );
                }
            }
        }
    }
}
