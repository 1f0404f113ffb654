//! How fast each kernel is, and what share that is of this machine's multipliers (`lotep_kernels::peak`).
//!
//! `cargo bench -p lotep-kernels [-- FILTER]`. Elements are floating-point operations; for norms, which do eight or so
//! a value, the memory is the limit. A shared machine changes its speed from minute to minute: the multipliers are
//! measured before every sample of a kernel, and the median of the ratios is printed.
#![allow(missing_docs)]

use std::time::Instant;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use lotep_kernels::attention::{self, Attention, Places};
use lotep_kernels::conv::{self, Conv};
use lotep_kernels::depthwise::{self, Depthwise, Rows};
use lotep_kernels::gemm::{self, Activate, Activation, Matrix, Residual, Rounded, Store};
use lotep_kernels::stem::{self, ImageConv};
use lotep_kernels::{Isa, Operand, Tiles, bf16, norm, peak};

#[global_allocator]
static MEMORY: lotep_kernels::memory::LargePages = lotep_kernels::memory::LargePages::new();

const IMAGES: usize = 8;

fn isa() -> Isa {
    Isa::from_environment().expect("an instruction set")
}

/// Values that are neither all the same nor tiny.
fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i % 13) as f32 / 13.0 - 0.4).collect()
}

fn tiles<T: Operand>(rows: usize, columns: usize) -> Tiles<T> {
    Tiles::rounded(isa(), &values(rows * columns), &[], &[], columns)
}

/// Measure a kernel that multiplies operands `T`.
fn share<T: Operand>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    operations: f64,
    mut run: impl FnMut(),
) {
    let mut shares = Vec::new();
    group.throughput(Throughput::Elements(operations as u64));
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|iterations| {
            // Milliseconds, beside which waking the threads is nothing.
            let peak = peak::rate::<T>(isa(), if T::GROUP == 2 { 100_000 } else { 1_000_000 });
            let start = Instant::now();
            for _ in 0..iterations {
                run();
            }
            let time = start.elapsed();
            shares.push(operations * iterations as f64 / time.as_secs_f64() / peak);
            time
        });
    });
    shares.sort_by(f64::total_cmp);
    if let Some(median) = shares.get(shares.len() / 2) {
        println!("{:24}{:.1} % of {} peak\n", "", median * 100.0, std::any::type_name::<T>());
    }
}

fn products(c: &mut Criterion) {
    let mut group = c.benchmark_group("product");
    let rows = IMAGES * 197;
    for (k, n) in [(768, 768), (768, 3072), (3072, 768), (576, 64), (64, 256)] {
        let operations = 2.0 * (rows * k * n) as f64;
        let (bias, residual) = (values(n), values(rows * n));
        let mut out = vec![0.0_f32; rows * n];
        let at = |k: usize, n: usize| ((k * 7 + n) % 13) as f32 / 13.0 - 0.4;
        let (a, w) = (tiles(rows, k), Matrix::<bf16>::pack(k, n, at));
        let (mut half, mut before) = (Tiles::<bf16>::new(rows, n), Tiles::<bf16>::new(rows, n));
        let size = format!("{rows}x{k}x{n}");
        share::<bf16>(&mut group, &format!("bf16 {size} plain"), operations, || {
            gemm::run(isa(), &a, &w, &Store::tiles(&mut half));
        });
        share::<bf16>(&mut group, &format!("bf16 {size} gelu"), operations, || {
            let epilogue = Activate::new(Activation::Gelu, &bias, &mut half).keep(&mut before);
            gemm::run(isa(), &a, &w, &epilogue);
        });
        share::<bf16>(&mut group, &format!("bf16 {size} residual"), operations, || {
            gemm::run(isa(), &a, &w, &Residual::new(&residual, &[], &bias, &mut out, n));
        });
        let (a, packed, w) = (values(rows * k), tiles::<f32>(rows, k), Matrix::<f32>::pack(k, n, at));
        share::<f32>(&mut group, &format!("f32 {size} plain"), operations, || {
            gemm::run(isa(), &Rounded::new(&a, k), &w, &Store::new(&mut out, n));
        });
        share::<f32>(&mut group, &format!("f32 {size} of tiles"), operations, || {
            gemm::run(isa(), &packed, &w, &Store::new(&mut out, n));
        });
    }
}

