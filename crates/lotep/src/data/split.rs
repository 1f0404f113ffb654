//! Random choices about a data set, each a function of its seed alone.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::dataset::{Dataset, Sample};

/// Streams of the generator. Epochs use the small numbers, so that a split never shares an epoch's numbers.
const HELD_OUT: u64 = u64::MAX;
const SUBSET: u64 = u64::MAX - 1;

/// Shuffle in place (Fisher-Yates). Written out, on a generator whose output is fixed by its specification, because
/// a library's shuffle may change with its version and a run could then not be resumed or repeated.
pub(super) fn shuffle<T>(items: &mut [T], seed: u64, stream: u64) {
    shuffle_with(items, &mut generator(seed, stream));
}

fn generator(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}

fn shuffle_with<T>(items: &mut [T], rng: &mut ChaCha8Rng) {
    for last in (1..items.len()).rev() {
        items.swap(last, draw(rng, last + 1));
    }
}

/// A number below `n`.
fn draw(rng: &mut ChaCha8Rng, n: usize) -> usize {
    // The high half of a 128-bit product: uniform up to a bias below 2^-30 for any data set.
    ((u128::from(rng.next_u64()) * n as u128) >> 64) as usize
}

/// Shuffle what is best read from front to back, as webdataset does: the groups come in a random order, and each
/// item is drawn from a window of those that come next.
pub(super) fn shuffle_window(
    mut groups: Vec<Vec<usize>>,
    window: usize,
    seed: u64,
    stream: u64,
) -> Vec<usize> {
    let mut rng = generator(seed, stream);
    shuffle_with(&mut groups, &mut rng);
    let mut coming = groups.into_iter().flatten();
    let mut open: Vec<usize> = coming.by_ref().take(window).collect();
    let mut order = Vec::new();
    for next in coming {
        let place = draw(&mut rng, open.len());
        order.push(std::mem::replace(&mut open[place], next));
    }
    shuffle_with(&mut open, &mut rng);
    order.append(&mut open);
    order
}

/// Hold part of every class out: returns what is kept and what is held out, each in the original order.
///
/// Of a class with `n` images `round(fraction * n)` are held out, at least one if it has two or more and the
/// fraction is above 0, and never all.
pub fn stratified_split(data: &Dataset, fraction: f64, seed: u64) -> (Dataset, Dataset) {
    let mut held_out = vec![false; data.samples.len()];
    if fraction > 0.0 {
        for members in shuffled_classes(data, seed, HELD_OUT) {
            let n = members.len();
            let wanted = ((fraction * n as f64).round() as usize).max(1);
            for &index in &members[..wanted.min(n.saturating_sub(1))] {
                held_out[index] = true;
            }
        }
    }
    let part = |side: bool| with(data, |index| held_out[index] == side);
    (part(false), part(true))
}

/// Keep about `total` images, in the original order. Each class keeps its share, but at least one image.
pub fn subset(data: &Dataset, total: usize, seed: u64) -> Dataset {
    let share = total as f64 / data.samples.len().max(1) as f64;
    let mut keep = vec![false; data.samples.len()];
    for members in shuffled_classes(data, seed, SUBSET) {
        let wanted = ((share * members.len() as f64).round() as usize).max(1);
        for &index in members.iter().take(wanted) {
            keep[index] = true;
        }
    }
    with(data, |index| keep[index])
}

/// The indices of each class's images, shuffled. One shuffle of all of them serves every class, so that a class's
/// choice needs no generator of its own.
pub(super) fn shuffled_classes(data: &Dataset, seed: u64, stream: u64) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..data.samples.len()).collect();
    shuffle(&mut order, seed, stream);
    let mut members = vec![Vec::new(); data.classes.len()];
    for index in order {
        if let Some(class) = members.get_mut(data.samples[index].label) {
            class.push(index);
        }
    }
    members
}

