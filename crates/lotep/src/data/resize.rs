//! PIL's image resize, bit for bit.
//!
//! PIL does not convolve in floating point. The filter's weights are normalised in f64 and rounded to 22-bit fixed
//! point, the horizontal pass rounds and clips to a byte, then the vertical pass works on those bytes. The filter is
//! widened by the factor of reduction, so that shrinking is always antialiased. Accuracies in papers were measured
//! with this arithmetic; another resize moves them by tenths of a point.

#![allow(clippy::inline_always)] // a kernel that is not inlined into `dispatch` loses the instructions

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use lotep_kernels::Isa;
use lotep_kernels::simd::{Kernel, LANES, Simd, dispatch};
use serde::{Deserialize, Serialize};

use super::decode::Rgb8;
use crate::{Error, Result, input_error};

/// PIL's `PRECISION_BITS`: 32 bits less 8 for the pixel and 2 for the overshoot of the filters.
const BITS: u32 = 22;
/// Rounds to nearest when the shift drops the fraction.
const HALF: i32 = 1 << (BITS - 1);

/// Bytes that are weighted together.
type Bytes = [u8; LANES];

/// Bytes of a row that are turned at a time: sixteen numbers of four.
const STRETCH: usize = 4 * LANES;

/// The filter of a resize.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// Triangle, support 1 (`PIL.Image.BILINEAR`).
    #[default]
    Bilinear,
    /// Cubic with a = -0.5, support 2 (`PIL.Image.BICUBIC`).
    Bicubic,
}

impl FromStr for Interpolation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "bilinear" => Ok(Self::Bilinear),
            "bicubic" => Ok(Self::Bicubic),
            other => Err(input_error!("interpolation '{other}' is not known: use bilinear or bicubic")),
        }
    }
}

impl fmt::Display for Interpolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bilinear => "bilinear",
            Self::Bicubic => "bicubic",
        })
    }
}

impl Interpolation {
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    /// Evaluate the filter. The order of the operations is PIL's: another would round differently.
    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Self::Bilinear if x < 1.0 => 1.0 - x,
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            _ => 0.0,
        }
    }
}

/// A rectangle of the resized image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    pub(crate) x: usize,
    pub(crate) y: usize,
    pub(crate) width: usize,
    pub(crate) height: usize,
}

/// Resize to `width` by `height`.
pub fn resize(source: &Rgb8, width: usize, height: usize, interpolation: Interpolation) -> Rgb8 {
    resize_region(source, (width, height), Region { x: 0, y: 0, width, height }, interpolation)
}

/// Resize to `full` (width, height) and keep `region` of it, computing no other pixel. A crop after a resize thus
/// costs what it shows, and a very long image does not become a huge one on the way.
pub(crate) fn resize_region(
    source: &Rgb8,
    full: (usize, usize),
    region: Region,
    interpolation: Interpolation,
) -> Rgb8 {
    resize_region_with(Isa::best(), source, full, region, interpolation)
}

fn resize_region_with(
    isa: Isa,
    source: &Rgb8,
    full: (usize, usize),
    region: Region,
    interpolation: Interpolation,
) -> Rgb8 {
    let mut out = Rgb8 { width: region.width, height: region.height, data: Vec::new() };
    if region.width * region.height == 0 || source.width * source.height == 0 {
        return out;
    }
    let columns = Taps::new(source.width, full.0, region.x..region.x + region.width, interpolation);
    let rows = Taps::new(source.height, full.1, region.y..region.y + region.height, interpolation);
    let needed = rows.sources();
    let stride = source.width * 3;
    let from = &source.data[needed.start * stride..needed.end * stride];
    let narrow = if columns.identity {
        let kept = columns.starts[0] * 3..(columns.starts[0] + region.width) * 3;
        from.chunks_exact(stride).flat_map(|row| &row[kept.clone()]).copied().collect()
    } else {
        dispatch(isa, Horizontal { from, stride, taps: &columns })
    };
    out.data = if rows.identity {
        narrow
    } else {
        dispatch(isa, Vertical { from: &narrow, stride: region.width * 3, first: needed.start, taps: &rows })
    };
    out
}

