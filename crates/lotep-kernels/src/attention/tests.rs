use super::*;
use crate::testing::{Sweep, assert_close, operands, sweep, values, wide};

/// Output, gradient of `qkv` and that of the extra keys and values `[B, 2, M, C]`, in f64.
fn reference(sizes: &Attention<'_>, qkv: &[f64], extra: [&[f64]; 2], grad: &[f64]) -> [Vec<f64>; 3] {
    let (n, d, channels) = (sizes.tokens, sizes.width, sizes.channels());
    let m = n + extra[0].len() / channels;
    let asks = sizes.queries;
    let mut out = vec![0.0; grad.len()];
    let mut back = vec![0.0; qkv.len()];
    let mut extra_back = vec![0.0; sizes.batch * 2 * extra[0].len()];
    let scale = (d as f64).sqrt().recip();
    for (sample, head) in (0..sizes.batch * sizes.heads).map(|i| (i / sizes.heads, i % sizes.heads)) {
        let at = |token: usize, part| (sample * n + token) * 3 * channels + sizes.column(head, part);
        let beyond = |key: usize| (key - n) * channels + sizes.column(head, 0);
        // Part 1 keys, part 2 values.
        let row = |key: usize, part: usize| {
            let (from, all) = if key < n { (at(key, part), qkv) } else { (beyond(key), extra[part - 1]) };
            &all[from..from + d]
        };
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        for q in 0..asks {
            let windows = (sizes.mask.len() / (n * n)).max(1);
            let entry = |table: &[f32], of: usize, k: usize| {
                if k < n && !table.is_empty() { f64::from(table[(of * n + q) * n + k]) } else { 0.0 }
            };
            let added = |k: usize| entry(sizes.bias, head, k) + entry(sizes.mask, sample % windows, k);
            let query = &qkv[at(q, 0)..at(q, 0) + d];
            let scores: Vec<f64> = (0..m).map(|k| dot(query, row(k, 1)) * scale + added(k)).collect();
            let largest = scores.iter().fold(f64::MIN, |m, v| m.max(*v));
            let total: f64 = scores.iter().map(|v| (v - largest).exp()).sum();
            let o = (sample * asks + q) * channels + sizes.column(head, 0);
            let g = &grad[o..o + d];
            let weights: Vec<f64> = scores.iter().map(|v| (v - largest).exp() / total).collect();
            let delta: f64 = (0..m).map(|k| weights[k] * dot(g, row(k, 2))).sum();
            for (k, weight) in weights.iter().enumerate() {
                let ds = scale * weight * (dot(g, row(k, 2)) - delta);
                for i in 0..d {
                    out[o + i] += weight * row(k, 2)[i];
                    back[at(q, 0) + i] += ds * row(k, 1)[i];
                    let gradients = [ds * query[i], weight * g[i]];
                    for (kind, v) in gradients.into_iter().enumerate() {
                        if k < n {
                            back[at(k, 1 + kind) + i] += v;
                        } else {
                            let part = (sample * 2 + kind) * (m - n) * channels;
                            extra_back[part + beyond(k) + i] += v;
                        }
                    }
                }
            }
        }
    }
    [out, back, extra_back]
}

struct Heads {
    /// Batch, tokens, heads, width.
    sizes: [usize; 4],
    windows: usize,
    extra: usize,
    /// At most.
    queries: usize,
}

impl Sweep for Heads {
    fn check<T: Operand>(&self, isa: Isa, rounding: f64) {
        let [batch, tokens, heads, width] = self.sizes;
        let what = format!("{isa:?} {:?}, {} extra, {} ask", self.sizes, self.extra, self.queries);
        let square = tokens * tokens;
        let (bias, mask) = if self.windows > 0 {
            let mut mask = values(self.windows * square, 3);
            // Shifted windows forbid pairs by -100.
            mask.iter_mut().step_by(3).for_each(|v| *v = -100.0);
            (values(heads * square, 2), mask)
        } else {
            (Vec::new(), Vec::new())
        };
        let queries = self.queries.min(tokens);
        let sizes =
            Attention { batch, tokens, queries, heads, width, bias: &bias, mask: &mask, places: None };
        let (rows, channels) = (batch * tokens, heads * width);
        let double =
            |count, seed| -> Vec<T> { values(count, seed).iter().map(|v| T::from_f32(2.0 * v)).collect() };
        let qkv = double(3 * rows * channels, 1);
        let (keys, values) = (double(self.extra * channels, 7), double(self.extra * channels, 8));
        let grad = operands::<T>(batch * queries * channels, 5);
        let [expected, expected_back, expected_extra] =
            reference(&sizes, &wide(&qkv), [&wide(&keys), &wide(&values)], &wide(&grad));
        let (keys, values) = (Tiles::from_rows(&keys, channels), Tiles::from_rows(&values, channels));
        let extra = (self.extra > 0).then_some(Extra { keys: &keys, values: &values });
        let (qkv, grad) = (Tiles::from_rows(&qkv, 3 * channels), Tiles::from_rows(&grad, channels));
        let mut out = Tiles::new(batch * queries, channels);
        forward(isa, sizes, &qkv, extra.as_ref(), &mut out);
        assert_close(&out.to_rows(), &expected, 2.0 * rounding, &what);
        let mut back = Tiles::new(rows, 3 * channels);
        let mut extra_back = vec![9.0_f32; batch * 2 * self.extra * channels];
        let with = extra.as_ref().map(|extra| (extra, extra_back.as_mut_slice()));
        backward(isa, sizes, &qkv, with, &grad, &mut back);
        assert_close(&back.to_rows(), &expected_back, 3.0 * rounding, &what);
        assert_close(&extra_back, &expected_extra, 3.0 * rounding, &what);
    }
}