/// The samples whose index is to be kept, in their order.
pub(super) fn with(data: &Dataset, keep: impl Fn(usize) -> bool) -> Dataset {
    let kept = |(index, sample): (usize, &Sample)| keep(index).then(|| sample.clone());
    data.with_samples(data.samples.iter().enumerate().filter_map(kept).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::dataset::Source;

    fn data(sizes: &[usize]) -> Dataset {
        let sample =
            |label: usize, i: usize| Sample { source: Source::File(format!("{label}/{i}").into()), label };
        let samples = sizes.iter().enumerate().flat_map(|(c, &n)| (0..n).map(move |i| sample(c, i)));
        let classes = (0..sizes.len()).map(|c| c.to_string()).collect();
        Dataset::new("d".into(), classes, samples.collect())
    }

    fn counts(data: &Dataset) -> Vec<usize> {
        let mut counts = vec![0; data.classes.len()];
        data.samples.iter().for_each(|s| counts[s.label] += 1);
        counts
    }

    fn names(data: &Dataset) -> Vec<String> {
        data.samples.iter().map(Sample::name).collect()
    }

    #[test]
    fn every_class_gives_its_share() {
        let data = data(&[100, 10, 3, 2, 1]);
        let (kept, held) = stratified_split(&data, 0.2, 7);
        assert_eq!(counts(&held), [20, 2, 1, 1, 0]);
        assert_eq!(counts(&kept), [80, 8, 2, 1, 1]);
        let mut both = [names(&kept), names(&held)].concat();
        both.sort();
        let mut all = names(&data);
        all.sort();
        assert_eq!(both, all, "every image is on exactly one side");
        // Never all of a class, nothing for a fraction of 0.
        assert_eq!(counts(&stratified_split(&data, 1.0, 7).0), [1; 5]);
        assert_eq!(counts(&stratified_split(&data, 0.001, 7).1), [1, 1, 1, 1, 0]);
        for none in [0.0, -1.0, f64::NAN] {
            assert!(stratified_split(&data, none, 7).1.samples.is_empty());
        }
    }

    #[test]
    fn the_seed_decides_and_order_is_kept() {
        let data = data(&[50, 50]);
        let held = |seed| names(&stratified_split(&data, 0.3, seed).1);
        assert_eq!(held(1), held(1));
        assert_ne!(held(1), held(2));
        let position = |name: &String| names(&data).iter().position(|n| n == name).unwrap();
        assert!(held(1).iter().map(position).is_sorted());
        // A choice, not a prefix.
        assert_ne!(held(1)[..15], names(&data)[..15]);
    }

    #[test]
    fn a_subset_keeps_shares() {
        let data = data(&[600, 300, 100, 1]);
        assert_eq!(counts(&subset(&data, 100, 3)), [60, 30, 10, 1]);
        assert_eq!(counts(&subset(&data, 0, 3)), [1; 4]);
        assert_eq!(counts(&subset(&data, 99_999, 3)), counts(&data));
        assert_eq!(names(&subset(&data, 100, 3)), names(&subset(&data, 100, 3)));
        assert_ne!(names(&subset(&data, 100, 3)), names(&subset(&data, 100, 4)));
    }

    #[test]
    fn a_window_shuffles_without_going_far() {
        let groups: Vec<Vec<usize>> = (0..20).map(|g| (g * 100..(g + 1) * 100).collect()).collect();
        let order = |window, epoch| shuffle_window(groups.clone(), window, 3, epoch);
        let of = |items: &[usize]| items.iter().map(|i| i / 100).collect::<std::collections::BTreeSet<_>>();
        assert_eq!(order(150, 1), order(150, 1));
        assert_ne!(order(150, 1), order(150, 2));
        let mut all = order(150, 1);
        all.sort_unstable();
        assert!(all.into_iter().eq(0..2000), "every item once");
        // Groups come in another order, and the first items are of the first few of them alone.
        assert!(of(&order(150, 1)[..10]).len() <= 2 && of(&order(150, 1)[..200]).len() <= 4);
        assert_ne!(of(&order(1, 1)[..300]), (0..3).collect());
        assert!(!order(150, 1)[..50].is_sorted());
        // A window that holds all is a whole shuffle.
        assert!(of(&order(9999, 1)[..40]).len() > 10);
        assert!(shuffle_window(vec![], 5, 0, 0).is_empty());
    }

    #[test]
    fn the_shuffle_is_pinned() {
        // A change here means that no earlier run can be resumed or repeated.
        let order = |seed, stream| {
            let mut items: Vec<u32> = (0..10).collect();
            shuffle(&mut items, seed, stream);
            items
        };
        assert_eq!(order(0, 0), [6, 1, 8, 3, 2, 9, 0, 5, 4, 7]);
        assert_ne!(order(0, 0), order(0, 1));
        assert_ne!(order(0, 0), order(1, 0));
        let mut firsts = [0; 10];
        (0..10_000).for_each(|stream| firsts[order(5, stream)[0] as usize] += 1);
        assert!(firsts.iter().all(|&n| (850..1150).contains(&n)), "{firsts:?}");
    }
}