/// For each output position of one axis, where its source begins and the weights from there on.
struct Taps {
    starts: Vec<usize>,
    /// Output `i`'s weights are `weights[ends[i]..ends[i + 1]]`.
    ends: Vec<usize>,
    weights: Vec<i32>,
    /// Whether the axis keeps its length; PIL then does not filter it.
    identity: bool,
}

impl Taps {
    fn new(n_in: usize, n_out: usize, range: Range<usize>, interpolation: Interpolation) -> Self {
        let identity = n_in == n_out;
        let mut taps =
            Self { starts: Vec::with_capacity(range.len()), ends: vec![0], weights: Vec::new(), identity };
        if identity {
            taps.starts.extend(range.clone());
            taps.ends.extend(1..=range.len());
            taps.weights.resize(range.len(), 1 << BITS);
            return taps;
        }
        let scale = n_in as f64 / n_out as f64;
        let widened = scale.max(1.0);
        let support = interpolation.support() * widened;
        let inverse = 1.0 / widened;
        let mut row = Vec::new();
        for position in range {
            let center = (position as f64 + 0.5) * scale;
            // Casts truncate towards zero and clamp negatives, which is what PIL does in two steps.
            let start = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(n_in);
            row.clear();
            row.extend((start..end).map(|x| interpolation.weight((x as f64 - center + 0.5) * inverse)));
            let sum: f64 = row.iter().sum();
            let sum = if sum == 0.0 { 1.0 } else { sum };
            taps.weights.extend(row.iter().map(|w| {
                let scaled = w / sum * f64::from(1 << BITS);
                (scaled + if scaled < 0.0 { -0.5 } else { 0.5 }) as i32
            }));
            taps.starts.push(start);
            taps.ends.push(taps.weights.len());
        }
        taps
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        self.starts
            .iter()
            .zip(self.ends.windows(2))
            .map(|(&start, end)| (start, &self.weights[end[0]..end[1]]))
    }

    /// The source positions that any output needs.
    fn sources(&self) -> Range<usize> {
        let start = self.starts.first().copied().unwrap_or(0);
        start..self.iter().map(|(start, weights)| start + weights.len()).max().unwrap_or(start)
    }
}

#[inline(always)]
fn add(sums: &mut [i32; LANES], weight: i32, bytes: &Bytes) {
    for i in 0..LANES {
        sums[i] += weight * i32::from(bytes[i]);
    }
}

#[inline(always)]
fn to_byte(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

/// The pass along x over all rows of `from`, each of `stride` bytes.
///
/// A pixel's three bytes are too few to vectorise over. So sixteen rows are turned on their side first: then every
/// byte of a row has its neighbours above and below beside it, which are all weighted alike.
struct Horizontal<'a> {
    from: &'a [u8],
    stride: usize,
    taps: &'a Taps,
}

impl Kernel for Horizontal<'_> {
    type Output = Vec<u8>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<u8> {
        let Self { from, stride, taps } = self;
        let width = taps.starts.len() * 3;
        let needed = taps.sources();
        let mut out = vec![0; from.len() / stride * width];
        let padded = |length: usize| vec![[0; LANES]; length.next_multiple_of(STRETCH)];
        let (mut sideways, mut narrow) = (padded(needed.len() * 3), padded(width));
        for (rows, out) in from.chunks(stride * LANES).zip(out.chunks_mut(width * LANES)) {
            lay(s, rows, stride, needed.start * 3..needed.end * 3, &mut sideways);
            for ((start, weights), narrow) in taps.iter().zip(narrow.chunks_exact_mut(3)) {
                let pixels = sideways[(start - needed.start) * 3..].chunks_exact(3);
                let [mut red, mut green, mut blue] = [[HALF; LANES]; 3];
                for (pixel, &weight) in pixels.zip(weights) {
                    add(&mut red, weight, &pixel[0]);
                    add(&mut green, weight, &pixel[1]);
                    add(&mut blue, weight, &pixel[2]);
                }
                for (bytes, sums) in narrow.iter_mut().zip([red, green, blue]) {
                    *bytes = sums.map(to_byte);
                }
            }
            raise(s, &narrow, out, width);
        }
        out
    }
}

