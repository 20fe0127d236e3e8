//! Where a step's time goes, piece by piece, and what the GPU does at most: its products and its memory.

use crate::support::random_weights::random;
use crate::support::watch::Line;
use crate::{Opened, Sort, say};
use candle_core::Result as DeviceResult;
use equipoise::device::Gpu;
use equipoise::device::driver::{Matrix, MatrixProduct, Number};
use equipoise::error::Result;
use half::bf16;
use serde_json::{Map, Value, json};
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Looks into some steps: the pieces of one, as their mean, and its seconds. `f` makes a step and returns its seconds. Only what
/// the GPU does is timed, by moments that the GPU itself notes; nothing waits in between.
pub fn of(
    opened: &Opened,
    (vocabulary, ranks): (usize, usize),
    steps: usize,
    mut f: impl FnMut() -> Result<f64>,
) -> Result<(Vec<Line>, f64)> {
    let book = &opened.book;
    book.vocabulary.store(vocabulary, Ordering::Relaxed);
    book.ranks.store(ranks, Ordering::Relaxed);
    book.set_open(true);
    let mut whole = 0.0;
    for _ in 0..steps {
        whole += f()? / steps as f64;
    }
    book.set_open(false);
    let mut lines = book.take(&opened.gpu.take_marks()?);
    for line in &mut lines {
        line.count /= steps;
        line.seconds /= steps as f64;
        line.work.bytes /= steps as u64;
        line.work.flop /= steps as u64;
    }
    lines.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    Ok((lines, whole))
}

/// Seconds by part, and what is left of a step: the GPU waits then.
pub fn parts(lines: &[Line], step_seconds: f64) -> Value {
    let mut parts: Map<String, Value> = Map::new();
    let mut rest = step_seconds;
    for line in lines {
        let before = parts.get(line.part).and_then(Value::as_f64).unwrap_or(0.0);
        parts.insert(line.part.into(), json!(before + line.seconds));
        rest -= line.seconds;
    }
    parts.insert("between pieces".into(), json!(rest.max(0.0)));
    Value::Object(parts)
}

/// The pieces of a step.
pub fn pieces(lines: &[Line]) -> Vec<Value> {
    let piece = |line: &Line| {
        json!({
            "part": line.part, "piece": line.name, "kind": line.kind.name(), "count": line.count, "seconds": line.seconds,
            "flop": line.work.flop, "bytes": line.work.bytes,
        })
    };
    lines.iter().map(piece).collect()
}

/// What a GPU does at most, as measured here. `None` where it cannot, has no room, or was not asked.
#[derive(Default)]
pub struct Peaks {
    /// Of the largest square product in `bf16` that there is room for: the best of several.
    pub flop_per_second: Option<f64>,
    /// Of a copy within the GPU's memory, bytes read and bytes written: the best of several.
    pub bytes_per_second: Option<f64>,
}

/// Rounds whose best counts.
const ROUNDS: usize = 12;
/// Pieces of work between two waits.
const TOGETHER: usize = 5;

impl Peaks {
    pub fn measure(opened: &Opened) -> Result<Self> {
        let facts = opened.gpu.facts()?;
        let (free, small) = (facts.free as usize, opened.sort != Sort::Real);
        let sizes = if small { &[128][..] } else { &[8192, 4096, 2048] };
        let n = sizes.iter().find(|&&n| 8 * n * n <= free).filter(|_| facts.has_bf16());
        let flop_per_second = n.map(|&n| product_peak(&opened.gpu, n)).transpose()?;
        if let (Some(n), Some(peak)) = (n, flop_per_second) {
            say(&format!("{n} x {n} x {n} in bf16: {:.1} TFLOP/s", peak / 1e12));
        }
        opened.gpu.trim();
        let bytes = if small { 1 << 20 } else { (1 << 30).min(free / 4) };
        let bytes_per_second = copy_peak(&opened.gpu, bytes)?;
        say(&format!("copies within the GPU: {:.0} GB/s", bytes_per_second / 1e9));
        Ok(Self { flop_per_second, bytes_per_second: Some(bytes_per_second) })
    }
}

/// Seconds of a piece of work: the best of several rounds behind one to warm up.
fn best(gpu: &Gpu, mut f: impl FnMut() -> DeviceResult<()>) -> DeviceResult<f64> {
    let mut best = f64::INFINITY;
    for round in 0..=ROUNDS {
        let begun = Instant::now();
        for _ in 0..TOGETHER {
            f()?;
        }
        gpu.synchronize()?;
        if round > 0 {
            best = best.min(begun.elapsed().as_secs_f64() / TOGETHER as f64);
        }
    }
    Ok(best)
}

fn product_peak(gpu: &Gpu, n: usize) -> DeviceResult<f64> {
    let numbers = |seed| random(n * n, seed, 1.0).into_iter().map(bf16::from_f32).collect::<Vec<_>>();
    let (a, b) = (gpu.upload_numbers(&numbers(1))?, gpu.upload_numbers(&numbers(2))?);
    let c = gpu.allocate(2 * n * n)?;
    let [a, b, c_at] = [&a, &b, &c].map(|memory| Matrix {
        address: memory.address(),
        rows: n,
        columns: n,
        stride: n,
        number: Number::Bf16,
    });
    let product = MatrixProduct { a, transpose_a: false, b, transpose_b: true, c: c_at, alpha: 1.0, beta: 0.0 };
    let seconds = best(gpu, || {
        // SAFETY: the matrices are those three buffers.
        #[expect(unsafe_code, reason = "matrices are addresses")]
        unsafe {
            gpu.multiply(&product)
        }
    })?;
    Ok(product.work().flop as f64 / seconds)
}

fn copy_peak(gpu: &Gpu, bytes: usize) -> DeviceResult<f64> {
    let (from, to) = (gpu.zeros(bytes)?, gpu.allocate(bytes)?);
    let seconds = best(gpu, || to.copy_from(0, &from, bytes))?;
    Ok(2.0 * bytes as f64 / seconds)
}
