//! Each kernel's rate as a share of what this machine's multipliers reach when nothing but registers is touched.
//!
//! `cargo bench -p lotep-kernels [-- FILTER]`. Best and median of many short runs, because the machine may be shared.
#![allow(missing_docs)]

use std::time::Instant;

use lotep_kernels::gemm::{self, Activate, Activation, Matrix, Rounded, Store};
use lotep_kernels::{Isa, Tiles, attention, bf16, norm};

#[global_allocator]
static MEMORY: lotep_kernels::memory::LargePages = lotep_kernels::memory::LargePages::new();

fn measure(name: &str, operations: f64, mut run: impl FnMut()) {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    if filter.is_some_and(|f| !name.contains(&f)) {
        return;
    }
    let mut times = Vec::new();
    let begun = Instant::now();
    while times.len() < 5 || begun.elapsed().as_secs_f64() < 1.5 {
        let start = Instant::now();
        run();
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let rate = |t: f64| operations / t / 1e9;
    let median = times[times.len() / 2];
    println!(
        "{name:34} best {:8.0} median {:8.0} GFLOP/s  {:8.3} ms  {:8.3} ms",
        rate(times[0]),
        rate(median),
        times[0] * 1e3,
        median * 1e3
    );
}

fn main() {
    let isa = Isa::from_environment().expect("an instruction set");
    println!("{isa:?}, {} threads", rayon::current_num_threads());
    let rows = 8 * 197;
    for (k, n) in [(768, 768), (768, 2304), (768, 3072), (3072, 768), (576, 64), (64, 256)] {
        let w = Matrix::<bf16>::pack(k, n, |k, n| ((k * 7 + n) % 13) as f32 / 13.0 - 0.4);
        let a = Tiles::from_rows(&vec![bf16::from_f32(0.5); rows * k], k);
        let mut out = vec![0.0_f32; rows * n];
        let flops = 2.0 * (rows * k * n) as f64;
        measure(&format!("bf16 {rows}x{k}x{n}"), flops, || {
            gemm::run(isa, &a, &w, &Store::new(&mut out, n));
        });
        let (mut half, mut before) = (Tiles::<bf16>::new(rows, n), Tiles::<bf16>::new(rows, n));
        let bias = vec![0.1; n];
        measure(&format!("bf16 {rows}x{k}x{n} tiles"), flops, || {
            gemm::run(isa, &a, &w, &Store::tiles(&mut half));
        });
        measure(&format!("bf16 {rows}x{k}x{n} gelu"), flops, || {
            let e = Activate::new(Activation::Gelu, &bias, &mut half).keep(&mut before);
            gemm::run(isa, &a, &w, &e);
        });
        let w = Matrix::<f32>::pack(k, n, |k, n| ((k * 7 + n) % 13) as f32 / 13.0 - 0.4);
        let a = vec![0.5_f32; rows * k];
        measure(&format!("f32 {rows}x{k}x{n}"), flops, || {
            gemm::run(isa, &Rounded::new(&a, k), &w, &Store::new(&mut out, n));
        });
    }
    let sizes = attention::Attention::plain(8, 197, 12, 64);
    let qkv = Tiles::from_rows(&vec![bf16::from_f32(0.5); rows * 3 * 768], 3 * 768);
    let mut out = Tiles::<bf16>::new(rows, 768);
    let mut back = Tiles::new(rows, 3 * 768);
    let flops = 4.0 * f64::from(8 * 12 * 197 * 197 * 64);
    measure("attention forward", flops, || attention::forward(isa, sizes, &qkv, None, &mut out));
    let grad = Tiles::from_rows(&out.to_rows(), 768);
    measure("attention backward", 2.5 * flops, || {
        attention::backward(isa, sizes, &qkv, None, &grad, &mut back)
    });
    let x = vec![0.5_f32; rows * 768];
    let mut normed = Tiles::<bf16>::new(rows, 768);
    let mut inverse = vec![0.0; rows];
    measure("layer norm forward", 0.0, || norm::forward(isa, &x, &[], 1e-6, &mut normed, &mut inverse));
    let mut y = x.clone();
    measure("layer norm backward", 0.0, || norm::backward(isa, &normed, &inverse, &x, &x, &mut y));
}