/// Turn up to sixteen rows on their side, `range` of their bytes: `sideways[b][r]` becomes byte `b` of row `r`.
#[inline(always)]
fn lay<S: Simd>(s: S, rows: &[u8], stride: usize, range: Range<usize>, sideways: &mut [Bytes]) {
    let (mut numbers, mut turned) = ([[0; LANES]; LANES], [[0; LANES]; LANES]);
    for (start, sideways) in range.clone().step_by(STRETCH).zip(sideways.chunks_exact_mut(STRETCH)) {
        let here = start..range.end.min(start + STRETCH);
        for (row, numbers) in rows.chunks_exact(stride).zip(&mut numbers) {
            // Where there is enough, whatever it is, a copy of fixed length is quicker.
            let bytes = row[start..].first_chunk::<STRETCH>().copied().unwrap_or_else(|| {
                let mut bytes = [0; STRETCH];
                bytes[..here.len()].copy_from_slice(&row[here.clone()]);
                bytes
            });
            *numbers = bytes
                .as_chunks()
                .0
                .try_into()
                .map(|quads: [[u8; 4]; LANES]| quads.map(u32::from_le_bytes))
                .expect("sixteen");
        }
        s.transpose(&numbers, &mut turned);
        for (four, numbers) in sideways.chunks_exact_mut(4).zip(&turned) {
            for (bytes, shift) in four.iter_mut().zip([0, 8, 16, 24]) {
                *bytes = numbers.map(|number| (number >> shift) as u8);
            }
        }
    }
}

/// The reverse: as many rows of `width` bytes as `out` has.
#[inline(always)]
fn raise<S: Simd>(s: S, sideways: &[Bytes], out: &mut [u8], width: usize) {
    let (mut numbers, mut turned) = ([[0; LANES]; LANES], [[0; LANES]; LANES]);
    for (start, sideways) in (0..width).step_by(STRETCH).zip(sideways.chunks_exact(STRETCH)) {
        for (numbers, four) in numbers.iter_mut().zip(sideways.as_chunks::<4>().0) {
            for lane in 0..LANES {
                numbers[lane] =
                    u32::from_le_bytes([four[0][lane], four[1][lane], four[2][lane], four[3][lane]]);
            }
        }
        s.transpose(&numbers, &mut turned);
        let here = start..width.min(start + STRETCH);
        for (row, numbers) in out.chunks_exact_mut(width).zip(&turned) {
            let bytes = numbers.map(u32::to_le_bytes);
            match row[here.clone()].as_chunks_mut::<STRETCH>().0 {
                [whole] => whole.copy_from_slice(bytes.as_flattened()),
                _ => row[here.clone()].copy_from_slice(&bytes.as_flattened()[..here.len()]),
            }
        }
    }
}

/// The pass along y. `from` begins with the source's row `first`; each row is `stride` bytes.
struct Vertical<'a> {
    from: &'a [u8],
    stride: usize,
    first: usize,
    taps: &'a Taps,
}