fn attentions(c: &mut Criterion) {
    let mut group = c.benchmark_group("attention");
    let (tokens, heads, width) = (197, 12, 64);
    let (rows, channels) = (IMAGES * tokens, heads * width);
    let sizes = Attention::plain(IMAGES, tokens, heads, width);
    let (qkv, grad) = (tiles::<bf16>(rows, 3 * channels), tiles(rows, channels));
    let (mut out, mut back) = (Tiles::new(rows, channels), Tiles::new(rows, 3 * channels));
    let operations = 4.0 * (rows * tokens * channels) as f64;
    share::<bf16>(&mut group, "forward", operations, || {
        attention::forward(isa(), sizes, &qkv, None, &mut out);
    });
    // Five products where the forward pass has two.
    share::<bf16>(&mut group, "backward", 2.5 * operations, || {
        attention::backward(isa(), sizes, &qkv, None, &grad, &mut back);
    });
}

/// The windows of Swin-B's third stage, shifted: 14 × 14 tokens in four windows of 49, with biases and masks.
fn windows(c: &mut Criterion) {
    let mut group = c.benchmark_group("shifted windows");
    let (side, window, heads, width) = (14, 7, 16, 32);
    let (map, tokens) = (side * side, window * window);
    let (count, channels) = (map / tokens, heads * width);
    let place = |i: usize| {
        let (w, t) = (i / tokens, i % tokens);
        let along = |w: usize, t: usize| (w * window + t + window / 2) % side;
        along(w / 2, t / window) * side + along(w % 2, t % window)
    };
    let places: Vec<u32> = (0..map).map(|i| place(i) as u32).collect();
    let bias = values(heads * tokens * tokens);
    // Every other window is in two parts that do not see each other.
    let hidden = |i: usize| i / (tokens * tokens) % 2 == 1 && (i / tokens % window > 3) != (i % window > 3);
    let mask: Vec<f32> = (0..count * tokens * tokens).map(|i| if hidden(i) { -100.0 } else { 0.0 }).collect();
    let rows = IMAGES * map;
    let (qkv, grad) = (tiles::<bf16>(rows, 3 * channels), tiles(rows, channels));
    let (mut out, mut back) = (Tiles::new(rows, channels), Tiles::new(rows, 3 * channels));
    let plain = Attention::plain(IMAGES * count, tokens, heads, width);
    let operations = 4.0 * (rows * tokens * channels) as f64;
    for (name, bias, mask) in [("plain", &[][..], &[][..]), ("biased", &bias, &[]), ("masked", &bias, &mask)]
    {
        let sizes = Attention { bias, mask, places: Some(Places { of: &places, rows: map }), ..plain };
        share::<bf16>(&mut group, &format!("{name} forward"), operations, || {
            attention::forward(isa(), sizes, &qkv, None, &mut out);
        });
        share::<bf16>(&mut group, &format!("{name} backward"), 2.5 * operations, || {
            attention::backward(isa(), sizes, &qkv, None, &grad, &mut back);
        });
    }
}

fn norms(c: &mut Criterion) {
    let mut group = c.benchmark_group("layer norm");
    let (rows, channels) = (IMAGES * 197, 768);
    let (x, mut out) = (values(rows * channels), vec![0.0; rows * channels]);
    let (mut normalised, mut inverse) = (Tiles::<bf16>::new(rows, channels), vec![0.0; rows]);
    let operations = 8.0 * x.len() as f64;
    share::<f32>(&mut group, "forward", operations, || {
        norm::forward(isa(), &x, &[], 1e-6, &mut normalised, &mut inverse);
    });
    share::<f32>(&mut group, "backward", operations, || {
        norm::backward(isa(), &normalised, &inverse, &x, &x, &mut out);
    });
}