#[test]
fn heads_of_any_size_agree_with_f64() {
    // Miri, which interprets, gets the small ones and one that is longer than a tile.
    let interpreted: &[_] = &[[1, 1, 1, 1], [2, 5, 1, 4], [1, 33, 1, 4], [0, 7, 2, 8]];
    let all: &[_] = &[[1, 1, 1, 1], [2, 5, 3, 4], [1, 33, 2, 32], [2, 49, 1, 40], [0, 7, 2, 8]];
    for &sizes in if cfg!(miri) { interpreted } else { all } {
        for (windows, extra, queries) in
            [(0, 0, 99), (2, 0, 99), (0, 3, 99), (2, 30, 99), (0, 1, 1), (2, 0, 34)]
        {
            sweep(&Heads { sizes, windows, extra, queries });
        }
    }
}

/// More queries than the backward pass holds at once.
#[test]
#[cfg_attr(miri, ignore = "too long")]
fn many_tokens_agree_with_f64() {
    sweep(&Heads { sizes: [1, 197, 2, 64], windows: 0, extra: 5, queries: 197 });
    sweep(&Heads { sizes: [1, 300, 1, 16], windows: 1, extra: 0, queries: 290 });
}

/// Windows that find their tokens in larger samples give what they give one after another; padding is a token whose
/// projection is given and whose gradient nobody asks for.
struct Windowed {
    size: [usize; 2],
    window: [usize; 2],
    shift: usize,
}

impl Sweep for Windowed {
    fn check<T: Operand>(&self, isa: Isa, rounding: f64) {
        let ([height, width], [wh, ww]) = (self.size, self.window);
        let what = format!("{isa:?} {:?} in {:?}", self.size, self.window);
        let (rows, tokens) = (height * width, wh * ww);
        let mut places = Vec::new();
        for top in (0..height).step_by(wh) {
            for left in (0..width).step_by(ww) {
                for (y, x) in (0..tokens).map(|i| (top + i / ww, left + i % ww)) {
                    let inside = y < height && x < width;
                    let at = (y + self.shift) % height * width + (x + self.shift) % width;
                    places.push(if inside { at as u32 } else { rows as u32 });
                }
            }
        }
        let (images, heads, width) = (2, 2, 8);
        let (windows, channels) = (places.len() / tokens, heads * width);
        let bias = values(heads * tokens * tokens, 2);
        let mask = values(windows * tokens * tokens, 3);
        let padded = places.contains(&(rows as u32));
        let all = images * rows + usize::from(padded);
        let qkv = operands::<T>(all * 3 * channels, 1);
        let grad = operands::<T>(images * rows * channels, 5);
        // The same, window after window.
        let place = |i: usize| {
            let (image, place) = (i / places.len(), places[i % places.len()] as usize);
            (place < rows).then_some(image * rows + place)
        };
        let count = images * places.len();
        let gather = |x: &[T], width: usize, padding: Option<usize>| -> Vec<f64> {
            let row = |i| match place(i).or(padding) {
                Some(row) => wide(&x[row * width..(row + 1) * width]),
                None => vec![0.0; width],
            };
            (0..count).flat_map(row).collect()
        };
        let plain = Attention {
            bias: &bias,
            mask: &mask,
            ..Attention::plain(images * windows, tokens, heads, width)
        };
        let straight = gather(&qkv, 3 * channels, Some(images * rows));
        let [out, back, _] = reference(&plain, &straight, [&[], &[]], &gather(&grad, channels, None));
        let scatter = |x: &[f64], width: usize| {
            let mut to = vec![0.0; images * rows * width];
            for i in 0..count {
                if let Some(row) = place(i) {
                    to[row * width..(row + 1) * width].copy_from_slice(&x[i * width..(i + 1) * width]);
                }
            }
            to
        };
        let sizes = Attention { places: Some(Places { of: &places, rows }), ..plain };
        let (qkv, grad) = (Tiles::from_rows(&qkv, 3 * channels), Tiles::from_rows(&grad, channels));
        let mut found = Tiles::new(images * rows, channels);
        forward(isa, sizes, &qkv, None, &mut found);
        assert_close(&found.to_rows(), &scatter(&out, channels), 2.0 * rounding, &what);
        let mut found = Tiles::new(images * rows, 3 * channels);
        backward(isa, sizes, &qkv, None, &grad, &mut found);
        assert_close(&found.to_rows(), &scatter(&back, 3 * channels), 3.0 * rounding, &what);
    }
}

#[test]
fn windows_agree_with_f64() {
    for (size, window, shift) in
        [([4, 6], [2, 3], 0), ([7, 7], [7, 7], 3), ([5, 7], [4, 3], 1), ([1, 1], [2, 2], 0)]
    {
        if cfg!(miri) && size == [7, 7] {
            continue;
        }
        sweep(&Windowed { size, window, shift });
    }
}