impl Kernel for Vertical<'_> {
    type Output = Vec<u8>;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Vec<u8> {
        let Self { from, stride, first, taps } = self;
        let mut out = vec![0; taps.starts.len() * stride];
        for (out, (start, weights)) in out.chunks_exact_mut(stride).zip(taps.iter()) {
            let rows = &from[(start - first) * stride..];
            let (spans, rest) = out.as_chunks_mut::<LANES>();
            for (i, span) in spans.iter_mut().enumerate() {
                let mut sums = [HALF; LANES];
                for (row, &weight) in rows.chunks_exact(stride).zip(weights) {
                    add(&mut sums, weight, &row.as_chunks().0[i]);
                }
                *span = sums.map(to_byte);
            }
            let at = stride - rest.len();
            for (i, byte) in rest.iter_mut().enumerate() {
                let column = rows.chunks_exact(stride).map(|row| i32::from(row[at + i]));
                *byte = to_byte(HALF + column.zip(weights).map(|(byte, weight)| byte * weight).sum::<i32>());
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(width: usize, height: usize) -> Rgb8 {
        let mut state = 1_u32;
        let data = (0..width * height * 3)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect();
        Rgb8 { width, height, data }
    }

    /// The specification, one output at a time and nothing shared with the code above but the filter.
    fn slow(source: &Rgb8, width: usize, height: usize, kind: Interpolation) -> Rgb8 {
        let axis = |n_in: usize, n_out: usize, at: usize| -> (usize, Vec<i64>) {
            let scale = n_in as f64 / n_out as f64;
            let wide = scale.max(1.0);
            let (center, support) = ((at as f64 + 0.5) * scale, kind.support() * wide);
            let low = ((center - support + 0.5) as i64).max(0) as usize;
            let high = ((center + support + 0.5) as usize).min(n_in);
            let raw: Vec<f64> =
                (low..high).map(|x| kind.weight((x as f64 - center + 0.5) * (1.0 / wide))).collect();
            let sum: f64 = raw.iter().sum();
            let fixed = |w: &f64| (w / sum * 4_194_304.0 + if *w < 0.0 { -0.5 } else { 0.5 }) as i64;
            (low, raw.iter().map(fixed).collect())
        };
        let round = |sum: i64| ((sum + (1 << 21)) >> 22).clamp(0, 255) as u8;
        let mut middle = Rgb8 { width, height: source.height, data: vec![] };
        for y in 0..source.height {
            for x in 0..width {
                let (low, weights) = axis(source.width, width, x);
                for c in 0..3 {
                    let at = |i: usize| i64::from(source.data[(y * source.width + low + i) * 3 + c]);
                    middle.data.push(round(weights.iter().enumerate().map(|(i, w)| w * at(i)).sum()));
                }
            }
        }
        let mut out = Rgb8 { width, height, data: vec![] };
        for y in 0..height {
            let (low, weights) = axis(source.height, height, y);
            for x in 0..width * 3 {
                let at = |i: usize| i64::from(middle.data[(low + i) * width * 3 + x]);
                out.data.push(round(weights.iter().enumerate().map(|(i, w)| w * at(i)).sum()));
            }
        }
        out
    }

    #[test]
    fn agrees_with_the_definition_at_many_sizes() {
        for source in [noise(23, 17), noise(100, 33)] {
            for kind in [Interpolation::Bilinear, Interpolation::Bicubic] {
                for (w, h) in [(1, 1), (5, 40), (23, 9), (23, 17), (11, 17), (64, 64), (24, 18)] {
                    let want = slow(&source, w, h, kind);
                    for &isa in Isa::available() {
                        let whole = Region { x: 0, y: 0, width: w, height: h };
                        let got = resize_region_with(isa, &source, (w, h), whole, kind);
                        assert_eq!(got, want, "{kind} {w}x{h} {}", isa.name());
                    }
                }
            }
        }
    }

    #[test]
    fn a_region_is_the_crop_of_the_whole() {
        let source = noise(31, 57);
        for (w, h) in [(40, 70), (13, 19), (31, 19), (13, 57), (31, 57)] {
            let whole = resize(&source, w, h, Interpolation::Bicubic);
            let region = Region { x: 3, y: 5, width: 7, height: 11 };
            let got = resize_region(&source, (w, h), region, Interpolation::Bicubic);
            let want: Vec<u8> =
                (5..16).flat_map(|y| whole.data[(y * w + 3) * 3..(y * w + 10) * 3].to_vec()).collect();
            assert_eq!(got.data, want, "{w}x{h}");
        }
    }

    #[test]
    fn extremes_neither_overflow_nor_panic() {
        let checker = Rgb8 { width: 300, height: 1, data: [0, 0, 0, 255, 255, 255].repeat(150) };
        for kind in [Interpolation::Bilinear, Interpolation::Bicubic] {
            for (w, h) in [(1, 1), (299, 3), (1000, 1), (7, 500), (0, 5), (5, 0)] {
                assert_eq!(resize(&checker, w, h, kind).data.len(), w * h * 3);
            }
            let white = Rgb8 { width: 3, height: 2, data: vec![255; 18] };
            assert!(resize(&white, 50, 50, kind).data.iter().all(|&b| b == 255));
        }
    }

    #[test]
    fn names_round_trip() {
        for kind in [Interpolation::Bilinear, Interpolation::Bicubic] {
            assert_eq!(kind.to_string().parse::<Interpolation>().unwrap(), kind);
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{kind}\""));
        }
        let message = "lanczos".parse::<Interpolation>().unwrap_err().to_string();
        assert_eq!(message, "interpolation 'lanczos' is not known: use bilinear or bicubic");
    }
}