/// As shares of what windows would multiply: the quickest form of stride 1 takes fewer products.
fn convolutions(c: &mut Criterion) {
    let mut group = c.benchmark_group("convolution 3x3");
    for (channels, side, stride) in [(64, 56, 1), (128, 56, 2), (256, 14, 1), (512, 7, 1)] {
        let shape = conv::Shape { inputs: channels, outputs: channels, side: 3, stride, padding: 1 };
        let kernel = values(channels * channels * 9);
        let size = [side; 2];
        let pixels = |size: [usize; 2]| IMAGES * size[0] * size[1];
        let outputs = pixels(shape.output(size));
        let (x, grad) = (tiles(pixels(size), channels), tiles(outputs, channels));
        let (mut out, mut back) =
            (Tiles::<bf16>::new(outputs, channels), Tiles::<bf16>::new(pixels(size), channels));
        let operations = 2.0 * (outputs * channels * channels * 9) as f64;
        for (form, pack) in [("windows", Conv::<bf16>::windows as fn(_, _, &_) -> _), ("quickest", Conv::new)]
        {
            let conv = pack(isa(), shape, &kernel);
            let transposed = conv.transposed();
            let name =
                |pass: &str| format!("{channels} channels {side}x{side} stride {stride} {form} {pass}");
            share::<bf16>(&mut group, &name("forward"), operations, || {
                conv.run(isa(), &x, IMAGES, size, &Store::tiles(&mut out));
            });
            share::<bf16>(&mut group, &name("backward"), operations, || {
                transposed.run(isa(), &grad, IMAGES, size, false, &Store::tiles(&mut back));
            });
        }
    }
}

fn depthwise_convolutions(c: &mut Criterion) {
    let mut group = c.benchmark_group("depthwise 7x7");
    for (channels, side) in [(96, 56), (192, 28), (384, 14), (768, 7)] {
        let shape = depthwise::Shape { channels, side: 7, stride: 1, padding: 3 };
        let conv = Depthwise::new(shape, &values(channels * 49));
        let (size, pixels) = ([side; 2], IMAGES * side * side);
        let (x, bias) = (values(pixels * channels), values(channels));
        let (half, mut to_half) = (tiles::<bf16>(pixels, channels), Tiles::<bf16>::new(pixels, channels));
        let mut out = vec![0.0; x.len()];
        let operations = 2.0 * (pixels * channels * 49) as f64;
        let name = |pass: &str| format!("{channels} channels {side}x{side} {pass}");
        share::<f32>(&mut group, &name("rows"), operations, || {
            let rows = Rows::new(&x, channels);
            conv.run(isa(), &rows, IMAGES, size, &Store::new(&mut out, channels).bias(&bias));
        });
        share::<f32>(&mut group, &name("tiles"), operations, || {
            conv.run(isa(), &half, IMAGES, size, &Store::tiles(&mut to_half).bias(&bias));
        });
        share::<f32>(&mut group, &name("backward"), operations, || {
            conv.backward(isa(), &half, IMAGES, size, &Store::new(&mut out, channels));
        });
    }
}

fn stems(c: &mut Criterion) {
    stem_of::<bf16>(c, "bf16");
    stem_of::<f32>(c, "f32");
}

fn stem_of<T: Operand>(c: &mut Criterion, name: &str) {
    let mut group = c.benchmark_group("stem");
    let (shape, side) = (conv::Shape { inputs: 3, outputs: 64, side: 7, stride: 2, padding: 3 }, 224);
    let conv = ImageConv::<T>::new(shape, &values(64 * 3 * 49));
    let (mut images, bias) = (values(IMAGES * 3 * side * side), values(64));
    let output = shape.output([side; 2]);
    let [height, width] = stem::pooled(output);
    let mut pooled = vec![0.0; IMAGES * height * width * 64];
    let operations = 2.0 * (IMAGES * output[0] * output[1] * 64 * 3 * 49) as f64;
    share::<T>(&mut group, &format!("{name} forward"), operations, || {
        conv.forward(isa(), &images, [IMAGES, side, side], &bias, false, &mut pooled);
    });
    let winners = conv.forward(isa(), &images, [IMAGES, side, side], &bias, true, &mut pooled);
    share::<T>(&mut group, &format!("{name} backward"), operations, || {
        conv.backward(isa(), &winners, &pooled, [IMAGES, side, side], &mut images);
    });
}

criterion_group! {
    name = kernels;
    config = Criterion::default().sample_size(20).warm_up_time(std::time::Duration::from_millis(300));
    targets = products, attentions, windows, norms, convolutions, depthwise_convolutions, stems
}
criterion_main!(kernels);
